"""Pruning by magnitude: all layers together (GMP) or the same fraction of every layer (LMP)."""

from __future__ import annotations

from torch import Tensor, nn

from validation.masks import prunable, select
from validation.pruners import Problem, Pruned, register


def magnitude_masks(model: nn.Module, sparsity: float, layerwise: bool = False) -> dict[str, Tensor]:
    """Masks that keep the weights of largest magnitude.

    Args:
        model: Any module with convolution or linear layers.
        sparsity: Removed fraction in [0, 1).
        layerwise: Remove the same fraction of every layer instead of ranking all weights together.

    Returns:
        Bool masks by name, True where kept.
    """
    return select({name: weight.abs() for name, weight in prunable(model).items()}, sparsity, layerwise)


@register("gmp")
def gmp(problem: Problem, sparsity: float) -> Pruned:
    """Global magnitude pruning: remove the smallest weights of the trained network, then re-train.

    Args:
        problem: The trained network.
        sparsity: Removed fraction in [0, 1).

    Returns:
        The pruned network.

    Source: Han et al., Learning both weights and connections for efficient neural networks, NeurIPS 2015; Blalock et
        al., What is the state of neural network pruning?, MLSys 2020.
    """
    masks = magnitude_masks(problem.dense, sparsity)
    return Pruned(problem.retrained(masks), masks, problem.epochs)


@register("lmp")
def lmp(problem: Problem, sparsity: float) -> Pruned:
    """Layer-wise magnitude pruning: remove the same fraction of the smallest weights in every layer, then re-train.

    Args:
        problem: The trained network.
        sparsity: Removed fraction of every layer in [0, 1).

    Returns:
        The pruned network; rounding up in every layer may remove up to one weight per layer more than globally.

    Source: Blalock et al., What is the state of neural network pruning?, MLSys 2020.
    """
    masks = magnitude_masks(problem.dense, sparsity, layerwise=True)
    return Pruned(problem.retrained(masks), masks, problem.epochs)
