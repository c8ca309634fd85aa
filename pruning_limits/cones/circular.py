"""Circular cones, including the second-order cone."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import betainc, xlogy

from estimators import UserError
from pruning_limits.cones.arguments import Floats, checked_dimension
from pruning_limits.cones.base import Cone
from pruning_limits.cones.intrinsic_volumes import log_binomial


class Circular(Cone):
    r"""Vectors within an angle of the first axis, :math:`x_1 \ge |x| \cos\alpha`; about :math:`D \sin^2\alpha`.

    Args:
        dimension: D, at least 2.
        angle: Half-angle in radians, from 0 (a ray) to pi/2 (a half-space).

    Raises:
        UserError: An argument is out of range.

    Source: Amelunxen, Lotz, McCoy and Tropp 2014, section 3; McCoy and Tropp, Discrete and Computational
    Geometry 51, 2014, section 6.

    Example:
        >>> round(Circular(100, np.pi / 6).statistical_dimension(), 2)
        25.5
    """

    def __init__(self, dimension: int, angle: float) -> None:
        self.dimension, self.angle = checked_dimension(dimension, 2), angle
        if not 0 <= angle <= math.pi / 2:
            raise UserError(f"angle: expected radians in [0, pi/2], got {angle}")

    def statistical_dimension(self) -> float:
        """Return the mean of the intrinsic volumes."""
        return float(self.intrinsic_volumes() @ np.arange(self.dimension + 1))

    def intrinsic_volumes(self) -> Floats:
        r"""Intrinsic volumes in closed form.

        .. math:: v_k = \frac12 \binom{(D-2)/2}{(k-1)/2} \sin^{k-1}\alpha \cos^{D-k-1}\alpha, \quad 0 < k < D,

        and :math:`v_D`, :math:`v_0` are the shares of the sphere within :math:`\alpha` and
        :math:`\pi/2 - \alpha` of an axis.

        Returns:
            Volumes ``[D + 1]``.
        """
        d, sine, cosine = self.dimension, math.sin(self.angle), math.cos(self.angle)
        k = np.arange(1, d)
        logs = log_binomial((d - 2) / 2, (k - 1) / 2) + xlogy(k - 1, sine) + xlogy(d - k - 1, cosine)
        ends = betainc((d - 1) / 2, 0.5, [cosine**2, sine**2]) / 2
        return np.concatenate([ends[:1], np.exp(logs) / 2, ends[1:]])

    def _project(self, x: Floats) -> Floats:
        height, rest = x[..., :1], x[..., 1:]
        radius = np.linalg.norm(rest, axis=-1, keepdims=True)
        beyond = np.arctan2(radius, height) - self.angle
        length = np.hypot(radius, height) * np.cos(np.clip(beyond, 0, math.pi / 2))
        sideways = np.divide(math.sin(self.angle) * length, radius, out=np.zeros_like(radius), where=radius > 0)
        surface = np.concatenate([math.cos(self.angle) * length, sideways * rest], axis=-1)
        return np.where(beyond <= 0, x, np.where(beyond >= math.pi / 2, 0.0, surface))


class SecondOrder(Circular):
    r"""The second-order cone :math:`x_1 \ge |(x_2, \dots, x_D)|`; self-dual, so :math:`\delta = D/2`.

    Args:
        dimension: D, at least 2.

    Raises:
        UserError: The dimension is below 2.

    Example:
        >>> SecondOrder(3).project([0.0, 2.0, 0.0]).round(6)
        array([1., 1., 0.])
    """

    def __init__(self, dimension: int) -> None:
        super().__init__(dimension, math.pi / 4)
