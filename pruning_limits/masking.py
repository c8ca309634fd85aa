"""A model with the smallest of its chosen weights set to zero."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from glob import escape

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm

from estimators import UserError
from estimators.arguments import plain_model
from estimators.sharding import fully_sharded
from estimators.weights import Weights
from pruning_limits.magnitude import MagnitudeProfile


def pruned_copy(
    model: nn.Module,
    names: Sequence[str],
    dimension: int,
    sparsity: float,
    profile_of: Callable[[Mapping[str, Tensor]], MagnitudeProfile] = MagnitudeProfile,
) -> nn.Module:
    """Return a copy of a model pruned by global magnitude, exactly ``ceil(s D)`` of the chosen weights zero.

    Weights behind a mask of ``torch.nn.utils.prune`` stay behind it, and those that it removes count as zero.

    Args:
        model: The network; it is left as it is. Of ``DistributedDataParallel`` the module inside is copied.
        names: Names of the chosen parameters.
        dimension: Number D of their weights.
        sparsity: Removed fraction in [0, 1].
        profile_of: From weights by name to the order in which they go; of groups of weights, biases and normalisation
            go with them.

    Raises:
        UserError: The model is no plain module, a parameter is missing, the number of weights is another one, or the
            sparsity is out of range.

    Example:
        >>> model = pruned_copy(nn.Linear(4, 2), ["weight"], 8, 0.5)
        >>> int((model.weight == 0).sum())
        4
    """
    model = plain_model(model)
    if fully_sharded(model):
        raise UserError(
            "model: one sharded by fully_shard cannot be copied; gather its weights into a plain module, or multiply "
            "them by limit.mask(sparsity)"
        )
    result = detached_copy(model)
    parameters = dict(result.named_parameters())
    profile = profile_of(weights_of(result, names, dimension))
    masks = profile.masks(sparsity) | {
        name: mask.reshape(-1, *[1] * (parameters[name].dim() - 1)).to(parameters[name].device)
        for name, mask in profile.companions(sparsity).items()
    }
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].copy_(torch.where(mask, parameters[name], 0))
    recompute_weights(result)
    return result


def weights_of(model: nn.Module, names: Sequence[str], dimension: int) -> dict[str, Tensor]:
    """Return the weights of a model that a limit is about.

    Args:
        model: The network.
        names: Names of the chosen parameters.
        dimension: Number D of their weights.

    Raises:
        UserError: A parameter is missing, or the number of weights is another one.
    """
    own = {name for name, _ in model.named_parameters()}
    missing = [name for name in names if name not in own]
    if missing:
        raise UserError(f"model: expected a parameter {missing[0]!r}, as in the network of the limit; it has none")
    weights = Weights(model, [escape(name) for name in names]).chosen
    size = sum(weight.numel() for weight in weights.values())
    if size != dimension:
        raise UserError(f"model: expected {dimension:,} prunable weights, as in the network of the limit, got {size:,}")
    return weights


@torch.no_grad()
def recompute_weights(model: nn.Module) -> None:
    """Let hooks compute the weights of layers from their parameters, as in every forward pass."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod | WeightNorm):
                hook(module, ())


def detached_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model.

    Weights that hooks computed and that hang on a graph, which cannot be copied, are copied without it.
    """
    computed = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed if not value.is_leaf})
