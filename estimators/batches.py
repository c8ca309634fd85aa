"""What a batch is: any nesting of containers and tensors, and which of its leaves count samples."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
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


def stated_size(batch: Any) -> int | None:
    """Return the number of samples that a batch or a leaf of it states of itself, as batches of graphs do."""
    return next((size for part in (batch, *leaves(batch)) if (size := _own_count(part)) is not None), None)


def listed(batch: Any) -> set[int]:
    """Return the lengths of the lists and tuples of a batch that hold tensors or containers, such as images."""
    children = _children(batch)
    if children is None:
        return set()
    inside = set().union(*(listed(child) for child in children.values()))
    return inside | {len(children)} if isinstance(batch, list | tuple) else inside


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
    return _rebuilt(first, mapped)


def rows_of(leaf: Any) -> int | None:
    """Return the number of entries along the leading dimension of a leaf; None where it has none that can be cut."""
    if isinstance(leaf, Tensor):
        return len(leaf) if not opaque(leaf) and leaf.dim() > 0 else None
    if isinstance(leaf, np.ndarray):
        return len(leaf) if leaf.ndim else None
    return len(leaf) if type(leaf) in (list, tuple) else None


def opaque(leaf: Any) -> bool:
    """Tell whether a leaf is whole: packed sequences, graphs, and tensors that are nested or sparse."""
    if isinstance(leaf, Tensor):
        return bool(leaf.is_nested) or leaf.layout != torch.strided
    if isinstance(leaf, PackedSequence):
        return True
    container = isinstance(leaf, Mapping | tuple | list) or dataclasses.is_dataclass(leaf)
    return not container and callable(getattr(leaf, "to", None)) and _own_count(leaf) is not None


def same_leaf(leaf: Any, other: Any) -> bool:
    """Tell whether two leaves hold the same."""
    if leaf is other:
        return True
    if isinstance(leaf, Tensor) or isinstance(other, Tensor):
        both = isinstance(leaf, Tensor) and isinstance(other, Tensor) and not opaque(leaf) and not opaque(other)
        return both and leaf.shape == other.shape and bool(_same_entries(leaf, other.to(leaf.device)).all())
    if type(leaf) is not type(other) or opaque(leaf):
        return False
    if isinstance(leaf, np.ndarray):
        return leaf.shape == other.shape and bool(np.all(_same_entries(leaf, other)))
    try:
        return bool(_same_entries(leaf, other))
    except (TypeError, ValueError):  # values that cannot be compared count as different
        return False


def _children(batch: Any) -> dict[Any, Any] | None:
    if isinstance(batch, Tensor | np.ndarray | nn.Module) or opaque(batch):
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


def _own_count(part: Any) -> int | None:
    for name in SAMPLE_COUNTS:
        size = getattr(part, name, None)
        if isinstance(size, int) and not isinstance(size, bool):
            return size
    return None


def _rebuilt(batch: Any, children: Mapping[Any, Any]) -> Any:
    """Return a container like another one, with its attributes, that holds other children at the same places."""
    if type(batch) in (dict, list, tuple):
        return type(batch)(children if type(batch) is dict else children.values())
    if isinstance(batch, tuple):
        if hasattr(batch, "_fields"):
            return type(batch)(*children.values())
        made = tuple.__new__(type(batch), children.values())
        vars(made).update(vars(batch))
        return made
    if isinstance(batch, Mapping) and not isinstance(batch, MutableMapping):
        return type(batch)(children)  # type: ignore[call-arg]
    made = copy.copy(batch)
    for key, child in children.items():
        if isinstance(made, MutableMapping | list):
            made[key] = child
        else:
            object.__setattr__(made, key, child)
    return made


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


def _same_entries(leaf: Any, other: Any) -> Any:
    """Compare entry by entry; undefined numbers, which differ from themselves, equal each other."""
    return (leaf == other) | ((leaf != leaf) & (other != other))


def _same_kind(leaf: Any, other: Any) -> bool:
    """Tell whether two leaves that count samples can be joined."""
    if isinstance(leaf, Tensor) and isinstance(other, Tensor):
        return leaf.shape[1:] == other.shape[1:] and leaf.dtype == other.dtype and leaf.device == other.device
    if isinstance(leaf, np.ndarray) and isinstance(other, np.ndarray):
        return bool(leaf.shape[1:] == other.shape[1:] and leaf.dtype == other.dtype)
    return type(leaf) is type(other)
