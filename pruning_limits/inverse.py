r"""Inverse questions: which epsilon or which scale makes a wanted sparsity the limit.

At the wanted sparsity s the isotropic equation :math:`s = \frac1D \operatorname{tr} c\,(c + |H|)^{-1}` gives the scale
c. The definition :math:`c = 2\varepsilon/R(s)^2` then answers every question in closed form.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq

from estimators import SpectralMeasure, UserError
from pruning_limits.isotropic import Negative, removable_fraction
from pruning_limits.magnitude_curve import MagnitudeCurve
from pruning_limits.settings import number


def scale_for(measure: SpectralMeasure, sparsity: float, negative: Negative = "abs") -> float:
    r"""Solve :math:`\frac1D \operatorname{tr} c\,(c + |H|)^{-1} = s` for the scale c.

    Args:
        measure: Spectral measure of the curvature.
        sparsity: Wanted value s, in (0, 1).
        negative: What a negative eigenvalue counts as: its absolute value, or zero.

    Returns:
        The scale c > 0, in units of the eigenvalues.

    Raises:
        UserError: No scale gives the sparsity, because it is out of range or flat directions alone exceed it.

    Example:
        >>> round(scale_for(SpectralMeasure.from_eigenvalues([1.0, 1.0]), 0.75), 9)
        3.0
    """
    sparsity = number("sparsity", sparsity, "a number in (0, 1) (the removed fraction)", lambda own: 0 < own < 1)
    curvature = np.abs(measure.nodes) if negative == "abs" else np.maximum(measure.nodes, 0.0)
    curved = (curvature > 0) & (measure.weights > 0)
    flat = float(measure.weights[~curved].sum())
    if not flat < sparsity or not curved.any():
        raise UserError(
            f"sparsity: {sparsity:.4g} is below the limit under any condition, because directions without curvature "
            f"make up {flat:.4g} of all"
        )
    odds = 1 / (1 - sparsity)
    low = math.log(curvature[curved].min()) + math.log((sparsity - flat) * odds)
    high = math.log(curvature[curved].max()) + math.log(sparsity * odds)

    def excess(logarithm: float) -> float:
        return removable_fraction(measure, math.exp(logarithm), negative)[0] - sparsity

    low, high = low - 1e-6, high + 1e-6
    if not (low > -700 and high < 700 and excess(low) <= 0 <= excess(high)):
        raise UserError(f"sparsity: no scale gives {sparsity:.4g} within the range of floating point numbers")
    return math.exp(brentq(excess, low, high, xtol=1e-14, rtol=1e-14))


def epsilon_for(measure: SpectralMeasure, curve: MagnitudeCurve, sparsity: float, negative: Negative = "abs") -> float:
    r"""Return the allowed rise that makes a sparsity the isotropic limit, :math:`\varepsilon = c R(s)^2/2`.

    Args:
        measure: Spectral measure of the curvature.
        curve: R(s)^2 of the weights.
        sparsity: Wanted limit s, in (0, 1).
        negative: What a negative eigenvalue counts as: its absolute value, or zero.

    Returns:
        Epsilon > 0, in units of the objective.

    Raises:
        UserError: The sparsity cannot be the limit; weights that are zero already, or flat directions, exceed it.

    Example:
        >>> curve = MagnitudeCurve(np.array([0.0, 1.0]), np.array([0.0, 100.0]))
        >>> round(epsilon_for(SpectralMeasure.from_eigenvalues(np.ones(100)), curve, 0.5), 9)
        25.0
    """
    squared = curve.squared_norm(sparsity) if 0 < sparsity < 1 else math.nan
    if squared == 0:
        raise UserError(
            f"sparsity: {sparsity:.4g} is below the limit under any condition, because so many weights are zero already"
        )
    return scale_for(measure, sparsity, negative) * squared / 2
