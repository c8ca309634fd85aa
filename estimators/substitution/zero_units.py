"""Linear layers without the units that pruning has cut off."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor
from torch.nn import functional

from estimators.substitution.kernels import aliases
from estimators.substitution.mode import forms_added

WORTH = 0.5


def without_zero_units(weights: Iterable[Tensor]) -> AbstractContextManager[None]:
    """Return a context where linear layers do without rows and columns of their weights that are zero, if many are.

    Large networks that were trained with L1 have few units left when they are pruned to their limit. Values are the
    same up to rounding, but that no infinite input meets a zero.

    Args:
        weights: Tensors; layers that are given one of them, and no copy of it, do without what is zero in it.

    Example:
        >>> import torch
        >>> weight = torch.zeros(4, 3)
        >>> weight[0, 1] = 2.0
        >>> with without_zero_units([weight]):
        ...     functional.linear(torch.ones(1, 3), weight)
        tensor([[2., 0., 0., 0.]])
    """
    parts = {id(weight): part for weight in weights if (part := _part(weight)) is not None}

    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if id(weight) not in parts:
            return functional.linear(input, weight, bias)
        rows, columns, inside = parts[id(weight)]
        used = input if len(columns) == input.shape[-1] else input.index_select(-1, columns)
        values = functional.linear(used, inside)
        output = values.new_zeros(*values.shape[:-1], len(weight)).index_copy_(-1, rows, values)
        return output if bias is None else output.add_(bias)

    return forms_added(dict.fromkeys(aliases("linear"), linear)) if parts else nullcontext()


def _part(weight: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Rows and columns that are not zero, and what lies in them, where that is at most half of the weight."""
    if weight.dim() != 2 or not len(weight):
        return None
    used = weight != 0
    rows, columns = (used.any(dim).nonzero().squeeze(1) for dim in (1, 0))
    if len(rows) * len(columns) > WORTH * weight.numel():
        return None
    return rows, columns, weight.index_select(0, rows).index_select(1, columns)
