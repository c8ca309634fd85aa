"""Convex cones: projection, statistical dimension and intrinsic volumes, with Monte Carlo as the independent check."""

from pruning_limits.cones.base import Cone, Projector
from pruning_limits.cones.circular import Circular, SecondOrder
from pruning_limits.cones.constraints import CvxpyCone
from pruning_limits.cones.constructions import Polar, Product, Rotated
from pruning_limits.cones.descent import DescentCone
from pruning_limits.cones.elementary import Orthant, Ray, Subspace
from pruning_limits.cones.ellipsoid import EllipsoidCone
from pruning_limits.cones.group_descent import GroupDescent, L1Descent, L2Descent
from pruning_limits.cones.monte_carlo import monte_carlo_dimension
from pruning_limits.cones.nuclear_descent import NuclearDescent

__all__ = [
    "Circular",
    "Cone",
    "CvxpyCone",
    "DescentCone",
    "EllipsoidCone",
    "GroupDescent",
    "L1Descent",
    "L2Descent",
    "NuclearDescent",
    "Orthant",
    "Polar",
    "Product",
    "Projector",
    "Ray",
    "Rotated",
    "SecondOrder",
    "Subspace",
    "monte_carlo_dimension",
]
