"""Pruning by the gradient of one batch: GGP and LGP by the size of gradient times weight, JGP by gradient alone."""

from __future__ import annotations

from torch import Tensor

from estimators import Objective
from estimators.vectors import named
from validation.masks import prunable, select
from validation.pruners import Problem, Pruned, register

SAMPLES = 128


def gradients(problem: Problem) -> dict[str, Tensor]:
    """Gradient of the mean cross-entropy of one batch of 128 training samples, by weight name.

    The batch is the first of the seed's first epoch, without augmentation. The network is evaluated in evaluation mode
    and left as it is, batch-norm statistics included; the penalty of the recipe does not enter.

    Args:
        problem: The trained network.
    """
    batch = next(problem.data.batches("train", SAMPLES).shuffled(problem.seed, 0))
    objective = Objective(problem.dense, [batch])
    return named(objective.gradient(), objective.chosen)


def _pruned(problem: Problem, sparsity: float, times_weight: bool, layerwise: bool = False) -> Pruned:
    weights = prunable(problem.dense)
    scores = {name: (g * weights[name] if times_weight else g).abs() for name, g in gradients(problem).items()}
    masks = select(scores, sparsity, layerwise)
    return Pruned(problem.retrained(masks), masks, problem.epochs)


@register("ggp")
def ggp(problem: Problem, sparsity: float) -> Pruned:
    r"""Global gradient pruning: remove the weights of smallest :math:`|w \, \partial L / \partial w|`, then re-train.

    Args:
        problem: The trained network.
        sparsity: Removed fraction in [0, 1).

    Returns:
        The pruned network.

    Source: Blalock et al., What is the state of neural network pruning?, MLSys 2020.
    """
    return _pruned(problem, sparsity, times_weight=True)


@register("lgp")
def lgp(problem: Problem, sparsity: float) -> Pruned:
    r"""Layer-wise gradient pruning: rank by :math:`|w \, \partial L / \partial w|` within every layer, then re-train.

    Args:
        problem: The trained network.
        sparsity: Removed fraction of every layer in [0, 1).

    Returns:
        The pruned network.

    Source: Blalock et al., What is the state of neural network pruning?, MLSys 2020.
    """
    return _pruned(problem, sparsity, times_weight=True, layerwise=True)


@register("jgp")
def jgp(problem: Problem, sparsity: float) -> Pruned:
    r"""Just gradient pruning: remove the weights of smallest :math:`|\partial L / \partial w|`, then re-train.

    Args:
        problem: The trained network.
        sparsity: Removed fraction in [0, 1).

    Returns:
        The pruned network.

    Source: Redman et al., An operator theoretic view on pruning deep neural networks, ICLR 2022.
    """
    return _pruned(problem, sparsity, times_weight=False)
