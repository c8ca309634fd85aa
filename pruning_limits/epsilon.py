"""The allowed rise of the criterion: the fluctuation of a batch, a number, or derived from an allowed metric drop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pruning_limits.measured import ERRORS, Point, at_sparsity, level, monotone


@dataclass(frozen=True)
class Allowed:
    """The allowed rise of the criterion and where it comes from.

    Attributes:
        epsilon: The rise, > 0, in units of the criterion.
        low: Least value that the noise of the metric allows for; equal to ``epsilon`` where it is not from a metric.
        high: Largest such value, at most the largest rise that was measured.
        origin: ``"batch-std"``, ``"number"``, or ``"max-drop"``.
    """

    epsilon: float
    low: float
    high: float
    origin: Literal["batch-std", "number", "max-drop"]

    @classmethod
    def exactly(cls, epsilon: float, origin: Literal["batch-std", "number"] = "number") -> Allowed:
        """Return a rise without an error."""
        return cls(epsilon, epsilon, epsilon, origin)


def from_max_drop(points: Sequence[Point], max_drop: float, start: float = 0.0) -> Allowed | None:
    """Turn an allowed fall of the metric into an allowed rise of the criterion.

    It is the rise at which one-shot pruned networks have lost that much of the metric: isotonic fits of the fall and
    of the rise over the sparsity, read at the same place. Its ends are the rises where the fit of the fall, two
    standard errors higher and lower, passes the allowed fall.

    Args:
        points: Measured points by rising sparsity.
        max_drop: Allowed fall of the mean metric, > 0.
        start: Sparsity of the dense network.

    Returns:
        The rise; None where the metric has fallen by less at every point, or where the criterion has not risen.

    Example:
        >>> points = [Point(0.5, 0.1, 0.0, 0.002, 1e-4), Point(0.75, 0.3, 0.0, 0.01, 1e-4)]
        >>> round(from_max_drop(points, 0.006).epsilon, 3)
        0.2
    """
    rows = [row for row in points if row.drop is not None and math.isfinite(row.drop) and math.isfinite(row.rise)]
    if not rows:
        return None
    rises = monotone([row.rise for row in rows])
    smooth = [Point(row.sparsity, float(rise)) for row, rise in zip(rows, rises, strict=True)]

    def rise(shift: float) -> float | None:
        where = level(rows, max_drop, shift, start)
        return at_sparsity(smooth, where, "rise", start) if where < 1 else None

    epsilon, low, high = rise(0.0), rise(ERRORS), rise(-ERRORS)
    if epsilon is None or epsilon <= 0:
        return None
    return Allowed(epsilon, min(epsilon, max(low or 0.0, 0.0)), max(epsilon, high or float(rises[-1])), "max-drop")
