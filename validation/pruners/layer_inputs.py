"""Second moments of the inputs of every layer, which layer-wise pruning uses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruning_limits.reconstruction import layers_of, watched
from validation.masks import prunable

CHUNK = 256


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
    layers = layers_of(model, prunable(model) if names is None else names)
    with watched(layers, sums), torch.enable_grad():  # with gradients attention calls its layers one by one
        for part in torch.split(x, CHUNK):
            model(part)
    return {name: total / count for name, (total, count) in sums.items()}
