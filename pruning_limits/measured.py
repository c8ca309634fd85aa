"""Points of measured one-shot pruning and the sparsity where they cross what is allowed; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ERRORS = 2.0
DEVIATIONS = 4.0  # standard errors within which a draw decides nothing: beyond it is wrong in 3e-5 of normal draws


@dataclass(frozen=True)
class Point:
    """A network that one-shot magnitude pruning made, compared with the dense one sample by sample.

    Attributes:
        sparsity: Removed fraction in [0, 1].
        rise: Rise of the criterion on the training data, in its units; infinite where a loss is not finite.
        rise_error: Its standard error where a draw of the data was passed; 0 for all data.
        drop: Fall of the mean metric, or None.
        drop_error: Paired standard error of the fall, as one on all samples there might be, or None.
    """

    sparsity: float
    rise: float
    rise_error: float = 0.0
    drop: float | None = None
    drop_error: float | None = None

    def scaled(self, factor: float) -> Point:
        """Return the point of a criterion that rises ``factor`` times as much; what the metric does is not known."""
        return replace(self, rise=self.rise * factor, rise_error=self.rise_error * factor, drop=None, drop_error=None)


@dataclass(frozen=True)
class Bar:
    """What a pruned network may lose.

    Attributes:
        allowed: Allowed rise of the criterion, or allowed fall of the metric.
        of_metric: Whether it is that of the metric.
    """

    allowed: float
    of_metric: bool = False

    def loss(self, point: Point, shift: float = 0.0) -> float:
        """Return what a point loses; infinite where the metric was not measured.

        Args:
            point: The point.
            shift: Number of standard errors that are added to a rise.
        """
        if self.of_metric:
            return math.inf if point.drop is None else point.drop
        return point.rise + shift * point.rise_error if shift else point.rise

    def passes(self, lost: float) -> bool:
        """Tell whether so much may be lost; a rise of NaN may not."""
        return lost <= self.allowed


@dataclass(frozen=True)
class Crossing:
    """Between which sparsities more is lost than is allowed, for the first time.

    Attributes:
        low: Largest sparsity up to which every point passes.
        high: First that fails; equal to ``low`` where none fails up to 1.
        again: Stretches of points beyond that pass once more, as pairs of their ends.
    """

    low: float
    high: float
    again: tuple[tuple[float, float], ...] = ()


def crossing(points: Sequence[Point], bar: Bar, start: float = 0.0, shift: float = 0.0) -> Crossing:
    """Find the first sustained crossing of some points.

    Args:
        points: Points by rising sparsity.
        bar: What may be lost.
        start: Sparsity of the dense network; it passes.
        shift: Number of standard errors that are added to every rise.

    Returns:
        The crossing; where no point fails, ``high`` is 1.

    Example:
        >>> crossing([Point(0.5, 0.1), Point(0.6, 0.3), Point(0.7, 0.2)], Bar(0.2))
        Crossing(low=0.5, high=0.6, again=((0.7, 0.7),))
    """
    low, high, again = start, math.inf, list[list[float]]()
    before = True
    for point in points:
        passes = bar.passes(bar.loss(point, shift))
        if high == math.inf:
            low, high = (max(low, point.sparsity), high) if passes else (low, max(low, point.sparsity))
        elif passes:
            again = [*again[:-1], [again[-1][0], point.sparsity]] if before else [*again, [point.sparsity] * 2]
        before = passes
    return Crossing(low, min(1.0, high), tuple((first, last) for first, last in again))


def monotone(values: Sequence[float], errors: Sequence[float] | None = None) -> Floats:
    """Return the rising sequence nearest to some values, each weighted by its error to the power -2.

    An error of zero, as where no sample changed, counts as the smallest that is not.

    Args:
        values: Finite values by rising sparsity.
        errors: Their standard errors, >= 0; None, and errors of which one is infinite, weight all alike.

    Returns:
        The isotonic fit, float64.

    Source: Barlow, Bartholomew, Bremner and Brunk, Statistical inference under order restrictions, 1972.
    """
    from sklearn.isotonic import isotonic_regression

    weights = None
    if errors is not None and any(errors) and all(map(math.isfinite, errors)):
        weights = np.maximum(np.asarray(errors), min(error for error in errors if error > 0)) ** -2.0
    fit: Floats = isotonic_regression(np.asarray(values, dtype=np.float64), sample_weight=weights)
    return fit


def level(points: Sequence[Point], allowed: float, shift: float = 0.0, start: float = 0.0) -> float:
    """Sparsity at which the isotonic fit of the fall of the metric, shifted by some standard errors, passes a level.

    Args:
        points: Points by rising sparsity, with the metric.
        allowed: The level, > 0.
        shift: Number of standard errors that are added to the fit.
        start: Sparsity of the dense network.

    Returns:
        The first sparsity there, linear in the logarithm of the kept fraction between points, and at most that of the
        first point with an infinite fall; 1 where there is none.
    """
    rows, end = list[tuple[float, float, float]](), 1.0
    for point in points:
        if point.drop is not None and point.drop_error is not None:
            if not math.isfinite(point.drop):
                end = point.sparsity
                break
            rows.append((point.sparsity, point.drop, point.drop_error))
    if not rows:
        return end
    sparsities, drops, errors = zip(*rows, strict=True)
    fit = monotone(drops, errors)
    if shift:  # times an infinite error, that of a single sample
        fit = fit + shift * np.array(errors)
    places, values = [_place(start), *map(_place, sparsities)], [0.0, *fit]
    for n in range(1, len(places)):
        if values[n] > allowed:
            share = (allowed - values[n - 1]) / (values[n] - values[n - 1])
            return 1 - math.exp(-(places[n - 1] + share * (places[n] - places[n - 1])))
    return end


def at_sparsity(points: Sequence[Point], sparsity: float, name: str, start: float = 0.0) -> float | None:
    """Read the rise or the fall at a sparsity off measured points.

    Args:
        points: Points by rising sparsity.
        sparsity: Removed fraction in [0, 1].
        name: ``"rise"``, ``"drop"`` or one of their errors.
        start: Sparsity of the dense network.

    Returns:
        Linear in the logarithm of the kept fraction between points, zero up to the dense network; None beyond the last
        point, and where nothing was measured.

    Example:
        >>> round(at_sparsity([Point(0.5, 0.2), Point(0.75, 0.4)], 0.6, "rise"), 3)
        0.264
    """
    rows = [(row.sparsity, getattr(row, name)) for row in points]
    rows = [
        (start, 0.0),
        *((s, value) for s, value in rows if value is not None and math.isfinite(value) and s > start),
    ]
    if len(rows) == 1 or sparsity > rows[-1][0]:
        return None
    places, values = zip(*((_place(s), value) for s, value in rows), strict=True)
    return float(np.interp(_place(sparsity), places, values))


def _place(sparsity: float) -> float:
    return -math.log(max(1 - sparsity, 1e-12))
