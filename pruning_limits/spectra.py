"""Spectra of one prediction: as many samples, steps and probes as the tolerance asks for, and their errors."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from estimators import (
    GGN,
    Hessian,
    Lanczos,
    Objective,
    SpectralMeasure,
    Tridiagonal,
    UserError,
    dense_measure,
    even_bracket,
    gauss,
    gauss_radau,
    measure_of,
    sphere_probes,
    steady_gauss,
)
from estimators.distributed import gathered, rank
from estimators.errors import UndefinedGGNError
from estimators.forwards import Forwards
from estimators.input_subspace import InputSubspace, input_weights
from estimators.lanczos import Reorthogonalise
from estimators.measure import Rule
from estimators.memory import available
from pruning_limits.bounds import Negative, isotropic_limit
from pruning_limits.directions import Directions, Slope, slopes
from pruning_limits.extrapolation import growth
from pruning_limits.losses import Losses
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.magnitude_curve import MagnitudeCurve
from pruning_limits.parts import Estimate
from pruning_limits.settings import Settings
from pruning_limits.silence import acting_layers, curved_weights, marked_layers, silence
from pruning_limits.states import Known, States, fingerprint

LEAST_STEPS, STEPS_AT_ONCE = 16, 4
FEWEST_AT_MOST, MOST_AT_MOST, MOST_NUMBERS = 96, 512, 2_000_000
LEAST_SAMPLES, POOL_SAMPLES, MOST_SAMPLES, DIAGNOSTIC_SAMPLES = 1024, 2048, 16384, 1024
COMPARED = {"hessian": (16, 2), "ggn": (8, 1)}  # how many times fewer samples and more steps
BASIS_MEMORY = 4 << 30
DENSE, MOST_PRODUCTS, MOST_PROBES = 512, 1024, 8
SLOW = 2 / 3
MOST_KNOTS, KNOT_DISTANCE, FLATTER = 4, 0.25, 5
LOGGER = logging.getLogger("pruning_limits")
Progress = bool | Callable[[str, int, int], None] | None
Curvature = Hessian | GGN | InputSubspace


class Spectra:
    """Spectral estimates of one prediction, their sub-samples and operators shared.

    Weights that are removed already, False in ``mask`` ``[D]``, have no curvature; None where all are kept. Half of the
    draw goes in proportion to the samples' ``losses.shares`` in the curvature, half to all alike, so that no weight of
    a sample exceeds 2; without shares all are drawn alike.
    """

    def __init__(
        self,
        losses: Losses,
        curve: MagnitudeCurve,
        epsilon: float,
        settings: Settings,
        progress: Progress,
        checkpoint: str | Path | None,
        mask: Tensor | None = None,
    ) -> None:
        shares = losses.shares
        self.mask, self.scores = mask, None if shares is None else shares + shares.mean()
        self.losses, self.objective, self.curve, self.epsilon = losses, losses.objective, curve, epsilon
        self.settings, self.progress = settings, progress
        self._subsets: dict[int, Objective] = {}
        self._inside: dict[int, Objective | None] = {}
        self._forwards: dict[tuple[int, bool], Forwards] = {}
        self._operators: dict[tuple[str, int, bool], Curvature] = {}
        self._curved: dict[tuple[str, int], frozenset[str]] = {}
        self._acting: dict[int, frozenset[str]] = {}
        self._states = States(checkpoint, fingerprint(self.objective, losses.values, settings))

    def products(self) -> int:
        """Products taken so far."""
        return sum(operator.products for operator in self._operators.values())

    def samples_seen(self) -> int:
        """Samples seen by them, counted once per product."""
        return sum(samples * operator.products for (_, samples, _), operator in self._operators.items())

    def subset(self, samples: int) -> Objective:
        """Return the frozen sub-sample of a size, drawn once, the small ones from one of all data."""
        count = min(samples, self.objective.samples)
        if count not in self._subsets:
            seed = self.settings.seed
            if count < POOL_SAMPLES < self.objective.samples:
                self._subsets[count] = self.subset(POOL_SAMPLES).subset(count, seed)
            else:
                self._subsets[count] = self.objective.subset(count, seed, self.scores)
        return self._subsets[count]

    def operator(self, kind: str, samples: int, narrow: bool = False) -> Curvature:
        """Return the curvature on a sub-sample, its kept graphs shared by all who ask.

        ``narrow`` asks for that in the subspace of the input weights, with all eigenvalues but known ones, where there
        is one.
        """
        part = self.subset(samples)
        inside = self._in_subspace(samples) if narrow else None
        key = kind, part.samples, inside is not None
        if key not in self._operators:
            on, precision = inside or part, self.settings.precision
            forwards = self._forwards.setdefault(key[1:], Forwards(on, precision=precision))
            curvature = (Hessian if kind == "hessian" else GGN)(on, forwards=forwards, mask=self.mask)
            self._operators[key] = curvature if inside is None else InputSubspace(curvature, part.penalty)
        return self._operators[key]

    def _in_subspace(self, samples: int) -> Objective | None:
        """Return the losses on a sub-sample as a function of the input weights.

        None where weights are removed, and where the input weights are hardly fewer than all.
        """
        part = self.subset(samples)
        if part.samples not in self._inside:
            weights = input_weights(part) if self.mask is None else None
            self._inside[part.samples] = None if weights is None else part.in_weights(weights)
        return self._inside[part.samples]

    def _forget(self, kind: str, samples: int) -> None:
        """Drop the graphs of an operator, and the forward passes beneath when the GGN, which comes last, is done."""
        for narrow in (False, True):
            operator = self.operator(kind, samples, narrow)
            if kind == "ggn":
                operator.forget()
            else:
                operator.forget_products()

    def estimate(self, kind: str) -> Estimate:
        """Estimate one spectrum; its sample error compares the sub-sample with a part of it, or of the first.

        The Hessian's limit differs by little between them, so its part is small and takes more steps. More samples are
        taken as long as their error counts: below the step error it does not.
        """
        most, wanted = self.objective.samples, self.settings.samples
        count = min(wanted or LEAST_SAMPLES, most)
        roots: dict[int, float] = {}
        if 1 < count < self.losses.total:
            fewer, longer = COMPARED[kind]
            first = max(1, count // fewer)
            smaller = self._run(kind, first, longer)
            if smaller.samples < self.subset(count).samples:  # whole batches may give more than was asked for
                roots[smaller.samples] = self._root(smaller)
            self._forget(kind, first)
        while True:
            current = self._compared(kind, self._run(kind, count), roots)
            settled = current.sample_error <= max(self._wanted(kind)[1], current.step_error)
            if wanted is not None or count == most or settled or count >= MOST_SAMPLES:
                return self._of_a_draw(current)
            self._forget(kind, count)
            count = min(2 * count, most)

    def retuning(self) -> tuple[Estimate | None, str]:
        """Estimate the spectrum of the GGN, or say why it tells nothing of this loss."""
        try:
            ggn = self.estimate("ggn")
        except UndefinedGGNError as error:
            for forwards in self._forwards.values():
                forwards.forget()
            return None, error.reason
        reason = self.silence("ggn", ggn.samples)
        return (None if reason else ggn), reason

    def silence(self, kind: Literal["hessian", "ggn"], samples: int) -> str:
        """Say of which layers that act on a sub-sample a curvature there says nothing; empty where there are none.

        A layer acts where the losses have a gradient along it. For the GGN it also acts where their Hessian curves.
        """
        layers, curved = self.objective.names, self._curved_layers(kind, samples)
        if len(curved) == len(layers):
            return ""
        if samples not in self._acting:
            self._acting[samples] = acting_layers(self.subset(samples), self.mask)
        acting = self._acting[samples]
        if kind != self.settings.curvature and not acting >= set(layers) - curved:
            acting |= self._curved_layers("hessian", samples)
        return silence(kind, layers, curved, acting)

    def _curved_layers(self, kind: str, samples: int) -> frozenset[str]:
        """Name the layers in which a curvature is not zero, by the first product of its recurrence, or by another one.

        There was no first product where the recurrence was continued from a file.
        """
        if (kind, samples) not in self._curved:
            operator = self.operator(kind, samples, narrow=True)
            vectors = sphere_probes(operator, 1, self.settings.seed)
            self._live(kind, operator, vectors, operator.matmat(vectors))
        return self._curved[kind, samples]

    def _live(self, kind: str, operator: Curvature, vectors: Tensor, images: Tensor) -> Tensor:
        """Mark the weights along which the losses curve, and remember in which layers they lie."""
        live = curved_weights(self.objective.penalty, vectors, images, self.mask)
        self._curved[kind, operator.samples] = marked_layers(self.objective.names, operator.blocks, live)
        return live

    def _wanted(self, kind: str) -> tuple[float, float]:
        """Step and sample error to aim at: parts of the tolerance, or more for what the interval leaves out."""
        tolerance = self.settings.tolerance
        return (tolerance / 4, tolerance / 2) if kind == self.settings.curvature else (2 * tolerance, tolerance)

    def _most(self, dimension: int) -> int:
        """Largest number of steps: more for a small model, whose products cost little."""
        affordable = min(max(FEWEST_AT_MOST, MOST_NUMBERS // dimension), MOST_AT_MOST)
        return self.settings.steps or affordable

    def _basis(self, steps: int, probes: int) -> Reorthogonalise:
        """Reorthogonalise where the basis fits and leaves as much for everything else."""
        size = self.objective.dimension * steps * probes * self.objective.dtype.itemsize
        free = min(gathered(available(self.objective.device)))
        return "full" if size <= min(BASIS_MEMORY, free // 2) else "none"

    def _compared(self, kind: str, current: Estimate, roots: dict[int, float]) -> Estimate:
        """Carry the limit to all data from the smallest and this sub-sample. What is corrected counts as error."""
        if current.samples == self.losses.total:
            return current
        if not roots:
            return replace(current, sample_error=1.0)
        first, least = min(roots), 1 / self.objective.dimension
        kept, before = (min(1 - least, max(least, 1 - root)) for root in (self._root(current), roots[first]))
        doublings = math.log2(current.samples / first)
        left = math.log2(self.losses.total / current.samples)
        factor, error = growth(kept, before, doublings, left, kind == "ggn")
        return replace(current, sample_error=error, growth=factor)

    def _of_a_draw(self, estimate: Estimate) -> Estimate:
        """Add what two standard errors of epsilon over curvature from a draw of the losses do to the limit."""
        deviation = self.losses.deviation_error if self.settings.epsilon == "batch-std" else 0.0
        error = 2 * math.hypot(deviation, self.losses.curvature_error)
        at, *ends = (estimate.limit(partial(self._isotropic, factor=factor)) for factor in (1, 1 - error, 1 + error))
        return replace(estimate, sample_error=estimate.sample_error + max(abs(end - at) for end in ends))

    def _root(self, estimate: Estimate) -> float:
        """Limit on the sub-sample itself."""
        return replace(estimate, growth=1.0).limit(self._isotropic)

    def _isotropic(self, measure: SpectralMeasure, factor: float = 1.0) -> float:
        return isotropic_limit(measure, self.curve, factor * self.epsilon, self.settings.negative).sparsity

    def _run(self, kind: str, samples: int, longer: int = 1) -> Estimate:
        """Estimate a spectrum on a sub-sample in ``longer`` times the usual steps.

        More probes follow the first where their error counts.
        """
        operator, dimension = self.operator(kind, samples), self.objective.dimension
        if dimension <= max(DENSE, longer * (self.settings.steps or 0)):
            identity = torch.eye(dimension, device=operator.device, dtype=operator.dtype)
            images = operator.matmat(identity)
            self._live(kind, operator, identity, images)
            return Estimate(dense_measure(operator, images), operator.samples, dimension, 0.0, 0.0)
        asked = self.settings.probes
        matrices, known, found = self._recurrence(kind, samples, slice(0, asked or 1), longer=longer)
        if asked is None and (probes := self._probes(kind, found)) > 1:
            others, *_ = self._recurrence(kind, samples, slice(1, probes), found.steps)
            found = self._read(kind, matrices + others, samples, known)
        return found

    def _probes(self, kind: str, found: Estimate) -> int:
        """Probes whose error is as small as wanted, or below the step error, judged by that of the first."""
        error = isotropic_limit(found.measure, self.curve, self.epsilon, self.settings.negative).standard_error
        enough = math.ceil((2 * error / max(self._wanted(kind)[0], found.step_error)) ** 2)
        return min(enough, MOST_PROBES, MOST_PRODUCTS // found.steps)

    def _recurrence(
        self, kind: str, samples: int, probes: slice, steps: int | None = None, longer: int = 1
    ) -> tuple[list[Tridiagonal], Known, Estimate]:
        """Advance some of the probes, as far as their step error asks for where no number of steps is given."""
        fixed = steps or longer * (self.settings.steps or 0)
        operator = self.operator(kind, samples, narrow=True)
        most = fixed or self._most(self.objective.dimension)
        key = f"{kind}-{samples}" if probes.start == 0 else f"{kind}-{samples}-{probes.start}"
        starts, known = sphere_probes(operator, probes.stop, self.settings.seed), self._states.known(key)
        starts, images = starts[:, probes], None
        if known is None:
            starts, images, known = self._without_idle(kind, operator, starts)
        run = Lanczos(operator, starts, self._basis(most, starts.shape[1]), images)
        self._states.restore(key, run)
        with _bar(self.progress, f"{kind} spectrum, {samples} samples", most) as tell:
            while True:
                tell(run.steps)
                matrices = _matrices(run)
                ended = run.steps >= most or (run.steps > 0 and all(one.exhausted for one in matrices))
                least = longer * (LEAST_STEPS if kind == self.settings.curvature else LEAST_STEPS // 2)
                if ended or (not fixed and run.steps >= least):
                    found = self._read(kind, matrices, samples, known)
                    LOGGER.debug("%s: step error %.4g after %d steps", key, found.step_error, run.steps)
                    done = found.step_error <= self._wanted(kind)[0]
                    if ended or done or self._slow(kind, matrices, found, known):
                        self._states.save(key, run, known, finished=True)
                        return matrices, known, found
                run.advance(min(max(STEPS_AT_ONCE, run.steps // 8), most - run.steps))
                self._states.save(key, run, known)

    def _without_idle(self, kind: str, operator: Curvature, starts: Tensor) -> tuple[Tensor, Tensor, Known]:
        """Take weights out of the start vectors on which the losses do not depend, as behind dead units.

        Their rows are zero but for the penalty, and so is the product of a random vector there, and nowhere else. The
        weights that a subspace leaves out are likewise.

        Returns:
            Start vectors, their products, and the eigenvalues that are left out.
        """
        curvature = self.objective.penalty.curvature if self.objective.penalty else 0.0
        kept = torch.ones_like(starts[:, 0], dtype=torch.bool) if self.mask is None else self.mask
        images = operator.matmat(starts)
        live = self._live(kind, operator, starts, images)
        if not live.any():
            live = kept = torch.ones_like(live)
        outside = self.objective.dimension - len(live)
        counts = (0.0, int((~kept).sum())), (curvature, outside + int((kept & ~live).sum()))
        known = [(value, count / self.objective.dimension) for value, count in counts if count]
        if live.all():
            return starts, images, known
        return starts * live[:, None], images * live[:, None], known

    def _slow(self, kind: str, matrices: list[Tridiagonal], found: Estimate, known: Known) -> bool:
        """Tell whether the second half of the steps narrowed the error by less than a third, where steps are dear."""
        if self._most(self.objective.dimension) > FEWEST_AT_MOST:
            return False
        before = self._read(kind, [one.head(found.steps // 2) for one in matrices], found.samples, known)
        return found.step_error > SLOW * before.step_error

    def directions(self, estimate: Estimate, profile: MagnitudeProfile, gradient: Tensor | None) -> Directions:
        """Measure where the removed weights point: knots from the isotropic root on, the last at the limit itself.

        A sub-sample sees the removed weights in flatter directions than all data do, so that it errs upwards.
        """
        low = max(self._root(estimate), (profile.zeros + 1) / profile.dimension)
        found: Directions | None = None
        wanted = sorted({low, 1 - (1 - low) / FLATTER})
        while True:
            found = self._along(estimate, profile, gradient, wanted, found)
            root = self._directional(estimate, found)
            near = min(abs(self._place(root) - self._place(knot)) for knot in found.sparsities)
            if near < KNOT_DISTANCE or len(found.sparsities) >= MOST_KNOTS:
                return found
            wanted = [root]

    def _directional(self, estimate: Estimate, directions: Directions) -> float:
        return replace(estimate, growth=1.0).limit(lambda one: directions.limit(one, self.curve, self.epsilon).sparsity)

    def _place(self, sparsity: float) -> float:
        return -math.log(max(1 - sparsity, 1 / self.objective.dimension))

    def _along(
        self,
        estimate: Estimate,
        profile: MagnitudeProfile,
        gradient: Tensor | None,
        knots: list[float],
        known: Directions | None,
    ) -> Directions:
        """Run Lanczos from the gradients at pruned weights until Gauss and Gauss-Radau give the same limit."""
        samples = min(estimate.samples, DIAGNOSTIC_SAMPLES)
        removed = torch.stack([profile.removed(knot) for knot in knots], dim=1)
        operator = self.operator("ggn", samples, narrow=gradient is None and self._floor == 0)
        removed = operator.project(removed)  # what is lost has no curvature and no gradient
        seen = slopes(operator, removed, gradient)
        most = min(self._most(operator.shape[0]), operator.shape[0])
        starts = torch.stack([one.vector if one.vector.any() else torch.ones_like(one.vector) for one in seen], dim=1)
        run = Lanczos(operator, starts, self._basis(most, len(seen)))
        key = f"directions-{operator.samples}-{knots}"
        self._states.restore(key, run)
        with _bar(self.progress, f"directions, {operator.samples} samples", most) as tell:
            while True:
                tell(run.steps)
                if run.steps:
                    matrices = _matrices(run)
                    low, high = (
                        self._directions(knots, seen, matrices, rule, profile, known)
                        for rule in (gauss, partial(gauss_radau, node=self._floor))
                    )
                    gap = self._gap(estimate, low, high)
                    ended = run.steps >= most or all(matrix.exhausted for matrix in matrices)
                    if ended or gap <= self.settings.tolerance / 2:
                        self._states.save(key, run, finished=True)
                        return replace(high, step_error=max(gap, known.step_error if known else 0.0))
                run.advance(min(STEPS_AT_ONCE, most - run.steps))
                self._states.save(key, run)

    def _gap(self, estimate: Estimate, low: Directions, high: Directions) -> float:
        """Width of the bracket of the limit, from the isotropic one where Gauss sees no way to epsilon."""
        ends = []
        for one in (low, high):
            try:
                ends.append(self._directional(estimate, one))
            except UserError:
                ends.append(self._root(estimate))
        return abs(ends[1] - ends[0])

    @staticmethod
    def _directions(
        knots: list[float],
        seen: list[Slope],
        matrices: list[Tridiagonal],
        rule: Callable[[Tridiagonal], Rule],
        profile: MagnitudeProfile,
        known: Directions | None,
    ) -> Directions:
        rows: list[tuple[float, Rule, float]] = []
        for knot, one, matrix in zip(knots, seen, matrices, strict=True):
            nodes, weights = rule(matrix)
            rows.append((knot, (nodes, weights * float(one.vector.double().square().sum())), one.rise))
        if known is not None:
            rows += zip(known.sparsities, known.rules, known.rises, strict=True)
        rows.sort(key=lambda row: row[0])
        sparsities, rules, rises = zip(*rows, strict=True)
        return Directions(sparsities, rules, rises, tuple(profile.removed_norm(knot) ** 2 for knot in sparsities))

    @property
    def _floor(self) -> float:
        """Lower bound of the GGN's eigenvalues."""
        return self.objective.penalty.curvature if self.objective.penalty and self.mask is None else 0.0

    def _read(self, kind: str, matrices: list[Tridiagonal], samples: int, known: Known) -> Estimate:
        """Read the limit and its step error off the matrices as far as they go."""
        dimension, negative = self.objective.dimension, self.settings.negative
        found = estimate_of(kind, matrices, dimension, samples, self._floor, negative)
        found = found.among(known).certified(self._isotropic)
        if all(matrix.exhausted for matrix in matrices):
            return replace(found, step_error=0.0)
        if kind == "hessian" and negative == "clip":
            return replace(found, step_error=self._change(matrices, found, known))
        return found

    def _change(self, matrices: list[Tridiagonal], last: Estimate, known: Known) -> float:
        """Twice the largest change of the limit since a third of the steps: no certificate."""
        first = -(-last.steps // (3 * STEPS_AT_ONCE)) * STEPS_AT_ONCE
        heads = [[one.head(steps) for one in matrices] for steps in range(first, last.steps, STEPS_AT_ONCE)]
        earlier = [estimate_of("hessian", head, self.objective.dimension, last.samples).among(known) for head in heads]
        return 2 * max((abs(self._root(one) - self._root(last)) for one in earlier), default=0.5)


def estimate_of(
    kind: str,
    matrices: list[Tridiagonal],
    dimension: int,
    samples: int,
    floor: float = 0.0,
    negative: Negative = "abs",
) -> Estimate:
    """Read a spectrum off Lanczos matrices: steady Gauss rule for the Hessian, Gauss and Gauss-Radau for the GGN.

    The geometric mean of the two kept fractions moves far less from step to step than either, because the small
    eigenvalues of the GGN spread over decades.

    Args:
        kind: ``"hessian"`` or ``"ggn"``.
        matrices: One matrix per probe.
        dimension: D.
        samples: Data samples behind the curvature.
        floor: Lower bound of the GGN's eigenvalues.
        negative: What a negative eigenvalue of the Hessian counts as; its absolute value can be enclosed.

    Returns:
        The estimate, its errors not yet known.
    """
    steps = max(matrix.steps for matrix in matrices)
    if kind == "hessian":
        measure, bracket = measure_of(matrices, dimension, steady_gauss), None
        if negative == "abs":
            low, high = zip(*(even_bracket(matrix) for matrix in matrices), strict=True)
            bracket = SpectralMeasure(low, dimension), SpectralMeasure(high, dimension)
        return Estimate(measure, samples, steps, math.inf, 0.0, bracket=bracket)
    below, above = (measure_of(matrices, dimension, rule) for rule in (gauss, partial(gauss_radau, node=floor)))
    return Estimate(below, samples, steps, math.inf, 0.0, above=above)


def _matrices(run: Lanczos) -> list[Tridiagonal]:
    """Return the matrices of a run without its basis, which may be large."""
    return run.tridiagonals(vectors=False)


@contextmanager
def _bar(progress: Progress, stage: str, total: int) -> Iterator[Callable[[int], None]]:
    if callable(progress):
        yield lambda done: progress(stage, done, total)
        return
    disable = rank() > 0 or {None: None, True: False, False: True}[progress]
    with tqdm(total=total, desc=stage, unit="step", leave=False, disable=disable) as bar:
        yield lambda done: bar.update(done - bar.n) and None
