"""Samples drawn with unequal probabilities, and their losses weighted so that sums stay unbiased."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from estimators.errors import UserError


@dataclass(frozen=True)
class Weighted:
    """A batch and what the loss of each of its samples is multiplied by, ``[n]``."""

    batch: Any
    factors: Tensor


def weighted(loss_fn: Callable[[nn.Module, Any], Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    """Return the loss function of weighted batches.

    Args:
        loss_fn: ``(model, batch) -> losses``, one per sample.

    Returns:
        ``(model, Weighted) -> losses``.

    Raises:
        UserError: When called: the losses are one mean.
    """

    def losses(model: nn.Module, batch: Weighted) -> Tensor:
        values = loss_fn(model, batch.batch)
        if isinstance(values, Tensor) and values.dim() == 0:
            raise UserError("scores: loss_fn returns one mean; return one loss per sample, or give no scores")
        return batch.factors * values

    return losses


def inclusion(scores: Tensor, samples: int) -> Tensor:
    r"""Probabilities :math:`\pi_j = \min(1, c\, q_j)` of samples with scores q to be among n drawn, which sum to n.

    Args:
        scores: Positive numbers ``[N]``.
        samples: Number n of samples that are drawn, 1 to N.

    Returns:
        Probabilities, float64 ``[N]``.

    Raises:
        UserError: A score is not a positive number, or there are too few.

    Source: Horvitz and Thompson, Journal of the American Statistical Association 47, 1952.

    Example:
        >>> inclusion(torch.tensor([1.0, 1.0, 8.0]), 2)
        tensor([0.5000, 0.5000, 1.0000], dtype=torch.float64)
    """
    scores = scores.double()
    if scores.dim() != 1 or not ((scores > 0) & scores.isfinite()).all():
        raise UserError("scores: expected positive finite numbers, one per sample")
    if not 1 <= samples <= len(scores):
        raise UserError(f"samples: expected 1 to {len(scores)}, got {samples}")
    certain = torch.zeros_like(scores, dtype=torch.bool)
    while True:
        left = samples - int(certain.sum())
        odds = torch.where(certain, 1.0, scores * left / scores[~certain].sum())
        beyond = odds > 1
        if not beyond.any():
            return odds
        certain |= beyond


def systematic(odds: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """Draw samples, each at most once and with its own probability.

    Args:
        odds: Probabilities ``[N]``, which sum to the number of samples.
        samples: That number.
        generator: Source of randomness.

    Returns:
        Their numbers, ascending.

    Source: Madow, On the theory of systematic sampling II, Annals of Mathematical Statistics 20, 1949.
    """
    order = torch.randperm(len(odds), generator=generator, device="cpu")
    start = torch.rand(1, generator=generator, dtype=torch.float64, device="cpu")
    places = torch.arange(samples, dtype=torch.float64, device="cpu") + start
    drawn = torch.searchsorted(odds[order].cumsum(0), places, right=True).clamp(max=len(odds) - 1)
    return order[drawn].sort().values
