"""Tensors as one flat vector, and the columns of a matrix as vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

ALIGNMENT = 64


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors, also sparse ones such as some gradients of embeddings, into one vector ``[D]``."""
    dense = (tensor if tensor.layout == torch.strided else tensor.to_dense() for tensor in tensors)
    return torch.cat([tensor.reshape(-1) for tensor in dense])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Split a vector ``[D]`` into tensors shaped like ``like``; the inverse of ``flatten``."""
    parts = torch.split(vector, [tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


def aligned_rows(count: int, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make an empty matrix whose rows each start where an allocation of their own could.

    Sums over a vector depend in their last bits on where it starts in memory; so results are the same for one vector
    alone and for several in company.

    Args:
        count: Number of rows.
        length: Length of a row.
        dtype: Type of the entries.
        device: Where the matrix lies.

    Returns:
        Uninitialised rows ``[count, length]``, each contiguous.
    """
    step = ALIGNMENT // dtype.itemsize
    return torch.empty(count, -(-length // step) * step, dtype=dtype, device=device)[:, :length]


def columns(matrix: Tensor) -> list[Tensor]:
    """Return the columns of a matrix ``[D, K]`` as contiguous vectors, copied where they are not such already."""
    return [
        column if _lies_well(column) else column.clone(memory_format=torch.contiguous_format)
        for column in matrix.unbind(1)
    ]


def _lies_well(vector: Tensor) -> bool:
    return vector.is_contiguous() and vector.data_ptr() % ALIGNMENT == 0 and not vector.is_inference()


def named(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split a vector ``[D]`` by parameter name."""
    return dict(zip(like, unflatten(vector, list(like.values())), strict=True))
