"""What every table of the validation shares: suites, cells, the runner, files; no study is known here."""
