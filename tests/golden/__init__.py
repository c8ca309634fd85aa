"""Numbers of ten small networks, stored to tell whether a change of the code changes them."""
