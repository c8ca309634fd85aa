"""How far can a network be pruned? Convex geometry of its loss answers before anyone prunes."""

import logging

from estimators import L1, L2, UserError
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.parts import Verdict
from pruning_limits.predict import predict_limit
from pruning_limits.result import PruningLimit

__all__ = ["L1", "L2", "MagnitudeProfile", "PruningLimit", "UserError", "Verdict", "predict_limit"]

logging.getLogger("pruning_limits").addHandler(logging.NullHandler())
