"""From a trained model and its data to the pruning limit."""

from __future__ import annotations

import hashlib
import math
import random
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from estimators import (
    GGN,
    Hessian,
    Lanczos,
    Objective,
    Penalty,
    SpectralMeasure,
    UserError,
    averaged_gauss,
    bracket,
    dense_measure,
    gauss,
    gauss_radau,
    measure_of,
    sphere_probes,
)
from estimators.files import load_tensors, save_tensors
from estimators.objective import LossFunction
from estimators.trace import block_traces
from pruning_limits.bounds import Measured, Negative, isotropic_limit, measured_limit, quadratic_limit
from pruning_limits.magnitude import MagnitudeCurve, MagnitudeProfile
from pruning_limits.result import Cost, Estimate, Layer, PruningLimit, Sharpness, upper_bound

EPSILON_BATCH = 128
LEAST_STEPS, MOST_STEPS, STEPS_AT_ONCE = 24, 96, 4
LEAST_SAMPLES, MOST_SAMPLES = 1024, 16384
BASIS_MEMORY = 4 << 30
DENSE = 512
Progress = bool | Callable[[str, int, int], None] | None


def predict_limit(
    model: nn.Module,
    loader: Iterable[Any],
    loss_fn: LossFunction | None = None,
    penalty: Penalty | None = None,
    epsilon: float | Literal["batch-std"] = "batch-std",
    curvature: Literal["hessian", "ggn"] = "hessian",
    negative: Negative = "abs",
    parameters: str | Sequence[str] | None = None,
    samples: int | None = None,
    tolerance: float = 0.005,
    probes: int | None = None,
    steps: int | None = None,
    measure: bool = True,
    seed: int = 0,
    progress: Progress = None,
    checkpoint: str | Path | None = None,
) -> PruningLimit:
    r"""Predict how far a trained network can be pruned before its training objective rises by epsilon.

    The limit is the root s of :math:`s = \frac1D \operatorname{tr} f_s(H)` with :math:`f_s(x) = c/(c+|x|)` and
    :math:`c = 2\varepsilon/R(s)^2`, where R(s) is the norm of the weights that magnitude pruning removes.

    Args:
        model: Trained network. It is left bit for bit as it was, and so is the global random state.
        loader: Batches of training data, the same samples on every pass and without random augmentation.
        loss_fn: ``(model, batch) -> losses``, per sample ``[n]`` or the scalar batch mean; default cross-entropy.
        penalty: ``L1(...)``, ``L2(...)`` or None: the penalty that the network was trained with.
        epsilon: Allowed rise of the objective, > 0; ``"batch-std"`` takes the standard deviation of the mean loss
            of 128 random samples.
        curvature: ``"hessian"`` or ``"ggn"``: which matrix ``sparsity`` is computed with.
        negative: What a negative eigenvalue counts as, ``"abs"`` or ``"clip"`` (to zero).
        parameters: Name patterns of the prunable weights; default the weights of convolution and linear layers.
        samples: Size of the random data sub-sample for curvature products; None doubles it from 1,024 until the
            limit settles within ``tolerance`` or 16,384 samples are reached.
        tolerance: Wanted numerical half-width of the limit, in sparsity.
        probes: Random vectors; None takes 1 for large models and more for small ones.
        steps: Lanczos steps; None advances until the limit settles, at most 96. With D steps or more, and for models of
            at most 512 weights, the whole matrix is built and its eigenvalues are exact.
        measure: Also measure what one-shot magnitude pruning reaches, with forward passes over all data.
        seed: Seed of probes and sub-sample.
        progress: None shows progress bars on a terminal, False none, True always; or a callback
            ``(stage, done, total)``.
        checkpoint: File that keeps the state of the recurrences; a run that was stopped continues from it.

    Returns:
        The limit, its numerical interval, bounds, and everything needed for further questions.

    Raises:
        UserError: Bad input, told in one line; nothing is changed.

    Source: Zhang, Zhang, Sun and Liu, How sparse can we prune a deep network: a fundamental limit perspective,
    NeurIPS 2024.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> data = [(torch.randn(64, 4), torch.randint(0, 2, (64,)))]
        >>> limit = predict_limit(model, data)
        >>> 0 <= limit.lower <= limit.upper <= 1
        True
    """
    _check_choice("curvature", curvature, ("hessian", "ggn"))
    _check_choice("negative", negative, ("abs", "clip"))
    for name, count in (("samples", samples), ("probes", probes), ("steps", steps)):
        if count is not None and count < 1:
            raise UserError(f"{name}: expected at least 1 or None, got {count}")
    if not tolerance > 0:
        raise UserError(f"tolerance: expected a positive number (in sparsity), got {tolerance}")
    if not isinstance(model, nn.Module):
        raise UserError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    started = time.perf_counter()
    with _untouched_randomness():
        objective = Objective(model, loader, loss_fn, penalty, parameters)
        profile = MagnitudeProfile(objective.chosen)
        losses, sizes = objective.sample_losses()
        _check_repeatable(objective, losses)
        dense = float((losses * sizes).sum() / sizes.sum()) + objective.penalty_value(objective.chosen)
        allowed = batch_deviation(losses, sizes) if epsilon == "batch-std" else _positive(epsilon)
        settings = {
            "penalty": None if penalty is None else repr(penalty),
            "epsilon": epsilon,
            "curvature": curvature,
            "negative": negative,
            "parameters": list(objective.names),
            "samples": samples,
            "tolerance": tolerance,
            "probes": probes,
            "steps": steps,
            "seed": seed,
        }
        spectra = _Spectra(objective, profile.curve(), allowed, settings, progress, checkpoint, losses)
        hessian = spectra.estimate(curvature)
        ggn = hessian if curvature == "ggn" else spectra.estimate("ggn")
        root = isotropic_limit(hessian.measure, spectra.curve, allowed, negative)
        retrained = isotropic_limit(ggn.measure, spectra.curve, allowed, "clip")
        if measure:
            measured = measured_limit(objective, profile, allowed, root.sparsity, dense)
            lower, achieved = measured.sparsity, measured.sparsity
        else:
            part = spectra.subset(hessian.samples)
            lower = quadratic_limit(
                spectra.operator(curvature, hessian.samples), part.gradient(), profile, allowed, root.sparsity
            )
            measured, achieved = Measured(lower, ()), None
        table = _layers(spectra, curvature, hessian.samples, profile, root.sparsity)
    half = hessian.half_width(root.standard_error)
    masses = np.abs(hessian.measure.nodes) * hessian.measure.weights
    return PruningLimit(
        sparsity=root.sparsity,
        lower=lower,
        upper=upper_bound(retrained.sparsity, lower, profile.dimension),
        retrained=retrained.sparsity,
        interval=(max(0.0, root.sparsity - half), min(1.0, root.sparsity + half)),
        achieved=achieved,
        epsilon=allowed,
        objective=dense,
        parameters=profile.dimension,
        status=_status(hessian, root.standard_error, tolerance, len(losses)),
        sharpness=Sharpness(
            trace=sum(layer.trace for layer in table),
            top_eigenvalue=hessian.measure.largest,
            effective_dimension=profile.dimension * (1 - root.sparsity),
            negative_share=float(masses[hessian.measure.nodes < 0].sum() / max(masses.sum(), 1e-300)),
        ),
        cost=Cost(
            products=spectra.products(),
            samples=spectra.samples_seen(),
            forward_samples=objective.samples * (2 + len(measured.points)),
            seconds=time.perf_counter() - started,
            peak_memory=_peak_memory(objective.device),
        ),
        settings=settings,
        hessian=hessian,
        ggn=ggn,
        curve=spectra.curve,
        rises=measured.points,
        layer_table=tuple(table),
        profile=profile,
    )


def batch_deviation(losses: Tensor, sizes: Tensor, batch: int = EPSILON_BATCH) -> float:
    r"""Standard deviation of the mean loss of ``batch`` random samples, :math:`\operatorname{std}(\ell)/\sqrt{b}`.

    Args:
        losses: Per-sample losses ``[n]``, or batch means ``[m]``.
        sizes: Number of samples behind each entry.
        batch: Batch size b.

    Returns:
        The deviation, the default epsilon; it does not depend on the loader's batch size or order.

    Raises:
        UserError: There are too few losses, or all are equal.
    """
    if len(losses) < 2:
        raise UserError("epsilon: 'batch-std' needs at least two losses; return per-sample losses or give a number")
    weights = sizes.double()
    mean = (weights * losses).sum() / weights.sum()
    variance = (weights * (losses - mean).square()).sum() / (len(losses) - 1)
    deviation = math.sqrt(float(variance) / batch)
    if deviation == 0:
        raise UserError("epsilon: 'batch-std' is zero because all losses are equal; give a number > 0")
    return deviation


@dataclass(frozen=True)
class _Reading:
    steps: int
    sparsity: float
    half_width: float


class _Spectra:
    """Spectral estimates of one prediction, their sub-samples and operators shared."""

    def __init__(
        self,
        objective: Objective,
        curve: MagnitudeCurve,
        epsilon: float,
        settings: dict[str, Any],
        progress: Progress,
        checkpoint: str | Path | None,
        losses: Tensor,
    ) -> None:
        self.objective, self.curve, self.epsilon = objective, curve, epsilon
        self.settings, self.progress = settings, progress
        self._subsets: dict[int, Objective] = {}
        self._operators: dict[tuple[str, int], Hessian | GGN] = {}
        self._store = _Store(checkpoint, _fingerprint(objective, losses, settings))

    def products(self) -> int:
        return sum(operator.products for operator in self._operators.values())

    def samples_seen(self) -> int:
        return sum(samples * operator.products for (_, samples), operator in self._operators.items())

    def subset(self, samples: int) -> Objective:
        count = min(samples, self.objective.samples)
        if count not in self._subsets:
            self._subsets[count] = self.objective.subset(count, self.settings["seed"])
        return self._subsets[count]

    def operator(self, kind: str, samples: int) -> Hessian | GGN:
        part = self.subset(samples)
        key = kind, part.samples
        if key not in self._operators:
            self._operators[key] = (Hessian if kind == "hessian" else GGN)(part)
        return self._operators[key]

    def estimate(self, kind: str) -> Estimate:
        """Estimate one spectrum; its sample error compares the sub-sample with half of it."""
        total, wanted = self.objective.samples, self.settings["samples"]
        if wanted is not None:
            count = min(wanted, total)
            before = None if count == total or count < 2 else self._run(kind, count // 2)
            return self._compared(self._run(kind, count), before)
        count = min(LEAST_SAMPLES, total)
        before = None
        while True:
            current = self._compared(self._run(kind, count), before)
            settled = before is not None and current.sample_error <= self.settings["tolerance"] / 2
            if count == total or settled or count >= MOST_SAMPLES:
                return current
            before, count = current, min(2 * count, total)

    def _compared(self, current: Estimate, before: Estimate | None) -> Estimate:
        if before is None or current.samples == self.objective.samples:
            return current
        change = abs(self._root(current.measure) - self._root(before.measure))
        return Estimate(current.measure, current.samples, current.steps, current.step_error, change)

    def _root(self, measure: SpectralMeasure) -> float:
        return isotropic_limit(measure, self.curve, self.epsilon, self.settings["negative"]).sparsity

    def _run(self, kind: str, samples: int) -> Estimate:
        operator = self.operator(kind, samples)
        dimension = operator.shape[0]
        if dimension <= max(DENSE, self.settings["steps"] or 0):
            return Estimate(dense_measure(operator), operator.objective.samples, dimension, 0.0, 0.0)
        most = self.settings["steps"] or MOST_STEPS
        probes = self.settings["probes"] or min(8, max(1, 200_000 // dimension))
        size = dimension * most * probes * torch.finfo(operator.dtype).bits // 8
        run = Lanczos(
            operator,
            sphere_probes(operator, probes, self.settings["seed"]),
            "full" if size <= BASIS_MEMORY else "none",
        )
        key = f"{kind}-{samples}"
        self._store.restore(key, run)
        readings: list[_Reading] = []
        with _bar(self.progress, f"{kind} spectrum, {samples} samples", most) as tell:
            tell(run.steps)
            while True:
                before = run.steps
                run.advance(min(STEPS_AT_ONCE, most - run.steps))
                if run.steps > before:
                    self._store.save(key, run)
                readings.append(self._read(kind, run))
                tell(run.steps)
                exhausted = run.steps == before or run.steps == most
                if exhausted or (self.settings["steps"] is None and self._settled(kind, readings)):
                    break
        return Estimate(
            self._measure(kind, run), operator.objective.samples, run.steps, _step_error(kind, readings), 0.0
        )

    def _measure(self, kind: str, run: Lanczos) -> SpectralMeasure:
        """Averaged Gauss rule for the indefinite Hessian, middle of Gauss and Gauss-Radau for the GGN."""
        rule = averaged_gauss if kind == "hessian" else partial(bracket, floor=self._floor)
        return measure_of(run.tridiagonals(), self.objective.dimension, rule)

    @property
    def _floor(self) -> float:
        """Lower bound of the GGN's eigenvalues."""
        return self.objective.penalty.curvature if self.objective.penalty else 0.0

    def _read(self, kind: str, run: Lanczos) -> _Reading:
        matrices, dimension = run.tridiagonals(), self.objective.dimension
        sparsity = self._root(self._measure(kind, run))
        if all(matrix.exhausted for matrix in matrices):
            return _Reading(run.steps, sparsity, 0.0)
        if kind == "hessian":
            return _Reading(run.steps, sparsity, math.inf)
        below, above = (
            self._root(measure_of(matrices, dimension, rule))
            for rule in (gauss, partial(gauss_radau, node=self._floor))
        )
        return _Reading(run.steps, sparsity, max(above - sparsity, sparsity - below, 0.0))

    def _settled(self, kind: str, readings: list[_Reading]) -> bool:
        return readings[-1].steps >= LEAST_STEPS and _step_error(kind, readings) <= self.settings["tolerance"] / 4


def _step_error(kind: str, readings: list[_Reading]) -> float:
    """Certificate of the GGN (Gauss against Radau); for the Hessian the largest change since a third of the steps."""
    last = readings[-1]
    if kind == "ggn" or last.half_width == 0:
        return last.half_width
    recent = [abs(one.sparsity - last.sparsity) for one in readings[:-1] if 3 * one.steps >= last.steps]
    return max(recent, default=1.0)


def _status(estimate: Estimate, standard_error: float, tolerance: float, total: int) -> str:
    half = estimate.half_width(standard_error)
    if half <= tolerance:
        return "converged"
    causes = {
        f"the bulk of the spectrum is not resolved by {estimate.steps} steps; raise steps": estimate.step_error,
        f"{estimate.samples} of {total} samples are too few; raise samples": estimate.sample_error,
        "the probes disagree; raise probes": 2 * standard_error,
    }
    cause = max(causes, key=lambda one: causes[one])
    return f"unresolved: half-width {half:.4f} exceeds tolerance {tolerance}; {cause}"


def _layers(spectra: _Spectra, kind: str, samples: int, profile: MagnitudeProfile, sparsity: float) -> list[Layer]:
    sizes = [weight.numel() for weight in profile.weights.values()]
    traces, errors = block_traces(spectra.operator(kind, samples), sizes, seed=spectra.settings["seed"])
    rows = zip(profile.masks(sparsity).items(), profile.weights.values(), sizes, traces, errors, strict=True)
    return [
        Layer(
            name=name,
            weights=size,
            sparsity=1 - int(mask.sum()) / size,
            norm=float(torch.linalg.vector_norm(weight, dtype=torch.float64)),
            trace=float(trace),
            trace_error=float(error),
        )
        for (name, mask), weight, size, trace, error in rows
    ]


class _Store:
    """States of several recurrences in one file that belongs to one prediction."""

    def __init__(self, path: str | Path | None, fingerprint: str) -> None:
        self.path = None if path is None else Path(path)
        self.fingerprint = fingerprint
        self.states: dict[str, Any] = {}
        if self.path is not None and self.path.exists():
            stored = load_tensors(self.path)
            if stored.get("fingerprint") != fingerprint:
                raise UserError(
                    f"checkpoint: {self.path} belongs to another model, data or setting; delete it or name another file"
                )
            self.states = stored["states"]

    def restore(self, key: str, run: Lanczos) -> None:
        if key in self.states:
            run.load_state(self.states[key])

    def save(self, key: str, run: Lanczos) -> None:
        if self.path is not None:
            self.states[key] = run.state()
            save_tensors(self.path, {"fingerprint": self.fingerprint, "states": self.states})


def _fingerprint(objective: Objective, losses: Tensor, settings: dict[str, Any]) -> str:
    digest = hashlib.sha256(repr(sorted(settings.items(), key=lambda item: item[0])).encode())
    for tensor in (*objective.chosen.values(), *objective.fixed.values(), losses):
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_repeatable(objective: Objective, losses: Tensor) -> None:
    again = objective.sample_losses()[0]
    same = len(again) == len(losses)
    if not same or not torch.allclose(again.sort().values, losses.sort().values, rtol=1e-3, atol=1e-5):
        raise UserError(
            "loader: two passes give different losses; turn off random augmentation and dropout "
            "so that every pass yields the same samples"
        )


def _positive(epsilon: Any) -> float:
    if isinstance(epsilon, str) or not 0 < float(epsilon) < math.inf:
        raise UserError(f"epsilon: expected 'batch-std' or a positive number, got {epsilon!r}")
    return float(epsilon)


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def _untouched_randomness() -> Iterator[None]:
    """Put the random states of torch, numpy and Python back, whatever the loader or the model draws."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _bar(progress: Progress, stage: str, total: int) -> Iterator[Callable[[int], None]]:
    if callable(progress):
        yield lambda done: progress(stage, done, total)
        return
    disable = {None: None, True: False, False: True}[progress]
    with tqdm(total=total, desc=stage, unit="step", leave=False, disable=disable) as bar:
        yield lambda done: bar.update(done - bar.n) and None
