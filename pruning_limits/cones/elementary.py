"""Subspaces, rays and orthants."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from estimators import UserError
from pruning_limits.cones.arguments import Floats, checked_dimension, finite_array, nonzero_array
from pruning_limits.cones.base import Cone
from pruning_limits.cones.intrinsic_volumes import halves, log_binomial


class Subspace(Cone):
    """The span of k vectors; its statistical dimension is k.

    Args:
        basis: Linearly independent columns ``[D, k]``, not necessarily orthonormal.

    Raises:
        UserError: The columns are dependent, not finite or not a matrix.

    Example:
        >>> Subspace(np.eye(5)[:, :2]).statistical_dimension()
        2.0
    """

    def __init__(self, basis: ArrayLike) -> None:
        columns = finite_array("basis", basis, 2)
        self.dimension, self.rank = columns.shape
        self.basis, triangle = np.linalg.qr(columns)
        pivots = np.abs(np.diag(triangle))
        if self.rank > self.dimension or (pivots <= 1e-12 * pivots.max(initial=0.0)).any():
            raise UserError(f"basis: expected linearly independent columns, got {self.rank} dependent ones")

    def statistical_dimension(self) -> float:
        """Return the number k of basis vectors."""
        return float(self.rank)

    def intrinsic_volumes(self) -> Floats:
        """Return 1 at k, 0 elsewhere."""
        volumes = np.zeros(self.dimension + 1)
        volumes[self.rank] = 1.0
        return volumes

    def _project(self, x: Floats) -> Floats:
        nearest: Floats = x @ self.basis @ self.basis.T
        return nearest


class Ray(Cone):
    r"""The half-line of one vector; :math:`\delta = 1/2`.

    Args:
        direction: Non-zero vector ``[D]``.

    Raises:
        UserError: The vector is zero or not finite.

    Example:
        >>> Ray([3.0, 4.0]).project([5.0, 0.0]).round(6)
        array([1.8, 2.4])
    """

    def __init__(self, direction: ArrayLike) -> None:
        vector = nonzero_array("direction", direction, 1)
        self.direction = vector / np.linalg.norm(vector)
        self.dimension = len(vector)

    def statistical_dimension(self) -> float:
        """Return 1/2."""
        return 0.5

    def intrinsic_volumes(self) -> Floats:
        """Return 1/2 at 0 and 1."""
        return halves(self.dimension, 0)

    def _project(self, x: Floats) -> Floats:
        nearest: Floats = np.maximum(x @ self.direction, 0.0)[..., None] * self.direction
        return nearest


class Orthant(Cone):
    r"""Vectors without negative entries; :math:`\delta = D/2` and the intrinsic volumes are binomial.

    Args:
        dimension: D, at least 1.

    Raises:
        UserError: The dimension is below 1.

    Source: Amelunxen, Lotz, McCoy and Tropp 2014, section 3.

    Example:
        >>> Orthant(2).intrinsic_volumes().round(6)
        array([0.25, 0.5 , 0.25])
    """

    def __init__(self, dimension: int) -> None:
        self.dimension = checked_dimension(dimension, 1)

    def statistical_dimension(self) -> float:
        """Return D/2."""
        return self.dimension / 2

    def intrinsic_volumes(self) -> Floats:
        r"""Return :math:`\binom{D}{k} 2^{-D}`."""
        counts = np.arange(self.dimension + 1)
        volumes: Floats = np.exp(log_binomial(self.dimension, counts) - self.dimension * math.log(2))
        return volumes

    def _project(self, x: Floats) -> Floats:
        return np.maximum(x, 0.0)
