"""Networks that were pruned in stages and re-tuned, as numbers that need no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pruning_limits.measured import Point

STRIDE = 0.5  # of what is kept remains in the next stage


@dataclass(frozen=True)
class TunedPoint(Point):
    """A network that was pruned and re-tuned, compared with the dense one sample by sample.

    Attributes:
        start: Sparsity of the stage that it went on from; that of the dense network for the first one.
        seed: Number of the run, from 0: each has samples of its own.
    """

    start: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Tuning:
    """What staged re-tuning reached, and what it took.

    Attributes:
        points: Networks of all runs, those of a run by rising sparsity.
        samples: Training samples of a stage.
        passed: What all stages cost together, in samples of an epoch of training.
        seconds: Wall time.
    """

    points: tuple[TunedPoint, ...]
    samples: int
    passed: float
    seconds: float

    def run(self, seed: int) -> tuple[TunedPoint, ...]:
        """Return the points of one run."""
        return tuple(point for point in self.points if point.seed == seed)

    @property
    def runs(self) -> list[int]:
        """Numbers of the runs."""
        return sorted({point.seed for point in self.points})


def stages_to(points: Sequence[TunedPoint], sparsity: float, alone: float, start: float) -> list[float]:
    """Return by which sparsities a network is pruned and re-tuned on its way to one.

    Args:
        points: Networks of one run, none where nothing was re-tuned.
        sparsity: Where the way leads.
        alone: What pruning alone reaches.
        start: Sparsity of the dense network.

    Returns:
        Rising sparsities that end with the one wanted: the way of a measured network where it is one, and else on from
        the last network that others went on from, each stage keeping no less than half of what was there.

    Example:
        >>> stages_to([], 0.95, alone=0.6, start=0.0)
        [0.8, 0.9, 0.95]
        >>> stages_to([TunedPoint(0.8, 0.1), TunedPoint(0.9, 0.2, start=0.8)], 0.9, alone=0.6, start=0.0)
        [0.8, 0.9]
    """
    known = {point.sparsity: point.start for point in points}
    bases = [point.start for point in points if start < point.start < sparsity]
    last = sparsity if sparsity in known else max(bases, default=start)
    way = list[float]()
    while last in known:
        way.insert(0, last)
        last = known[last]
    at = way[-1] if way else max(start, min(alone, sparsity))
    while sparsity > at:
        at = min(sparsity, 1 - STRIDE * (1 - at))
        at = sparsity if math.isclose(at, sparsity, rel_tol=0, abs_tol=1e-12) else at
        way.append(at)
    return way or [sparsity]
