"""What reaches the layers of a network: the second moments of their inputs, which layer-wise pruning goes by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from validation.masks import prunable

CHUNK = 256


def columns(module: nn.Module, inputs: Tensor) -> Tensor | None:
    """Return what the rows of a layer's weight are multiplied with, one column each, and a last row of ones.

    Args:
        module: A linear layer, a convolution without groups, or self-attention, whose input projections it is about.
        inputs: Its input.

    Returns:
        Columns ``[features + 1, positions]``; None of other layers.

    Example:
        >>> columns(nn.Conv2d(1, 1, 2), torch.arange(9.0).view(1, 1, 3, 3))[:, 0]
        tensor([0., 1., 3., 4., 1.])
    """
    if isinstance(module, nn.Linear | nn.MultiheadAttention):
        flat = inputs.reshape(-1, inputs.shape[-1]).T
    elif isinstance(module, nn.Conv2d) and module.groups == 1 and not isinstance(module.padding, str):
        unfolded = nn.functional.unfold(inputs, module.kernel_size, module.dilation, module.padding, module.stride)
        flat = unfolded.transpose(0, 1).flatten(1)
    else:
        return None
    return torch.cat([flat, flat.new_ones(1, flat.shape[1])])


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers whose weights are pruned by the weight's name, in the model's order."""
    modules = dict(model.named_modules())
    return {name: modules[name.rpartition(".")[0]] for name in prunable(model)}


def input_moments(model: nn.Module, x: Tensor, names: list[str] | None = None) -> dict[str, Tensor]:
    r"""Second moments :math:`\frac1p \sum z z^\top` of what reaches each layer, the last row that of the constant one.

    Args:
        model: The network, in evaluation mode.
        x: Its input ``[n, ...]``.
        names: Weights whose layers are looked at; None looks at all.

    Returns:
        Moments, float64 ``[features + 1, features + 1]``, by the name of the weight; layers that are not called as
        modules, or are of another kind, are missing.
    """
    sums: dict[str, tuple[Tensor, int]] = {}
    chosen = {name: module for name, module in layers(model).items() if names is None or name in names}
    with _watched(chosen, sums), torch.enable_grad():  # with gradients attention calls its layers one by one
        for part in torch.split(x, CHUNK):
            model(part)
    return {name: total / count for name, (total, count) in sums.items()}


@contextmanager
def _watched(chosen: Mapping[str, nn.Module], sums: dict[str, tuple[Tensor, int]]) -> Iterator[None]:
    def adding(name: str) -> Any:
        def add(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            given: Tensor = arguments[0] if arguments else keywords["query" if "query" in keywords else "input"]
            seen = columns(module, given.detach())
            if seen is not None:
                total, count = sums.get(name, (0.0, 0))
                sums[name] = total + (seen @ seen.T).double(), count + seen.shape[1]

        return add

    handles = [module.register_forward_pre_hook(adding(name), with_kwargs=True) for name, module in chosen.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
