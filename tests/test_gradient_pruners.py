"""Pruning by the gradient of one batch."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import same, snapshot
from torch import Tensor, nn

from pruning_limits.magnitude import removed_count
from validation.masks import overlap, prunable
from validation.models import build_model
from validation.pruners import Problem, pruner
from validation.pruners.gradient import gradients
from validation.pruners.magnitude import magnitude_masks
from validation.training import train

NAMES = ("ggp", "jgp", "lgp")


@pytest.fixture(scope="module")
def spent(problem: Problem) -> Problem:
    """A briefly trained network without batch norm and without epochs to re-train."""
    model = build_model("fc5-mini", problem.data.shape, problem.data.classes, seed=0)
    train(model, problem.data, problem.recipe, seed=0)
    return replace(problem, model_name="fc5-mini", dense=model.eval(), epochs=problem.recipe.epochs)


def rescaled(problem: Problem, factor: float) -> Problem:
    """The same function with the first layer times a factor and the second layer's weights divided by it."""
    model = copy.deepcopy(problem.dense)
    with torch.no_grad():
        for name, power in (("1.weight", factor), ("1.bias", factor), ("3.weight", 1 / factor)):
            model.get_parameter(name).mul_(power)
    return replace(problem, dense=model)


def lowest(scores: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Masks without the lowest scores, ties in order of position."""
    flat = torch.cat([score.flatten() for score in scores.values()]).numpy()
    kept = np.ones(len(flat), dtype=bool)
    kept[np.lexsort((np.arange(len(flat)), flat))[: removed_count(sparsity, len(flat))]] = False
    parts = np.split(kept, np.cumsum([score.numel() for score in scores.values()])[:-1])
    return {name: torch.from_numpy(part).view(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


# ------------------------------------------------------------------------------------------------- the gradient


def test_gradients_are_those_of_the_mean_cross_entropy_of_128_shuffled_samples(problem: Problem) -> None:
    model = copy.deepcopy(problem.dense).double().eval()
    x, y = next(problem.data.batches("train", 128).shuffled(problem.seed, 0))
    assert len(y) == 128
    loss = nn.functional.cross_entropy(model(x.double()), y)
    expected = torch.autograd.grad(loss, [model.get_parameter(name) for name in prunable(model)])
    actual = gradients(problem)
    assert list(actual) == list(prunable(model))
    for gradient, wanted in zip(actual.values(), expected, strict=True):
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-6)


def test_fewer_samples_than_128_are_all_used(problem: Problem) -> None:
    few = replace(problem.data, train_x=problem.data.train_x[:30], train_y=problem.data.train_y[:30])
    actual = gradients(replace(problem, data=few))
    x, y = next(iter(few.batches("train", 30)))
    loss = nn.functional.cross_entropy(problem.dense(x), y)
    (expected,) = torch.autograd.grad(loss, [problem.dense.get_parameter("fc.weight")])
    torch.testing.assert_close(actual["fc.weight"], expected)


def test_the_network_is_left_as_it_was_with_its_batch_norm_statistics(problem: Problem) -> None:
    for mode in (False, True):
        problem.dense.train(mode)
        before = snapshot(problem.dense)
        gradients(problem)
        assert same(snapshot(problem.dense), before)
    problem.dense.eval()


def test_augmentation_penalty_and_batch_size_of_the_recipe_do_not_enter(problem: Problem) -> None:
    expected = gradients(problem)
    for change in ({"augment": True}, {"l2": 0.0, "l1": 1.0}, {"l2": 1.0}, {"batch_size": 16}):
        assert same(gradients(replace(problem, recipe=replace(problem.recipe, **change))), expected)


def test_another_seed_draws_another_batch(problem: Problem) -> None:
    assert same(gradients(problem), gradients(problem))
    assert not same(gradients(problem), gradients(replace(problem, seed=1)))


# ------------------------------------------------------------------------------------------------- the ranking


def test_the_scores_are_the_gradient_and_the_gradient_times_the_weight(spent: Problem) -> None:
    slopes = gradients(spent)
    weights = prunable(spent.dense)
    products = {name: (slopes[name] * weights[name]).abs() for name in slopes}
    sizes = {name: gradient.abs() for name, gradient in slopes.items()}
    for sparsity in (0.5, 0.9):
        assert same(pruner("ggp")(spent, sparsity).masks, lowest(products, sparsity))
        assert same(pruner("jgp")(spent, sparsity).masks, lowest(sizes, sparsity))
        by_layer = pruner("lgp")(spent, sparsity).masks
        assert all(same({name: by_layer[name]}, lowest({name: products[name]}, sparsity)) for name in slopes)


def test_gradient_times_weight_does_not_see_how_layers_share_a_scale_but_gradient_and_weight_do(
    spent: Problem,
) -> None:
    other = rescaled(spent, 4.0)
    x, _ = next(iter(spent.data.batches("test", 50)))
    with torch.no_grad():
        torch.testing.assert_close(other.dense(x), spent.dense(x))
    for sparsity in (0.5, 0.9):
        for name in ("ggp", "lgp"):
            assert same(pruner(name)(spent, sparsity).masks, pruner(name)(other, sparsity).masks)
        assert overlap(pruner("jgp")(spent, sparsity).masks, pruner("jgp")(other, sparsity).masks) < 0.95
        assert overlap(*(magnitude_masks(network.dense, sparsity) for network in (spent, other))) < 0.95


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sparsity", [0.2, 0.4, 0.6])
def test_counts_are_exact_where_inputs_are_dead_and_their_gradients_zero(
    spent: Problem, name: str, sparsity: float
) -> None:
    """Black images leave the 6400 weights of the first layer without a gradient, 43 % of all."""
    black = replace(spent, data=replace(spent.data, train_x=torch.zeros_like(spent.data.train_x)))
    slopes = gradients(black)
    assert not slopes["1.weight"].any()
    masks = pruner(name)(black, sparsity).masks
    sizes = [mask.numel() for mask in masks.values()]
    removed = [int((~mask).sum()) for mask in masks.values()]
    if name == "lgp":
        assert removed == [removed_count(sparsity, size) for size in sizes]
    else:
        assert sum(removed) == removed_count(sparsity, sum(sizes))
        dead = torch.cat([slopes[key].flatten() == 0 for key in masks])
        kept = torch.cat([mask.flatten() for mask in masks.values()])
        assert not (kept & dead).any() or not (~kept & ~dead).any()


def test_the_masks_are_those_of_the_dense_network_whatever_is_trained_afterwards(problem: Problem) -> None:
    for name in NAMES:
        one_shot = pruner(name)(replace(problem, epochs=problem.recipe.epochs), 0.7)
        trained = pruner(name)(problem, 0.7)
        assert same(one_shot.masks, trained.masks)
        assert not same(dict(one_shot.model.state_dict()), dict(trained.model.state_dict()))
