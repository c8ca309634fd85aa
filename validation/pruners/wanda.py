"""Wanda: pruning by weight times the norm of its input."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from validation.masks import prunable, select
from validation.pruners import Problem, Pruned, register
from validation.pruners.calibration import calibration_images, normalised_anew
from validation.pruners.layer_inputs import input_moments
from validation.pruners.obs_layerwise import magnitude_counts
from validation.training import apply_masks


def wanda_scores(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    r"""Scores :math:`|w_{ij}| \, \|z_j\|_2` with the root mean square of the inputs; by name, shaped like the weights.

    Args:
        model: The network in evaluation mode.
        x: Inputs that it is calibrated with ``[n, ...]``. Layers whose inputs cannot be seen are scored by magnitude.
    """
    moments, scores = input_moments(model, x), {}
    for name, weight in prunable(model).items():
        scores[name] = weight.abs()
        if name in moments:
            sizes = moments[name].diagonal()[:-1].sqrt().to(weight.dtype)
            scores[name] = (weight.abs().flatten(1) * sizes).view_as(weight)
    return scores


@register("wanda")
def wanda(problem: Problem, sparsity: float) -> Pruned:
    """Remove the weights of smallest product with the norm of their inputs, without training.

    Every layer loses as many weights as by global magnitude; within a layer the products decide. Statistics of batch
    normalisation are measured anew. 2,048 training images.

    Args:
        problem: The trained network.
        sparsity: Removed fraction in [0, 1).

    Returns:
        The pruned network; the budget beyond the dense training stays unspent.

    Source: Sun, Liu, Bair and Kolter, A simple and effective pruning approach for large language models, ICLR 2024,
    where the weights of each output compete among themselves.
    """
    model = copy.deepcopy(problem.dense).eval()
    x = calibration_images(problem)
    masks = wanda_masks(model, x, magnitude_counts(model, sparsity))
    apply_masks(model, masks)
    normalised_anew(model, x)
    return Pruned(model.eval(), masks, problem.recipe.epochs)


def wanda_masks(model: nn.Module, x: Tensor, counts: dict[str, int]) -> dict[str, Tensor]:
    """Return masks that remove a number of weights of every layer, those of the lowest scores."""
    scores = wanda_scores(model, x)
    return {name: select({name: score}, counts[name] / score.numel())[name] for name, score in scores.items()}
