"""The quadratic model along the removed weights, as numbers that can be read and interpolated without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pruning_limits.magnitude_curve import MagnitudeCurve


@dataclass(frozen=True)
class ModelPoint:
    r"""The quadratic model at the weights that magnitude pruning leaves at one sparsity.

    Attributes:
        sparsity: Removed fraction in [0, 1].
        linear: The part :math:`-g^\top d` of the rise, in units of the criterion.
        quadratic: The part :math:`\frac12 d^\top H d`.
        pull: The linear part of a penalty that the weights were trained with and the criterion leaves out; where the
            weights are stationary it balances ``linear``.
    """

    sparsity: float
    linear: float
    quadratic: float
    pull: float = 0.0

    @property
    def rise(self) -> float:
        """Rise of the model."""
        return self.linear + self.quadratic

    def scaled(self, factor: float) -> ModelPoint:
        """Return the point of a model that rises ``factor`` times as much."""
        return ModelPoint(self.sparsity, factor * self.linear, factor * self.quadratic, factor * self.pull)


def model_point(points: Sequence[ModelPoint], sparsity: float, curve: MagnitudeCurve) -> ModelPoint:
    """Read the model at a sparsity off some points.

    The quadratic part over R^2, and the linear parts over R, are taken as linear in the logarithm of the kept fraction
    between the points, and as constant beyond.

    Args:
        points: At least one point.
        sparsity: Removed fraction in [0, 1].
        curve: R(s)^2.

    Returns:
        The model there; exactly a point where there is one.

    Example:
        >>> curve = MagnitudeCurve(np.array([0.0, 1.0]), np.array([0.0, 4.0]))
        >>> model_point([ModelPoint(0.5, linear=1.0, quadratic=3.0)], 1.0, curve).quadratic
        6.0
    """
    rows = sorted((point for point in points if curve.squared_norm(point.sparsity) > 0), key=lambda row: row.sparsity)
    exact = [point for point in points if point.sparsity == sparsity]
    if exact or not rows:
        return exact[0] if exact else ModelPoint(sparsity, 0.0, 0.0)
    places = [_place(point.sparsity) for point in rows]
    norm = math.sqrt(curve.squared_norm(sparsity))

    def read(name: str, power: int) -> float:
        values = [getattr(row, name) / curve.squared_norm(row.sparsity) ** (power / 2) for row in rows]
        return float(np.interp(_place(sparsity), places, values)) * norm**power

    return ModelPoint(sparsity, read("linear", 1), read("quadratic", 2), read("pull", 1))


def _place(sparsity: float) -> float:
    return -math.log(max(1 - sparsity, 1e-12))
