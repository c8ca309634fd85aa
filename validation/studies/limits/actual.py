"""The effect of a short re-training of the kept weights on the objective, and the sparsity that it reaches."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from estimators import Objective, UserError
from pruning_limits import MagnitudeProfile
from validation.data import ImageData
from validation.masks import Masks, prunable
from validation.tables.storage import read_json, run_folder, write_json
from validation.tables.table import Bench
from validation.training import Network, Recipe, accuracy, apply_masks, train

Trial = dict[str, float]


@dataclass(frozen=True)
class RetrainSettings:
    """How the kept weights are re-trained for a short time.

    Args:
        epochs: Epochs of re-training, cosine from ``lr_factor`` times the recipe's rate.
        lr_factor: Factor on the recipe's learning rate.
        evaluations: Number of sparsities tried.
    """

    section: ClassVar[str] = "retrain"

    epochs: int = 5
    lr_factor: float = 0.2
    evaluations: int = 3

    def __post_init__(self) -> None:
        if self.evaluations < 1:
            raise UserError(f"retrain: evaluations must be at least 1, got {self.evaluations}")


def pruned(model: nn.Module, masks: Masks) -> nn.Module:
    """Return a copy of the model with the removed weights set to zero."""
    result = copy.deepcopy(model)
    apply_masks(result, masks)
    return result


def retraining_recipe(recipe: Recipe, settings: RetrainSettings) -> Recipe:
    """Recipe of re-training: the network's own objective, optimiser and batches, a short cosine schedule."""
    rate = settings.lr_factor * recipe.lr
    return replace(recipe, epochs=settings.epochs, lr=rate, schedule="cosine", milestones=(), warmup=0)


def retrained(
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    seed: int,
    sparsity: float,
    settings: RetrainSettings,
) -> Trial:
    """Prune by global magnitude, re-train what is kept, and measure.

    Args:
        model: Trained dense network; it is not changed.
        data: Training data.
        recipe: Recipe that trained the network.
        seed: Seed of the data order.
        sparsity: Removed fraction; 0 gives the dense network the same further training.
        settings: Budget.

    Returns:
        ``sparsity``, ``objective`` on all training data and held-out ``accuracy``.
    """
    trial = copy.deepcopy(model)
    masks = MagnitudeProfile(prunable(model)).masks(sparsity)
    train(trial, data, retraining_recipe(recipe, settings), seed, masks=masks)
    value = Objective(trial, data.batches("train", 1000), penalty=recipe.penalty).value()
    return {"sparsity": sparsity, "objective": value, "accuracy": accuracy(trial, data)}


def stored_trial(network: Network, bench: Bench, sparsity: float) -> Trial:
    """Return what re-training at a sparsity makes of a network, trained once for all tables.

    Args:
        network: A network, trained where it is not yet.
        bench: Its data and the suite's settings.
        sparsity: Removed fraction.
    """
    settings = bench.suite.settings(RetrainSettings)
    recipe = retraining_recipe(network.recipe, settings).settings()
    plain = {"network": network.settings(), "retrain": recipe, "sparsity": sparsity}
    file = run_folder(bench.out, "retrained", plain) / "trial.json"
    trial: Trial | None = read_json(file)
    if trial is None:
        trial = retrained(bench.model(network), bench.data, network.recipe, network.seed, sparsity, settings)
        write_json(file, trial)
    return trial


def retrained_limit(
    retrain: Callable[[float], Trial], level: float, start: float, evaluations: int
) -> tuple[float, list[Trial]]:
    r"""Largest sparsity at which re-training the kept weights brings the objective to a level.

    The search runs over the logarithm of the kept fraction: thirds of the starting point until one fails, then halving
    the bracket. The answer is where the straight line through the last passing and the first failing objective meets
    the level.

    Args:
        retrain: From a sparsity to what re-training made of it.
        level: Largest objective that passes.
        start: A sparsity < 1 that passes.
        evaluations: Number of sparsities to try.

    Returns:
        The sparsity, and every trial.
    """
    passed, passed_value = math.log(1 - start), -math.inf
    failed, failed_value, trials = None, math.inf, list[Trial]()
    for _ in range(evaluations):
        where = passed - math.log(3) if failed is None else (passed + failed) / 2
        trials.append(retrain(1 - math.exp(where)))
        value = trials[-1]["objective"]
        if value <= level:
            passed, passed_value = where, value
        else:
            failed, failed_value = where, value
    if failed is None or not math.isfinite(passed_value):
        return 1 - math.exp(passed), trials
    share = (level - passed_value) / (failed_value - passed_value)
    return 1 - math.exp(passed + share * (failed - passed)), trials
