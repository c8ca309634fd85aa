"""Multiply-accumulates of a network, layer by layer, with and without masks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from estimators.errors import UserError
from validation.masks import Masks


@dataclass(frozen=True)
class LayerMacs:
    """Multiply-accumulates of one convolution or linear layer for one sample.

    Attributes:
        name: Name of the module.
        weights: Number of weights.
        kept: Weights that the mask keeps; all without a mask.
        macs: Multiply-accumulates of the dense layer.
        kept_macs: Those of the kept weights, every one used equally often.
    """

    name: str
    weights: int
    kept: int
    macs: int
    kept_macs: int


def layer_macs(model: nn.Module, shape: tuple[int, ...], masks: Masks | None = None) -> list[LayerMacs]:
    r"""Count the multiply-accumulates of every convolution and linear layer in one forward pass.

    Every weight of a convolution is used once per output position, :math:`H W`, every weight of a linear layer once
    per vector; biases, normalisation and pooling are not counted, and padding counts as input. A removed weight saves
    its uses, which hardware may or may not turn into time.

    Args:
        model: A network; it may lie on the device ``meta``. It is run once in evaluation mode and left as it was.
        shape: Shape of one input without the batch, such as channels, height, width.
        masks: Bool masks by parameter name, True where kept.

    Returns:
        One entry per layer in the order of execution; a layer that runs twice counts twice under one name.

    Raises:
        UserError: A mask names no weight of a counted layer, or has another shape.

    Example:
        >>> [layer.macs for layer in layer_macs(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), (1, 5, 5))]
        [162]
    """
    uses: dict[str, int] = {}
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | _CONVOLUTIONS)}
    _check(layers, masks or {})

    def note(name: str, output: Tensor) -> None:
        layer = layers[name]
        channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        uses[name] = uses.get(name, 0) + output.numel() // int(channels)

    modes = {module: module.training for module in model.modules()}
    first = next(model.parameters())
    try:
        with ExitStack() as hooks, torch.no_grad():
            for name, layer in layers.items():
                hook = layer.register_forward_hook(lambda _, __, output, name=name: note(name, output))
                hooks.enter_context(hook)
            model.eval()(torch.zeros(1, *shape, dtype=first.dtype, device=first.device))
    finally:
        for module, mode in modes.items():
            module.training = mode
    counts = []
    for name, count in uses.items():
        weights = layers[name].weight.numel()
        mask = (masks or {}).get(f"{name}.weight" if name else "weight")
        kept = weights if mask is None else int(mask.sum())
        counts.append(LayerMacs(name, weights, kept, weights * count, kept * count))
    return counts


_CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d


def _check(layers: Mapping[str, nn.Module], masks: Masks) -> None:
    for key, mask in masks.items():
        layer = layers.get(key.rpartition(".")[0])
        weight = getattr(layer, "weight", None) if key.rpartition(".")[2] == "weight" else None
        if weight is None:
            raise UserError(f"masks: {key} is no weight of a convolution or linear layer; leave it out")
        if weight.shape != mask.shape:
            raise UserError(f"masks: {key} has shape {tuple(mask.shape)}, the weight has {tuple(weight.shape)}")


def total_macs(layers: list[LayerMacs]) -> tuple[int, int]:
    """Multiply-accumulates of the dense and of the pruned network.

    Example:
        >>> total_macs([LayerMacs("a", 10, 5, 100, 50), LayerMacs("b", 2, 2, 2, 2)])
        (102, 52)
    """
    return sum(layer.macs for layer in layers), sum(layer.kept_macs for layer in layers)
