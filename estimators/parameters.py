"""Which weights of a model are looked at, and how they lie in one flat vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from estimators.errors import UserError

ALIGNMENT = 64
WEIGHTED = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


def choose_parameters(model: nn.Module, patterns: str | Sequence[str] | None = None) -> dict[str, nn.Parameter]:
    """Choose parameters of a model, in the model's own order.

    Args:
        model: Any module.
        patterns: Shell-style patterns of parameter names such as ``"layers.*.weight"``; None chooses the weights of
            all convolution and linear layers (no biases, no normalisation).

    Returns:
        Chosen parameters by name; a tied parameter appears once.

    Raises:
        UserError: Nothing matches, the weight of a layer is computed from other parameters, or the chosen parameters
            are not real floating point numbers on one device.

    Example:
        >>> list(choose_parameters(nn.Sequential(nn.Linear(3, 2), nn.ReLU())))
        ['0.weight']
    """
    named = dict(model.named_parameters())
    if patterns is None:
        _check_weights_are_parameters(model)
        weights = {id(module.weight) for module in model.modules() if isinstance(module, WEIGHTED)}
        chosen = {name: parameter for name, parameter in named.items() if id(parameter) in weights}
        if not chosen:
            raise UserError("model: has no convolution or linear layers; name the weights to prune with parameters=")
    else:
        wanted = [patterns] if isinstance(patterns, str) else list(patterns)
        chosen = {name: p for name, p in named.items() if any(fnmatchcase(name, one) for one in wanted)}
        if not chosen:
            known = ", ".join(list(named)[:8]) + (", ..." if len(named) > 8 else "")
            raise UserError(f"parameters: {wanted} matches none of the model's parameters ({known})")
    devices = sorted({str(parameter.device) for parameter in named.values()})
    if len(devices) > 1:
        raise UserError(f"model: its parameters lie on {', '.join(devices)}; move the model to one device")
    kinds = {parameter.dtype for parameter in chosen.values()}
    if len(kinds) > 1 or not next(iter(kinds)).is_floating_point:
        raise UserError(f"model: chosen parameters must share one floating point type, got {sorted(map(str, kinds))}")
    return chosen


def _check_weights_are_parameters(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, WEIGHTED) and "weight" not in module._parameters:
            raise UserError(
                f"model: the weight of layer {name!r} is computed by a parametrisation or a pruning mask; fix it with "
                "torch.nn.utils.parametrize.remove_parametrizations or torch.nn.utils.prune.remove, "
                "or name the parameters behind it with parameters="
            )


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors into one vector ``[D]``."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


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
    return [one if _lies_well(one) else one.clone(memory_format=torch.contiguous_format) for one in matrix.unbind(1)]


def _lies_well(vector: Tensor) -> bool:
    return vector.is_contiguous() and vector.data_ptr() % ALIGNMENT == 0


def named(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split a vector ``[D]`` by parameter name."""
    return dict(zip(like, unflatten(vector, list(like.values())), strict=True))
