"""The loss of pruned networks along the kept fraction, and where it exceeds what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from validation.data import ImageData
from validation.tables.storage import read_json, write_json
from validation.tables.writing import Row

QUARTERS = 4  # steps of the finest grid in which the kept fraction halves
COARSE = 2  # of them, a step of the first search: a factor sqrt(2)
FIRST, LAST = 8, 32  # the search begins where a quarter is kept, and ends where 0.4 % are
FEWEST = 8  # weights that are kept at least
BATCH = 500


@dataclass(frozen=True)
class Level:
    """What a network may lose.

    Attributes:
        name: Name of the level.
        key: Which loss is meant: ``"rise"`` of the mean training loss, or ``"drop"`` or ``"held_out_drop"`` of the
            accuracy on training and held-out data.
        allowed: How much of it, > 0.
    """

    name: str
    key: str
    allowed: float


@dataclass(frozen=True)
class Measured:
    """Mean training loss, and accuracy on training and held-out data."""

    loss: float
    accuracy: float
    held_out: float

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, data: ImageData) -> Measured:
        """Measure a network in evaluation mode."""
        was_training = model.training
        model.eval()
        loss, right = 0.0, dict.fromkeys(("train", "test"), 0)
        for split in right:
            for x, y in data.batches(split, BATCH):
                scores = model(x)
                right[split] += int((scores.argmax(1) == y).sum())
                if split == "train":
                    loss += float(nn.functional.cross_entropy(scores, y, reduction="sum"))
        model.train(was_training)
        size = data.train_y.numel()
        return cls(loss / size, right["train"] / size, right["test"] / data.test_y.numel())

    def lost(self, pruned: Measured, kept: float) -> Row:
        """Return what a pruned network has lost, as a point of a curve."""
        return {
            "kept": kept,
            "rise": pruned.loss - self.loss if math.isfinite(pruned.loss) else math.inf,
            "drop": self.accuracy - pruned.accuracy,
            "held_out_drop": self.held_out - pruned.held_out,
        }


def kept_fraction(place: int) -> float:
    """Kept fraction of a place of the grid, :math:`2^{-p/4}`.

    Example:
        >>> kept_fraction(8)
        0.25
    """
    return math.pow(2.0, -place / QUARTERS)


def bracket(points: Sequence[Row], level: Level) -> tuple[Row, Row] | None:
    """Neighbours between which more is lost than is allowed for the first time, and at the next point too.

    Args:
        points: Points of a curve by falling kept fraction; the dense network, which lost nothing, is not among them.
        level: What may be lost.

    Returns:
        The last point before and the first one behind; None where no two points in a row, nor the last one, lose more.
    """
    before: Row = {"kept": 1.0, level.key: 0.0}
    for number, point in enumerate(points):
        if all(not later[level.key] <= level.allowed for later in points[number : number + 2]):
            return before, point
        before = point
    return None


def crossing(points: Sequence[Row], level: Level) -> float | None:
    """Kept fraction at which more is lost than is allowed for the first time, and at the next point too.

    Args:
        points: See ``bracket``.
        level: What may be lost.

    Returns:
        Linear between points in the logarithm of the kept fraction; None where there is no bracket.

    Example:
        >>> points = [{"kept": 0.5, "rise": 0.1}, {"kept": 0.25, "rise": 0.3}, {"kept": 0.125, "rise": 0.5}]
        >>> round(crossing(points, Level("a tenth more", "rise", 0.2)), 3)
        0.354
    """
    ends = bracket(points, level)
    if ends is None:
        return None
    (kept, passed), (less, failed) = [(point["kept"], point[level.key]) for point in ends]
    share = (level.allowed - passed) / (failed - passed) if math.isfinite(failed) else 0.0
    share = min(1.0, max(0.0, share)) if passed <= level.allowed else 0.0
    return math.exp(math.log(kept) + share * (math.log(less) - math.log(kept)))


def loses_all(point: Row, levels: Sequence[Level]) -> bool:
    """Tell whether a network loses more than any level allows."""
    return all(not point[level.key] <= level.allowed for level in levels)


def passes_all(point: Row, levels: Sequence[Level]) -> bool:
    """Tell whether a network loses less than every level allows."""
    return all(point[level.key] <= level.allowed for level in levels)


@dataclass(frozen=True)
class Curve:
    """A curve that is measured point by point and kept in a file.

    Attributes:
        measure: From a place of the grid to a point; costly.
        levels: What may be lost.
        last: Last place of the grid.
        file: Where the points are kept.
    """

    measure: Callable[[int], Row]
    levels: Sequence[Level]
    last: int
    file: Path

    def at(self, place: int) -> Row:
        """Measure a point, or read it."""
        points = self._points()
        if place not in points:
            points[place] = self.measure(place)
            write_json(self.file, {str(key): point for key, point in sorted(points.items())})
        return points[place]

    def _points(self) -> dict[int, Row]:
        return {int(key): point for key, point in (read_json(self.file) or {}).items()}

    def downwards(self, first: int, step: int) -> list[Row]:
        """Keep fewer and fewer weights until two networks in a row lose more than any level allows."""
        points, failed = list[Row](), 0
        for place in range(first, self.last + 1, step):
            points.append(self.at(place))
            failed = failed + 1 if loses_all(points[-1], self.levels) else 0
            if failed == 2:
                break
        return points

    def searched(self) -> list[Row]:
        """Find the crossings of all levels on a coarse grid, and halve the bracket of each once."""
        first = min(FIRST, self.last // COARSE * COARSE)
        self.downwards(first, COARSE)
        for place in range(first, 0, -COARSE):
            if passes_all(self.at(place), self.levels):
                break
        coarse = sorted(place for place in self._points() if place % COARSE == 0)  # not what a killed search refined
        points = [self._points()[place] for place in coarse]
        wanted = set[int]()
        for level in self.levels:
            kept = crossing(points, level)
            if kept is not None:
                exact = -QUARTERS * math.log2(kept)
                low = max((place for place in coarse if place <= exact + 1e-9), default=0)
                high = min((place for place in coarse if place > low), default=low)
                if high - low > 1:
                    wanted.add((low + high) // 2)
        for place in sorted(wanted):
            self.at(place)
        return [point for _, point in sorted(self._points().items())]


def last_place(dimension: int) -> int:
    """Return the last place of the grid at which enough weights of so many are kept."""
    return min(LAST, int(QUARTERS * math.log2(max(1.0, dimension / FEWEST))))
