"""Everything that a prediction computes: dense network, one-shot pruning, spectra and layers."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from estimators import L1, UserError
from estimators.distributed import gathered, together
from estimators.trace import traces_of_blocks
from pruning_limits.answers import bar_of
from pruning_limits.compute_budget import ComputeBudget
from pruning_limits.dense_network import DenseNetwork, Subject
from pruning_limits.epsilon import Allowed, from_max_drop
from pruning_limits.estimates import Estimates
from pruning_limits.evidence import Evidence
from pruning_limits.isotropic import carried_limit
from pruning_limits.losses import Losses
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.measured import Bar, Point
from pruning_limits.metrics import metric_errors
from pruning_limits.model_points import ModelPoint
from pruning_limits.one_shot import PairedDifferences, bracket_width, deciding_of, measured_points
from pruning_limits.parts import Cost, Dense, LayerCurvature, Origin
from pruning_limits.pattern_gathering import gather_patterns
from pruning_limits.pattern_names import UNSTRUCTURED
from pruning_limits.progress import Progress
from pruning_limits.quadratic import QuadraticRise, quadratic_limit
from pruning_limits.removed_directions import removed_directions
from pruning_limits.retuning import Compared
from pruning_limits.retuning_gathering import gather_retuned
from pruning_limits.settings import Settings
from pruning_limits.source import Source
from pruning_limits.states import DIFFERENT_RANKS, fingerprint
from pruning_limits.stopping import STOPPING
from pruning_limits.structure import structure_of
from pruning_limits.subsamples import Curvature, Subsamples

MODEL_KEPT = (1 / 2, 1 / 4, 1 / 16, 1 / 64, 1 / 256)  # of what is there: where the quadratic model is evaluated
LOGGER = logging.getLogger("pruning_limits")


@dataclass(frozen=True)
class Gathered:
    """What was computed, what is allowed, and the weights by magnitude."""

    evidence: Evidence
    allowed: Allowed
    settings: Settings
    profile: MagnitudeProfile


def gather(subject: Subject, asked: Settings, progress: Progress, checkpoint: str | Path | None) -> Gathered:
    """Compute everything that a prediction needs; the model is evaluated by substitution of weights.

    Args:
        subject: Network and data.
        asked: What is asked for, without the names of the parameters.
        progress: See ``predict_limit``.
        checkpoint: See ``predict_limit``.
    """
    started = time.perf_counter()
    dense = DenseNetwork(subject, asked)
    with together(lambda: {DIFFERENT_RANKS: fingerprint(dense.losses.objective, dense.losses.values, dense.settings)}):
        pass  # before anything is evaluated at weights that depend on the arguments
    dense.profile.structure = structure_of(dense.draws[0], asked.pattern, Source(subject))
    drop = None if subject.metric is None else dense.metric(subject, asked)
    losses = dense.losses
    rise = PairedDifferences(dense.draws, dense.profile, (losses.values, losses.sizes), total=losses.total)
    network = dense.described(drop)
    _refuse_whole_fall(network, asked)
    given = None if asked.max_drop is not None else _given(dense.losses, asked)
    points = _points(rise, drop, asked, given, progress)
    allowed = given or _from_metric(points, asked, dense)
    weights = f"{dense.profile.dimension:,}"
    LOGGER.info("%s weights, %s %.6g, epsilon %.4g", weights, asked.criterion, network.objective, allowed.epsilon)
    patterns = gather_patterns(dense, drop, bar_of(asked, allowed.epsilon), asked)
    curved = _Curved(dense, asked, allowed.epsilon, progress, checkpoint)
    forward_samples = dense.samples + rise.samples + (0 if drop is None else drop.samples) + patterns.samples
    compared = Compared(rise, drop, bar_of(asked, allowed.epsilon))
    by_pattern = {UNSTRUCTURED: points, **{row.name: row.points for row in patterns.rows}}
    retuned = gather_retuned(dense, compared, by_pattern, progress, checkpoint)
    evidence = Evidence(
        parameters=dense.profile.dimension,
        already_removed=dense.profile.zeros / dense.profile.dimension,
        dense=network,
        curve=curved.curve,
        hessian=curved.hessian,
        ggn=curved.ggn,
        directions=curved.directions,
        unknown=curved.unknown,
        points=points,
        measured=bool(points),
        model_points=curved.model_points(),
        layers=curved.layers(),
        trace_error=curved.traces.whole.standard_error,
        remarks=(*curved.remarks, *dense.remarks, *retuned.remarks),
        cost=_cost(curved.subsamples, forward_samples, retuned.passed, started, dense.budget),
        origin=Origin(
            type(subject.model).__name__, f"{network.samples:,} samples", _version(), date.today().isoformat()
        ),
        retuned=retuned.tunings.get(UNSTRUCTURED),
    )
    patterns = replace(patterns, rows=retuned.rows(patterns.rows))
    return Gathered(patterns.beside(evidence), allowed, dense.settings, patterns.profile)


def _refuse_whole_fall(network: Dense, asked: Settings) -> None:
    """Refuse an allowed fall as large as the accuracy, as points in the place of a fraction are: all may go then."""
    accuracy = network.metric if asked.metric == "accuracy" else None
    if accuracy is not None and asked.max_drop is not None and asked.max_drop >= accuracy:
        raise UserError(
            f"max_drop: expected less than the accuracy of the network, {accuracy:.4g}, such as 0.005 for half a "
            f"point, got {asked.max_drop:g}"
        )


def _given(losses: Losses, asked: Settings) -> Allowed:
    """Return the allowed rise where it does not follow from the metric: a number, or the fluctuation of a batch."""
    if asked.epsilon == "batch-std":
        return Allowed.exactly(losses.epsilon(), "batch-std")
    return Allowed.exactly(asked.epsilon)


def _from_metric(points: Sequence[Point], asked: Settings, dense: DenseNetwork) -> Allowed:
    """Return the rise that goes with the allowed fall of the metric; where there is none, what is given else."""
    start = dense.profile.zeros / dense.profile.dimension
    return from_max_drop(points, asked.max_drop or 0.0, start) or _given(dense.losses, asked)


def _points(
    rise: PairedDifferences, drop: PairedDifferences | None, asked: Settings, given: Allowed | None, progress: Progress
) -> tuple[Point, ...]:
    """Measure one-shot pruning, where it is asked for."""
    if not asked.measure:
        return ()
    bar = Bar(asked.max_drop or 0.0, of_metric=True) if given is None else Bar(given.epsilon)
    with metric_errors("held_out" if asked.held_out else "loader") if drop else nullcontext():
        width = bracket_width(deciding_of(rise, drop, bar), asked.tolerance)
        return measured_points(rise, drop, bar, width, progress)


class _Curved:
    """The curvature of a network: spectra, directions, the quadratic model along the removed weights, traces.

    Attributes:
        subsamples: Sub-samples and curvatures on them.
        curve: R(s)^2 of the weights.
        hessian: Estimate with the curvature that was asked for.
        ggn: That of the GGN, or None where it says nothing.
        unknown: Why it says nothing.
        directions: Where the removed weights point, or None likewise.
        remarks: What is to be said about the curvature.
        traces: Traces of the layers' blocks.
    """

    def __init__(
        self, dense: DenseNetwork, asked: Settings, epsilon: float, progress: Progress, checkpoint: str | Path | None
    ) -> None:
        profile = dense.profile
        kept = profile.vector != 0 if profile.zeros else None
        self.subsamples = Subsamples(dense.losses, dense.settings, kept, budget=dense.budget)
        estimates = Estimates(self.subsamples, profile.curve(), epsilon, progress, checkpoint)
        self.dense, self.asked, self.epsilon, self.curve = dense, asked, epsilon, estimates.curve
        alone = asked.curvature == "ggn"
        only = estimates.estimate("ggn") if alone else None
        if only and (flat := self.subsamples.silence("ggn", only.samples)):
            raise UserError(f"curvature: {flat}; take curvature='hessian'")
        self.ggn, self.unknown = (only, "") if only else estimates.retuning()
        slope = None if isinstance(dense.counted, L1) else dense.gradient
        self.directions = None if self.ggn is None else removed_directions(estimates, self.ggn, profile, slope)
        self.hessian = only or estimates.estimate("hessian")
        flat = self.subsamples.silence(asked.curvature, self.hessian.samples)
        remarks = [f"the formula takes weights for free that are not: {flat}"] if flat else []
        if self.unknown:
            remarks.append(f"the bound and what the GGN says of re-training are unknown: {self.unknown}")
        self.few = min(self.hessian.samples, dense.budget.diagnostics, STOPPING.diagnostic_samples)
        self.traces = traces_of_blocks(self._operator(self.few), self._operator(self.few).blocks, seed=asked.seed)
        self.remarks = (*remarks, *self.subsamples.remarks)

    def _operator(self, samples: int) -> Curvature:
        return self.subsamples.operator(self.asked.curvature, samples, narrow=True)

    def model_points(self) -> tuple[ModelPoint, ...]:
        """Evaluate the quadratic model on a grid, and where nothing is measured until it crosses epsilon."""
        dense, profile = self.dense, self.dense.profile
        operator = self._operator(self.few if self.asked.measure else self.hessian.samples)
        rise = QuadraticRise(operator, dense.gradient, profile, dense.pull())
        limit = carried_limit(self.hessian, self.curve, self.epsilon, self.asked.negative)
        if not self.asked.measure:
            quadratic_limit(rise, self.epsilon, limit)
        kept = 1 - profile.zeros / profile.dimension
        rise.evaluate([1 - share * kept for share in MODEL_KEPT if share * kept * profile.dimension >= 1])
        return rise.points()

    def layers(self) -> tuple[LayerCurvature, ...]:
        """Describe the layers; the operator of the traces may leave weights out which only a penalty curves."""
        operator, traces = self._operator(self.few), self.traces
        weights = self.dense.profile.weights.items()
        return tuple(
            LayerCurvature(
                name=name,
                weights=weight.numel(),
                norm=float(torch.linalg.vector_norm(weight, dtype=torch.float64)),
                trace=float(trace) + operator.outside * (weight.numel() - size),
                trace_error=float(error),
                macs=None if (uses := self.dense.profile.structure.uses.get(name)) is None else uses * weight.numel(),
            )
            for (name, weight), size, trace, error in zip(
                weights, operator.blocks, traces.values, traces.errors, strict=True
            )
        )


def _cost(subsamples: Subsamples, forward_samples: int, tuned: float, started: float, budget: ComputeBudget) -> Cost:
    spent = gathered((time.perf_counter() - started, _peak_memory(subsamples.objective.device)))
    return Cost(
        products=subsamples.products,
        samples=subsamples.samples_seen,
        forward_samples=forward_samples,
        seconds=max(seconds for seconds, _ in spent),
        peak_memory=max(memory for _, memory in spent),
        epochs=budget.epochs(subsamples.samples_seen, forward_samples, tuned),
    )


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _version() -> str:
    try:
        return version("pruning-limits")
    except PackageNotFoundError:  # a checkout on the path
        return "unknown"
