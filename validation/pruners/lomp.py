"""LOMP: L1-regularised training, then one-shot global magnitude pruning without any re-training."""

from __future__ import annotations

import copy

from validation.pruners import Problem, Pruned, register
from validation.pruners.magnitude import magnitude_masks
from validation.training import apply_masks


@register("lomp")
def lomp(problem: Problem, sparsity: float) -> Pruned:
    r"""Remove the smallest weights of the trained network, all layers together.

    The L1 part is the recipe's: ``Recipe(l1=...)`` trains with :math:`\lambda \sum |w|` over all parameters.

    Args:
        problem: The trained network.
        sparsity: Removed fraction in [0, 1).

    Returns:
        The pruned network; the budget beyond the dense training stays unspent.

    Source: Zhang, Zhang, Sun and Liu, How sparse can we prune a deep network, NeurIPS 2024.
    """
    masks = magnitude_masks(problem.dense, sparsity)
    model = copy.deepcopy(problem.dense)
    apply_masks(model, masks)
    return Pruned(model.eval(), masks, problem.recipe.epochs)
