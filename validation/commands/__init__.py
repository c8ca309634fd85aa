"""The commands of ``pruning-limits`` that train, load or measure networks, one module each."""
