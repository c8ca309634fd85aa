"""Checkpoints of physically smaller networks: the network that fits, and its weights in the dense shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from estimators import UserError
from pruning_limits.groups import Groups
from pruning_limits.patterns import matrices
from pruning_limits.state_dicts import matching_state, other_shapes
from pruning_limits.trials import Trial

if TYPE_CHECKING:
    from estimators import Objective


@dataclass(frozen=True, eq=False)
class Smaller:
    """A network with fewer channels, loaded from a checkpoint.

    Attributes:
        model: The network.
        weights: Its prunable weights in the shapes of the dense network, zeros in the place of channels that are gone;
            which channels these were, a checkpoint does not tell.
        channels: Number of outputs that are gone, by the layer that puts them out.
    """

    model: nn.Module
    weights: dict[str, Tensor]
    channels: dict[str, int]


def smaller_checkpoint(objective: Objective, groups: Groups, stored: Mapping[Any, Any], path: Path) -> Smaller | None:
    """Load the checkpoint of a network that lacks channels of another one.

    Args:
        objective: The dense network and its data.
        groups: Its coupled channels.
        stored: Content of the checkpoint.
        path: Its name, for messages.

    Returns:
        The smaller network; None where the checkpoint fits the dense network, or differs by more than sizes.

    Raises:
        UserError: The sizes are not those of coupled channels.
    """
    from pruning_limits.channels import smaller_network

    shapes = other_shapes(stored, objective.model)
    if not shapes:
        return None
    chosen, known = objective.chosen, matrices(objective.model, objective.chosen)
    gone, removed = torch.zeros(groups.count + 1, dtype=torch.bool), dict[str, list[int]]()
    for root, ids in groups.roots.items():
        name = next((name for name in (f"{root}.weight", f"{root}.weight_orig") if name in chosen), "")
        there = shapes.get(f"{root}.weight", chosen[name].shape)[known[name].outputs]
        last, lost = sorted(set(ids.tolist()), reverse=True), 0
        while lost < len(ids) - there and len(last) > 1:
            group = last.pop(0)
            gone[group] = True
            lost += int((ids == group).sum())
        removed[root] = gone[ids].nonzero().reshape(-1).tolist()
    model = smaller_network(objective.model, Trial(objective), removed)
    try:
        model.load_state_dict(matching_state(stored, model, path).state)
    except UserError as error:
        reason = str(error).partition(": ")[2]
        raise UserError(f"pruned: its sizes are not those of coupled channels: {reason}") from None
    weights = {}
    parameters = dict(model.named_parameters())
    for name, weight in chosen.items():
        kept = torch.ones(weight.shape, dtype=torch.bool)
        for ids in groups.of(name, weight):
            kept &= ~gone[ids.cpu()]
        expanded = torch.zeros_like(weight)
        expanded[kept.to(weight.device)] = parameters[name.removesuffix("_orig")].detach().reshape(-1)
        weights[name] = expanded
    return Smaller(model, weights, {root: len(outputs) for root, outputs in removed.items() if outputs})
