"""Predict how far a trained network can be pruned, from measurements and from the curvature of its loss."""

import logging
from typing import TYPE_CHECKING

from pruning_limits import companions as companions  # it refuses a foreign package of the name of the next one

# isort: split
from estimators.lazy import import_later

if TYPE_CHECKING:
    from estimators.errors import UserError
    from estimators.penalty import L1, L2
    from pruning_limits.answers import Answer, Verdict
    from pruning_limits.magnitude import MagnitudeProfile
    from pruning_limits.predict import predict_limit
    from pruning_limits.result import PruningLimit
    from pruning_limits.settings import Retuning

__all__ = [
    "L1",
    "L2",
    "Answer",
    "MagnitudeProfile",
    "PruningLimit",
    "Retuning",
    "UserError",
    "Verdict",
    "predict_limit",
]

import_later(
    __name__,
    {
        "estimators.errors": "UserError",
        "estimators.penalty": "L1 L2",
        "pruning_limits.magnitude": "MagnitudeProfile",
        "pruning_limits.answers": "Answer Verdict",
        "pruning_limits.predict": "predict_limit",
        "pruning_limits.result": "PruningLimit",
        "pruning_limits.settings": "Retuning",
    },
)
logging.getLogger("pruning_limits").addHandler(logging.NullHandler())
