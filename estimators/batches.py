"""Batches: any nesting of containers and tensors, of whose leaves some count samples."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

SAMPLE_COUNTS = ("num_graphs", "batch_size")


def stated_size(batch: Any) -> int | None:
    """Return the number of samples that a batch or a leaf of it states of itself, as batches of graphs do."""
    return next((size for part in (batch, *leaves(batch)) if (size := _own_count(part)) is not None), None)


def empty(batch: Any) -> bool:
    """Tell whether a batch holds no sample: it has tensors that could be cut, and nothing that could has entries."""
    parts = list(leaves(batch))
    if stated_size(batch) or any(opaque(part) for part in parts):
        return False
    cut = any(isinstance(part, Tensor) and part.dim() > 0 for part in parts)
    return cut and not any(rows_of(part) for part in parts)


def listed(batch: Any) -> set[int]:
    """Return the lengths of the lists and tuples of a batch that hold tensors or containers, such as images."""
    children = _children(batch)
    if children is None:
        return set()
    inside = set().union(*(listed(child) for child in children.values()))
    return inside | {len(children)} if isinstance(batch, list | tuple) else inside


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
    rest = [_children(batch) or {} for batch in others]
    mapped = {key: map_leaves(function, child, *(entries[key] for entries in rest)) for key, child in children.items()}
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


def _same_entries(leaf: Any, other: Any) -> Any:
    """Compare entry by entry; undefined numbers, which differ from themselves, equal each other."""
    return (leaf == other) | ((leaf != leaf) & (other != other))
