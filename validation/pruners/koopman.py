"""Koopman pruning: rank weights by a mode of the training dynamics, one that stays (KMP) or that decays (KGP)."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from estimators import UserError
from estimators.vectors import named
from validation.dmd import Modes, dmd, record_snapshots, recorded_parameters
from validation.masks import prunable, select
from validation.pruners import Problem, Pruned, register
from validation.training import Course, train

LR_FACTOR = 0.2


def magnitude_mode(modes: Modes) -> int:
    r"""Number of the mode that stays: the eigenvalue nearest 1, :math:`\arg\min |\lambda_i - 1|`."""
    return int(np.argmin(np.abs(modes.eigenvalues - 1)))


def gradient_mode(modes: Modes) -> int:
    r"""Number of the largest other mode that moves along a line: real :math:`\lambda_i > 0`, largest norm.

    Raises:
        UserError: Besides the mode that stays there is no real positive eigenvalue.
    """
    usable = (modes.eigenvalues.imag == 0) & (modes.eigenvalues.real > 0)
    usable[magnitude_mode(modes)] = False
    if not usable.any():
        raise UserError(
            f"snapshots: expected a second real positive eigenvalue, got none among {len(usable)}; record more steps "
            "or a larger learning rate"
        )
    return int(np.argmax(np.where(usable, modes.norms, -1.0)))


def mode_scores(modes: Modes, number: int, model: nn.Module) -> dict[str, Tensor]:
    r"""Scores :math:`|\tilde\theta_i|` of the prunable weights, by name; biases, though recorded, are left out.

    Args:
        modes: Modes of snapshots that ``record_snapshots`` took of this network.
        number: Number i of the mode.
        model: The network.
    """
    return sizes(torch.from_numpy(modes.mode(number)), model)


def sizes(mode: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Moduli of a mode at the prunable weights, by name.

    Args:
        mode: Real or complex, one entry per recorded parameter; those of further observables may follow.
        model: The network.
    """
    recorded = recorded_parameters(model)
    every = named(mode[: sum(parameter.numel() for parameter in recorded.values())].abs(), recorded)
    return {name: every[name].to(weight.device) for name, weight in prunable(model).items()}


def trained_further(problem: Problem, path: Path | None = None) -> tuple[nn.Module, Modes]:
    """Train the dense network for one more epoch at 0.2 of the recipe's peak rate and decompose its weights over steps.

    At the end of its schedule the network hardly moves, hence the constant rate that is small but not zero.

    Args:
        problem: The trained network; it is not changed.
        path: File for the snapshots; default memory.

    Returns:
        The network after that epoch and the modes of its weights.
    """
    model = copy.deepcopy(problem.dense)
    rate = LR_FACTOR * problem.recipe.lr
    recipe = replace(problem.recipe, epochs=1, lr=rate, schedule="constant", milestones=(), warmup=0)
    steps = len(problem.data.batches("train", recipe.batch_size))
    snapshots, record = record_snapshots(model, steps, path)
    train(model, problem.data, recipe, problem.seed, course=Course(on_step=record))
    return model.eval(), dmd(snapshots)


def _pruned(problem: Problem, sparsity: float, choose: Callable[[Modes], int]) -> Pruned:
    with tempfile.TemporaryDirectory() as folder:
        model, modes = trained_further(problem, Path(folder) / "snapshots.npy")
        masks = select(mode_scores(modes, choose(modes), model), sparsity)
    spent = problem.recipe.epochs + 1
    budget = max(problem.epochs, spent)
    further = replace(problem, dense=model, recipe=replace(problem.recipe, epochs=spent), epochs=budget)
    return Pruned(further.retrained(masks), masks, budget)


@register("kmp")
def kmp(problem: Problem, sparsity: float) -> Pruned:
    r"""Koopman magnitude pruning: remove the smallest entries of the mode that stays, then re-train.

    The modes come from one further epoch of the dense network, see ``trained_further``; re-training has one epoch less.
    Where the budget has no epoch beyond the dense training, the further one is counted on top.

    Args:
        problem: The trained network.
        sparsity: Removed fraction in [0, 1).

    Returns:
        The pruned network.

    Source: Redman et al., An operator theoretic view on pruning deep neural networks, ICLR 2022.
    """
    return _pruned(problem, sparsity, magnitude_mode)


@register("kgp")
def kgp(problem: Problem, sparsity: float) -> Pruned:
    r"""Koopman gradient pruning: remove the smallest entries of the largest real decaying mode, then re-train.

    Epochs are counted as for ``kmp``.

    Args:
        problem: The trained network.
        sparsity: Removed fraction in [0, 1).

    Returns:
        The pruned network.

    Raises:
        UserError: The dynamics have no second real positive eigenvalue.

    Source: Redman et al., An operator theoretic view on pruning deep neural networks, ICLR 2022.
    """
    return _pruned(problem, sparsity, gradient_mode)
