"""Iterative magnitude pruning with and without rewinding, at the training budget of the other pruners."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from estimators import UserError
from pruning_limits.magnitude import removed_count
from validation.masks import Masks, prunable, select
from validation.pruners import Problem, Pruned, register
from validation.pruners.budget import alive_counts, shares, stretched
from validation.training import Course, apply_masks, train

RATE = 0.2
REWIND = 0.02


@dataclass(frozen=True)
class Level:
    """One training of iterative magnitude pruning.

    Attributes:
        masks: Bool masks in force during the training, True where kept.
        start: State dict the training began from, removed weights zero.
        model: The trained network in evaluation mode.
        epochs: Budget spent up to the end of this training.
    """

    masks: Masks
    start: dict[str, Tensor]
    model: nn.Module
    epochs: int


def levels(
    problem: Problem,
    sparsity: float,
    rewind: float | None = REWIND,
    rounds: int | None = None,
    on_step: Callable[[int, nn.Module], None] | None = None,
) -> Iterator[Level]:
    r"""Train, remove 20 % of the weights alive by magnitude, rewind, and train again, until a sparsity is reached.

    The levels + 1 trainings share ``problem.epochs`` evenly, at least one epoch each; where levels at 20 % would be too
    many, fewer levels remove a larger equal fraction. Every level runs from the rewinding step k on: all parameters
    and buffers return to their values at step k, data order and learning rate continue from there, momentum starts at
    zero. Those k steps are trained once but counted in every level.

    Args:
        problem: Budget, recipe and seed; the dense network is not used, training starts from its initial weights.
        sparsity: Removed fraction of the last level, in [0, 1).
        rewind: Rewinding step k as a fraction of the first training's steps in [0, 1), rounded up but short of its
            last step; 0 rewinds to the initial weights, None keeps the trained weights and restarts the learning rate
            schedule.
        rounds: Most prunings, at least 1; None allows as many as the budget.
        on_step: Called after every step of every level, see ``train``.

    Yields:
        The dense level and one level per pruning; the last one has exactly the requested count.

    Raises:
        UserError: The sparsity or ``rewind`` is out of range, or there are fewer than two epochs to prune with.

    Source: Frankle and Carbin, The lottery ticket hypothesis, ICLR 2019; Frankle et al., Linear mode connectivity and
        the lottery ticket hypothesis, ICML 2020.
    """
    if rewind is not None and not 0 <= rewind < 1:
        raise UserError(f"rewind: expected a fraction in [0, 1) or None, got {rewind}")
    model = problem.fresh()
    masks = select(prunable(model), 0)
    total = sum(mask.numel() for mask in masks.values())
    most = max(1, problem.epochs - 1) if rounds is None else rounds
    counts = alive_counts(total, total - removed_count(sparsity, total), RATE, most)
    epochs = shares(problem.epochs, len(counts))
    first = stretched(problem.recipe, epochs[0])
    steps = epochs[0] * len(problem.data.batches("train", first.batch_size))
    k = min(math.ceil((rewind or 0) * steps), steps - 1)
    train(model, problem.data, first, problem.seed, course=Course(last=k))
    anchor = state_of(model)
    spent = 0
    for alive, share in zip(counts, epochs, strict=True):
        if alive < total:
            scores = {name: w.abs().where(masks[name], -1) for name, w in prunable(model).items()}
            masks = select(scores, (total - alive) / total)
        model = copy.deepcopy(model)
        if rewind is not None:
            model.load_state_dict(anchor)
        apply_masks(model, masks)
        start = state_of(model)
        recipe = stretched(problem.recipe, share)
        train(model, problem.data, recipe, problem.seed, masks=masks, course=Course(first=k, on_step=on_step))
        spent += share
        yield Level(masks, start, model.eval(), spent)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Copy of a state dict, buffers included."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def _last(trainings: Iterator[Level]) -> Pruned:
    *_, last = trainings
    return Pruned(last.model, last.masks, last.epochs)


@register("imp")
def imp(problem: Problem, sparsity: float) -> Pruned:
    """Iterative magnitude pruning that rewinds to 2 % of the first level's steps.

    Args:
        problem: Budget, recipe and seed; see ``levels``.
        sparsity: Removed fraction in [0, 1).

    Returns:
        The pruned network.

    Source: Frankle et al., Linear mode connectivity and the lottery ticket hypothesis, ICML 2020.
    """
    return _last(levels(problem, sparsity))


@register("imp-init")
def imp_init(problem: Problem, sparsity: float) -> Pruned:
    """Iterative magnitude pruning that rewinds to the initial weights.

    Args:
        problem: Budget, recipe and seed; see ``levels``.
        sparsity: Removed fraction in [0, 1).

    Returns:
        The pruned network.

    Source: Frankle and Carbin, The lottery ticket hypothesis, ICLR 2019.
    """
    return _last(levels(problem, sparsity, rewind=0))


@register("imp-no-rewind")
def imp_no_rewind(problem: Problem, sparsity: float) -> Pruned:
    """Iterative magnitude pruning that trains on from the trained weights.

    Args:
        problem: Budget, recipe and seed; see ``levels``.
        sparsity: Removed fraction in [0, 1).

    Returns:
        The pruned network.

    Source: Han et al., Learning both weights and connections for efficient neural networks, NeurIPS 2015.
    """
    return _last(levels(problem, sparsity, rewind=None))
