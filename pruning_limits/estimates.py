"""Spectral estimates of one prediction: on sub-samples that grow, with probes that follow, carried to all data."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from estimators import SpectralMeasure, Tridiagonal, dense_measure, sphere_probes
from estimators.errors import UndefinedGGNError
from pruning_limits.extrapolation import growth
from pruning_limits.isotropic import isotropic_limit
from pruning_limits.magnitude_curve import MagnitudeCurve
from pruning_limits.parts import Estimate
from pruning_limits.progress import Progress
from pruning_limits.recurrences import Plan, Reader, Recurrences
from pruning_limits.states import Known, States, fingerprint
from pruning_limits.stopping import Errors, Kind
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

    def estimate(self, kind: Kind) -> Estimate:
        """Estimate one spectrum; its sample error compares the sub-sample with a part of it, or of the first.

        More samples are taken as long as their error counts.

        Args:
            kind: ``"hessian"`` or ``"ggn"``.

        Raises:
            UndefinedGGNError: The loss has no GGN.
        """
        most, asked = self.objective.samples, self.settings.samples
        count = min(asked or self.stopping.first_samples(most), most)
        roots: dict[int, float] = {}
        if 1 < count < self.losses.total:
            part = self.stopping.part(kind)
            first = max(1, count // part.fewer)
            smaller = self._on(kind, first, part.longer)
            if smaller.samples < self.subsamples.subset(count).samples:  # whole batches may give more than asked for
                roots[smaller.samples] = self.root(smaller)
            self.subsamples.forget(kind, first)
        while True:
            current = self._carried(kind, self._on(kind, count), roots)
            errors = current.sample_error, current.step_error
            if asked or count == most or self.stopping.enough_samples(count, *errors, self._wanted(kind)):
                return self._of_products(kind, self._of_a_draw(current))
            self.subsamples.forget(kind, count)
            count = min(2 * count, most)

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

    def _wanted(self, kind: Kind) -> Errors:
        return self.stopping.wanted(self.settings.tolerance, answers=kind == self.settings.curvature)

    def _carried(self, kind: Kind, current: Estimate, roots: dict[int, float]) -> Estimate:
        """Carry the limit to all data from the smallest and this sub-sample. What is corrected counts as error."""
        if current.samples == self.losses.total:
            return current
        if not roots:
            return replace(current, sample_error=1.0)
        first, least = min(roots), 1 / self.objective.dimension
        kept, before = (min(1 - least, max(least, 1 - root)) for root in (self.root(current), roots[first]))
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

    def _of_products(self, kind: Kind, estimate: Estimate) -> Estimate:
        """Add what two errors of products, where these are finite differences, do to the limit."""
        error = min(1.0, 2 * self.subsamples.error(kind, estimate.samples))
        if not error:
            return estimate
        at = estimate.limit(self._isotropic)
        ends = (estimate.moved(error, up, self.settings.negative).limit(self._isotropic) for up in (True, False))
        return replace(estimate, sample_error=estimate.sample_error + max(abs(end - at) for end in ends))

    def _on(self, kind: Kind, samples: int, longer: int = 1) -> Estimate:
        """Estimate a spectrum on a sub-sample in ``longer`` times the usual steps.

        More probes follow the first where their error counts.
        """
        operator, dimension = self.subsamples.operator(kind, samples), self.objective.dimension
        steps, probes = longer * (self.settings.steps or 0), self.settings.probes
        if self.stopping.exact(dimension, steps):
            identity = torch.eye(dimension, device=operator.device, dtype=operator.dtype)
            images = operator.matmat(identity)
            self.subsamples.curved(kind, operator, identity, images)
            return Estimate(dense_measure(operator, images), operator.samples, dimension, 0.0, 0.0)
        least = longer * self.stopping.least(answers=kind == self.settings.curvature)
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
        most = steps or self.stopping.most_steps(self.objective.dimension)
        key = f"{kind}-{samples}" if probes.start == 0 else f"{kind}-{samples}-{probes.start}"
        starts, images = sphere_probes(operator, probes.stop, self.settings.seed)[:, probes], None
        known = self.recurrences.states.known(key)
        if known is None:
            starts, images, known = self._without_idle(kind, operator, starts)
        reader, wanted = Reader(self.subsamples, self._isotropic, kind, samples, known), self._wanted(kind).steps

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
