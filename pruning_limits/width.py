"""Gaussian width of sublevel sets and of their projection on the sphere around a point."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaln, gammaln, xlogy

from estimators import SpectralMeasure, UserError
from pruning_limits.cones import Circular, Projector

Floats = NDArray[np.float64]


def ellipsoid_width(measure: SpectralMeasure, epsilon: float) -> tuple[float, float]:
    r"""Gaussian width of the sublevel ellipsoid :math:`\{x : \frac12 x^\top H x \le \varepsilon\}`.

    With radii :math:`r_i = \sqrt{2\varepsilon/\lambda_i}` it is :math:`E\sqrt Y`, :math:`Y = \sum_i r_i^2 g_i^2`, and

    .. math:: E\sqrt Y = \frac{1}{2\sqrt\pi} \int_0^\infty \Bigl(1 - e^{-\frac D2 \int \log(1 + 2 s r(x)^2)\,d\nu(x)}
              \Bigr) s^{-3/2}\,ds.

    The trapezoidal rule in :math:`\log s` makes this accurate to about 14 digits.

    Args:
        measure: Spectral measure of the curvature H, without negative nodes.
        epsilon: Allowed rise of the objective, > 0, in its units.

    Returns:
        Width, in units of the weights, and its standard error over probes; infinite when a node is zero.

    Raises:
        UserError: ``epsilon`` is not positive or the measure has negative nodes.

    Source: Vershynin, High-Dimensional Probability, 2018, chapter 7, for the width of an ellipsoid; the integral is
    :math:`\sqrt y = \frac{1}{2\sqrt\pi} \int_0^\infty (1 - e^{-sy}) s^{-3/2} ds` with the Laplace transform of Y.

    Example:
        >>> width, _ = ellipsoid_width(SpectralMeasure.from_eigenvalues(np.ones(2)), epsilon=0.5)
        >>> bool(abs(width - np.sqrt(np.pi / 2)) < 1e-12)
        True
    """
    mean = measure.dimension * float(measure.weights @ _squared_radii(measure, epsilon))
    if math.isinf(mean):
        return math.inf, 0.0
    u = np.arange(-80.0, 80.0, 0.25)

    def exponents(x: Floats) -> Floats:
        return measure.dimension / 2 * np.log1p(np.outer(2 * np.exp(u) / mean, 2 * epsilon / x))

    kernel = 0.25 * math.sqrt(mean / math.pi) / 2 * np.exp(-u / 2)
    exponent = exponents(measure.nodes) @ measure.weights
    influence = kernel * np.exp(-exponent)
    return float(-kernel @ np.expm1(-exponent)), measure.integrate(lambda x: influence @ exponents(x))[1]


def ellipsoid_width_estimate(measure: SpectralMeasure, epsilon: float) -> tuple[float, float]:
    r"""Approximate the width of the sublevel ellipsoid by :math:`w \approx (\sum_i r_i^2)^{1/2}`, from above.

    The width is Lipschitz in the Gaussian vector with the constant :math:`r_{\max}`, hence

    .. math:: \sum_i r_i^2 - r_{\max}^2 \le w^2 \le \sum_i r_i^2.

    Args:
        measure: Spectral measure of the curvature H, without negative nodes.
        epsilon: Allowed rise of the objective, > 0, in its units.

    Returns:
        The approximation and the most by which it exceeds the width; both infinite when a node is zero.

    Raises:
        UserError: ``epsilon`` is not positive or the measure has negative nodes.

    Source: Larsen, Fort, Becker and Ganguli, ICLR 2022; Gaussian Poincare inequality for the error.

    Example:
        >>> estimate, error = ellipsoid_width_estimate(SpectralMeasure.from_eigenvalues(np.ones(100)), epsilon=0.5)
        >>> estimate, round(error, 3)
        (10.0, 0.05)
    """
    squares = _squared_radii(measure, epsilon)
    total = measure.dimension * float(measure.weights @ squares)
    if math.isinf(total):
        return math.inf, math.inf
    return math.sqrt(total), math.sqrt(total) - math.sqrt(max(total - float(squares.max()), 0.0))


def projected_width_squared(measure: SpectralMeasure, epsilon: float, distance: float) -> tuple[float, float]:
    r"""Approximate the squared width of the sublevel set as seen from a point, :math:`\sum_i r_i^2/(R^2 + r_i^2)`.

    This is the width of the projection :math:`\{(x - p)/|x - p|\}` on the unit sphere around a point p at distance R
    from the minimum, when the direction of p is ignored. Negative curvature counts as none. For the PSD model the
    statistical dimension at any direction of p is at least this, to leading order; a ball of radius r has
    :math:`D r^2/R^2`. See ``pruning_limits.directional`` for the exact leading order.

    Args:
        measure: Spectral measure of the curvature H.
        epsilon: Allowed rise of the objective, > 0, in its units.
        distance: R > 0, in units of the weights.

    Returns:
        The squared width in [0, D] and its standard error over probes.

    Raises:
        UserError: ``epsilon`` or ``distance`` is not positive.

    Source: Larsen, Fort, Becker and Ganguli, ICLR 2022.

    Example:
        >>> projected_width_squared(SpectralMeasure.from_eigenvalues(np.ones(8)), epsilon=0.5, distance=1.0)
        (4.0, 0.0)
    """
    scale = 2 * _positive("epsilon", epsilon) / _positive("distance", distance) ** 2
    value, error = measure.integrate(lambda x: scale / (scale + np.maximum(x, 0.0)))
    return measure.dimension * value, measure.dimension * error


def circular_width(cone: Circular) -> float:
    r"""Gaussian width :math:`E \sup_{u \in C, |u| = 1} g^\top u` of a circular cone, the cone seen by a ball.

    .. math:: w = E|g|\; E\cos((\theta - \alpha)_+), \quad p(\theta) \propto \sin^{D-2}\theta,

    in incomplete beta functions.

    Args:
        cone: The circular cone; a ball of radius r at distance R has the angle :math:`\arcsin(r/R)`.

    Returns:
        The width, with :math:`w^2 \le \delta \le w^2 + 1`.

    Source: Amelunxen, Lotz, McCoy and Tropp 2014, proposition 10.2.

    Example:
        >>> width = circular_width(Circular(100, np.pi / 6))
        >>> bool(width**2 <= Circular(100, np.pi / 6).statistical_dimension() <= width**2 + 1)
        True
    """
    d, sine, cosine = cone.dimension, math.sin(cone.angle), math.cos(cone.angle)
    mean_norm = math.sqrt(2) * math.exp(gammaln((d + 1) / 2) - gammaln(d / 2))
    inside = betainc((d - 1) / 2, 0.5, sine**2) / 2
    along = -math.exp(xlogy(d - 1, sine) - betaln((d - 1) / 2, 0.5)) / (d - 1)
    across = math.exp(betaln(d / 2, 0.5) - betaln((d - 1) / 2, 0.5)) * (1 - betainc(d / 2, 0.5, sine**2) / 2)
    return mean_norm * float(inside + cosine * along + sine * across)


def monte_carlo_width(cone: Projector, samples: int = 1000, seed: int = 0) -> tuple[float, float]:
    r"""Estimate the width of a cone by :math:`E|\Pi_C(g)|`, projecting Gaussian vectors.

    It exceeds :math:`E \sup_{u \in C, |u| = 1} g^\top u` only through those g that project to the origin, and obeys
    the same inequalities :math:`w^2 \le \delta \le w^2 + 1`.

    Args:
        cone: Any cone with ``dimension`` and ``project``.
        samples: Number of vectors, at least 2.
        seed: Seed; the global random state is not used.

    Returns:
        Mean and its standard error.

    Raises:
        UserError: Fewer than two samples.

    Source: Amelunxen, Lotz, McCoy and Tropp 2014, proposition 10.2.

    Example:
        >>> value, error = monte_carlo_width(Circular(20, 0.5))
        >>> bool(abs(value - circular_width(Circular(20, 0.5))) < 4 * error)
        True
    """
    if samples < 2:
        raise UserError(f"samples: expected at least 2 for a standard error, got {samples}")
    points = np.random.default_rng(seed).standard_normal((samples, cone.dimension))
    norms = np.linalg.norm(cone.project(points), axis=-1)
    return float(norms.mean()), float(norms.std(ddof=1) / math.sqrt(samples))


def _squared_radii(measure: SpectralMeasure, epsilon: float) -> Floats:
    if measure.nodes.min() < 0:
        raise UserError(f"measure: expected nodes >= 0, got {measure.nodes.min():.3g}; an indefinite set has no width")
    with np.errstate(divide="ignore"):
        squares: Floats = 2 * _positive("epsilon", epsilon) / measure.nodes
    return squares


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise UserError(f"{name}: expected a positive number, got {value}")
    return value
