"""What a network really bears: one-shot accuracy along the sparsity, and the objective after re-training."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
from torch import nn

from estimators import Objective
from pruning_limits import MagnitudeProfile
from validation.data import ImageData
from validation.masks import Masks
from validation.suite import RetrainSettings
from validation.training import Recipe, accuracy, apply_masks, train

KEPT_GRID = tuple(float(kept) for kept in np.geomspace(1.0, 0.004, 48))


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


def retrained_limit(
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    seed: int,
    profile: MagnitudeProfile,
    level: float,
    start: float,
    settings: RetrainSettings,
) -> tuple[float, list[dict[str, float]]]:
    r"""Largest sparsity at which re-training the kept weights brings the objective to a level.

    The search runs over the logarithm of the kept fraction: thirds of the starting point until one fails, then halving
    the bracket. The answer is where the straight line through the last passing and the first failing objective meets
    the level.

    Args:
        model: Trained dense network; it is not changed.
        data: Training data.
        recipe: Recipe that trained the network.
        seed: Seed of the data order.
        profile: Magnitude profile; masks are global magnitude masks of the trained weights.
        level: :math:`F(w^*) + \varepsilon`.
        start: A sparsity that passes without re-training.
        settings: Budget.

    Returns:
        The sparsity, and every trial with sparsity, objective and held-out accuracy.
    """
    short = retraining_recipe(recipe, settings)
    trials: list[dict[str, float]] = []
    passed, passed_value = math.log(max(1 - start, 1 / profile.dimension)), -math.inf
    failed: float | None = None
    failed_value = math.inf
    for _ in range(settings.evaluations):
        where = passed - math.log(3) if failed is None else (passed + failed) / 2
        sparsity = 1 - math.exp(where)
        masks = profile.masks(sparsity)
        trial = copy.deepcopy(model)
        train(trial, data, short, seed, masks=masks)
        value = Objective(trial, data.batches("train", 1000), penalty=recipe.penalty).value()
        trials.append({"sparsity": sparsity, "objective": value, "accuracy": accuracy(trial, data)})
        if value <= level:
            passed, passed_value = where, value
        else:
            failed, failed_value = where, value
    if failed is None or not math.isfinite(passed_value):
        return 1 - math.exp(passed), trials
    share = (level - passed_value) / (failed_value - passed_value)
    return 1 - math.exp(passed + share * (failed - passed)), trials
