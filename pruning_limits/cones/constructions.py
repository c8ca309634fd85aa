"""Cones built from other cones: polar, product and rotated image."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from estimators import UserError
from pruning_limits.cones.arguments import Floats, finite_array
from pruning_limits.cones.base import Cone


class Polar(Cone):
    r"""The polar cone, all u with :math:`u^\top x \le 0` on C; :math:`\delta(C^\circ) = D - \delta(C)`.

    Args:
        cone: C.

    Example:
        >>> from pruning_limits.cones import Ray
        >>> Polar(Ray(np.ones(4))).statistical_dimension()
        3.5
    """

    def __init__(self, cone: Cone) -> None:
        self.cone, self.dimension = cone, cone.dimension

    def statistical_dimension(self) -> float:
        r"""Return :math:`D - \delta(C)`."""
        return self.dimension - self.cone.statistical_dimension()

    def intrinsic_volumes(self) -> Floats | None:
        """Return the volumes of C in reverse order."""
        volumes = self.cone.intrinsic_volumes()
        return None if volumes is None else volumes[::-1]

    def variance(self) -> float:
        """Return the variance of C."""
        return self.cone.variance()

    def _project(self, x: Floats) -> Floats:
        return x - self.cone.project(x)


class Product(Cone):
    r"""The product :math:`C_1 \times C_2 \times \dots`; statistical dimensions add, intrinsic volumes convolve.

    Args:
        cones: The factors, at least one.

    Raises:
        UserError: There is no factor.

    Example:
        >>> from pruning_limits.cones import Orthant, Ray
        >>> Product(Orthant(4), Ray([1.0, 1.0])).statistical_dimension()
        2.5
    """

    def __init__(self, *cones: Cone) -> None:
        if not cones:
            raise UserError("cones: expected at least one factor, got none")
        self.cones = cones
        self.dimension = sum(cone.dimension for cone in cones)

    def statistical_dimension(self) -> float:
        """Return the sum over the factors."""
        return sum(cone.statistical_dimension() for cone in self.cones)

    def intrinsic_volumes(self) -> Floats | None:
        """Return the convolution of the factors' volumes, None if one is unknown."""
        product = np.ones(1)
        for cone in self.cones:
            volumes = cone.intrinsic_volumes()
            if volumes is None:
                return None
            product = np.convolve(product, volumes)
        return product

    def variance(self) -> float:
        """Return the sum over the factors."""
        return sum(cone.variance() for cone in self.cones)

    def _project(self, x: Floats) -> Floats:
        ends = np.cumsum([cone.dimension for cone in self.cones])[:-1]
        parts = np.split(x, ends, axis=-1)
        return np.concatenate([cone.project(part) for cone, part in zip(self.cones, parts, strict=True)], axis=-1)


class Rotated(Cone):
    """The image Q C of a cone under an orthogonal matrix; nothing but the position changes.

    Args:
        cone: C.
        rotation: Orthogonal matrix Q ``[D, D]``.

    Raises:
        UserError: The matrix is not orthogonal or of another dimension.

    Example:
        >>> from pruning_limits.cones import Orthant
        >>> Rotated(Orthant(2), -np.eye(2)).contains([-1.0, -2.0])
        True
    """

    def __init__(self, cone: Cone, rotation: ArrayLike) -> None:
        self.cone, self.dimension = cone, cone.dimension
        self.rotation = finite_array("rotation", rotation, 2)
        if self.rotation.shape != (self.dimension,) * 2:
            raise UserError(f"rotation: expected shape ({self.dimension}, {self.dimension}), got {self.rotation.shape}")
        if np.abs(self.rotation @ self.rotation.T - np.eye(self.dimension)).max() > 1e-8:
            raise UserError("rotation: expected an orthogonal matrix, got one with Q Q^T far from the identity")

    def statistical_dimension(self) -> float:
        """Return that of C."""
        return self.cone.statistical_dimension()

    def intrinsic_volumes(self) -> Floats | None:
        """Return those of C."""
        return self.cone.intrinsic_volumes()

    def variance(self) -> float:
        """Return the variance of C."""
        return self.cone.variance()

    def _project(self, x: Floats) -> Floats:
        nearest: Floats = self.cone.project(x @ self.rotation) @ self.rotation.T
        return nearest
