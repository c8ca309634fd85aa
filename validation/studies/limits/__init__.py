"""Predicted limits against what pruning reaches: truths, bounds, kinematics, patterns, comparisons of pruners."""
