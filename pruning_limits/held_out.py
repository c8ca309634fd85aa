"""Batches that a metric is measured on, and nothing else: given beside a metric, ended, and the same in every pass."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from estimators import Objective, UserError
from estimators.distributed import gathered
from estimators.layouts import close_losses
from estimators.samples import first_batches, has_length, shrinking
from pruning_limits.metrics import metric_errors

if TYPE_CHECKING:
    from pruning_limits.dense_network import Subject


def held_out_batches(held_out: Iterable[Any] | None, metric: bool, most: int | None) -> Iterable[Any] | None:
    """Return held-out batches as they are measured on: of a loader that tells no length the first ones.

    Args:
        held_out: Batches, or None.
        metric: Whether there is a metric.
        most: Number of batches that are read of a loader without a length; None reads all.

    Raises:
        UserError: There are batches and no metric to measure on them.

    Example:
        >>> held_out_batches([1, 2, 3], metric=True, most=2)
        [1, 2, 3]
        >>> held_out_batches([1, 2, 3], metric=False, most=None)
        Traceback (most recent call last):
        estimators.errors.UserError: held_out: a metric is measured on it, and there is none; give metric=, such as \
'accuracy', or leave held_out out
    """
    if held_out is None:
        return None
    if not metric:
        raise UserError(
            "held_out: a metric is measured on it, and there is none; give metric=, such as 'accuracy', or leave "
            "held_out out"
        )
    return held_out if has_length(held_out) else first_batches(held_out, most)


def refuse_changing(subject: Subject) -> None:
    """Refuse held-out batches whose values change from pass to pass.

    The first batch is passed twice, and where its values differ, as in another order, all are passed twice.

    Args:
        subject: Network, data and metric.

    Raises:
        UserError: The values are others in another pass.
    """
    if subject.held_out is None or subject.metric is None:
        return
    with metric_errors():
        objective = Objective(subject.model, subject.held_out, subject.metric, None, subject.parameters)
        if not any(gathered(_differ(objective, _first(objective), _first(objective)))):
            return
        if _differ(objective, objective.sample_losses()[0], objective.sample_losses()[0]):
            raise UserError(
                "loader: two passes give different values of the metric; turn off random augmentation and sampling "
                "with replacement so that every pass yields the same samples"
            )


def _differ(objective: Objective, values: Tensor, others: Tensor) -> bool:
    """Tell whether two passes have other values, in whatever order."""
    if len(values) != len(others):
        return True
    return not close_losses(values.sort().values, others.sort().values, objective.dtype)


@shrinking
@torch.no_grad()
def _first(objective: Objective) -> Tensor:
    """Return the values of the first batch of this rank."""
    with objective.one_pass():
        values = [objective.losses(objective.chosen, batch) for batch, _ in islice(objective.batches(), 1)]
    return torch.cat([part.double().cpu() for part in values]) if values else torch.zeros(0, dtype=torch.float64)
