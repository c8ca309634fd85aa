"""Measures what one-shot magnitude pruning does to a network, sample by sample against the dense network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from estimators import Objective
from estimators.distributed import gathered
from estimators.vectors import named
from pruning_limits.crossing import first_crossing
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.measured import DEVIATIONS, Bar, Point, crossing
from pruning_limits.progress import Progress, told

Evaluated = Callable[[Objective], tuple[Objective, Tensor]]
DRAWS = (2048, 8192)  # largest samples of the draws that decide before all data do
PARTS = (8, 3)  # of all data, how many times fewer a draw has at least
FEWEST, DRAWN_FROM = 1024, 4096  # samples of a draw at least, and of all data from which on there are draws
DRAWN_BYTES = 2 << 30
LIKELY = 2.0  # standard errors at which a draw decides before a network was passed through all data
# Of values 0 and 1 it must also be away by so many samples: a change that as many samples of a draw show on average is
# shown by none of them in 8e-7 of draws.
RARE = 14.0
# Width of the last bracket in units of the tolerance: of few samples, and where draws decide, whose networks cost more.
WIDTH, DRAWN_WIDTH = 0.05, 1.0
EXPECTED_COARSE, EXPECTED_FINE = 8, 2  # networks of the grid, and of every narrowing to a quarter
BEYOND = (2**-0.25, 2**-0.5, 2**-0.75, 1 / 2, 1 / 4)  # of what the crossing keeps: they show what comes after it


def draws_of(objective: Objective, seed: int = 0, scores: Tensor | None = None) -> list[Objective]:
    """Return an objective on random draws of its data that are kept in memory, and on all data.

    Args:
        objective: The objective on all data.
        seed: Seed of the draws.
        scores: Scores of the samples ``[N]``, with which the larger draw is drawn; None draws all alike.

    Returns:
        Objectives of a rising number of samples, the last of them on all data. Where there are 4,096 samples, a draw of
        an eighth comes first, of at least 1,024 and at most 2,048. A draw of a third follows, of at most 8,192, if it
        has twice as many and fits into 2 GiB.
    """
    total, size = objective.samples, max(1, *gathered(objective.data.sample_bytes))
    if total < DRAWN_FROM:
        return [objective]
    first, larger = (max(FEWEST, min(most, total // part)) for most, part in zip(DRAWS, PARTS, strict=True))
    draws = [objective.subset(first, seed)]  # it serves other purposes, too
    if larger >= 2 * first and larger * size <= DRAWN_BYTES:
        draws.append(objective.subset(larger, seed, scores))
    return [*draws, objective]


@dataclass(frozen=True)
class Difference:
    """Mean difference of per-sample values between the pruned and the dense network.

    Attributes:
        mean: The mean; infinite where a value is not finite.
        error: Its standard error as an estimate of the mean of all data; 0 where these were passed.
        spread: Its standard error as an estimate of the mean of all samples there might be.
        samples: Number of samples that were passed.
        complete: Whether these were all data.
        rare: What a draw of values 0 and 1 may miss because it happens to few samples only.
        beside: Whether all data were passed through a network that the draw can be compared with.
    """

    mean: float
    error: float
    spread: float
    samples: int
    complete: bool
    rare: float = 0.0
    beside: bool = False


class PairedDifferences:
    r"""Differences per sample between magnitude-pruned networks and the dense one, on random draws and on all data.

    Once all data were passed through one pruned network, with the mean difference :math:`m_0`, draws tell by how much
    the others differ from it: their mean is :math:`m_0 + \bar x - \bar x_0` with the means of the draw, whose error is
    small as long as the networks are alike. Draws that were passed before are read once more in that way. Of several
    such means the one with the smallest error counts.

    Args:
        draws: The objective on draws of rising size, the last of them all data, see ``draws_of``. Its per-sample values
            are compared; by how much the penalty rises is added.
        profile: Magnitude profile of its weights.
        dense: Values of the dense network in loader order ``[n]``, and the number of samples behind each ``[n]``.
        sign: 1 for values that must not rise, -1 for those that must not fall.
        total: Number of samples that all data, which draws are compared with, were themselves drawn from; None takes
            them as complete.
    """

    def __init__(
        self,
        draws: Sequence[Objective],
        profile: MagnitudeProfile,
        dense: tuple[Tensor, Tensor],
        sign: int = 1,
        total: int | None = None,
    ) -> None:
        self.draws, self.objective = draws, draws[-1]
        self.profile, self.sign = profile, sign
        self.values, self.sizes = dense
        self.total = total or self.objective.samples
        self.samples = 0
        self._parts = draws if len(self.values) == self.objective.samples else draws[-1:]
        self._step = float(bool(((self.values == 0) | (self.values == 1)).all()))
        self._known: dict[int, Difference] = {}
        self._passed: dict[int, tuple[Objective, Tensor, float]] = {}  # by count, the largest draw and what it gave
        self._references: list[
            tuple[float, Tensor]
        ] = []  # mean and values of networks that all data were passed through

    def at(self, count: int, allowed: float | None = None, surely: bool = False) -> Difference:
        """Compare at a number of removed weights.

        Before all data were passed through a pruned network, draws decide at ``LIKELY`` standard errors, and what the
        largest one says counts. From then on the largest one decides at ``DEVIATIONS``, else all data do.

        Args:
            count: Number of removed weights, 0 to D.
            allowed: Draws grow until the mean is on one side of this number; None is content with the first.
            surely: Pass all data, or a draw that decides beside a network that all data were passed through.

        Returns:
            The difference on the largest draw so far.
        """
        difference = self._known.get(count)
        deviations = DEVIATIONS if self._references or surely else LIKELY
        for part in self._in_turn(decided=allowed is not None, surely=surely):
            if difference is not None:
                enough = difference.complete or _decided(difference, allowed, deviations)
                if enough and (difference.complete or difference.beside or not surely):
                    break
                if part.samples <= difference.samples:
                    continue
            weights = self.profile.vector - self.profile.removed(count / self.profile.dimension)
            difference = self._at(count, part, weights)
        assert difference is not None
        return difference

    def _in_turn(self, decided: bool, surely: bool) -> Sequence[Objective]:
        """Return the draws that are passed one after the other, as far as they are needed.

        Beside a network that all data were passed through, the largest draw decides or all data do: smaller ones rarely
        can. Before the first such network, only draws are passed, or all data where these are asked for.
        """
        if self._references:
            return self._parts[-2:] if decided else self._parts
        return self._parts[-1:] if surely else self._parts[:-1] or self._parts

    def _at(self, count: int, part: Objective, weights: Tensor) -> Difference:
        """Compare on a draw and remember its values; those of all data are what draws are read beside from now on."""
        differences, sizes = self._differences(part, part, weights)
        penalty = self.sign * self._penalty(part, weights)
        self._passed[count] = part, differences, penalty
        self._known[count] = self._difference(part, differences, sizes, penalty)
        if part is self.objective and len(self._parts) > 1 and bool(differences.isfinite().all()):
            self._references.append((self._known[count].mean - penalty, differences))
            for other, (draw, values, rise) in self._passed.items():
                if draw is not self.objective:
                    self._known[other] = self._difference(draw, values, None, rise)
        return self._known[count]

    def settled(self, count: int, allowed: float) -> bool:
        """Tell whether the mean is on one side of a number also where all data are themselves drawn.

        All of them are passed where a draw of them leaves a doubt.
        """
        difference = self.at(count)
        if not difference.complete and abs(difference.mean - allowed) <= DEVIATIONS * self.error(difference):
            weights = self.profile.vector - self.profile.removed(count / self.profile.dimension)
            difference = self._at(count, self.objective, weights)
        return abs(difference.mean - allowed) > DEVIATIONS * self.error(difference)

    def of(
        self, network: Evaluated, allowed: float | None = None, surely: bool = False, most: int | None = None
    ) -> Difference:
        """Compare a network of any weights with the dense one.

        Args:
            network: From an objective on a draw to the objective of the network's weights there, and these.
            allowed: See ``at``.
            surely: Pass all data.
            most: Largest draw that is passed; None passes all data where smaller ones do not decide.
        """
        parts = [part for part in self._parts if most is None or part.samples <= most] or self._parts[:1]
        for part in parts[-1:] if surely else parts:
            at, weights = network(part)
            differences, sizes = self._differences(part, at, weights)
            difference = self._difference(part, differences, sizes, self.sign * self._penalty(at, weights), near=False)
            if _decided(difference, allowed):
                break
        return difference

    def error(self, difference: Difference) -> float:
        """Return the standard error of a difference where all data are themselves drawn."""
        if self.total == self.objective.samples:
            return difference.error
        left = 1 / self.objective.samples - 1 / self.total
        return math.hypot(difference.error, difference.spread * math.sqrt(difference.samples * left))

    def guess(self, allowed: float, low: int, high: int) -> int | None:
        """Guess between two compared counts where the mean passes what is allowed, linear in the kept logarithm.

        None without draws: where all data cost little, the search goes the surer way.
        """
        if not self.drawn:
            return None
        dimension = self.profile.dimension
        ends = [self._known[count].mean if count in self._known else 0.0 for count in (low, high)]
        if not (ends[0] <= allowed < ends[1] < math.inf):
            return None
        if ends[0] > 0:
            ends, allowed = [math.log(end) for end in ends], math.log(allowed)
        share = (allowed - ends[0]) / (ends[1] - ends[0])
        places = [math.log(max(dimension - count, 0.5)) for count in (low, high)]
        return dimension - round(math.exp(places[0] + share * (places[1] - places[0])))

    def _differences(self, part: Objective, at: Objective, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the differences of weights from the dense network on a draw, and the sizes behind them."""
        values, sizes = at.sample_losses(weights)
        self.samples += part.samples
        complete = part is self.objective
        if complete and len(values) != len(self.values):  # memory ran out and batches were split
            self.values, self.sizes = part.sample_losses()
            self.samples += part.samples
        return self.sign * (values - (self.values if complete else _picked(self.values, part))), sizes

    def _difference(
        self, part: Objective, differences: Tensor, sizes: Tensor | None, penalty: float, near: bool = True
    ) -> Difference:
        """Read the mean and its error off differences, beside the network that all data were passed through if near."""
        complete = part is self.objective
        if not bool(differences.isfinite().all()):
            return Difference(math.inf, 0.0, 0.0, part.samples, complete)
        if complete:
            mean, spread = mean_and_error(differences, torch.ones(len(differences)) if sizes is None else sizes)
            return Difference(mean + penalty, 0.0, spread, part.samples, complete)
        spread = float(differences.std()) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
        total, rare = self.objective.samples, RARE * self._step / part.samples
        error = drawn_error(differences, part.factors, total)
        best = Difference(float(differences.mean()) + penalty, error, spread, part.samples, False, rare)
        for start, known in self._references if near else ():
            beside = differences - _picked(known, part)
            error, best = drawn_error(beside, part.factors, total), replace(best, beside=True)
            if error < best.error:
                best = replace(best, mean=start + float(beside.mean()) + penalty, error=error)
        return best

    def _penalty(self, at: Objective, weights: Tensor) -> float:
        """Return by how much the penalty rises."""
        if self.objective.penalty is None:
            return 0.0
        return at.penalty_value(named(weights, at.chosen)) - self.objective.penalty_value(self.objective.chosen)

    @property
    def drawn(self) -> bool:
        """Whether draws decide where they can."""
        return len(self._parts) > 1

    @property
    def counts(self) -> set[int]:
        """The numbers of removed weights that were compared."""
        return set(self._known)


def _picked(values: Tensor, part: Objective) -> Tensor:
    """Return values of all data at the samples of a draw of them, multiplied as their losses are there."""
    picked = values[part.picked]
    return picked if part.factors is None else picked * part.factors


def drawn_error(values: Tensor, factors: Tensor | None, total: int) -> float:
    r"""Standard error of the mean of values that were drawn without replacement, :math:`\pi_j = n/(N f_j)` each.

    .. math:: \frac1n \sqrt{\frac{n}{n-1} \sum_j (1 - \pi_j) (y_j - B)^2}, \quad
        B = \frac{\sum_j (1 - \pi_j) y_j}{\sum_j (1 - \pi_j)}.

    Args:
        values: Values y times their factors ``[n]``.
        factors: The factors f ``[n]``; None takes all as 1.
        total: Number N of samples that they were drawn from, at least n.

    Returns:
        The error; infinite for a single value of several.

    Source: Hajek, Asymptotic theory of rejective sampling, Annals of Mathematical Statistics 35, 1964.

    Example:
        >>> import torch
        >>> values = torch.tensor([0.0, 1.0, 2.0, 3.0])
        >>> round(drawn_error(values, None, total=8), 4), round(float(values.std()) / 2 * 0.5**0.5, 4)
        (0.4564, 0.4564)
    """
    n = len(values)
    if n < 2:
        return math.inf if total > n else 0.0
    chances = values.new_full((n,), n / total) if factors is None else n / (total * factors)
    left = (1 - chances).clamp(min=0)
    if not bool(left.any()):
        return 0.0
    middle = (left * values).sum() / left.sum()
    return math.sqrt(float((left * (values - middle).square()).sum()) / (n * (n - 1)))


def _decided(difference: Difference, allowed: float | None, deviations: float = DEVIATIONS) -> bool:
    if allowed is None or difference.mean == math.inf:
        return True
    return abs(difference.mean - allowed) > deviations * difference.error + difference.rare


def measured_points(
    criterion: PairedDifferences, metric: PairedDifferences | None, bar: Bar, width: float, progress: Progress = False
) -> tuple[Point, ...]:
    """Measure how far one-shot magnitude pruning gets.

    See ``first_crossing`` for the grid. A draw of the data decides a point where it can with certainty, also at both
    ends of the last bracket once all data were passed near them. Some points that keep less, down to a quarter, show
    what comes after.

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
    deciding = deciding_of(criterion, metric, bar)
    least = max(1, round(width * dimension))
    narrowed = math.ceil(math.log(max(1.0, 0.3 * dimension / least), 4))
    with told(progress, "pruned networks", EXPECTED_COARSE + EXPECTED_FINE * narrowed, "network") as tell:

        def passes(count: int, surely: bool) -> bool:
            passed = bar.passes(deciding.at(count, bar.allowed, surely).mean)
            tell(len(deciding.counts))
            return passed

        low, high = first_crossing(passes, dimension, profile.zeros, least, partial(deciding.guess, bar.allowed))
    beyond = {dimension - math.ceil(kept * (dimension - low)) for kept in BEYOND}
    counts = sorted(deciding.counts | {count for count in beyond if count > high})
    if deciding.total > deciding.objective.samples:  # the interval ends at the first points that leave no doubt
        for side in ([count for count in reversed(counts) if count <= low], [count for count in counts if count > low]):
            any(deciding.settled(count, bar.allowed) for count in side)
    rows = []
    for count in counts:
        rows.append(measured_point(criterion, metric, count, surely=count in (low, high)))
    return tuple(rows)


def deciding_of(criterion: PairedDifferences, metric: PairedDifferences | None, bar: Bar) -> PairedDifferences:
    """Return the one of the two that what may be lost is of."""
    return metric if bar.of_metric and metric is not None else criterion


def bracket_width(deciding: PairedDifferences, tolerance: float) -> float:
    """Return how wide the last bracket may be, in sparsity, of single weights and of patterns.

    Args:
        deciding: What decides.
        tolerance: Wanted half-width of an answer, in sparsity.
    """
    return (DRAWN_WIDTH if deciding.drawn else WIDTH) * tolerance


def measured_point(criterion: PairedDifferences, metric: PairedDifferences | None, count: int, surely: bool) -> Point:
    """Return what a network with so many weights removed loses.

    Args:
        criterion: Rise of the criterion.
        metric: Fall of the metric, or None.
        count: Number of removed weights.
        surely: See ``PairedDifferences.at``.
    """
    rise = criterion.at(count, surely=surely)
    drop = None if metric is None else metric.at(count, surely=surely)
    return Point(
        sparsity=count / criterion.profile.dimension,
        rise=rise.mean,
        rise_error=criterion.error(rise),
        drop=None if drop is None else drop.mean,
        drop_error=None if drop is None else drop.spread,
    )


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
