"""How far can a network be pruned? Convex geometry of its loss answers before anyone prunes."""

import logging

from pruning_limits import companions as companions  # it refuses a foreign package of the name of the next one

# isort: split
from estimators import L1, L2, UserError
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.parts import Verdict
from pruning_limits.predict import predict_limit
from pruning_limits.result import PruningLimit

__all__ = ["L1", "L2", "MagnitudeProfile", "PruningLimit", "UserError", "Verdict", "predict_limit"]

logging.getLogger("pruning_limits").addHandler(logging.NullHandler())
