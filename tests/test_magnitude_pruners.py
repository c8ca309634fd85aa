"""Global, layer-wise, one-shot, shuffled and random pruning of one network."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from helpers import random, same
from torch import Tensor, nn

from estimators import SpectralMeasure
from pruning_limits import MagnitudeProfile
from pruning_limits.isotropic import isotropic_limit
from pruning_limits.magnitude_curve import MagnitudeCurve
from validation.masks import Masks, expected_shuffled_overlap, overlap, prunable, sparsity_of
from validation.pruners import Problem, pruner
from validation.pruners.magnitude import magnitude_masks
from validation.pruners.random_masks import random_scores
from validation.training import Recipe, train


@pytest.fixture(scope="module")
def spent(problem: Problem) -> Problem:
    """No epochs to re-train, so that a pruner costs its mask only."""
    return replace(problem, epochs=problem.recipe.epochs)


def removed_square(problem: Problem, masks: Masks) -> float:
    weights = prunable(problem.dense)
    return sum(float(weights[name].double()[~mask].square().sum()) for name, mask in masks.items())


def scaled(model: nn.Module, factors: list[float]) -> dict[str, Tensor]:
    """Weights by name, each tensor times its factor."""
    weights = prunable(model)
    return {name: factor * weight for (name, weight), factor in zip(weights.items(), factors, strict=True)}


def with_weights(problem: Problem, weights: dict[str, Tensor]) -> Problem:
    dense = problem.fresh()
    dense.load_state_dict(problem.dense.state_dict() | weights)
    return replace(problem, dense=dense.eval())


# ------------------------------------------------------------------------------------------------- the norm R


def test_of_all_masks_of_a_size_magnitude_pruning_removes_the_least_and_a_random_one_its_share() -> None:
    layer = nn.Linear(4, 3, bias=False).double()
    weights = random(3, 4, seed=5)
    with torch.no_grad():
        layer.weight.copy_(weights)
    squares = weights.flatten().square()
    for count in range(1, 12):
        mask = magnitude_masks(layer, count / 12)["weight"]
        every = [float(squares[list(chosen)].sum()) for chosen in combinations(range(12), count)]
        assert float(weights[~mask].square().sum()) == pytest.approx(min(every), rel=1e-12)
        assert np.mean(every) == pytest.approx(count / 12 * float(squares.sum()), rel=1e-12)


@pytest.mark.parametrize("sparsity", [0.2, 0.8])
def test_random_pruning_removes_its_share_of_the_squared_norm_on_average(spent: Problem, sparsity: float) -> None:
    total = float(sum(weight.double().square().sum() for weight in prunable(spent.dense).values()))
    shares = []
    for seed in range(60):
        masks = pruner("random")(replace(spent, seed=seed), sparsity).masks
        shares.append(removed_square(spent, masks) / total)
    error = np.std(shares, ddof=1) / math.sqrt(len(shares))
    assert abs(np.mean(shares) - sparsity) < 4 * error
    assert error < 1e-3
    assert removed_square(spent, pruner("gmp")(spent, sparsity).masks) < min(shares) * total


@pytest.mark.parametrize("seed", range(5))
def test_the_predicted_limit_of_magnitude_pruning_is_at_least_that_of_random_pruning(seed: int) -> None:
    weights = random(400, seed=seed)
    eigenvalues = random(400, seed=100 + seed).numpy() ** 3
    measure = SpectralMeasure.from_eigenvalues(eigenvalues)
    magnitude = MagnitudeProfile({"w": weights}).curve()
    shuffle = torch.randperm(400, generator=torch.Generator().manual_seed(seed))
    drawn = MagnitudeCurve(np.arange(401) / 400, np.concatenate([[0.0], np.cumsum(weights[shuffle].square().numpy())]))
    expected = MagnitudeCurve(np.array([0.0, 1.0]), np.array([0.0, float(weights.square().sum())]))
    for epsilon in (0.1, 3.0, 40.0):
        best = isotropic_limit(measure, magnitude, epsilon).sparsity
        assert 0 < best < 1
        for curve in (drawn, expected):
            assert isotropic_limit(measure, curve, epsilon).sparsity < best


# ------------------------------------------------------------------------------------------------- invariance


FACTORS = [2.0, 0.5, 4.0, 1.0, 8.0, 0.25, 2.0, 16.0]


def test_global_magnitude_pruning_does_not_see_a_common_scale_but_that_of_layers(spent: Problem) -> None:
    for sparsity in (0.3, 0.9):
        masks = pruner("gmp")(spent, sparsity).masks
        assert same(pruner("gmp")(with_weights(spent, scaled(spent.dense, [4.0] * 8)), sparsity).masks, masks)
        other = pruner("gmp")(with_weights(spent, scaled(spent.dense, FACTORS)), sparsity).masks
        assert overlap(masks, other) < 0.95


def test_layer_wise_magnitude_pruning_does_not_see_the_scale_of_layers(spent: Problem) -> None:
    for sparsity in (0.3, 0.9):
        masks = pruner("lmp")(spent, sparsity).masks
        assert same(pruner("lmp")(with_weights(spent, scaled(spent.dense, FACTORS)), sparsity).masks, masks)


def test_signs_make_no_difference(spent: Problem) -> None:
    for name in ("gmp", "lmp", "lomp"):
        flipped = with_weights(spent, {key: weight.abs() for key, weight in prunable(spent.dense).items()})
        assert same(pruner(name)(flipped, 0.6).masks, pruner(name)(spent, 0.6).masks)


def test_in_a_network_of_one_layer_global_and_layer_wise_pruning_are_the_same(spent: Problem) -> None:
    layer = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        layer[1].weight.copy_(random(10, 64))
    single = replace(spent, dense=layer.eval())
    for global_name, layerwise_name in (("gmp", "lmp"), ("ggp", "lgp"), ("random", "random-layerwise")):
        for sparsity in (0.123, 0.5, 0.9):
            first, second = (pruner(name)(single, sparsity) for name in (global_name, layerwise_name))
            assert list(first.masks) == ["1.weight"]
            assert same(first.masks, second.masks)
            assert same(dict(first.model.state_dict()), dict(second.model.state_dict()))


# ------------------------------------------------------------------------------------------------- lomp


def test_lomp_at_sparsity_0_is_the_network_itself_bit_for_bit(problem: Problem) -> None:
    result = pruner("lomp")(problem, 0.0)
    assert all(mask.all() for mask in result.masks.values())
    assert same(dict(result.model.state_dict()), dict(problem.dense.state_dict()))


def test_lomp_removes_what_global_magnitude_pruning_removes_and_leaves_the_budget(problem: Problem) -> None:
    for sparsity in (1 / 74_512, 0.3, 0.9):
        lomp, gmp = (pruner(name)(problem, sparsity) for name in ("lomp", "gmp"))
        assert same(lomp.masks, gmp.masks)
        assert (lomp.epochs, gmp.epochs) == (2, 4)
    assert sum(int((~mask).sum()) for mask in pruner("lomp")(problem, 1 / 74_512).masks.values()) == 1


def test_re_training_goes_on_from_the_pruned_weights_at_a_fifth_of_the_rate_on_a_cosine(problem: Problem) -> None:
    recipe = replace(problem.recipe, schedule="multistep", milestones=(1,), warmup=1, nesterov=True, augment=True)
    masks = magnitude_masks(problem.dense, 0.7)
    expected = copy.deepcopy(problem.dense)
    short = Recipe(2, 0.02, momentum=0.5, l2=1e-4, batch_size=40, nesterov=True, augment=True)
    assert [short.learning_rate(step, 5) for step in (0, 5)] == [0.02, pytest.approx(0.01)]
    train(expected, problem.data, replace(short, lr=0.2 * 0.1), problem.seed, masks=masks)
    retrained = replace(problem, recipe=recipe).retrained(masks)
    assert same(dict(retrained.state_dict()), dict(expected.state_dict()))


# ------------------------------------------------------------------------------------------------- chance


def test_shuffled_masks_have_the_layer_sizes_of_magnitude_pruning_and_overlap_as_expected(spent: Problem) -> None:
    masks = pruner("gmp")(spent, 0.75).masks
    values = []
    for seed in range(60):
        other = pruner("lsp")(replace(spent, seed=seed), 0.75).masks
        assert [int(mask.sum()) for mask in other.values()] == [int(mask.sum()) for mask in masks.values()]
        values.append(overlap(masks, other))
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    assert abs(np.mean(values) - expected_shuffled_overlap(masks)) < 4 * error
    assert expected_shuffled_overlap(masks) - 0.25 > 8 * error


def test_random_masks_overlap_with_magnitude_pruning_by_the_kept_fraction(spent: Problem) -> None:
    masks = pruner("gmp")(spent, 0.75).masks
    values = [overlap(masks, pruner("random")(replace(spent, seed=seed), 0.75).masks) for seed in range(60)]
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    assert abs(np.mean(values) - (1 - sparsity_of(masks))) < 4 * error
    assert error < 1e-3


def test_random_masks_know_nothing_of_the_initial_weights_of_the_same_seed(problem: Problem) -> None:
    """A mask drawn from the stream that drew the weights would keep large weights of one sign."""
    for seed in range(5):
        model = replace(problem, seed=seed).fresh()
        weights = torch.cat([weight.flatten() for weight in prunable(model).values()])
        scores = torch.cat([score.flatten() for score in random_scores(model, seed).values()])
        assert scores[0] != torch.rand(1, generator=torch.Generator().manual_seed(seed))
        for vector in (weights, weights.abs()):
            correlation = float(torch.corrcoef(torch.stack([vector, scores]))[0, 1])
            assert abs(correlation) < 4 / math.sqrt(len(scores))
