"""Batch normalisation in re-tuning: batch statistics while training, running statistics measured again afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from estimators import Objective
from estimators.objective import LossFunction

Statistics = dict[str, Tensor]


def normalising(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the layers of batch normalisation that keep statistics, by name; those whose weights are frozen do not.

    Args:
        model: Any module.

    Example:
        >>> list(normalising(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))))
        ['1']
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.running_mean is not None
        and all(parameter.requires_grad for parameter in module.parameters(recurse=False))
    }


class ByBatch:
    """A loss of a model whose batch normalisation goes by the statistics of the batch, all else in evaluation mode.

    Args:
        loss_fn: The loss.
        layers: Layers of batch normalisation.
    """

    def __init__(self, loss_fn: LossFunction, layers: Iterable[nn.Module]) -> None:
        self.loss_fn, self.layers = loss_fn, list(layers)

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the losses; the modes of the layers are put back by whoever put the model in evaluation mode."""
        for layer in self.layers:
            layer.training = True
        try:
            return self.loss_fn(model, batch)
        finally:
            for layer in self.layers:
                layer.training = False


@torch.no_grad()
def measured_statistics(
    objective: Objective, weights: Mapping[str, Tensor], batches: Iterable[tuple[Any, int]]
) -> Statistics:
    r"""Measure the statistics of batch normalisation anew.

    The mean and the variance of the inputs over all batches; each batch is normalised by its own statistics.

    Args:
        objective: An objective, see ``ByBatch`` for its loss.
        weights: The weights by name.
        batches: Batches on the device with their sizes.

    Returns:
        Buffers by name: means and variances of all layers of ``normalising``, in the type that they have.
    """
    layers = normalising(objective.model)
    sums: dict[str, list[Tensor]] = {}
    with _inputs(layers, sums):
        for batch, size in batches:
            if size > 1:
                objective.losses(weights, batch)
    result: Statistics = {}
    for name, (count, total, squares) in sums.items():
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0.0) * (count / (count - 1).clamp(min=1.0))
        for key, value in (("running_mean", mean), ("running_var", variance)):
            like = getattr(layers[name], key)
            result[f"{name}.{key}" if name else key] = value.to(like.device, like.dtype)
    return result


@contextmanager
def _inputs(layers: Mapping[str, nn.Module], sums: dict[str, list[Tensor]]) -> Iterator[None]:
    """Add up number, sum and squares of what reaches every layer, per channel."""

    def adding(name: str) -> Any:
        def add(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            values = arguments[0].detach().transpose(0, 1).flatten(1).double()
            count = torch.tensor(float(values.shape[1]), dtype=torch.float64, device=values.device)
            parts = [count, values.sum(1), values.square().sum(1)]
            sums[name] = [old + new for old, new in zip(sums[name], parts, strict=True)] if name in sums else parts

        return add

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_pre_hook(adding(name)))
        yield
