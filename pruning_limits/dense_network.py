"""A network before pruning: its losses, gradient and metric, and draws of its data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from glob import escape
from typing import Any

import torch
from torch import Tensor, nn

from estimators import L1, Objective, Penalty, UserError
from estimators.derivatives import untrue_derivatives
from estimators.objective import LossFunction
from estimators.operations import operations_per_sample
from estimators.penalty import refuse_penalty
from estimators.samples import first_batches
from pruning_limits.chance import gain_over_constant, gain_over_strangers
from pruning_limits.compute_budget import ComputeBudget
from pruning_limits.losses import Losses, all_losses, drawn_losses
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.metrics import metric_errors, resolution
from pruning_limits.notes import note_doubles, note_uncounted, note_untrue
from pruning_limits.one_shot import PairedDifferences, draws_of, mean_and_error
from pruning_limits.parts import Dense
from pruning_limits.settings import Settings

CHANCE_SAMPLES = 512  # that tell whether a network is better than constant outputs
# Cosine of the gradients of two halves of a draw below which there is no gradient: less than the noise of four halves.
STATIONARY = 0.2
GRADIENT_SAMPLES = 2048  # of the draw whose halves are compared
# Share of the squared norm of a drawn gradient that may be noise. Noise spreads the gradient over flat directions, so
# that the bound allows more.
NOISE = 1 / 3


@dataclass(frozen=True)
class Subject:
    """What a prediction is about: a network, its data, and functions of both.

    Attributes:
        model: Trained network.
        loader: Batches of training data.
        loss_fn: Loss of a batch, or None for the default.
        penalty: The penalty that the network was trained with, or None.
        parameters: Name patterns of the prunable weights, or None for the default.
        metric: Per-sample values of a batch, larger is better, or None.
        held_out: Batches that the metric is measured on; None takes the training data.
    """

    model: nn.Module
    loader: Iterable[Any]
    loss_fn: LossFunction | None
    penalty: Penalty | None
    parameters: str | Sequence[str] | None
    metric: Callable[[nn.Module, Any], Tensor] | None
    held_out: Iterable[Any] | None

    def __post_init__(self) -> None:
        refuse_penalty(self.penalty)


class DenseNetwork:
    """The network before pruning: its losses, its gradient, its weights, and draws of its data.

    Attributes:
        losses: Losses at the trained weights, their ``objective`` that of the weights with true derivatives.
        profile: These weights by magnitude.
        settings: What is asked for, with the names of the weights.
        draws: The objective on draws and on all data that the losses are of.
        gradient: Gradient of the criterion ``[D]``, see ``_gradient``; zero where a weight is removed.
        budget: What the prediction may cost.
        samples: Number of samples that were passed so far.
        remarks: What is to be said about the weights.

    Args:
        subject: Network and data.
        asked: What is asked for, without the names of the parameters.

    Raises:
        UserError: Network, data, loss or metric are not of the kind that is needed.
    """

    def __init__(self, subject: Subject, asked: Settings) -> None:
        self.penalty = subject.penalty
        self.counted = subject.penalty if asked.criterion == "objective" else None
        loader = first_batches(subject.loader, asked.max_batches)
        whole = Objective(subject.model, loader, subject.loss_fn, self.counted, subject.parameters)
        self.profile = MagnitudeProfile(whole.chosen)
        losses = _losses(whole, asked)
        untrue = untrue_derivatives(losses.objective, asked.seed)
        if untrue:
            losses = losses.among([name for name in whole.names if name not in untrue])
            self.profile = MagnitudeProfile(losses.objective.chosen)
        objective = losses.objective
        self.loader, self.losses = loader, losses
        self.budget = ComputeBudget.of(asked.budget, losses.total, operations_per_sample(objective))
        self.settings = replace(asked, parameters=objective.names)
        self.remarks = (*note_untrue(untrue), *note_doubles(objective))
        if subject.parameters is None:
            self.remarks += note_uncounted(whole)
        shares = losses.shares
        self.draws = draws_of(objective, asked.seed, None if shares is None else shares + shares.mean())
        self.gradient = self._gradient()

    def _gradient(self) -> Tensor:
        """Return the gradient of the criterion where it counts, else the one of a stationary point.

        Half a draw against the other half tells whether there is a gradient beyond that which balances the penalty.
        """
        objective = self.losses.objective
        few = len(self.draws) > 1 and self.draws[0].samples < GRADIENT_SAMPLES
        part = objective.subset(GRADIENT_SAMPLES, self.settings.seed) if few else self.draws[0]
        again, gradient = part.losses_and_gradient()
        self.samples = objective.samples + part.samples
        if part is objective and len(again) != len(self.losses.values):  # memory ran out and batches were split
            self.losses = self.losses.again()
            self.samples += objective.samples
        values = self.losses.values
        if part is not objective:
            complete = part.picked is not None and len(values) == objective.samples
            values = values[part.picked] if complete else part.sample_losses()[0]
        _check_repeatable(values, again)
        if part is not objective and not isinstance(self.counted, L1):
            gradient = self._beyond_draws(part, gradient)
        return gradient * (self.profile.vector != 0) if self.profile.zeros else gradient

    def _beyond_draws(self, part: Objective, gradient: Tensor) -> Tensor:
        """Return the gradient of the smallest draw that has little noise, or as at a stationary point if none shows."""
        balance = torch.zeros_like(gradient)
        if self.penalty is not None and self.counted is None:
            balance = -self.penalty.gradient(self.losses.objective.vector())
        half = part.subset(part.samples // 2, self.settings.seed)
        self.samples += half.samples
        share = half.samples / part.samples
        first = half.gradient() - balance
        second = (gradient - balance - share * first) / (1 - share)
        cosine = float(first @ second) / max(float(first.norm() * second.norm()), 1e-300)
        if cosine < STATIONARY:
            return balance
        # The noise of n of N samples is (1/n - 1/N) times that of one sample; that of a half is (1 - c)/c times |g|^2.
        noise = half.samples * (1 - cosine) / cosine * (1 / NOISE - 1)
        enough = 1 / (1 / max(noise, 1.0) + 1 / self.losses.total)
        if enough <= part.samples:
            return gradient
        wider = next((draw for draw in self.draws if draw.samples >= enough), self.draws[-1])
        self.samples += wider.samples
        return wider.gradient()

    def pull(self) -> Tensor | None:
        """Return the gradient of a penalty that the criterion leaves out, ``[D]``, or None where there is none.

        L1 has a kink at zero, around which trained weights jitter: it can balance any slope up to its coefficient.
        """
        if self.penalty is None or self.counted is not None:
            return None
        if isinstance(self.penalty, L1):
            return -self.gradient.clamp(-self.penalty.coefficient, self.penalty.coefficient)
        return self.penalty.gradient(self.losses.objective.vector())

    def metric(self, subject: Subject, asked: Settings) -> PairedDifferences:
        """Return the metric of pruned networks beside that of this one."""
        metric = subject.metric
        assert metric is not None
        names = [escape(name) for name in self.settings.parameters]
        with metric_errors("loader" if subject.held_out is None else "held_out"):
            loader = self.loader if subject.held_out is None else subject.held_out
            objective = Objective(subject.model, loader, metric, None, names)
            dense = objective.sample_losses()
            return PairedDifferences(draws_of(objective, asked.seed), self.profile, dense, sign=-1)

    def described(self, drop: PairedDifferences | None) -> Dense:
        """Describe the network, and whether it is better than constant outputs."""
        losses = self.losses
        few = self.draws[0].subset(CHANCE_SAMPLES, self.settings.seed)
        gains = [gain for gain in (gain_over_constant(few), gain_over_strangers(few, self.settings.seed)) if gain]
        gain = min(gains, default=None)
        self.samples += 4 * few.samples
        result = Dense(
            objective=losses.mean + losses.objective.penalty_value(losses.objective.chosen),
            objective_error=losses.mean_error,
            samples=losses.total,
            constant_gain=None if gain is None else gain[0],
            constant_error=None if gain is None else gain[1],
        )
        if drop is None:
            return result
        mean, error = mean_and_error(drop.values, drop.sizes)
        lost = gain_over_constant(drop.draws[0].subset(CHANCE_SAMPLES, self.settings.seed))
        return replace(
            result,
            metric=mean,
            metric_error=error if math.isfinite(error) else None,
            metric_samples=drop.objective.samples,
            resolution=resolution(drop.values),
            constant_metric=None if lost is None else mean + lost[0],
        )


def _losses(whole: Objective, asked: Settings) -> Losses:
    """Return the losses of all data, or of a draw where nothing is measured or less than an epoch may be spent."""
    if not asked.measure:
        return drawn_losses(whole, asked.samples or 0, asked.seed)
    if asked.budget is None or asked.budget >= 1:  # all are passed, and need not be counted before
        return all_losses(whole)
    part = whole.subset(ComputeBudget.of(asked.budget, whole.samples, 0.0).losses, asked.seed)
    return replace(all_losses(part), total=whole.samples)


def _check_repeatable(losses: Tensor, again: Tensor) -> None:
    same = len(again) == len(losses)
    if not same or not torch.allclose(again.sort().values, losses.sort().values, rtol=1e-3, atol=1e-5):
        raise UserError(
            "loader: two passes give different losses; turn off shuffling, sampling with replacement, random "
            "augmentation and dropout so that every pass yields the same samples"
        )
