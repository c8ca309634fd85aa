"""Iterative magnitude pruning, and how it shares the training budget."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import same
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from estimators import UserError
from estimators.vectors import flatten
from pruning_limits.magnitude import removed_count
from validation.masks import Masks, prunable, sparsity_of
from validation.pruners import Problem, imp, pruner
from validation.pruners.budget import alive_counts, shares, stretched
from validation.pruners.imp import Level, levels, state_of
from validation.training import Course, Recipe, apply_masks, train

REWINDS = (None, 0.0, 0.3)


def kept(masks: Masks) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


def masked(state: dict[str, torch.Tensor], masks: Masks) -> dict[str, torch.Tensor]:
    return {name: value * masks[name] if name in masks else value for name, value in state.items()}


def few_levels(problem: Problem, rewind: float | None, **changes: Any) -> list[Level]:
    """Return four levels of two epochs each: dense, 80 %, 64 % and 51.2 % alive."""
    return list(levels(replace(problem, epochs=8, **changes), 1 - 0.8**3, rewind))


def constant_network() -> nn.Module:
    """All weights have one magnitude, so every round of magnitude pruning ranks ties only."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5 if parameter.dim() > 1 else 0.0)
    return model


# ------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("rewind", REWINDS)
def test_every_round_removes_a_fifth_of_the_weights_alive_and_revives_none(
    problem: Problem, rewind: float | None
) -> None:
    rounds = few_levels(problem, rewind)
    alive = total = sum(weight.numel() for weight in prunable(problem.dense).values())
    for level in rounds[:-1]:
        assert kept(level.masks) == alive
        alive -= math.ceil(alive / 5)
    assert kept(rounds[-1].masks) == total - removed_count(1 - 0.8**3, total)
    assert 0 <= kept(rounds[-1].masks) - alive <= 3  # every round rounds up
    for outer, inner in pairwise(rounds):
        assert all(not (inner.masks[name] & ~outer.masks[name]).any() for name in outer.masks)


@pytest.mark.parametrize("rewind", REWINDS)
def test_the_weights_removed_are_the_smallest_trained_ones_alive(problem: Problem, rewind: float | None) -> None:
    for before, after in pairwise(few_levels(problem, rewind)):
        magnitudes = flatten(list(prunable(before.model).values())).abs()
        alive, still = (flatten(list(level.masks.values())) for level in (before, after))
        assert magnitudes[alive & ~still].max() < magnitudes[still].min()


@pytest.mark.parametrize("rewind", REWINDS)
def test_counts_are_exact_where_all_magnitudes_tie(problem: Problem, rewind: float | None) -> None:
    black = replace(problem.data, train_x=torch.zeros_like(problem.data.train_x))
    tied = replace(problem.recipe, l2=0.0)
    rounds = few_levels(problem, rewind, model_name=f"{__name__}:constant_network", data=black, recipe=tied)
    alive = 64 * 30 + 30 * 10
    for level in rounds:
        assert all(weight[level.masks[name]].eq(0.5).all() for name, weight in prunable(level.model).items())
        assert kept(level.masks) == alive
        alive -= math.ceil(alive / 5)


def test_weights_that_training_puts_to_zero_do_not_bring_removed_ones_back(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first training leaves the last positions smallest; the later ones leave nothing but zeros."""
    trainings = []

    def fake(model: nn.Module, *_: Any, masks: Masks | None = None, **__: Any) -> None:
        for weight in prunable(model).values():
            weight.copy_(torch.arange(weight.numel(), 0, -1).view(weight.shape) * (not trainings))
        if masks is not None:
            trainings.append(masks)

    monkeypatch.setattr(imp, "train", fake)
    rounds = few_levels(problem, None)
    assert len(trainings) == 4
    for outer, inner in pairwise(rounds):
        assert all(not (inner.masks[name] & ~outer.masks[name]).any() for name in outer.masks)


def test_one_round_without_rewinding_is_global_magnitude_pruning_at_a_fifth(problem: Problem) -> None:
    dense, pruned = levels(replace(problem, epochs=2 * problem.recipe.epochs), 0.2, rewind=None)
    assert same(dict(dense.model.state_dict()), dict(problem.dense.state_dict()))
    assert same(pruned.masks, pruner("gmp")(problem, 0.2).masks)


# ------------------------------------------------------------------------------------------------- rewinding


@pytest.mark.parametrize(("rewind", "step"), [(0.0, 0), (0.3, 3)])
def test_every_level_starts_from_the_masked_weights_and_buffers_of_the_rewinding_step_bit_for_bit(
    problem: Problem, rewind: float, step: int
) -> None:
    model = problem.fresh()
    train(model, problem.data, problem.recipe, problem.seed, course=Course(last=step))
    anchor = state_of(model)
    assert int(anchor["bn1.num_batches_tracked"]) == step
    assert bool(anchor["bn1.running_mean"].any()) == bool(step)
    for level in few_levels(problem, rewind):
        assert same(level.start, masked(anchor, level.masks))
        assert not same(level.start, dict(level.model.state_dict()))


def test_without_rewinding_every_level_starts_from_the_masked_trained_weights_bit_for_bit(problem: Problem) -> None:
    rounds = few_levels(problem, None)
    assert same(rounds[0].start, dict(problem.fresh().state_dict()))
    for before, after in pairwise(rounds):
        assert same(after.start, masked(dict(before.model.state_dict()), after.masks))


def test_the_rewinding_step_is_counted_in_steps_of_this_data_and_batch_size(problem: Problem) -> None:
    """Two per cent of 4 epochs of 25 steps are 2 steps, of 5 steps they are 1."""
    for batch_size, steps in ((8, 2), (40, 1)):
        short = replace(problem, recipe=replace(problem.recipe, batch_size=batch_size))
        (dense,) = levels(short, 0.0)
        assert int(dense.start["bn1.num_batches_tracked"]) == steps


def test_the_first_level_is_an_uninterrupted_training(problem: Problem) -> None:
    recipe = replace(problem.recipe, momentum=0.0, warmup=1, augment=True)
    model = problem.fresh()
    train(model, problem.data, recipe, problem.seed)
    for rewind in REWINDS:
        dense = few_levels(problem, rewind, recipe=recipe)[0]
        assert same(dict(dense.model.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize(("rewind", "step"), [(None, 0), (0.0, 0), (0.3, 3)])
def test_every_level_continues_data_order_and_learning_rate_with_a_fresh_momentum(
    problem: Problem, rewind: float | None, step: int
) -> None:
    recipe = replace(problem.recipe, schedule="multistep", milestones=(1,))
    for level in few_levels(problem, rewind, recipe=recipe):
        model = problem.fresh()
        model.load_state_dict(level.start)
        train(model, problem.data, recipe, problem.seed, masks=level.masks, course=Course(first=step))
        assert same(dict(level.model.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("rewind", REWINDS)
def test_removed_weights_are_zero_after_the_last_step_and_levels_do_not_share_memory(
    problem: Problem, rewind: float | None
) -> None:
    rounds = few_levels(problem, rewind)
    for level in rounds:
        assert not level.model.training
        weights = prunable(level.model)
        assert all(torch.equal(weights[name] != 0, mask) for name, mask in level.masks.items())
    pointers = [value.data_ptr() for level in rounds for value in level.model.state_dict().values()]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize("rewind", [0.5, 0.9, 0.99])
def test_rewinding_leaves_a_step_to_train(problem: Problem, rewind: float) -> None:
    one_step = replace(problem, recipe=replace(problem.recipe, epochs=1, batch_size=200), epochs=2)
    for level in levels(one_step, 0.2, rewind):
        assert not same(level.start, dict(level.model.state_dict()))


@pytest.mark.parametrize(("name", "rewind"), [("imp", 0.02), ("imp-init", 0.0), ("imp-no-rewind", None)])
def test_the_registered_pruners_return_the_last_level(problem: Problem, name: str, rewind: float | None) -> None:
    *_, last = levels(problem, 0.4, rewind)
    result = pruner(name)(problem, 0.4)
    assert result.epochs == last.epochs == problem.epochs
    assert same(result.masks, last.masks)
    assert same(dict(result.model.state_dict()), dict(last.model.state_dict()))


@pytest.mark.parametrize("rewind", [-0.1, 1.0, float("nan")])
def test_a_rewinding_fraction_outside_its_range_is_refused(problem: Problem, rewind: float) -> None:
    with pytest.raises(UserError, match=rf"^rewind: expected a fraction in \[0, 1\) or None, got {rewind}$"):
        next(levels(problem, 0.5, rewind))


# ------------------------------------------------------------------------------------------------- budget


def test_where_the_budget_allows_few_rounds_they_remove_more_each(problem: Problem) -> None:
    rounds = list(levels(replace(problem, epochs=3), 0.96))
    assert [level.epochs for level in rounds] == [1, 2, 3]
    expected = [0, 0.8, 0.96]
    assert [sparsity_of(level.masks) for level in rounds] == pytest.approx(expected, abs=1e-4)


@given(st.integers(1, 10_000), st.floats(0.01, 1), st.floats(0.01, 0.9), st.integers(1, 40))
def test_alive_counts_follow_the_recursion_and_end_where_they_should(
    total: int, fraction: float, rate: float, most: int
) -> None:
    last = max(1, int(fraction * total))
    counts = alive_counts(total, last, rate, most)
    assert (counts[0], counts[-1]) == (total, last)
    assert all(later < earlier for earlier, later in pairwise(counts))
    assert len(counts) - 1 <= most
    slowest = [total]
    while slowest[-1] > last:
        slowest.append(max(last, slowest[-1] - removed_count(rate, slowest[-1])))
    if len(slowest) - 1 <= most:
        assert counts == slowest
    else:
        equal = 1 - (last / total) ** (1 / most)
        for earlier, later in pairwise(counts[:-1]):
            assert later == earlier - removed_count(equal, earlier)


@given(st.integers(1, 300), st.integers(1, 300))
def test_shares_are_even_and_sum_to_the_budget(epochs: int, trainings: int) -> None:
    if trainings > epochs:
        with pytest.raises(UserError, match=rf"^epochs: expected at least {trainings}, one per training"):
            shares(epochs, trainings)
        return
    parts = shares(epochs, trainings)
    assert (len(parts), sum(parts)) == (trainings, epochs)
    assert parts == sorted(parts)
    assert parts[-1] - parts[0] <= 1


def test_a_stretched_recipe_keeps_the_place_of_milestones_and_the_length_of_the_warm_up() -> None:
    recipe = Recipe(160, 0.1, schedule="multistep", milestones=(80, 120), warmup=5)
    assert stretched(recipe, 40) == replace(recipe, epochs=40, milestones=(20, 30))
    assert stretched(recipe, 8) == replace(recipe, epochs=8, milestones=(4, 6), warmup=4)
    assert stretched(recipe, 160) == recipe
    half = stretched(recipe, 80)
    assert [half.learning_rate(50 * epoch, 50) for epoch in range(8, 80)] == [
        recipe.learning_rate(100 * epoch, 50) for epoch in range(8, 80)
    ]


def test_the_trained_network_of_the_problem_is_not_used(problem: Problem) -> None:
    other = copy.deepcopy(problem.dense)
    apply_masks(other, {name: torch.zeros_like(weight) for name, weight in prunable(other).items()})
    first, second = (list(levels(replace(problem, dense=dense), 0.2)) for dense in (problem.dense, other))
    assert same(first[-1].masks, second[-1].masks)
