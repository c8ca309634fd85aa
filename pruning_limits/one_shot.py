"""What one-shot magnitude pruning does to a network, measured sample by sample against the dense one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from estimators import Objective
from estimators.distributed import gathered
from estimators.vectors import named
from pruning_limits.crossing import first_crossing
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.measured import Bar, Point, crossing
from pruning_limits.progress import Progress, told

Evaluated = Callable[[Objective], tuple[Objective, Tensor]]
DRAWS = (2048, 16384)  # samples of the draws that decide before all data do
DRAWN_BYTES = 2 << 30
DEVIATIONS = 5.0  # a draw decides where its mean is as many standard errors away: wrong in 6e-7 of normal draws
# Of values 0 and 1 it must also be away by so many samples: a change that as many samples of a draw show on average is
# shown by none of them in 8e-7 of draws.
RARE = 14.0
EXPECTED_COARSE, EXPECTED_FINE = 8, 2  # networks of the grid, and of every narrowing to a quarter
BEYOND = (2**-0.25, 2**-0.5, 2**-0.75, 1 / 2, 1 / 4)  # of what the crossing keeps: they show what comes after it


def draws_of(objective: Objective, seed: int = 0) -> list[Objective]:
    """Return an objective on random draws of its data that are kept in memory, and on all data.

    Args:
        objective: The objective on all data.
        seed: Seed of the draws.

    Returns:
        Objectives of a rising number of samples, namely 2,048 and 16,384 where these are at most half of all data and
        the larger fits into 2 GiB, and all.
    """
    total, size = objective.samples, max(1, *gathered(objective.data.sample_bytes))
    first, larger = (samples if 2 * samples <= total else total for samples in DRAWS)
    sizes = [first] if larger * size > DRAWN_BYTES else [first, larger]
    return [*(objective.subset(samples, seed) for samples in sizes if samples < total), objective]


@dataclass(frozen=True)
class Difference:
    """Mean difference of per-sample values between the pruned and the dense network.

    Attributes:
        mean: The mean; infinite where a value is not finite.
        error: Its standard error as an estimate of the mean of all data; 0 where these were passed.
        spread: Its standard error as an estimate of the mean of all samples there might be.
        complete: Whether all data were passed.
        rare: What a draw of values 0 and 1 may miss because it happens to few samples only.
    """

    mean: float
    error: float
    spread: float
    complete: bool
    rare: float = 0.0


class PairedDifferences:
    """Differences per sample between magnitude-pruned networks and the dense one, on random draws and on all data.

    Args:
        draws: The objective on draws of rising size, the last of them all data, see ``draws_of``. Its per-sample values
            are compared; by how much the penalty rises is added.
        profile: Magnitude profile of its weights.
        dense: Values of the dense network in loader order ``[n]``, and the number of samples behind each ``[n]``.
        sign: 1 for values that must not rise, -1 for those that must not fall.
    """

    def __init__(
        self,
        draws: Sequence[Objective],
        profile: MagnitudeProfile,
        dense: tuple[Tensor, Tensor],
        sign: int = 1,
    ) -> None:
        self.draws, self.objective = draws, draws[-1]
        self.profile, self.sign = profile, sign
        self.values, self.sizes = dense
        self.samples = 0
        self._parts = draws if len(self.values) == self.objective.samples else draws[-1:]
        self._step = float(bool(((self.values == 0) | (self.values == 1)).all()))
        self._known: dict[int, tuple[int, Difference]] = {}

    def at(self, count: int, allowed: float | None = None, surely: bool = False) -> Difference:
        """Compare at a number of removed weights.

        Args:
            count: Number of removed weights, 0 to D.
            allowed: Draws grow until the mean is on one side of this number with certainty; None is content with the
                first.
            surely: Pass all data.

        Returns:
            The difference on the largest draw so far.
        """

        def pruned(part: Objective) -> tuple[Objective, Tensor]:
            return part, self.profile.vector - self.profile.removed(count / self.profile.dimension)

        self._known[count] = self._grown(pruned, self._known.get(count, (-1, None)), allowed, surely)
        return self._known[count][1]

    def of(
        self, network: Evaluated, allowed: float | None = None, surely: bool = False, most: int | None = None
    ) -> Difference:
        """Compare a network of any weights with the dense one.

        Args:
            network: From an objective on a draw to the objective of the network's weights there, and these.
            allowed: See ``at``.
            surely: See ``at``.
            most: Largest draw that is passed; None passes all data where smaller ones do not decide.
        """
        parts = [part for part in self._parts if most is None or part.samples <= most] or self._parts[:1]
        return self._grown(network, (-1, None), allowed, surely, parts)[1]

    def _grown(
        self,
        network: Evaluated,
        known: tuple[int, Difference | None],
        allowed: float | None,
        surely: bool,
        parts: Sequence[Objective] | None = None,
    ) -> tuple[int, Difference]:
        parts = self._parts if parts is None else parts
        (place, difference), last = known, len(parts) - 1
        while difference is None or (place < last and (surely or not _decided(difference, allowed))):
            place = last if surely else place + 1
            difference = self._difference(parts[place], *network(parts[place]))
        return place, difference

    def _difference(self, part: Objective, at: Objective, weights: Tensor) -> Difference:
        values, sizes = at.sample_losses(weights)
        self.samples += part.samples
        complete = part is self.objective
        if complete and len(values) != len(self.values):  # memory ran out and batches were split
            self.values, self.sizes = part.sample_losses()
            self.samples += part.samples
        before = self.values if part.picked is None else self.values[part.picked]
        differences = self.sign * (values - before)
        if not bool(differences.isfinite().all()):
            return Difference(math.inf, 0.0, 0.0, complete)
        share = sizes.double() / sizes.sum()
        mean = float((share * differences).sum())
        spread = float(differences.std()) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
        error = 0.0 if complete else spread * math.sqrt(1 - part.samples / self.objective.samples)
        rare = 0.0 if complete else RARE * self._step / part.samples
        return Difference(mean + self.sign * self._penalty(at, weights), error, spread, complete, rare)

    def _penalty(self, at: Objective, weights: Tensor) -> float:
        """Return by how much the penalty rises."""
        if self.objective.penalty is None:
            return 0.0
        return at.penalty_value(named(weights, at.chosen)) - self.objective.penalty_value(self.objective.chosen)

    @property
    def counts(self) -> set[int]:
        """The numbers of removed weights that were compared."""
        return set(self._known)


def _decided(difference: Difference, allowed: float | None) -> bool:
    if allowed is None or difference.mean == math.inf:
        return True
    return abs(difference.mean - allowed) > DEVIATIONS * difference.error + difference.rare


def measured_points(
    criterion: PairedDifferences, metric: PairedDifferences | None, bar: Bar, width: float, progress: Progress = False
) -> tuple[Point, ...]:
    """Measure how far one-shot magnitude pruning gets.

    See ``first_crossing`` for the grid. A draw of the data decides a point where it can with certainty, and both ends
    of the last bracket are measured on all data. Some points that keep less, down to a quarter, show what comes after.

    Args:
        criterion: Rise of the criterion on the training data.
        metric: Fall of the metric, or None.
        bar: What may be lost; the one of the two that it names decides.
        width: Wanted width of the last bracket, in sparsity.
        progress: See ``progress.told``; how many pruned networks there will be is estimated.

    Returns:
        Everything that was measured, by rising sparsity, without the dense network.
    """
    profile, dimension = criterion.profile, criterion.profile.dimension
    deciding = metric if bar.of_metric and metric is not None else criterion
    least = max(1, round(width * dimension))
    narrowed = math.ceil(math.log(max(1.0, 0.3 * dimension / least), 4))
    with told(progress, "pruned networks", EXPECTED_COARSE + EXPECTED_FINE * narrowed, "network") as tell:

        def passes(count: int, surely: bool) -> bool:
            passed = bar.passes(deciding.at(count, bar.allowed, surely).mean)
            tell(len(deciding.counts))
            return passed

        low, high = first_crossing(passes, dimension, profile.zeros, least)
    beyond = {dimension - math.ceil(kept * (dimension - low)) for kept in BEYOND}
    rows = []
    for count in sorted(deciding.counts | {count for count in beyond if count > high}):
        surely = count in (low, high)
        rise = criterion.at(count, surely=surely)
        drop = None if metric is None else metric.at(count, surely=surely)
        rows.append(
            Point(
                sparsity=count / dimension,
                rise=rise.mean,
                rise_error=rise.error,
                drop=None if drop is None else drop.mean,
                drop_error=None if drop is None else drop.spread,
            )
        )
    return tuple(rows)


def mean_and_error(values: Tensor, sizes: Tensor) -> tuple[float, float]:
    """Return the mean of per-sample values and its standard error.

    Args:
        values: Values ``[n]``.
        sizes: Number of samples behind each ``[n]``.

    Returns:
        Mean and standard error; the error of a single value is infinite.
    """
    mean = float((values * sizes).sum() / sizes.sum())
    return mean, float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf


def one_shot_limit(objective: Objective, profile: MagnitudeProfile, epsilon: float, width: float = 1e-4) -> float:
    r"""Measure the largest sparsity up to which one-shot magnitude pruning keeps :math:`F \le F(w^*) + \varepsilon`.

    Args:
        objective: The objective F on all its data.
        profile: Magnitude profile of its weights.
        epsilon: Allowed rise, > 0.
        width: Wanted width of the last bracket, in sparsity.

    Returns:
        The lower end of the first sustained crossing.
    """
    bar = Bar(epsilon)
    rise = PairedDifferences(draws_of(objective), profile, objective.sample_losses())
    return crossing(measured_points(rise, None, bar, width), bar, profile.zeros / profile.dimension).low
