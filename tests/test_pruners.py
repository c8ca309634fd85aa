"""What every registered pruner keeps to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import same, snapshot
from torch import nn

from estimators import UserError
from pruning_limits.magnitude import removed_count
from validation.masks import Masks, prunable
from validation.pruners import Problem, Pruned, pruner, pruners, register
from validation.pruners.imp import REWIND
from validation.pruners.koopman import trained_further
from validation.training import apply_masks

EVERY = sorted(pruners())
LAYERWISE = ("lgp", "lmp", "random-layerwise")
ONE_SHOT = ("ggp", "gmp", "jgp", "lgp", "lmp", "lomp", "lsp", "random", "random-layerwise")
WITHOUT_TRAINING = ("obs-layerwise", "wanda")
OWN_BUDGET = ("retuned",)  # a few samples, whatever the training that may be spent
KOOPMAN = ("kgp", "kmp")
ITERATIVE = ("imp", "imp-init", "imp-no-rewind")
RANDOM = ("lsp", "random", "random-layerwise", "rare-gems", "smart-ratio", "smart-ratio-vgg")
SPARSITIES = (0.5, 0.77)

Prune = Callable[[str, float], Pruned]


@pytest.fixture(scope="module")
def prune(problem: Problem) -> Prune:
    """Run a pruner on the shared problem, once per name and sparsity."""
    return functools.cache(lambda name, sparsity: pruner(name)(problem, sparsity))


def removed(masks: Masks) -> int:
    return sum(int((~mask).sum()) for mask in masks.values())


def is_subset(inner: Masks, outer: Masks) -> bool:
    return all(not (inner[name] & ~outer[name]).any() for name in outer)


def forbid_training(patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("trained")

    patch.setattr(torch.optim, "SGD", refuse)


# ------------------------------------------------------------------------------------------------- what comes out


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("name", EVERY)
def test_exactly_the_asked_number_of_weights_is_removed(name: str, sparsity: float, prune: Prune) -> None:
    masks = prune(name, sparsity).masks
    sizes = [mask.numel() for mask in masks.values()]
    if name in LAYERWISE:
        assert [int((~mask).sum()) for mask in masks.values()] == [removed_count(sparsity, size) for size in sizes]
    else:
        assert removed(masks) == removed_count(sparsity, sum(sizes))


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("name", EVERY)
def test_after_training_the_zeros_of_the_network_are_the_removed_weights(
    name: str, sparsity: float, prune: Prune, problem: Problem
) -> None:
    result = prune(name, sparsity)
    parameters = dict(result.model.named_parameters())
    assert result.masks.keys() == prunable(problem.dense).keys()
    for key, mask in result.masks.items():
        assert mask.dtype == torch.bool
        assert torch.equal(parameters[key] != 0, mask)
    assert all(value.any() for value in parameters.values())
    assert all(value.isfinite().all() for value in parameters.values())


@pytest.mark.parametrize("name", EVERY)
def test_the_network_comes_in_evaluation_mode_with_trainable_parameters(name: str, prune: Prune) -> None:
    model = prune(name, SPARSITIES[0]).model
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", EVERY)
def test_a_second_run_gives_the_same_bits_and_leaves_problem_and_random_state_alone(
    name: str, prune: Prune, problem: Problem
) -> None:
    first = prune(name, SPARSITIES[0])
    before = snapshot(problem.dense)
    torch.rand(3)
    start = torch.get_rng_state()
    again = pruner(name)(problem, SPARSITIES[0])
    assert torch.equal(torch.get_rng_state(), start)
    assert same(first.masks, again.masks)
    assert same(dict(first.model.state_dict()), dict(again.model.state_dict()))
    torch.set_rng_state(before["random"])
    assert same(snapshot(problem.dense), before)
    storage = {tensor.data_ptr() for tensor in problem.dense.state_dict().values()}
    assert not storage & {tensor.data_ptr() for tensor in again.model.state_dict().values()}


@pytest.mark.parametrize("name", RANDOM)
def test_another_seed_draws_other_places(name: str, prune: Prune, problem: Problem) -> None:
    other = pruner(name)(replace(problem, seed=1), SPARSITIES[0])
    assert removed(other.masks) == removed(prune(name, SPARSITIES[0]).masks)
    assert not same(prune(name, SPARSITIES[0]).masks, other.masks)


@pytest.mark.parametrize("name", sorted({*EVERY} - {*OWN_BUDGET}))
def test_training_takes_the_epochs_that_are_reported(
    name: str, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    class Counted(torch.optim.SGD):
        def step(self, *arguments: Any, **options: Any) -> Any:
            steps.append(1)
            return super().step(*arguments, **options)

    monkeypatch.setattr(torch.optim, "SGD", Counted)
    result = pruner(name)(problem, 0.2)
    assert problem.recipe.epochs <= result.epochs <= problem.epochs
    dense = problem.recipe.epochs if name in (*ONE_SHOT, *KOOPMAN, *WITHOUT_TRAINING) else 0
    reported = 5 * (result.epochs - dense)
    skipped = 1 if name == "imp" else 0  # the one step before the rewinding point is trained once for two levels
    assert REWIND * 10 < 1
    assert len(steps) == reported - skipped


# ------------------------------------------------------------------------------------------------- masks alone


@pytest.mark.parametrize("name", ONE_SHOT)
def test_without_epochs_to_spend_all_but_the_removed_weights_stay_bit_for_bit(name: str, problem: Problem) -> None:
    result = pruner(name)(replace(problem, epochs=problem.recipe.epochs), 0.7)
    dense = problem.dense.state_dict()
    for key, value in result.model.state_dict().items():
        assert torch.equal(value, dense[key] * result.masks[key] if key in result.masks else dense[key])
    assert result.epochs == problem.recipe.epochs


@pytest.mark.parametrize("name", KOOPMAN)
def test_koopman_pruning_without_epochs_to_spend_takes_one_and_changes_nothing_more(
    name: str, problem: Problem
) -> None:
    result = pruner(name)(replace(problem, epochs=problem.recipe.epochs), 0.7)
    expected, _ = trained_further(problem)
    apply_masks(expected, result.masks)
    assert same(dict(result.model.state_dict()), dict(expected.state_dict()))
    assert result.epochs == problem.recipe.epochs + 1


@pytest.mark.parametrize("name", [name for name in (*ONE_SHOT, *KOOPMAN) if name != "lsp"])
def test_the_masks_of_one_network_are_nested_in_the_sparsity(name: str, problem: Problem) -> None:
    spent = replace(problem, epochs=problem.recipe.epochs)
    chain = [pruner(name)(spent, sparsity).masks for sparsity in (0.0, 0.2, 0.21, 0.6, 0.9, 0.99)]
    assert removed(chain[0]) == 0
    for outer, inner in pairwise(chain):
        assert removed(outer) < removed(inner)
        assert is_subset(inner, outer)


@pytest.mark.parametrize("name", ONE_SHOT)
def test_counts_are_exact_where_magnitudes_tie(name: str, problem: Problem) -> None:
    """Half of the weights are zero and the other half of one size, which puts every threshold on a tie."""
    spent = replace(problem, epochs=problem.recipe.epochs, dense=problem.fresh().eval())
    for weight in prunable(spent.dense).values():
        flat = weight.view(-1)
        flat.copy_(torch.where(torch.arange(len(flat)) % 2 == 0, 0.0, 0.05 * flat.sign()))
    for sparsity in (0.3, 0.5, 0.7):
        masks = pruner(name)(spent, sparsity).masks
        sizes = [mask.numel() for mask in masks.values()]
        parts = sizes if name in LAYERWISE else [sum(sizes)]
        assert removed(masks) == sum(removed_count(sparsity, size) for size in parts)


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 50.0, float("nan")])
@pytest.mark.parametrize("name", EVERY)
def test_a_sparsity_outside_its_range_is_refused_before_anything_is_trained(
    name: str, sparsity: float, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_training(monkeypatch)
    with pytest.raises(UserError, match=rf"^sparsity: expected a number in \[0, 1\) .*, got {sparsity}$"):
        pruner(name)(problem, sparsity)


@pytest.mark.parametrize("name", ["smart-ratio", "smart-ratio-vgg"])
def test_smart_ratio_refuses_a_budget_that_its_classifier_alone_exceeds(
    name: str, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_training(monkeypatch)
    with pytest.raises(UserError, match=r"^sparsity: smart-ratio keeps 30% .* bears less than 0\.9974, got 0\.9990$"):
        pruner(name)(problem, 0.999)


@pytest.mark.parametrize("name", [*ITERATIVE, "rare-gems"])
def test_one_epoch_is_refused_by_what_has_to_train_twice(name: str, problem: Problem) -> None:
    short = replace(problem, recipe=replace(problem.recipe, epochs=1), epochs=1)
    with pytest.raises(UserError, match=r"^epochs: expected at least 2, one per training, got 1$"):
        pruner(name)(short, 0.5)


@pytest.mark.parametrize("name", ["ggp", "gmp", "jgp", "kmp", "lomp"])
def test_weights_that_are_no_numbers_are_refused(name: str, problem: Problem) -> None:
    broken = replace(problem, dense=problem.fresh().eval())
    next(iter(prunable(broken.dense).values())).fill_(float("nan"))
    with pytest.raises(UserError, match=r"NaN|the loss is nan"):
        pruner(name)(broken, 0.5)


def test_an_unknown_pruner_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=rf"^pruner: expected one of {', '.join(EVERY)}, got 'gmpp'$"):
        pruner("gmpp")
    assert len(EVERY) >= 18


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="the pruner gmp exists already"):
        register("gmp")(pruner("lomp"))


def test_every_pruner_says_what_it_does() -> None:
    for function in pruners().values():
        assert isinstance(function.__doc__, str)
        assert "Returns:" in function.__doc__


def test_the_initial_network_is_that_of_the_seed(problem: Problem) -> None:
    def weight(seed: int) -> nn.Parameter:
        return replace(problem, seed=seed).fresh().get_parameter("conv1.weight")

    assert torch.equal(weight(3), weight(3))
    assert not torch.equal(weight(3), weight(4))
