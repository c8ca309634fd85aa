"""Random pruning, all layers together or the same fraction of every layer, at exact counts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from validation.masks import prunable, select
from validation.pruners import Problem, Pruned, register


def mask_seed(seed: int) -> int:
    """Seed of mask draws, so that they do not repeat the random numbers behind the initial weights of that seed."""
    return int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])


def random_scores(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Independent uniform scores of the prunable weights, by name."""
    generator = torch.Generator().manual_seed(mask_seed(seed))
    return {name: torch.rand(w.shape, generator=generator).to(w.device) for name, w in prunable(model).items()}


@register("random")
def random(problem: Problem, sparsity: float) -> Pruned:
    """Remove weights of the trained network uniformly at random, then re-train.

    Args:
        problem: The trained network; its seed draws the mask.
        sparsity: Removed fraction in [0, 1).

    Returns:
        The pruned network.
    """
    masks = select(random_scores(problem.dense, problem.seed), sparsity)
    return Pruned(problem.retrained(masks), masks, problem.epochs)


@register("random-layerwise")
def random_layerwise(problem: Problem, sparsity: float) -> Pruned:
    """Remove the same fraction of every layer of the trained network at random, then re-train.

    Args:
        problem: The trained network; its seed draws the masks.
        sparsity: Removed fraction of every layer in [0, 1).

    Returns:
        The pruned network.
    """
    masks = select(random_scores(problem.dense, problem.seed), sparsity, layerwise=True)
    return Pruned(problem.retrained(masks), masks, problem.epochs)
