"""The shared parts of all tables: suites, cells, the runner and files; they import no study."""
