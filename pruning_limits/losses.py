"""The losses at the trained weights: default epsilon, scores for sampling, and the number of samples that suffice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from estimators import Objective, UserError
from estimators.default_loss import cross_entropy
from estimators.derivatives import zero_weights_loss
from estimators.distributed import gathered

EPSILON_BATCH = 128
DRAWN_SAMPLES, FEWEST_DRAWN, DRAWN_BYTES, DRAWN_ERROR = 16384, 2048, 2 << 30, 0.03


@dataclass(frozen=True)
class Losses:
    """Losses at the trained weights, of all data or of a random sample.

    Attributes:
        objective: The objective on the data that were passed.
        values: Per-sample losses ``[n]``, or batch means ``[m]``, in loader order.
        sizes: Number of samples behind each entry.
        total: Number N of all samples.
        shares: Probabilities of a wrong label ``[n]``, with which the curvature of a cross-entropy goes; None for other
            losses.
    """

    objective: Objective
    values: Tensor
    sizes: Tensor
    total: int
    shares: Tensor | None = None

    @property
    def mean(self) -> float:
        """Mean loss."""
        return float((self.values * self.sizes).sum() / self.sizes.sum())

    @property
    def mean_error(self) -> float:
        """Standard error of ``mean`` from the draw; zero where all data were passed."""
        return math.sqrt(self._left * float(self.values.var()) / len(self.values)) if self._left else 0.0

    def among(self, names: Sequence[str]) -> Losses:
        """Return the losses with the objective of some of its weights, given by their names."""
        return replace(self, objective=self.objective.among(names))

    def epsilon(self) -> float:
        """Return the default epsilon, see ``deviation``.

        Raises:
            UserError: There are too few losses, or they vary by no more than rounding, measured by the loss without
                any chosen weight.
        """
        deviation, empty = self.deviation(), zero_weights_loss(self.objective)
        if deviation <= torch.finfo(self.objective.dtype).eps * abs(empty - self.mean):
            raise UserError(
                f"epsilon: the losses do not vary beyond rounding ('batch-std' would be {deviation:.2g}, and removing "
                f"all weights raises the mean loss to {empty:.2g}); give the allowed rise of the objective as a number"
            )
        return deviation

    def again(self) -> Losses:
        """Pass the same samples once more."""
        return _passed(self.objective, self.total)

    def deviation(self, batch: int = EPSILON_BATCH) -> float:
        r"""Standard deviation of the mean loss of ``batch`` random samples, :math:`\operatorname{std}(\ell)/\sqrt{b}`.

        Args:
            batch: Batch size b.

        Returns:
            The deviation, the default epsilon; it does not depend on the loader's batch size or order.

        Raises:
            UserError: There are too few losses, or all are equal.
        """
        if len(self.values) < 2:
            raise UserError("epsilon: 'batch-std' needs at least two losses; return per-sample losses or give a number")
        weights = self.sizes.double()
        variance = (weights * (self.values - self.mean).square()).sum() / (len(self.values) - 1)
        deviation = math.sqrt(float(variance) / batch)
        if deviation == 0:
            raise UserError("epsilon: 'batch-std' is zero because all losses are equal; give a number > 0")
        return deviation

    @property
    def deviation_error(self) -> float:
        r"""Relative standard error of ``deviation`` from the draw, :math:`\sqrt{(\kappa - 1)(1 - n/N)/4n}`.

        :math:`\kappa` is the kurtosis of the losses.
        """
        return math.sqrt(self._left * (self.kurtosis - 1) / (4 * len(self.values)))

    @property
    def kurtosis(self) -> float:
        """Fourth central moment over the squared variance: 3 for a normal distribution, 1 where all are equal."""
        squares = (self.values - self.mean).square()
        return float(squares.square().mean() / squares.mean().square()) if squares.any() else 1.0

    @property
    def curvature_error(self) -> float:
        """Relative standard error of the curvature from the draw, that of the mean of ``shares``; 0 without these."""
        if self.shares is None:
            return 0.0
        return math.sqrt(self._left * float(self.shares.var() / self.shares.mean().square()) / len(self.values))

    @property
    def _left(self) -> float:
        return 1 - int(self.sizes.sum()) / self.total


def all_losses(objective: Objective) -> Losses:
    """Pass all data.

    Args:
        objective: The objective on all data.

    Raises:
        UserError: A loss is NaN or infinite, or losses of a batch change when it is split.
    """
    return _passed(objective)


def drawn_losses(objective: Objective, least: int, seed: int) -> Losses:
    """Pass a random sample that is kept in memory, or all data where its error would count.

    Heavy tails need all data: losses that few samples dominate tell little about those that were not drawn.

    Args:
        objective: The objective on all data.
        least: Fewest samples to draw.
        seed: Seed of the draw.

    Returns:
        Losses of 16,384 samples, or as many as 2 GiB hold and at least 2,048, where epsilon over curvature then errs by
        at most 3 %; else of all.

    Raises:
        UserError: A loss is NaN or infinite, or losses of a batch change when it is split.
    """
    total, size = objective.samples, max(gathered(objective.data.sample_bytes))
    part = objective.subset(max(least, FEWEST_DRAWN, min(DRAWN_SAMPLES, DRAWN_BYTES // max(1, size))), seed)
    losses = _passed(part, total)
    error = math.hypot(losses.deviation_error, losses.curvature_error)
    return losses if error <= DRAWN_ERROR else all_losses(objective)


def _passed(objective: Objective, total: int | None = None) -> Losses:
    values, sizes = objective.sample_losses()
    wrong = -torch.expm1(-values)
    known = objective.loss_fn is cross_entropy and len(values) == objective.samples and bool(wrong.any())
    return Losses(objective, values, sizes, total or objective.samples, wrong if known else None)
