"""The isotropic limit: it uses the spectrum and the norm of the removed weights, not their direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from estimators import SpectralMeasure, UserError
from pruning_limits.magnitude_curve import MagnitudeCurve

if TYPE_CHECKING:
    from pruning_limits.parts import Estimate

Negative = Literal["abs", "clip"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class IsotropicLimit:
    r"""Root of the isotropic equation.

    Attributes:
        sparsity: The limit, in [0, 1].
        standard_error: Error from the choice of probes, in sparsity.
        scale: The curvature :math:`c = 2\varepsilon/R^2` at the root.
    """

    sparsity: float
    standard_error: float
    scale: float


def removable_fraction(measure: SpectralMeasure, scale: float, negative: Negative = "abs") -> tuple[float, float]:
    r"""Evaluate :math:`\frac1D \operatorname{tr} f(H)` with :math:`f(x) = c/(c+|x|)` and its standard error.

    This is the statistical dimension of the sublevel ellipsoid seen from distance R, divided by D, when the direction
    of the removed weights is ignored; D times one minus it is the effective dimension of H at scale c.

    Args:
        measure: Spectral measure of the curvature.
        scale: The number c > 0, in units of the eigenvalues; infinity gives 1.
        negative: What a negative eigenvalue counts as: its absolute value, or zero.

    Returns:
        Value in [0, 1] and standard error.

    Source: Zhang, Zhang, Sun and Liu, NeurIPS 2024; MacKay 1992 for the effective dimension.
    """
    if np.isinf(scale):
        return 1.0, 0.0
    least = max(scale, float(np.finfo(np.float64).tiny))  # flat directions count whole at any scale

    def weight(x: Floats) -> Floats:
        curvature = np.abs(x) if negative == "abs" else np.maximum(x, 0.0)
        return least / (least + curvature)

    return measure.integrate(weight)


def isotropic_limit(
    measure: SpectralMeasure, curve: MagnitudeCurve, epsilon: float, negative: Negative = "abs"
) -> IsotropicLimit:
    r"""Solve :math:`s = \frac1D \operatorname{tr} f_s(H)` for the sparsity s.

    Here :math:`f_s(x) = c/(c+|x|)` and :math:`c = 2\varepsilon/R(s)^2`. The left side rises in s and the right side
    falls, so the root is unique.

    Args:
        measure: Spectral measure of the curvature.
        curve: R(s)^2 of the weights.
        epsilon: Allowed rise of the criterion, > 0, in its units.
        negative: What a negative eigenvalue counts as: ``"abs"`` or ``"clip"`` (to zero).

    Returns:
        The limit with its error from the choice of probes.

    Raises:
        UserError: ``epsilon`` is not positive or ``negative`` is unknown.

    Source: Zhang, Zhang, Sun and Liu, How sparse can we prune a deep network, NeurIPS 2024.

    Example:
        >>> import torch
        >>> from pruning_limits import MagnitudeProfile
        >>> profile = MagnitudeProfile({"w": torch.ones(100)})
        >>> measure = SpectralMeasure.from_eigenvalues(np.ones(100))
        >>> round(isotropic_limit(measure, profile.curve(), epsilon=50.0).sparsity, 4)
        0.618
    """
    from scipy.optimize import brentq

    if not 0 < epsilon < float("inf"):
        raise UserError(f"epsilon: expected a positive number (the allowed rise of the criterion), got {epsilon}")
    if negative not in ("abs", "clip"):
        raise UserError(f"negative: expected 'abs' or 'clip', got {negative!r}")

    def scale(sparsity: float) -> float:
        squared = curve.squared_norm(sparsity)
        return 2 * epsilon / squared if squared > 0 else float("inf")

    def excess(sparsity: float) -> float:
        return removable_fraction(measure, scale(sparsity), negative)[0] - sparsity

    root = 1.0 if excess(1.0) >= 0 else float(brentq(excess, 0.0, 1.0, xtol=1e-14, rtol=1e-14))
    error = removable_fraction(measure, scale(root), negative)[1]
    step = min(1e-4, (1 - root) / 2, root / 2)
    slope = (excess(root + step) - excess(root - step)) / (2 * step) if step > 0 else -1.0
    return IsotropicLimit(root, error / max(1.0, -slope), scale(root))


def carried_limit(estimate: Estimate, curve: MagnitudeCurve, epsilon: float, negative: Negative = "abs") -> float:
    """Isotropic limit of an estimate, carried to all data; see ``Estimate.limit`` and ``isotropic_limit``.

    Args:
        estimate: Estimate of the curvature's spectrum.
        curve: R(s)^2 of the weights.
        epsilon: Allowed rise of the criterion, > 0.
        negative: What a negative eigenvalue counts as.

    Returns:
        A sparsity in [0, 1].
    """
    return estimate.limit(lambda measure: isotropic_limit(measure, curve, epsilon, negative).sparsity)
