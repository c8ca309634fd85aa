"""LSP: as many weights per layer as global magnitude pruning keeps, at random places within each layer."""

from __future__ import annotations

from validation.masks import shuffled
from validation.pruners import Problem, Pruned, register
from validation.pruners.magnitude import magnitude_masks
from validation.pruners.random_masks import mask_seed


@register("lsp")
def lsp(problem: Problem, sparsity: float) -> Pruned:
    """Layer-shuffled pruning: permute the mask of global magnitude pruning within each layer, then re-train.

    Args:
        problem: The trained network; its seed draws the permutations.
        sparsity: Removed fraction in [0, 1).

    Returns:
        The pruned network.

    Source: Redman et al., An operator theoretic view on pruning deep neural networks, ICLR 2022; Frankle et al.,
        Pruning neural networks at initialization: why are we missing the mark?, ICLR 2021.
    """
    masks = shuffled(magnitude_masks(problem.dense, sparsity), mask_seed(problem.seed))
    return Pruned(problem.retrained(masks), masks, problem.epochs)
