"""Pruning by the dynamic modes of training."""
