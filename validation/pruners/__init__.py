"""Pruning algorithms: one file each, found by name.

To add an algorithm, add a file that defines a ``Pruner`` and registers it.
"""

from __future__ import annotations

import copy
import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from estimators import UserError
from validation.data import ImageData
from validation.masks import Masks, check_sparsity
from validation.training import Recipe, apply_masks, initial_network, train


@dataclass(frozen=True)
class Problem:
    """A trained network to prune, and the training that may be spent on it.

    Attributes:
        model_name: Name of the architecture, for algorithms that start from new weights.
        data: Training and test images.
        recipe: Recipe that trained ``dense``; its penalty belongs to the objective.
        seed: Seed of weights and data order.
        dense: The trained network; pruners work on copies.
        epochs: Training budget in epochs, those of ``dense`` included; at least ``recipe.epochs``.
    """

    model_name: str
    data: ImageData
    recipe: Recipe
    seed: int
    dense: nn.Module
    epochs: int

    def fresh(self) -> nn.Module:
        """Return the network at its initial weights."""
        return initial_network(self.model_name, self.data, self.recipe, self.seed)

    def retrained(self, masks: Masks, lr_factor: float = 0.2) -> nn.Module:
        """Return the dense network under masks, trained on for the rest of the budget on a short cosine schedule."""
        model = copy.deepcopy(self.dense)
        rest = self.epochs - self.recipe.epochs
        if rest == 0:
            apply_masks(model, masks)
        else:
            short = replace(
                self.recipe, epochs=rest, lr=lr_factor * self.recipe.lr, schedule="cosine", milestones=(), warmup=0
            )
            train(model, self.data, short, self.seed, masks=masks)
        return model.eval()


@dataclass(frozen=True)
class Pruned:
    """What a pruner returns.

    Attributes:
        model: The sparse network in evaluation mode; removed weights are exactly zero.
        masks: Bool masks of the prunable weights by name, True where kept.
        epochs: Training spent, the dense network's included where it was used.
    """

    model: nn.Module
    masks: Masks
    epochs: int


Pruner = Callable[[Problem, float], Pruned]
_PRUNERS: dict[str, Pruner] = {}


def register(name: str) -> Callable[[Pruner], Pruner]:
    """Enter a pruner into the registry under a name; it refuses a sparsity outside [0, 1) before it trains anything.

    Args:
        name: Lower-case name of the algorithm; parts are joined by hyphens.
    """

    def enter(pruner: Pruner) -> Pruner:
        if name in _PRUNERS:
            raise ValueError(f"the pruner {name} exists already")

        @functools.wraps(pruner)
        def checked(problem: Problem, sparsity: float) -> Pruned:
            check_sparsity(sparsity)
            return pruner(problem, sparsity)

        _PRUNERS[name] = checked
        return checked

    return enter


def pruners() -> dict[str, Pruner]:
    """Every registered pruner by name, sorted."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(_PRUNERS.items()))


def pruner(name: str) -> Pruner:
    """Return one pruner.

    Args:
        name: A registered name.

    Raises:
        UserError: There is no such pruner; the message lists those that exist.

    Example:
        >>> pruner("lomp").__name__
        'lomp'
    """
    known = pruners()
    if name not in known:
        raise UserError(f"pruner: expected one of {', '.join(known)}, got {name!r}")
    return known[name]
