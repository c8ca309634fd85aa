"""What a batch is: any nesting of containers and tensors whose first dimension counts samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from estimators.errors import UserError


def batch_size(batch: Any) -> int:
    """Return the number of samples in a batch: the length of its first tensor."""
    for leaf in leaves(batch):
        if isinstance(leaf, Tensor) and leaf.dim() > 0:
            return int(leaf.shape[0])
    raise UserError(f"loader: a batch of type {type(batch).__name__} holds no tensor with a sample dimension")


def memory_of(batch: Any) -> int:
    """Return the bytes of all tensors of a batch."""
    return sum(leaf.nbytes for leaf in leaves(batch) if isinstance(leaf, Tensor))


def move(batch: Any, device: torch.device) -> Any:
    """Move all tensors of a batch to a device."""
    return map_leaves(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)


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
    mapped = {key: map_leaves(function, child, *(one[key] for one in rest)) for key, child in children.items()}
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


def pick_rows(leaf: Any, rows: Tensor, size: int) -> Any:
    """Pick samples of a leaf; whatever does not count samples is shared by all of them."""
    if not _counts(leaf, size):
        return leaf
    return leaf[rows.to(leaf.device)] if isinstance(leaf, Tensor) else type(leaf)(leaf[row] for row in rows.tolist())


def rebatched(picked: Sequence[Any], width: int) -> list[Any]:
    """Join batches and split them into others of equal size."""
    if not picked:
        return []
    sizes = [batch_size(batch) for batch in picked]
    samples = sum(sizes)
    whole = map_leaves(lambda *parts: _joined(parts, sizes), *picked)
    parts = [torch.arange(i, min(i + width, samples)) for i in range(0, samples, width)]
    return [map_leaves(lambda leaf, rows=rows: pick_rows(leaf, rows, samples), whole) for rows in parts]


def _children(batch: Any) -> dict[Any, Any] | None:
    if isinstance(batch, Mapping):
        return dict(batch)
    if isinstance(batch, tuple | list):  # one of plain values only, such as sample names, is a leaf
        nested = any(isinstance(child, Tensor) or _children(child) is not None for child in batch)
        return dict(enumerate(batch)) if nested else None
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    if hasattr(batch, "__dict__") and not isinstance(batch, Tensor | nn.Module):
        return dict(vars(batch))
    return None


def _counts(leaf: Any, size: int) -> bool:
    """Tell whether a leaf has one entry per sample."""
    return (leaf.dim() > 0 if isinstance(leaf, Tensor) else type(leaf) in (list, tuple)) and len(leaf) == size


def _joined(parts: Sequence[Any], sizes: Sequence[int]) -> Any:
    if not all(_counts(part, size) for part, size in zip(parts, sizes, strict=True)):
        return parts[0]
    return torch.cat(list(parts)) if isinstance(parts[0], Tensor) else type(parts[0])(chain.from_iterable(parts))
