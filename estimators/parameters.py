"""Which weights of a model are looked at, and how they lie in one flat vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from estimators.errors import UserError

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
        UserError: Nothing matches, or the chosen parameters are not real floating point numbers on one device.

    Example:
        >>> list(choose_parameters(nn.Sequential(nn.Linear(3, 2), nn.ReLU())))
        ['0.weight']
    """
    named = dict(model.named_parameters())
    if patterns is None:
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


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors into one vector ``[D]``."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Split a vector ``[D]`` into tensors shaped like ``like``; the inverse of ``flatten``."""
    parts = torch.split(vector, [tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


def named(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split a vector ``[D]`` by parameter name."""
    return dict(zip(like, unflatten(vector, list(like.values())), strict=True))
