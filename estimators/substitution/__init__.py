"""Substitute other forms of torch's functions and other tensors of a model, in one thread and for a limited time."""

from estimators.substitution.checkpoints import no_reentrant_checkpoints
from estimators.substitution.intact import intact
from estimators.substitution.mode import substituted_functions
from estimators.substitution.randomness import PrivateDraws
from estimators.substitution.tensors import evaluation_mode, replaced
from estimators.substitution.zero_units import without_zero_units

__all__ = [
    "PrivateDraws",
    "evaluation_mode",
    "intact",
    "no_reentrant_checkpoints",
    "replaced",
    "substituted_functions",
    "without_zero_units",
]
