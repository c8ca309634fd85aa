"""What a network really bears: one-shot accuracy along the sparsity, and the objective after re-training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import nn

from estimators import Objective, UserError
from pruning_limits import MagnitudeProfile
from validation.data import ImageData
from validation.masks import Masks, prunable
from validation.tables.storage import read_json, run_folder, write_json
from validation.tables.table import Bench
from validation.training import Network, Recipe, accuracy, apply_masks, train

Trial = dict[str, float]
KEPT_GRID = tuple(float(kept) for kept in np.geomspace(1.0, 0.004, 48))


@dataclass(frozen=True)
class RetrainSettings:
    """How definition (c) re-trains the kept weights.

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


def one_shot_accuracies(
    model: nn.Module, data: ImageData, profile: MagnitudeProfile, grid: Sequence[float] = KEPT_GRID
) -> list[tuple[float, float]]:
    """Held-out accuracy after one-shot global magnitude pruning.

    Args:
        model: Trained network.
        data: Accuracy is taken on its test part.
        profile: Magnitude profile of the prunable weights.
        grid: Kept fractions in (0, 1], falling.

    Returns:
        Pairs ``(sparsity, accuracy)`` by rising sparsity.
    """
    result = []
    for kept in grid:
        sparsity = 1 - kept
        result.append((sparsity, accuracy(pruned(model, profile.masks(sparsity)), data)))
    return result


def sustained(accuracies: Sequence[tuple[float, float]], least: float) -> float:
    """Last sparsity of the region from 0 on in which every accuracy is at least ``least``.

    Example:
        >>> sustained([(0.0, 0.9), (0.5, 0.91), (0.7, 0.8), (0.8, 0.9)], 0.9)
        0.5
    """
    last = 0.0
    for sparsity, value in accuracies:
        if value < least:
            break
        last = sparsity
    return last


def retraining_recipe(recipe: Recipe, settings: RetrainSettings) -> Recipe:
    """Recipe of re-training: the network's own objective, batch size and momentum, a short cosine schedule."""
    return Recipe(
        epochs=settings.epochs,
        lr=settings.lr_factor * recipe.lr,
        momentum=recipe.momentum,
        l1=recipe.l1,
        l2=recipe.l2,
        batch_size=recipe.batch_size,
        augment=recipe.augment,
    )


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
    budget = {"epochs": settings.epochs, "lr_factor": settings.lr_factor}
    plain = {"network": network.settings(), "retrain": budget, "sparsity": sparsity}
    file = run_folder(bench.out, "retrained", plain) / "trial.json"
    trial: Trial | None = read_json(file)
    if trial is None:
        trial = retrained(bench.model(network), bench.data, network.recipe, network.seed, sparsity, settings)
        write_json(file, trial)
    return trial


def retrained_limit(
    retrain: Callable[[float], Trial], level: float, start: float, evaluations: int, known: Sequence[Trial] = ()
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
        known: Trials made before.

    Returns:
        The sparsity, and every new trial.
    """
    passing = [trial for trial in known if trial["objective"] <= level and trial["sparsity"] >= start]
    last = max(passing, key=_removed, default=None)
    passed, passed_value = (math.log(1 - start), -math.inf) if last is None else _point(last)
    failing = [trial for trial in known if trial["objective"] > level and math.log(1 - trial["sparsity"]) < passed]
    first = min(failing, key=_removed, default=None)
    failed, failed_value = (None, math.inf) if first is None else _point(first)
    trials = []
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


def _removed(trial: Trial) -> float:
    return trial["sparsity"]


def _point(trial: Trial) -> tuple[float, float]:
    return math.log(1 - trial["sparsity"]), trial["objective"]
