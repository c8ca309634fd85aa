"""Make a network physically smaller by the channels that a limit removes, and time it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils.benchmark import Timer

from estimators import Objective, UserError
from estimators.batches import copied
from estimators.objective import LossFunction
from estimators.user_code import plain_modes
from pruning_limits.group_profile import GroupProfile
from pruning_limits.groups import Groups
from pruning_limits.patterns import groups_of
from pruning_limits.settings import numbers
from pruning_limits.trials import Trial, masked, same_outputs

if TYPE_CHECKING:
    from pruning_limits.result import PruningLimit

SECONDS = 0.5  # that every network is timed for


@dataclass(frozen=True)
class Timing:
    """How long a forward pass of a batch takes.

    Attributes:
        sparsity: Removed fraction of the prunable weights; 0 of the dense network.
        seconds: Median over repeated passes.
        low: First quartile.
        high: Third quartile.
        device: Where it ran, with the number of threads on a processor.
    """

    sparsity: float
    seconds: float
    low: float
    high: float
    device: str


def shrunk(
    limit: PruningLimit, model: nn.Module, loader: Iterable[Any], sparsity: float, loss_fn: LossFunction | None = None
) -> nn.Module:
    """Return a copy of a network without the channels that go at a sparsity, physically smaller.

    It is compared with the masked network on a few samples.

    Args:
        limit: A limit of channels.
        model: The network, or one of the same layers.
        loader: Batches, which the layers are followed with.
        sparsity: Removed fraction of the prunable weights.
        loss_fn: As in ``predict_limit``.

    Raises:
        UserError: The limit is one of another pattern, the sparsity is beyond the pattern, or the networks differ.
    """
    from pruning_limits.channels import smaller_network

    objective = Objective(model, loader, loss_fn, parameters=list(limit.settings.parameters))
    profile, trial = GroupProfile(objective.chosen, _channels(limit, objective)), Trial(objective)
    gone = profile.gone(sparsity)
    removed = {root: gone[ids].nonzero().reshape(-1).tolist() for root, ids in profile.groups.roots.items()}
    smaller = smaller_network(objective.model, trial, removed)
    zeros = masked(trial, profile.masks(sparsity) | profile.companions(sparsity))
    if not same_outputs(trial.results(smaller), trial.results(zeros), objective.dtype):
        raise UserError(
            f"sparsity: at {sparsity:g} the smaller network differs from the masked one; use limit.prune instead"
        )
    training = {name: module.training for name, module in objective.model.named_modules()}
    for name, module in smaller.named_modules():
        module.training = training.get(name, False)
    return smaller


def _channels(limit: PruningLimit, objective: Objective) -> Groups:
    if limit.pattern != "channels":
        raise UserError(f"pattern: channels alone make a network smaller, got {limit.pattern}; see limit.for_pattern")
    known = {} if limit.profile is None else limit.profile.structure.groups
    return known.get("channels") or groups_of("channels", objective)


def timings(
    limit: PruningLimit,
    model: nn.Module,
    loader: Iterable[Any],
    sparsities: Sequence[float],
    loss_fn: LossFunction | None = None,
) -> tuple[Timing, ...]:
    """Time the dense network and the smaller ones on the first batch of a loader, on the device of the model.

    Args:
        limit: A limit of channels.
        model: The network.
        loader: Batches.
        sparsities: Removed fractions, rising.
        loss_fn: As in ``predict_limit``.

    Returns:
        The dense network first.
    """
    sparsities = numbers("sparsities", sparsities, "numbers in [0, 1], removed fractions", lambda own: 0 <= own <= 1)
    objective = Objective(model, loader, loss_fn, parameters=list(limit.settings.parameters))
    _channels(limit, objective)
    trial = Trial(objective)
    networks = [(0.0, trial.copied(objective.model))]
    for sparsity in sparsities:
        smaller = shrunk(limit, model, loader, sparsity, loss_fn).eval()
        networks.append((1 - _weights(smaller, limit) / limit.parameters, smaller))
    with plain_modes():
        batch = next(iter(objective.batches()))[0]
        return tuple(_timed(sparsity, network, objective, batch) for sparsity, network in networks)


def _weights(model: nn.Module, limit: PruningLimit) -> int:
    names = {name.removesuffix("_orig") for name in limit.settings.parameters}
    return sum(p.numel() for name, p in model.named_parameters() if name.removesuffix("_orig") in names)


def _timed(sparsity: float, model: nn.Module, objective: Objective, batch: Any) -> Timing:
    calls: list[tuple[Any, Any]] = []
    hook = model.register_forward_pre_hook(lambda _, given, named: calls.append((given, named)), with_kwargs=True)
    with torch.no_grad():
        with hook:
            objective.loss_fn(model, copied(batch))
        if not calls:
            raise UserError("loss_fn: it does not call the model as a whole, so that its latency cannot be measured")
        given, named = calls[0]
        threads = torch.get_num_threads()
        timer = Timer(
            "model(*given, **named)", globals={"model": model, "given": given, "named": named}, num_threads=threads
        )
        measurement = timer.blocked_autorange(min_run_time=SECONDS)
    device = objective.device
    where = f"{device}, {threads} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    low, high = (float(np.quantile(measurement.times, q)) for q in (0.25, 0.75))
    return Timing(sparsity, float(np.median(measurement.times)), low, high, where)
