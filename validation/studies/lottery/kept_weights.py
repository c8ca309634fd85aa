"""A pruned network as a function of its kept weights, for the spectrum and the limit of these weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call

from validation.masks import Masks


class KeptWeights(nn.Module):
    """A network whose masked parameters are vectors of the weights that their masks keep; removed weights stay zero.

    Args:
        model: The network; it is copied.
        masks: Bool masks by parameter name, True where kept.

    Attributes:
        chosen: Names of the vectors of kept weights, for ``predict_limit(..., parameters=...)``.

    Example:
        >>> line = nn.Linear(2, 1, bias=False)
        >>> [p.shape for p in KeptWeights(line, {"weight": torch.tensor([[True, False]])}).parameters()]
        [torch.Size([1])]
    """

    def __init__(self, model: nn.Module, masks: Masks) -> None:
        super().__init__()
        self._hidden = (copy.deepcopy(model).eval(),)  # in a tuple, or its own parameters would count as well
        self._places = {name: mask.flatten().nonzero().squeeze(1) for name, mask in masks.items()}
        self._keys = {name: name.replace(".", "-") for name, _ in model.named_parameters()}
        for name, parameter in model.named_parameters():
            value = parameter.detach()
            if name in masks:
                value = value.flatten()[self._places[name]]
            self.register_parameter(self._keys[name], nn.Parameter(value.clone()))
        self.chosen = tuple(self._keys[name] for name in masks)

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output for a batch."""
        (model,) = self._hidden
        values = {name: self._whole(name, parameter.shape) for name, parameter in model.named_parameters()}
        output: Tensor = functional_call(model, values, (x,))
        return output

    def _whole(self, name: str, shape: torch.Size) -> Tensor:
        own: Tensor = getattr(self, self._keys[name])
        if name not in self._places:
            return own
        return own.new_zeros(shape.numel()).scatter(0, self._places[name], own).view(shape)
