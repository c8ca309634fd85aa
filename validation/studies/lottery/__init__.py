"""Which claims about winning tickets and learning from few neurons hold."""
