"""How far magnitude pruning gets with brief fine-tuning in stages: a search that keeps its states."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from estimators import Objective, UserError
from estimators.distributed import world
from estimators.substitution import intact
from pruning_limits.fine_tuning import FORWARD, FineTuning, Network
from pruning_limits.group_profile import GroupProfile
from pruning_limits.groups import Groups
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.measured import Bar
from pruning_limits.one_shot import Difference, Evaluated, PairedDifferences
from pruning_limits.progress import Progress, told
from pruning_limits.settings import Retuning
from pruning_limits.states import States
from pruning_limits.tuned_points import STRIDE, TunedPoint, Tuning

NARROW = 1.05  # ratio of kept numbers at which a bracket is left as it is
MOST_COMPARED = 1 << 14  # samples that a re-tuned network is compared on before it is the last
RUN_SEEDS = 1_000_003


@dataclass(frozen=True)
class Compared:
    """What re-tuned networks are measured by.

    Attributes:
        rise: Rise of the criterion on the training data.
        drop: Fall of the metric, or None.
        bar: What may be lost.
    """

    rise: PairedDifferences
    drop: PairedDifferences | None
    bar: Bar

    @property
    def samples(self) -> int:
        """Samples that were passed so far."""
        return self.rise.samples + (0 if self.drop is None else self.drop.samples)

    def point(self, network: Evaluated, count: int, start: int, seed: int, surely: bool = False) -> TunedPoint:
        """Compare a network with the dense one.

        Args:
            network: What evaluates the network.
            count: Number of its removed weights.
            start: That of the stage that it went on from.
            seed: Number of the run.
            surely: Measure the metric on all data.
        """
        dimension, of_metric = self.rise.profile.dimension, self.bar.of_metric
        drop: Difference | None = None
        if self.drop is not None:
            surely = surely or self.drop.objective.samples <= MOST_COMPARED
            drop = self.drop.of(network, self.bar.allowed if of_metric else None, surely=surely)
        rise = self.rise.of(network, None if of_metric else self.bar.allowed, most=MOST_COMPARED)
        return TunedPoint(
            sparsity=count / dimension,
            rise=rise.mean,
            rise_error=self.rise.error(rise),
            drop=None if drop is None else drop.mean,
            drop_error=None if drop is None else drop.spread,
            start=start / dimension,
            seed=seed,
        )


@dataclass(frozen=True, eq=False)
class Beginning:
    """Where a search begins.

    Attributes:
        profile: The weights, or their groups, in the order in which they go.
        alone: Number of weights that pruning alone may remove.
        width: Bracket, in weights, that is narrow enough.
    """

    profile: MagnitudeProfile
    alone: int
    width: int

    @property
    def groups(self) -> Groups | None:
        """Weights that go together; None of single weights."""
        return self.profile.groups if isinstance(self.profile, GroupProfile) else None

    @property
    def end(self) -> int:
        """Number of removed weights that leaves nothing to remove: one weight or group more than can go."""
        if not isinstance(self.profile, GroupProfile):
            return self.profile.dimension
        *_, before, last = [0, *(int(count) for count in self.profile.counts if count < self.profile.dimension)]
        return 2 * last - before

    @property
    def start(self) -> int:
        """Number of weights that the search goes on from; a pattern of one sparsity is always re-tuned."""
        groups = self.groups
        return self.profile.zeros if groups is not None and groups.pattern.fixed else self.alone

    @property
    def stage(self) -> str:
        """Name of the search in progress."""
        return "re-tuned networks" if self.groups is None else f"re-tuned networks, {self.groups.pattern.name}"

    def key(self, run: int) -> str:
        """Return the name of the state of a run."""
        pattern = "" if self.groups is None else f"{self.groups.pattern.name} "
        return f"re-tuned {pattern}{run}"


def staged_retuning(
    objective: Objective,
    retuning: Retuning,
    compared: Compared,
    beginning: Beginning,
    allowance: float,
    seed: int,
    progress: Progress = False,
    states: States | None = None,
) -> Reached:
    r"""Measure how far magnitude pruning gets where the kept weights are re-tuned in stages.

    The first stage keeps half of what pruning alone may keep, every other half of what the last one kept, until a
    network loses more than is allowed. Then the bracket is halved again and again, in the logarithm of the kept number,
    each stage going on from the last network that passed: nothing is trained twice. In a pattern only weights that may
    go count as kept, and a pattern of one sparsity is one stage. A run ends with a bracket of 5 % of what is kept, or
    where its even share of what is left of the allowance does not pay for a stage that costs as much as its last one.

    Args:
        objective: The criterion on all training data.
        retuning: Settings.
        compared: What the networks are measured by.
        beginning: Where it begins.
        allowance: What all runs may cost together, in samples that an epoch of training passes.
        seed: Seed of the prediction.
        progress: See ``progress.told``.
        states: Where the state after every stage is kept; None keeps none.

    Returns:
        All networks that were measured, and what they took. Ctrl-C ends the search, and what was measured counts; of
        several ranks, which it reaches at different stages, it ends the program.

    Raises:
        UserError: See ``FineTuning``.
    """
    started = time.perf_counter()
    points, passed, samples, interrupted = list[TunedPoint](), 0.0, 0, False
    for run in range(retuning.seeds):
        share = (allowance - passed) / (retuning.seeds - run)
        search = _Search(objective, retuning, compared, beginning, share, run, seed, states)
        try:
            with intact(objective.model), told(progress, beginning.stage, search.expected, "network") as tell:
                search.complete(tell)
        except KeyboardInterrupt:
            if world() > 1:
                raise
            interrupted = True
        points += sorted(search.points, key=lambda point: point.sparsity)
        passed += search.cost
        samples = max(samples, search.size)
        if interrupted:
            break
    tuning = Tuning(tuple(points), samples, passed, time.perf_counter() - started) if points else None
    return Reached(tuning, interrupted)


@dataclass(frozen=True)
class Reached:
    """What staged re-tuning reached.

    Attributes:
        tuning: Networks that were measured; None where there are none.
        interrupted: Whether Ctrl-C ended it.
    """

    tuning: Tuning | None
    interrupted: bool


class _Search:
    """The stages of one run."""

    def __init__(
        self,
        objective: Objective,
        retuning: Retuning,
        compared: Compared,
        beginning: Beginning,
        allowance: float,
        run: int,
        seed: int,
        states: States | None,
    ) -> None:
        self.tuning = FineTuning(
            objective, retuning.samples, retuning.passes, run_seed(seed, run), groups=beginning.groups
        )
        self.compared, self.beginning, self.run, self.states = compared, beginning, run, states
        self.dimension, self.end = beginning.profile.dimension, beginning.end
        self.allowance = allowance
        self.points: list[TunedPoint] = []
        self.base, self.base_count = self.tuning.dense, beginning.profile.zeros
        self.low, self.high = beginning.start, self.dimension
        self.size, self.cost, self._last, self.finished = 0, 0.0, 0.0, False
        self._restore()

    @property
    def expected(self) -> int:
        """A guess of the number of networks."""
        return max(3, len(self.points))

    def complete(self, tell: Callable[[int], None]) -> None:
        """Go on until the bracket is narrow or the allowance is spent."""
        tell(len(self.points))
        while not self.finished:
            count = self._next()
            spent = bool(self.points) and self.cost + self._last > self.allowance
            if count is None or spent:
                self._confirm()
                self.finished = True
            else:
                self._advance(count)
            tell(len(self.points))
            self._keep()

    def _next(self) -> int | None:
        """Return the number of removed weights of the next stage; None where the bracket is narrow."""
        kept, failed = max(1, self.end - self.low), max(1, self.end - self.high)
        if self.high == self.dimension:
            count = self.end - max(1, round(STRIDE * kept))
        elif self.high - self.low <= self.beginning.width or kept <= NARROW * failed:
            return None
        else:
            count = self.end - round(math.sqrt(kept * failed))
        return self.tuning.between(self.base, count, self.low, self.high)

    def _advance(self, count: int) -> None:
        before, measured = self.tuning.cost, self.compared.samples
        network = self.tuning.stage(self.base, count)
        evaluated = self.tuning.evaluated_by(network)
        point = self.compared.point(evaluated, count, self.base_count, self.run)
        self.points.append(point)
        self._last = self.tuning.cost - before + FORWARD * (self.compared.samples - measured)
        self.cost += self._last
        self.size = max(self.size, self.tuning.size)
        if self.compared.bar.passes(self.compared.bar.loss(point)):
            self.low, self.base, self.base_count = count, network, count
        else:
            self.high = count

    def _confirm(self) -> None:
        """Measure the metric of the last network that passed on all data."""
        drop = self.compared.drop
        if drop is None or drop.objective.samples <= MOST_COMPARED or self.base is self.tuning.dense:
            return
        sparsity = self.base_count / self.dimension
        old = next(point for point in self.points if point.sparsity == sparsity)
        before = self.compared.samples
        start, evaluated = round(old.start * self.dimension), self.tuning.evaluated_by(self.base)
        new = self.compared.point(evaluated, self.base_count, start, self.run, surely=True)
        self.points = [new if point is old else point for point in self.points]
        self.cost += FORWARD * (self.compared.samples - before)

    def _keep(self) -> None:
        if self.states is None:
            return
        state: dict[str, Any] = {
            "steps": len(self.points),
            "points": [asdict(point) for point in self.points],
            "numbers": [self.base_count, self.low, self.high, self.size],
            "costs": [self.cost, self._last, self.tuning.cost],
            "finished": self.finished,
        }
        if self.base is not self.tuning.dense and not self.finished:
            state |= network_state(self.base)
        self.states.keep(self.beginning.key(self.run), state, at_once=True)

    def _restore(self) -> None:
        state = None if self.states is None else self.states.kept(self.beginning.key(self.run))
        if state is None:
            return
        try:
            self.points = [TunedPoint(**point) for point in state["points"]]
            self.base_count, self.low, self.high, self.size = state["numbers"]
            self.cost, self._last, self.tuning.cost = state["costs"]
            self.finished = state["finished"]
            if "vector" in state:
                self.base = kept_network(state, self.tuning.dense)
        except (KeyError, TypeError, ValueError):
            raise UserError("checkpoint: what it holds of re-tuning is damaged; delete it and start again") from None


def network_state(network: Network) -> dict[str, Any]:
    """Return what ``kept_network`` needs."""
    return {"vector": network.vector, "kept": network.kept, "buffers": network.buffers}


def kept_network(state: Mapping[str, Any], dense: Network) -> Network:
    """Return a network that was kept, on the device of the dense one.

    Args:
        state: What ``network_state`` returned, read from a file.
        dense: The dense network.

    Raises:
        KeyError: Something is missing.
        ValueError: The weights are of another number or type.
    """
    device = dense.vector.device
    vector, kept = (state[name].to(device) for name in ("vector", "kept"))
    if vector.shape != dense.vector.shape or vector.dtype != dense.vector.dtype or kept.dtype != torch.bool:
        raise ValueError("the weights are of another kind")
    return Network(vector, kept, {name: buffer.to(device) for name, buffer in state["buffers"].items()})


def run_seed(seed: int, run: int) -> int:
    """Return the seed of one run of several."""
    return seed + RUN_SEEDS * run
