"""What a batch is: any nesting of containers and tensors, and which of its leaves count samples."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from estimators.errors import UserError

SAMPLE_COUNTS = ("num_graphs", "batch_size")


@dataclass(frozen=True)
class Layout:
    """Which leaves of a batch have one entry per sample; all batches of a loader share it.

    Attributes:
        counting: Places of these leaves among all leaves of a batch.
        cuttable: Whether a batch can be cut into parts by cutting these leaves. Graphs, packed sequences and lists of
            images cannot.
    """

    counting: frozenset[int]
    cuttable: bool = True

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
        return replace(self, counting=self.counting | {sum(1 for _ in leaves(batch))})

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


def leading_layout(batch: Any) -> Layout | None:
    """Return the layout by the leading dimension that most tensors of a batch share; None without such a tensor."""
    lengths = Counter(rows_of(leaf) for leaf in leaves(batch) if isinstance(leaf, Tensor) and rows_of(leaf) is not None)
    return of_length(batch, lengths.most_common(1)[0][0]) if lengths else None


def of_length(batch: Any, length: int | None) -> Layout:
    """Return the layout in which every leaf of a length counts samples."""
    places = (place for place, leaf in enumerate(leaves(batch)) if length is not None and rows_of(leaf) == length)
    return Layout(frozenset(places))


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


def stated_size(batch: Any) -> int | None:
    """Return the number of samples that a batch states of itself, as batches of graphs do."""
    for name in SAMPLE_COUNTS:
        size = getattr(batch, name, None)
        if isinstance(size, int) and not isinstance(size, bool):
            return size
    return None


def refuse_without_samples(batch: Any) -> None:
    """Refuse a batch that holds nothing whose first dimension could count samples."""
    if leading_layout(batch) is None and stated_size(batch) is None and not any(opaque(leaf) for leaf in leaves(batch)):
        raise UserError(f"loader: a batch of type {type(batch).__name__} holds no tensor with a sample dimension")


def memory_of(batch: Any) -> int:
    """Return the bytes of all tensors of a batch."""
    return sum(leaf.nbytes for leaf in leaves(batch) if isinstance(leaf, Tensor) and not leaf.is_nested)


def move(batch: Any, device: torch.device) -> Any:
    """Move all tensors of a batch to a device, in containers of their own; inference tensors become usual ones."""

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.is_inference():
            leaf = leaf.clone()
        return leaf.to(device) if isinstance(leaf, Tensor) or opaque(leaf) else leaf

    return map_leaves(moved, batch)


def copied(batch: Any) -> Any:
    """Return a batch of the same tensors in containers of its own, which a loss may change."""
    return map_leaves(lambda leaf: leaf, batch)


def described(batch: Any) -> str:
    """Describe the tensors of a batch: shapes and types."""
    tensors = [leaf for leaf in leaves(batch) if isinstance(leaf, Tensor)]
    parts = [f"{tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}" for leaf in tensors if not leaf.is_nested]
    return ", ".join(parts[:6]) + (", ..." if len(parts) > 6 else "")


def leaves(batch: Any) -> Iterator[Any]:
    """Yield what a batch holds: tensors and plain values."""
    children = _children(batch)
    if children is None:
        yield batch
    else:
        for child in children.values():
            yield from leaves(child)


def map_leaves(function: Callable[..., Any], first: Any, *others: Any) -> Any:
    """Apply a function to corresponding leaves of equally built batches and build one more like them."""
    children = _children(first)
    if children is None:
        return function(first, *others)
    rest = [_children(other) or {} for other in others]
    mapped = {key: map_leaves(function, child, *(other[key] for other in rest)) for key, child in children.items()}
    if isinstance(first, tuple):
        values = mapped.values()
        return type(first)(*values) if hasattr(first, "_fields") else type(first)(values)
    if isinstance(first, list):
        return list(mapped.values())
    if type(first) is dict:
        return mapped
    if isinstance(first, Mapping):
        return type(first)(mapped)  # type: ignore[call-arg]
    copy = object.__new__(type(first))
    for key, value in mapped.items():
        object.__setattr__(copy, key, value)
    return copy


def rows_of(leaf: Any) -> int | None:
    """Return the number of entries along the leading dimension of a leaf; None where it has none that can be cut."""
    if isinstance(leaf, Tensor):
        return len(leaf) if not opaque(leaf) and leaf.dim() > 0 else None
    return len(leaf) if type(leaf) in (list, tuple) else None


def opaque(leaf: Any) -> bool:
    """Tell whether a leaf is whole: packed sequences, graphs, and tensors that are nested or sparse."""
    if isinstance(leaf, Tensor):
        return bool(leaf.is_nested) or leaf.layout != torch.strided
    if isinstance(leaf, PackedSequence):
        return True
    container = isinstance(leaf, Mapping | tuple | list) or dataclasses.is_dataclass(leaf)
    return not container and callable(getattr(leaf, "to", None)) and stated_size(leaf) is not None


def same_leaf(leaf: Any, other: Any) -> bool:
    """Tell whether two leaves hold the same."""
    if leaf is other:
        return True
    if isinstance(leaf, Tensor) or isinstance(other, Tensor):
        both = isinstance(leaf, Tensor) and isinstance(other, Tensor) and not opaque(leaf) and not opaque(other)
        return both and leaf.shape == other.shape and torch.equal(leaf, other)
    return type(leaf) is type(other) and not opaque(leaf) and bool(leaf == other)


def _children(batch: Any) -> dict[Any, Any] | None:
    if isinstance(batch, Tensor | nn.Module) or opaque(batch):
        return None
    if isinstance(batch, Mapping):
        return dict(batch)
    if isinstance(batch, tuple | list):  # one of plain values only, such as sample names, is a leaf
        nested = any(isinstance(child, Tensor) or opaque(child) or _children(child) is not None for child in batch)
        return dict(enumerate(batch)) if nested else None
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    if hasattr(batch, "__dict__") and not isinstance(batch, type):
        return dict(vars(batch))
    return None


def _entries(leaf: Any, rows: Tensor) -> Any:
    if isinstance(leaf, Tensor):
        return leaf[rows.to(leaf.device)]
    return type(leaf)(leaf[row] for row in rows.tolist()) if rows_of(leaf) is not None else leaf


def _concatenated(parts: Sequence[Any]) -> Any:
    return torch.cat(list(parts)) if isinstance(parts[0], Tensor) else type(parts[0])(chain.from_iterable(parts))


def _same_kind(leaf: Any, other: Any) -> bool:
    """Tell whether two leaves that count samples can be joined."""
    if isinstance(leaf, Tensor) and isinstance(other, Tensor):
        return leaf.shape[1:] == other.shape[1:] and leaf.dtype == other.dtype and leaf.device == other.device
    return type(leaf) is type(other)
