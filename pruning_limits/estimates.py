"""Spectral estimates of one prediction: on sub-samples that grow, with probes that follow, carried to all data."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from estimators import SpectralMeasure, Tridiagonal, dense_measure, sphere_probes
from estimators.errors import UndefinedGGNError
from pruning_limits.extrapolation import saturation, settling
from pruning_limits.isotropic import isotropic_limit
from pruning_limits.magnitude_curve import MagnitudeCurve
from pruning_limits.parts import Estimate
from pruning_limits.progress import Progress
from pruning_limits.recurrences import Plan, Reader, Recurrences
from pruning_limits.states import Known, States, fingerprint
from pruning_limits.stopping import Kind
from pruning_limits.subsamples import Curvature, Subsamples

LOGGER = logging.getLogger("pruning_limits")


class Estimates:
    """Estimates of Hessian and GGN with as many samples, steps and probes as the tolerance asks for.

    Args:
        subsamples: Sub-samples and curvatures of the prediction.
        curve: Squared norm of the removed weights against the sparsity.
        epsilon: Allowed rise of the objective, > 0.
        progress: See ``predict_limit``.
        checkpoint: File that keeps the states of the recurrences; None keeps none.

    Raises:
        UserError: The file belongs to another prediction or is damaged.

    Example:
        >>> from estimators import Objective
        >>> from pruning_limits.losses import all_losses
        >>> from pruning_limits.magnitude import MagnitudeProfile
        >>> from pruning_limits.settings import Settings
        >>> data = [(torch.randn(64, 4), torch.randint(0, 2, (64,)))]
        >>> objective = Objective(torch.nn.Linear(4, 2), data)
        >>> subsamples = Subsamples(all_losses(objective), Settings())
        >>> estimates = Estimates(subsamples, MagnitudeProfile(objective.chosen).curve(), epsilon=0.02)
        >>> estimates.estimate("ggn").samples
        64
    """

    def __init__(
        self,
        subsamples: Subsamples,
        curve: MagnitudeCurve,
        epsilon: float,
        progress: Progress = None,
        checkpoint: str | Path | None = None,
    ) -> None:
        self.subsamples, self.curve, self.epsilon = subsamples, curve, epsilon
        self.losses, self.objective, self.settings = subsamples.losses, subsamples.objective, subsamples.settings
        self.stopping = subsamples.stopping
        states = States(checkpoint, fingerprint(self.objective, self.losses.values, self.settings))
        self.recurrences = Recurrences(subsamples, states, progress)
        self._before: Estimate | None = None  # the GGN on a part of its sub-sample

    def estimate(self, kind: Kind) -> Estimate:
        """Estimate one spectrum on as many samples as the budget allows, and carry its limit to all data.

        Args:
            kind: ``"hessian"`` or ``"ggn"``.

        Raises:
            UndefinedGGNError: The loss has no GGN.
        """
        most, asked = self.objective.samples, self.settings.samples
        steps = self.settings.steps or self.stopping.steps(kind)
        count = min(asked or self.stopping.samples(self.subsamples.budget.samples(kind, steps), most), most)
        carried = self._hessian if kind == "hessian" else self._ggn
        return self._of_products(kind, self._of_a_draw(carried(count)))

    def _hessian(self, count: int) -> Estimate:
        """Estimate the Hessian's spectrum on a sub-sample and carry it from a part of it to all data."""
        total, before = self.losses.total, None
        if 1 < count < total:
            first = max(1, count // self.stopping.hessian_part)
            before = self._on("hessian", first, self.settings.steps or 0)
            self.subsamples.forget("hessian", first)
        current = self._on("hessian", count, self.settings.steps or 0)
        if current.samples == total:
            return current
        if before is None or before.samples >= current.samples:  # whole batches may give more than asked for
            return replace(current, sample_error=1.0)
        kept, samples = (self._kept(before), self._kept(current)), (before.samples, current.samples)
        factor, error = settling(kept, samples, total)
        return replace(current, sample_error=error, growth=factor)

    def _ggn(self, count: int) -> Estimate:
        """Estimate the GGN's spectrum on a sub-sample and carry it from a part of it, with equal steps, to all data."""
        current = self._on("ggn", count, self.settings.steps or 0)
        if current.samples == self.losses.total:
            return current
        before, first = None, count // self.stopping.ggn_part
        if first:
            before = self._on("ggn", first, current.steps)
            self.subsamples.forget("ggn", first)
        if before is None or before.samples >= current.samples:  # whole batches may give more than asked for
            return replace(current, sample_error=1.0)
        self._before = before
        factor, error = self._saturation(before, current, self._kept)
        return replace(current, sample_error=error, growth=factor)

    def _saturation(
        self, before: Estimate, current: Estimate, kept: Callable[[Estimate], float]
    ) -> tuple[float, float]:
        coverage = (self.subsamples.coverage(before.samples), self.subsamples.coverage(current.samples))
        return saturation((kept(before), kept(current)), coverage, self.losses.shares is not None)

    def carried(self, ggn: Estimate, solve: Callable[[SpectralMeasure], float]) -> tuple[float, float]:
        """Carry another limit of the GGN from its sub-sample to all data, as the isotropic one is, with a larger error.

        The whole factor is error, so that what the sub-sample keeps lies within: all data keep more
        (``docs/results/benchmarks/carried.md``).

        Args:
            ggn: The estimate of the GGN.
            solve: From a measure to the limit, in sparsity.

        Returns:
            Factor from the kept fraction on the sub-sample to that on all data, and how much it may be wrong by, as a
            share of the carried kept fraction: by the factor less one, and by what else moves the isotropic limit.
        """
        isotropic = self._kept(ggn) * ggn.growth
        if self._before is None:
            return 1.0, ggn.sample_error / isotropic

        def kept(estimate: Estimate) -> float:
            return self._inner(replace(estimate, growth=1.0).limit(solve))

        factor, _ = self._saturation(self._before, ggn, kept)
        remainder = ggn.sample_error - self._saturation(self._before, ggn, self._kept)[1]
        return factor, factor - 1 + max(0.0, remainder) / isotropic

    def _kept(self, estimate: Estimate) -> float:
        """Return the kept fraction at the isotropic limit on the sub-sample itself, in (0, 1)."""
        return self._inner(self.root(estimate))

    def _inner(self, sparsity: float) -> float:
        """Return the kept fraction of a sparsity, at least that of one weight and at most that of all but one."""
        least = min(0.5, 1 / self.objective.dimension)  # half of a single weight
        return min(1 - least, max(least, 1 - sparsity))

    def retuning(self) -> tuple[Estimate | None, str]:
        """Estimate the spectrum of the GGN, or say why it tells nothing of this loss.

        Returns:
            The estimate, or None and the reason.
        """
        try:
            ggn = self.estimate("ggn")
        except UndefinedGGNError as error:
            self.subsamples.forget_forwards()
            return None, error.reason
        reason = self.subsamples.silence("ggn", ggn.samples)
        return (None if reason else ggn), reason

    def root(self, estimate: Estimate) -> float:
        """Return the isotropic limit on the sub-sample itself, in sparsity."""
        return replace(estimate, growth=1.0).limit(self._isotropic)

    def _isotropic(self, measure: SpectralMeasure, factor: float = 1.0) -> float:
        return isotropic_limit(measure, self.curve, factor * self.epsilon, self.settings.negative).sparsity

    def _wanted(self, kind: Kind) -> float:
        return self.stopping.wanted(self.settings.tolerance, answers=kind == self.settings.curvature)

    def _of_a_draw(self, estimate: Estimate) -> Estimate:
        """Add what two standard errors of epsilon over curvature from a draw of the losses do to the limit."""
        deviation = self.losses.deviation_error if self.settings.epsilon == "batch-std" else 0.0
        error = 2 * math.hypot(deviation, self.losses.curvature_error)
        at, *ends = (estimate.limit(partial(self._isotropic, factor=factor)) for factor in (1, 1 - error, 1 + error))
        return replace(estimate, sample_error=estimate.sample_error + max(abs(end - at) for end in ends))

    def _of_products(self, kind: Kind, estimate: Estimate) -> Estimate:
        """Add what two errors of products, where these are finite differences, do to the limit."""
        error = min(1.0, 2 * self.subsamples.error(kind, estimate.samples))
        if not error:
            return estimate
        at = estimate.limit(self._isotropic)
        ends = (estimate.moved(error, up, self.settings.negative).limit(self._isotropic) for up in (True, False))
        return replace(estimate, sample_error=estimate.sample_error + max(abs(end - at) for end in ends))

    def _on(self, kind: Kind, samples: int, steps: int) -> Estimate:
        """Estimate a spectrum on a sub-sample in so many steps; 0 takes as many as are planned for, or more.

        More probes follow the first where their error counts.
        """
        operator, dimension = self.subsamples.operator(kind, samples), self.objective.dimension
        probes = self.settings.probes
        if self.stopping.exact(dimension, steps):
            identity = torch.eye(dimension, device=operator.device, dtype=operator.dtype)
            images = operator.matmat(identity)
            self.subsamples.curved(kind, operator, identity, images)
            return Estimate(dense_measure(operator, images), operator.samples, dimension, 0.0, 0.0)
        least = self.stopping.steps(kind)
        matrices, estimate, reader = self._advanced(kind, samples, slice(0, probes or 1), steps, least)
        if probes is None and (enough := self._probes(kind, estimate)) > 1:
            others, *_ = self._advanced(kind, samples, slice(1, enough), estimate.steps)
            estimate = reader.estimate(matrices + others)
        return estimate

    def _probes(self, kind: Kind, estimate: Estimate) -> int:
        """Number of probes whose error is small enough, judged by that of the first."""
        error = isotropic_limit(estimate.measure, self.curve, self.epsilon, self.settings.negative).standard_error
        return self.stopping.probes(error, estimate.step_error, estimate.steps, self._wanted(kind))

    def _advanced(
        self, kind: Kind, samples: int, probes: slice, steps: int, least: int = 0
    ) -> tuple[list[Tridiagonal], Estimate, Reader]:
        """Advance some of the probes by so many steps; 0 takes ``least``, and more as far as their error asks for.

        Returns:
            Their matrices, what is read off them, and the reader, which also reads them together with others.
        """
        operator = self.subsamples.operator(kind, samples, narrow=True)
        most = steps or self.stopping.most_steps(self.objective.dimension, kind, samples < self.losses.total)
        most = most if steps else max(most, least)
        key = f"{kind}-{samples}" if probes.start == 0 else f"{kind}-{samples}-{probes.start}"
        starts, images = sphere_probes(operator, probes.stop, self.settings.seed)[:, probes], None
        known = self.recurrences.states.known(key)
        if known is None:
            starts, images, known = self._without_idle(kind, operator, starts)
        reader, wanted = Reader(self.subsamples, self._isotropic, kind, samples, known), self._wanted(kind)

        def read(matrices: list[Tridiagonal], ended: bool) -> tuple[list[Tridiagonal], Estimate] | None:
            taken = max(matrix.steps for matrix in matrices)
            if not ended and (steps or taken < least):
                return None
            estimate = reader.estimate(matrices)
            LOGGER.debug("%s: step error %.4g after %d steps", key, estimate.step_error, taken)
            enough = ended or estimate.step_error <= wanted or reader.slowed(matrices, estimate)
            return (matrices, estimate) if enough else None

        plan = Plan(key, f"{kind} spectrum, {samples} samples", most, self.stopping.pace, known)
        return *self.recurrences.advance(plan, operator, starts, read, images), reader

    def _without_idle(self, kind: Kind, operator: Curvature, starts: Tensor) -> tuple[Tensor, Tensor, Known]:
        """Take weights out of the start vectors on which the losses do not depend, as behind dead units.

        Their rows are zero but for the penalty, and so is the product of a random vector there, and nowhere else. The
        weights that a subspace leaves out are likewise.

        Returns:
            Start vectors, their products, and the eigenvalues that are left out.
        """
        penalty, mask = self.objective.penalty, self.subsamples.mask
        curvature = penalty.curvature if penalty else 0.0
        kept = torch.ones_like(starts[:, 0], dtype=torch.bool) if mask is None else mask
        images = operator.matmat(starts)
        live = self.subsamples.curved(kind, operator, starts, images)
        if not live.any():
            live = kept = torch.ones_like(live)
        outside = self.objective.dimension - len(live)
        counts = (0.0, int((~kept).sum())), (curvature, outside + int((kept & ~live).sum()))
        known = [(value, count / self.objective.dimension) for value, count in counts if count]
        if live.all():
            return starts, images, known
        return starts * live[:, None], images * live[:, None], known
