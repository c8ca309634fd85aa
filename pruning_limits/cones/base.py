"""The interface of closed convex cones, and the part of it that Monte Carlo estimates need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from pruning_limits.cones.arguments import Floats, checked_points


class Cone(ABC):
    r"""A closed convex cone C in :math:`R^D`.

    Attributes:
        dimension: Dimension D of the space.

    Source: Amelunxen, Lotz, McCoy and Tropp, Living on the edge, Information and Inference 3, 2014, section 3.
    """

    dimension: int

    def project(self, x: ArrayLike) -> Floats:
        """Find the nearest points of the cone.

        Args:
            x: Points ``[*N, D]``.

        Returns:
            Projections ``[*N, D]``.

        Raises:
            UserError: The points are not finite or have another dimension.
        """
        return self._project(checked_points(x, self.dimension))

    def contains(self, x: ArrayLike, tolerance: float = 1e-9) -> bool:
        """Tell whether all points lie in the cone.

        Args:
            x: Points ``[*N, D]``.
            tolerance: Allowed distance to the cone, relative to the norm of each point.

        Returns:
            True when every point is in the cone.
        """
        points = checked_points(x, self.dimension)
        distance = np.linalg.norm(points - self._project(points), axis=-1)
        return bool((distance <= tolerance * np.linalg.norm(points, axis=-1)).all())

    @abstractmethod
    def statistical_dimension(self) -> float:
        r"""Statistical dimension :math:`\delta(C) = E|\Pi_C(g)|^2` for a standard Gaussian g, in [0, D]."""

    def intrinsic_volumes(self) -> Floats | None:
        r"""Intrinsic volumes :math:`v_0, \dots, v_D`, a probability distribution with mean :math:`\delta(C)`.

        Returns:
            Volumes ``[D + 1]``, or None where no closed form is known.
        """
        return None

    def variance(self) -> float:
        r"""Variance of the distribution of intrinsic volumes.

        Returns:
            The variance from the intrinsic volumes where they are known, else the upper bound
            :math:`2 \min(\delta, D - \delta)`.

        Source: McCoy and Tropp, Discrete and Computational Geometry 51, 2014, section 4.
        """
        volumes = self.intrinsic_volumes()
        if volumes is None:
            delta = self.statistical_dimension()
            return 2 * min(delta, self.dimension - delta)
        counts = np.arange(self.dimension + 1)
        return float(volumes @ (counts - volumes @ counts) ** 2)

    @abstractmethod
    def _project(self, x: Floats) -> Floats: ...


class Projector(Protocol):
    """Anything that projects onto a cone."""

    dimension: int

    def project(self, x: ArrayLike, /) -> Floats:
        """Project points ``[*N, D]``."""
