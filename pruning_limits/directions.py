"""Directions of the removed weights, measured at a few sparsities and interpolated between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from estimators import SpectralMeasure, UserError
from estimators.measure import Rule
from pruning_limits.directional import Direction, DirectionalLimit, directional_limit
from pruning_limits.magnitude_curve import MagnitudeCurve

if TYPE_CHECKING:
    from torch import Tensor

    from estimators import Operator
    from pruning_limits.parts import Estimate


@dataclass(frozen=True)
class Slope:
    """The quadratic model at the weights that magnitude pruning leaves at one sparsity.

    Attributes:
        vector: Gradient q = g - H d there, ``[D]``.
        rise: Rise of the model, in units of the objective.
        linear: Part of the rise that is linear in the removed weights, -g d.
    """

    vector: Tensor
    rise: float
    linear: float


def slopes(operator: Operator, removed: Tensor, gradient: Tensor | None) -> list[Slope]:
    r"""Gradient :math:`q = g - H d` and rise :math:`-g^\top d + \frac12 d^\top H d` of the model at pruned weights.

    Args:
        operator: Curvature H; one product per column, all in one pass over the data.
        removed: Removed weights d as columns ``[D, K]``.
        gradient: Gradient g of the objective at the weights ``[D]``; None takes the weights as stationary.

    Returns:
        One entry per column.
    """
    result = []
    for d, product in zip(removed.unbind(1), operator.matmat(removed).unbind(1), strict=True):
        linear = 0.0 if gradient is None else -float(gradient.double() @ d.double())
        vector = -product if gradient is None else gradient - product
        result.append(Slope(vector, linear + 0.5 * float(d.double() @ product.double()), linear))
    return result


@dataclass(frozen=True, eq=False)
class Directions:
    r"""The pruned point seen through the spectrum, at several sparsities.

    Args:
        sparsities: Knots, ascending, removed fractions in (0, 1].
        rules: At every knot nodes and weights of :math:`\sum_i q_i^2 \delta(\lambda_i)`, q the gradient there.
        rises: Rise of the quadratic model at the knots, in units of the objective.
        squared: R^2 at the knots, > 0.
        step_error: Half-width of the directional limit from the number of Lanczos steps, in sparsity.
        growth: Factor from what the directional limit keeps on the sub-sample to that on all data, extrapolated.
        spread: The kept fraction there may be wrong by a factor of one plus this, >= 0.

    Raises:
        UserError: The knots are not ascending, the numbers differ, or a value is out of range.
    """

    sparsities: tuple[float, ...]
    rules: tuple[Rule, ...]
    rises: tuple[float, ...]
    squared: tuple[float, ...]
    step_error: float = 0.0
    growth: float = 1.0
    spread: float = 0.0

    def __post_init__(self) -> None:
        if not len(self.sparsities) == len(self.rules) == len(self.rises) == len(self.squared) > 0:
            raise UserError("directions: expected as many rules, rises and squared norms as sparsities, at least one")
        if not all(a < b for a, b in pairwise((0.0, *self.sparsities, 1.0 + 1e-12))):
            raise UserError(f"sparsities: expected ascending numbers in (0, 1], got {self.sparsities}")
        if not all(0 < value < math.inf for value in self.squared):
            raise UserError(f"squared: expected positive numbers, got {self.squared}")
        if not (0 < self.growth < math.inf and 0 <= self.spread < math.inf):
            raise UserError(f"growth: expected a positive number and a spread >= 0, got {self.growth}, {self.spread}")
        for rule, rise in zip(self.rules, self.rises, strict=True):
            Direction(gradient=rule, offset=rise)

    def at(self, sparsity: float, squared_norm: float) -> Direction:
        """Return the direction at a sparsity: neighbouring knots mixed linearly in log(1 - s), scaled to the norm.

        Args:
            sparsity: Removed fraction in [0, 1]; beyond the outermost knots the direction keeps its shape.
            squared_norm: R^2 there.

        Returns:
            Exactly the measured direction at a knot.
        """
        places = [_place(knot) for knot in self.sparsities]
        where = float(np.interp(_place(sparsity), places, np.arange(len(places))))
        near = [(n, 1 - abs(n - where)) for n in {math.floor(where), math.ceil(where)}]
        parts = [(n, share * squared_norm / self.squared[n]) for n, share in near if share > 0]
        nodes = np.concatenate([self.rules[n][0] for n, _ in parts])
        weights = np.concatenate([self.rules[n][1] * factor for n, factor in parts])
        return Direction(gradient=(nodes, weights), offset=sum(self.rises[n] * factor for n, factor in parts))

    def scaled(self, weight_scale: float, curvature_scale: float) -> Directions:
        """Return the directions of scaled weights and a scaled objective; a gradient is taken to scale with both."""
        slope, rise = (weight_scale * curvature_scale) ** 2, weight_scale**2 * curvature_scale
        return replace(
            self,
            rules=tuple((nodes * curvature_scale, weights * slope) for nodes, weights in self.rules),
            rises=tuple(value * rise for value in self.rises),
            squared=tuple(value * weight_scale**2 for value in self.squared),
        )

    def limit(self, measure: SpectralMeasure, curve: MagnitudeCurve, epsilon: float) -> DirectionalLimit:
        """Solve the directional equation with positive semidefinite curvature, see ``directional_limit``."""
        return directional_limit(measure, lambda s: self.at(s, curve.squared_norm(s)), curve, epsilon)

    def solver(self, curve: MagnitudeCurve, epsilon: float) -> Callable[[SpectralMeasure], float]:
        """Return what solves the directional equation on a measure, in sparsity, see ``limit``."""
        return lambda measure: self.limit(measure, curve, epsilon).sparsity

    def carried(self, ggn: Estimate) -> Estimate:
        """Return the estimate of the GGN with the growth of the directional limit in place of the isotropic one's."""
        return replace(ggn, growth=self.growth)


def _place(sparsity: float) -> float:
    return -float(np.log(max(1 - sparsity, 1e-12)))
