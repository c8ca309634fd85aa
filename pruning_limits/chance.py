"""Test whether a network is better than constant outputs; where it is not, pruning loses nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from estimators import Objective, Shard, UserError
from estimators.distributed import gathered
from estimators.weights import Weights
from pruning_limits.one_shot import mean_and_error


def gain_over_constant(objective: Objective) -> tuple[float, float] | None:
    """Compare per-sample values with those of the model whose layers are all removed, so that its outputs are constant.

    Removed are the weights of all convolution and linear layers, or the chosen weights of a model that has none of
    them; biases and the rest stay.

    Args:
        objective: Per-sample values of a few samples; the penalty does not matter.

    Returns:
        By how much their mean is lower than that of constant outputs, and its paired standard error; None where the
        values are not finite or too few to tell.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.weight.data.copy_(10 * torch.eye(2))
        >>> data = [(torch.eye(2), torch.tensor([0, 1]))]
        >>> gain, error = gain_over_constant(Objective(model, data))
        >>> gain > 0.5
        True
    """
    part = objective.in_weights(_layers(objective))
    dense = part.vector()
    values, sizes = part.sample_losses(dense)
    constant, _ = part.sample_losses(torch.zeros_like(dense))
    gains = constant - values
    if len(gains) < 2 or not bool(gains.isfinite().all()):
        return None
    return mean_and_error(gains, sizes)


def gain_over_strangers(objective: Objective, seed: int = 0) -> tuple[float, float] | None:
    """Compare per-sample values with those of inputs that were exchanged for inputs of other samples.

    A network whose outputs tell nothing of the targets is as good with the inputs of strangers, whatever the targets'
    mean or the frequencies of their classes.

    Args:
        objective: Per-sample values of a few samples whose batches are pairs of tensors ``(x, y)``.
        seed: Seed of the exchange.

    Returns:
        By how much their mean is lower than that of strangers, and its paired standard error; None where batches are of
        another kind, the values do not depend on the targets, are not finite or are too few to tell.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> data = [(torch.randn(100, 2), torch.arange(100) % 2)]
        >>> gain, error = gain_over_strangers(Objective(model, data))
        >>> abs(gain) < 5 * error
        True
    """
    pairs = [batch for batch, _ in objective.batches()]
    if not all(gathered(bool(pairs) and all(_is_pair(pair) for pair in pairs))):
        return None
    generator = torch.Generator().manual_seed(seed)
    shapes = {(x.shape[1:], y.shape[1:]) for x, y in pairs}
    if len(shapes) == 1:  # else samples are exchanged within their batch
        x, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        sizes = [len(part) for part, _ in pairs]
        mixed = x[torch.randperm(len(x), generator=generator).to(x.device)]
        exchanged = list(zip(torch.split(mixed, sizes), torch.split(y, sizes), strict=True))
    else:
        exchanged = [(x[torch.randperm(len(x), generator=generator).to(x.device)], y) for x, y in pairs]
    strangers = Shard([type(pair)(parts) for pair, parts in zip(pairs, exchanged, strict=True)])
    shuffled = Objective(objective.model, strangers, objective.loss_fn, None, objective.patterns)
    values, counts = objective.sample_losses(objective.vector())
    others, _ = shuffled.sample_losses(shuffled.vector())
    gains = others - values
    if len(gains) < 2 or not bool(gains.isfinite().all()) or torch.allclose(others.sort().values, values.sort().values):
        return None
    return mean_and_error(gains, counts)


def _is_pair(batch: Any) -> bool:
    """Tell whether a batch is a plain pair of tensors of one length."""
    if type(batch) not in (tuple, list) or len(batch) != 2:
        return False
    return all(isinstance(part, Tensor) and part.dim() for part in batch) and len(batch[0]) == len(batch[1])


def _layers(objective: Objective) -> Weights:
    try:
        return Weights(objective.model)
    except UserError:  # no such layers
        return objective.weights
