"""Find the leaves of a batch that count samples, by their lengths, and by the losses where lengths are ambiguous."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from estimators.batches import leaves, listed, map_leaves, opaque, rows_of, same_leaf, stated_size
from estimators.errors import UserError

COMPARED_SAMPLES = 64
Evaluate = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Layout:
    """Which leaves of a batch have one entry per sample; all batches of a loader share it.

    Attributes:
        counting: Places of these leaves among all leaves of a batch.
        cuttable: Whether a batch can be cut into parts by cutting these leaves. Graphs, packed sequences and lists of
            images cannot.
        count: Number of all leaves of a batch; None where it differs.
    """

    counting: frozenset[int]
    cuttable: bool = True
    count: int | None = None

    def fits(self, batch: Any) -> bool:
        """Tell whether a batch has as many leaves as the layout, and those that count samples one length."""
        parts = list(leaves(batch))
        lengths = {rows_of(parts[place]) for place in self.counting if place < len(parts)}
        return self.count in (None, len(parts)) and len(lengths) <= 1 and None not in lengths

    def size(self, batch: Any) -> int | None:
        """Return the number of samples of a batch; None where no leaf tells."""
        lengths = (rows_of(leaf) for place, leaf in enumerate(leaves(batch)) if place in self.counting)
        return next((length for length in lengths if length is not None), None)

    def cut(self, batch: Any, rows: Tensor) -> Any:
        """Return some samples of a batch, given by their places in it ``[k]``; all samples share the other leaves."""
        places = iter(range(sum(1 for _ in leaves(batch))))
        return map_leaves(lambda leaf: _entries(leaf, rows) if next(places) in self.counting else leaf, batch)

    def shared(self, batch: Any) -> list[Any]:
        """Return the leaves that all samples of a batch share."""
        return [leaf for place, leaf in enumerate(leaves(batch)) if place not in self.counting]

    def joined(self, batches: Sequence[Any], width: int) -> list[Any]:
        """Join neighbouring batches where shapes and shared leaves allow it, and cut them to at most ``width`` samples.

        Args:
            batches: Batches that can be cut.
            width: Most samples of a batch.

        Returns:
            Batches with the same samples in the same order.
        """
        groups: list[list[Any]] = []
        for batch in batches:
            if groups and self._alike(groups[-1][-1], batch):
                groups[-1].append(batch)
            else:
                groups.append([batch])
        wholes = [self._join(group) for group in groups]
        sizes = [self.size(whole) or 0 for whole in wholes]
        return [
            self.cut(whole, torch.arange(start, min(start + width, size), device="cpu"))
            for whole, size in zip(wholes, sizes, strict=True)
            for start in range(0, size, width)
        ]

    def with_factors(self, batch: Any) -> Layout:
        """Return the layout of such a batch followed by one factor per sample."""
        places = sum(1 for _ in leaves(batch))
        return replace(self, counting=self.counting | {places}, count=places + 1)

    def without(self, places: Iterator[int] | Sequence[int]) -> Layout:
        """Return the layout in which all samples share the leaves at some places, too."""
        return replace(self, counting=self.counting - set(places))

    def _join(self, group: Sequence[Any]) -> Any:
        if len(group) == 1:
            return group[0]
        places = iter(range(sum(1 for _ in leaves(group[0]))))
        return map_leaves(lambda *parts: _concatenated(parts) if next(places) in self.counting else parts[0], *group)

    def _alike(self, batch: Any, other: Any) -> bool:
        """Tell whether two batches can be one: equal shapes but for the number of samples, equal shared leaves."""
        pairs = list(zip(leaves(batch), leaves(other), strict=False))
        if len(pairs) != sum(1 for _ in leaves(other)) or len(pairs) != sum(1 for _ in leaves(batch)):
            return False
        return all(
            _same_kind(*pair) if place in self.counting else same_leaf(*pair) for place, pair in enumerate(pairs)
        )


WHOLE = Layout(frozenset(), cuttable=False)


def leading_layout(batch: Any) -> Layout | None:
    """Return the layout by the leading dimension that most tensors of a batch share; None without such a tensor."""
    lengths = Counter(rows_of(leaf) for leaf in leaves(batch) if isinstance(leaf, Tensor) and rows_of(leaf) is not None)
    return of_length(batch, lengths.most_common(1)[0][0]) if lengths else None


def of_length(batch: Any, length: int | None) -> Layout:
    """Return the layout in which every leaf of a length counts samples."""
    parts = list(leaves(batch))
    places = (place for place, leaf in enumerate(parts) if length is not None and rows_of(leaf) == length)
    return Layout(frozenset(places), count=len(parts))


def obvious(batch: Any, layout: Layout) -> bool:
    """Tell whether no leaf of a batch leaves a doubt about its layout: at most two tensors, of one length, no others.

    A third tensor as long as the batch may count something else, such as class weights.
    """
    tensors = [leaf for leaf in leaves(batch) if isinstance(leaf, Tensor) and rows_of(leaf) is not None]
    return one_length(batch) and len(tensors) <= 2 and layout.size(batch) is not None


def one_length(batch: Any) -> bool:
    """Tell whether all tensors of a batch share their leading dimension and nothing in it is opaque."""
    lengths = {rows_of(leaf) for leaf in leaves(batch) if isinstance(leaf, Tensor) and leaf.dim() > 0}
    return len(lengths) <= 1 and not any(opaque(leaf) for leaf in leaves(batch))


def refuse_without_samples(batch: Any) -> None:
    """Refuse a batch that holds nothing whose first dimension could count samples."""
    if leading_layout(batch) is None and stated_size(batch) is None and not any(opaque(leaf) for leaf in leaves(batch)):
        raise UserError(
            f"loader: a batch of type {type(batch).__name__} holds no tensor with a sample dimension; give "
            "tensors, in tuples, dictionaries or objects with attributes"
        )


def learned_layout(batch: Any, evaluate: Evaluate, dtype: torch.dtype) -> Layout:
    """Learn from a batch, and where it leaves a doubt from its losses, which leaves count samples.

    A leaf counts samples if the losses of a part of the batch are those of the same samples in the whole: class weights
    that happen to be as many as the samples do not.

    Args:
        batch: A batch on the model's device.
        evaluate: Returns its losses, per sample ``[n]`` or their mean.
        dtype: Type of the model.

    Returns:
        The layout, not cuttable where no cut leaves the losses as they are.

    Raises:
        UserError: Losses come as one mean of a batch whose samples cannot be told.
    """
    leading = leading_layout(batch)
    if leading is not None and obvious(batch, leading):
        return leading
    parted = False
    if leading is not None:
        for layout in _candidates(leading, batch):
            unchanged = unchanged_by_cut(layout, batch, evaluate, dtype)
            if unchanged:
                return layout
            parted |= unchanged is not None
    losses = evaluate(batch)
    listing = not parted and losses.dim() > 0 and len(losses) in listed(batch)
    if leading is not None and one_length(batch) and not listing:
        return leading
    counted_samples(batch, losses)
    return WHOLE


def counted_samples(batch: Any, losses: Tensor) -> int:
    """Return the number of samples of a batch that is passed whole.

    Args:
        batch: The batch.
        losses: Its losses, per sample ``[n]`` or their mean.

    Returns:
        The number of its losses; of a mean what the batch states, or the one length of its tensors.

    Raises:
        UserError: Neither tells.
    """
    if losses.dim():
        return len(losses)
    layout = leading_layout(batch) if one_length(batch) else None
    size = stated_size(batch) if layout is None else layout.size(batch)
    if size is None:
        raise UserError(
            "loss_fn: returns one mean of a batch whose tensors do not share a leading dimension, so that its samples "
            "cannot be counted; return per-sample losses, shape (n,)"
        )
    return size


def unchanged_by_cut(layout: Layout, batch: Any, evaluate: Evaluate, dtype: torch.dtype) -> bool | None:
    """Tell whether the losses of a part of a batch are those that the same samples have in company.

    Args:
        layout: Which leaves to cut.
        batch: A batch on the model's device.
        evaluate: Returns the losses of a batch.
        dtype: Type of the model.

    Returns:
        Whether they are; None where the part cannot be evaluated at all, or has another number of losses.
    """
    size = min(layout.size(batch) or 0, COMPARED_SAMPLES)
    if size < 2:
        return True
    rows = torch.arange(size, device="cpu")
    front, back = rows[: size // 2], rows[size // 2 :]
    try:
        whole = evaluate(layout.cut(batch, rows)).double()
        last = evaluate(layout.cut(batch, back)).double()
        first = whole if whole.dim() else evaluate(layout.cut(batch, front)).double()
    except UserError:
        return None
    if not whole.dim():
        return close_losses((len(front) * first + len(back) * last) / size, whole, dtype)
    if whole.shape != (size,) or last.shape != back.shape:
        return None
    return close_losses(last, whole[size // 2 :], dtype)


def close_losses(losses: Tensor, others: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether losses of a model of some type are equal up to rounding."""
    relative = max(1e-3, 2 * torch.finfo(dtype).eps)
    return torch.allclose(losses, others, rtol=relative, atol=1e-5, equal_nan=True)


def _candidates(leading: Layout, batch: Any) -> Iterator[Layout]:
    """Yield layouts from all leaves of the leading length to those without one or several that come late."""
    yield leading
    places = sorted(leading.counting)
    yield from (leading.without([place]) for place in reversed(places) if len(places) > 1)
    if len(places) > 3:
        yield leading.without(places[2:])


def _entries(leaf: Any, rows: Tensor) -> Any:
    if isinstance(leaf, Tensor):
        return leaf[rows.to(leaf.device)]
    if isinstance(leaf, np.ndarray):
        return leaf[rows.numpy()]
    return type(leaf)(leaf[row] for row in rows.tolist()) if rows_of(leaf) is not None else leaf


def _concatenated(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return type(parts[0])(chain.from_iterable(parts))


def _same_kind(leaf: Any, other: Any) -> bool:
    """Tell whether two leaves that count samples can be joined."""
    if isinstance(leaf, Tensor) and isinstance(other, Tensor):
        return leaf.shape[1:] == other.shape[1:] and leaf.dtype == other.dtype and leaf.device == other.device
    if isinstance(leaf, np.ndarray) and isinstance(other, np.ndarray):
        return bool(leaf.shape[1:] == other.shape[1:] and leaf.dtype == other.dtype)
    return type(leaf) is type(other)
