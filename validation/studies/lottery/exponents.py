"""Exponents of power laws fitted to measurements, with confidence intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from estimators.errors import UserError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PowerLaw:
    """A fitted power law.

    Attributes:
        exponent: Fitted exponent p.
        low: Lower end of its confidence interval.
        high: Upper end.
        scale: Factor b.
        limit: Where ``y = limit - b x^p`` starts at x = 0; None for ``y = b x^p``.
        r_squared: Share of the variance explained, of log y where there is no limit.
    """

    exponent: float
    low: float
    high: float
    scale: float
    limit: float | None
    r_squared: float

    def curve(self, x: ArrayLike) -> Floats:
        """Return the fitted values at x."""
        power: Floats = self.scale * np.asarray(x, dtype=float) ** self.exponent
        return power if self.limit is None else self.limit - power


def fit_power(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> PowerLaw:
    r"""Fit :math:`y = b x^p` by least squares in the logarithms, with Student's interval for p.

    Args:
        x: Positive numbers ``[n]``, n >= 3, not all equal.
        y: Positive numbers ``[n]``.
        confidence: Level of the interval, in (0, 1).

    Returns:
        The fit.

    Raises:
        UserError: There are too few points, or one is not positive.

    Example:
        >>> round(fit_power([1, 4, 9, 16], [2, 4, 6, 8]).exponent, 6)
        0.5
    """
    across, up = _checked(x, y)
    if (up <= 0).any():
        raise UserError(f"y: a power law needs positive numbers, got {up.min():g}; leave such points out")
    fit = stats.linregress(np.log(across), np.log(up))
    half = float(stats.t.ppf((1 + confidence) / 2, len(across) - 2) * fit.stderr)
    slope = float(fit.slope)
    scale = float(np.exp(fit.intercept))
    return PowerLaw(slope, slope - half, slope + half, scale, None, float(fit.rvalue**2))


def fit_decline(x: ArrayLike, y: ArrayLike, limit: float | None = None, confidence: float = 0.95) -> PowerLaw:
    r"""Fit :math:`y = a - b x^p` by non-linear least squares, with an interval from the linearised fit.

    Args:
        x: Positive numbers ``[n]``, not all equal; n >= 4, or 3 where the limit is known.
        y: Numbers ``[n]``.
        limit: The value a at x = 0; None fits it.
        confidence: Level of the interval, in (0, 1).

    Returns:
        The fit; where the numbers do not determine the exponent, the interval is infinite.

    Raises:
        UserError: There are too few points, or an x is not positive.

    Example:
        >>> round(fit_decline([0.1, 0.4, 0.9, 1.6], [0.9, 0.6, 0.1, -0.6], limit=1.0).exponent, 6)
        1.0
    """
    across, up = _checked(x, y, 3 if limit is not None else 4)
    line = stats.linregress(np.sqrt(across), up)
    start = [-float(line.slope), 0.5]
    if limit is None:
        start.append(float(line.intercept))

    def law(x: Floats, scale: float, exponent: float, *end: float) -> Floats:
        value: Floats = (end[0] if limit is None else limit) - scale * x**exponent
        return value

    bounds = ([-np.inf, 0.01, *[-np.inf] * (len(start) - 2)], [np.inf, 5.0, *[np.inf] * (len(start) - 2)])
    values, covariance = optimize.curve_fit(law, across, up, p0=start, bounds=bounds, max_nfev=10000)
    half = float(stats.t.ppf((1 + confidence) / 2, len(across) - len(start)) * np.sqrt(covariance[1, 1]))
    rest = np.square(up - law(across, *values)).sum() / max(np.square(up - up.mean()).sum(), 1e-300)
    scale, exponent = float(values[0]), float(values[1])
    end = float(values[2]) if limit is None else limit
    return PowerLaw(exponent, exponent - half, exponent + half, scale, end, float(1 - rest))


def _checked(x: ArrayLike, y: ArrayLike, least: int = 3) -> tuple[Floats, Floats]:
    across, up = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if across.shape != up.shape or across.ndim != 1 or len(across) < least:
        raise UserError(
            f"x, y: expected at least {least} points each, got {across.shape} and {up.shape}; measure more points"
        )
    if (across <= 0).any():
        raise UserError(f"x: a power law needs positive numbers, got {across.min():g}; leave such points out")
    return across, up
