"""Rare Gems: trained scores select a sub-network of random weights (GEM-MINER); then its weights are trained."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pruning_limits.magnitude import removed_count
from validation.masks import Masks, prunable, select
from validation.pruners import Problem, Pruned, register
from validation.pruners.budget import alive_counts, shares, stretched
from validation.pruners.random_masks import random_scores
from validation.training import Recipe, fixed_randomness, train

FREEZES = 29
LEARNING_RATE, MOMENTUM, SCORE_L2 = 0.1, 0.9, 1e-4


class Gem:
    r"""A network of frozen signed constants :math:`\pm\sqrt{2/\text{fan-in}}` whose weights are chosen by scores.

    Weight i enters as :math:`w_i \, [s_i > 1/2] \, a_i` with score s and flag a (alive); the gradient passes the
    rounding as if it were the identity, so :math:`\partial / \partial s_i = a_i \, \partial / \partial m_i`. Biases are
    zero and batch norm has no affine part.

    Args:
        model: Network at its initial weights, whose signs are used; it is changed in place.
        seed: Seed of the scores, uniform in [0, 1].

    Attributes:
        model: The network of signed constants.
        first: Initial scores by weight name.
        scores: Scores by weight name.
        alive: Bool flags by weight name; False is frozen out for good.

    Source: Sreenivasan et al., Rare gems: finding lottery tickets at initialization, NeurIPS 2022.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, seed: int) -> None:
        self.model = model.requires_grad_(False)
        self.weights = prunable(model)
        self.first = random_scores(model, seed)
        self.scores = {name: score.clone().requires_grad_() for name, score in self.first.items()}
        self.alive: Masks = select(self.weights, 0)
        for name, parameter in model.named_parameters():
            if name in self.weights:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.where(parameter < 0, -1.0, 1.0) * math.sqrt(2 / fan_in))
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)

    def chosen(self) -> dict[str, Tensor]:
        """Masked weights by name, differentiable in the scores."""
        return {
            name: weight * straight_through(self.scores[name], self.alive[name])
            for name, weight in self.weights.items()
        }

    def loss(self, x: Tensor, y: Tensor, l2: float = 0.0) -> Tensor:
        r"""Cross-entropy of a batch plus :math:`\lambda \sum s^2` over the alive scores.

        Args:
            x: Images ``[n, c, h, w]``.
            y: Labels ``[n]``.
            l2: Coefficient of the penalty.

        Returns:
            A scalar, differentiable in the scores.
        """
        loss = nn.functional.cross_entropy(functional_call(self.model, self.chosen(), (x,)), y)
        squares = [(score * self.alive[name]).square().sum() for name, score in self.scores.items()]
        return loss + l2 * torch.stack(squares).sum()

    @torch.no_grad()
    def project(self) -> None:
        """Clamp every score to [0, 1]."""
        for score in self.scores.values():
            score.clamp_(0, 1)

    @torch.no_grad()
    def freeze(self, count: int) -> None:
        """Freeze out the weights of smallest score until ``count`` are alive.

        Scores clamped to 0 tie; they go in the order of their initial, random scores, so that no layer goes first.

        Args:
            count: Weights alive afterwards, at most those alive now.
        """
        ranks = {
            name: torch.where(score > 0, score, self.first[name] - 1).where(self.alive[name], -2)
            for name, score in self.scores.items()
        }
        total = sum(flags.numel() for flags in self.alive.values())
        self.alive = select(ranks, (total - count) / total)


def straight_through(scores: Tensor, alive: Tensor) -> Tensor:
    """Mask ``(scores > 1/2) & alive`` as numbers, with the gradient of ``scores * alive``."""
    passed = scores * alive
    return ((scores > 0.5) & alive) + (passed - passed.detach())


def search(problem: Problem, sparsity: float, epochs: int, l2: float = SCORE_L2) -> Iterator[Gem]:
    r"""Train the scores by SGD and freeze weights out, round by round.

    The published 150 epochs freeze every 5 epochs, 29 times; here the period is ``epochs / 30``, at least 1. Every
    freeze removes the fraction :math:`1 - \kappa^{1/\text{rounds}}` of the weights alive, rounded up, where
    :math:`\kappa` is the kept fraction; the last one lands on the requested count. The rate falls from 0.1 on a cosine.

    Args:
        problem: Data, seed, batch size and augmentation; the dense network is not used.
        sparsity: Removed fraction in [0, 1).
        epochs: Epochs of the search, at least 1.
        l2: Coefficient :math:`\lambda` of the score penalty.

    Yields:
        The same gem before training, after every freeze, and at the end of the search.

    Source: Sreenivasan et al., Rare gems: finding lottery tickets at initialization, NeurIPS 2022.
    """
    gem = Gem(problem.fresh(), problem.seed)
    yield gem
    total = sum(weight.numel() for weight in gem.weights.values())
    kept = total - removed_count(sparsity, total)
    period = max(1, round(epochs / (FREEZES + 1)))
    rounds = max(1, (epochs - 1) // period)
    counts = alive_counts(total, kept, 1 - (kept / total) ** (1 / rounds), rounds)[1:]
    loader = problem.data.batches("train", problem.recipe.batch_size)
    schedule = Recipe(epochs, LEARNING_RATE)
    optimizer = torch.optim.SGD(gem.scores.values(), LEARNING_RATE, MOMENTUM)
    device = next(problem.dense.parameters()).device
    step = 0
    for epoch in range(epochs):
        for x, y in loader.shuffled(problem.seed, epoch, augment=problem.recipe.augment):
            optimizer.param_groups[0]["lr"] = schedule.learning_rate(step, len(loader))
            optimizer.zero_grad()
            with fixed_randomness(problem.seed, step, device), problem.recipe.arithmetic(device):
                loss = gem.loss(x.to(device), y.to(device), l2)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            gem.project()
            step += 1
        if (epoch + 1) % period == 0 and counts:
            gem.freeze(counts.pop(0))
            yield gem
    yield gem


def _gem(problem: Problem, sparsity: float, l2: float) -> Pruned:
    searching, finetuning = shares(problem.epochs, 2)
    *_, gem = search(problem, sparsity, searching, l2)
    model, masks = gem.model.requires_grad_(True), gem.alive
    train(model, problem.data, stretched(problem.recipe, finetuning), problem.seed, masks=masks)
    return Pruned(model.eval(), masks, problem.epochs)


@register("rare-gems")
def rare_gems(problem: Problem, sparsity: float) -> Pruned:
    """Find a gem in half of the budget, then train its weights from their signed constants with the recipe.

    All weights alive at the end are trained, also those whose score is below 1/2 ("unflagged"), so that the count is
    exact.

    Args:
        problem: Budget, recipe and seed; the dense network is not used.
        sparsity: Removed fraction in [0, 1).

    Returns:
        The trained sparse network.

    Source: Sreenivasan et al., Rare gems: finding lottery tickets at initialization, NeurIPS 2022.
    """
    return _gem(problem, sparsity, SCORE_L2)


@register("rare-gems-no-l2")
def rare_gems_no_l2(problem: Problem, sparsity: float) -> Pruned:
    """Rare Gems without the L2 penalty of the scores.

    Args:
        problem: Budget, recipe and seed; the dense network is not used.
        sparsity: Removed fraction in [0, 1).

    Returns:
        The trained sparse network.
    """
    return _gem(problem, sparsity, 0.0)
