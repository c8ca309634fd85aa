"""GEM-MINER's search for a sparse network of random weights, and the training of what it finds."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import same
from torch import Tensor, nn
from torch.func import functional_call

from estimators.vectors import flatten
from pruning_limits.magnitude import removed_count
from validation.masks import Masks, prunable
from validation.pruners import Problem, pruner
from validation.pruners.rare_gems import Gem, _gem, search
from validation.training import Recipe, train

Batch = tuple[Tensor, Tensor]


@pytest.fixture
def batch(problem: Problem) -> Batch:
    return next(iter(problem.data.batches("train", 40)))


@pytest.fixture
def gem(problem: Problem) -> Gem:
    """A gem whose first convolution is frozen out, and a tenth of everything else."""
    gem = Gem(problem.fresh(), seed=0)
    generator = torch.Generator().manual_seed(1)
    gem.alive = {name: torch.rand(w.shape, generator=generator) > 0.1 for name, w in gem.weights.items()}
    gem.alive["conv1.weight"][:] = False
    gem.alive["conv1.weight"][:, :, 1] = True
    return gem


@pytest.fixture
def small(problem: Problem) -> Problem:
    """A network without batch norm, at one step an epoch."""
    few = replace(problem.data, train_x=problem.data.train_x[:64], train_y=problem.data.train_y[:64])
    return replace(problem, model_name="fc5-mini", data=few, recipe=replace(problem.recipe, batch_size=64))


@pytest.fixture
def black(small: Problem) -> Problem:
    """Black images and no biases: all activations are zero, and so is every gradient of the cross-entropy."""
    return replace(small, data=replace(small.data, train_x=torch.zeros_like(small.data.train_x)))


class Shortcut(nn.Module):
    """A residual network whose shortcut holds a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Conv2d(1, 8, 3, padding=1)
        self.side = nn.Sequential()
        self.side.add_module("down", nn.Conv2d(1, 8, 1, bias=False))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.main(x) + self.side(x)).mean(dim=(2, 3)))


def alive(gem: Gem) -> int:
    return sum(int(flags.sum()) for flags in gem.alive.values())


def gradients(gem: Gem, batch: Batch, l2: float) -> dict[str, Tensor]:
    slopes = torch.autograd.grad(gem.loss(*batch, l2), list(gem.scores.values()))
    return dict(zip(gem.scores, slopes, strict=True))


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return flatten(list(tensors.values())).detach()


# ------------------------------------------------------------------------------------------------- the network


def test_weights_are_signed_constants_of_fan_in_with_no_biases_and_plain_batch_norm(problem: Problem) -> None:
    initial = problem.fresh()
    model = Gem(problem.fresh(), seed=0).model
    for name, layer in initial.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = layer.weight.shape[1:].numel()
            expected = layer.weight.sign() * math.sqrt(2 / fan_in)
            torch.testing.assert_close(model.get_submodule(name).weight, expected, rtol=1e-6, atol=0)
        if isinstance(layer, nn.BatchNorm2d):
            assert model.get_submodule(name).weight.eq(1).all()
        if getattr(layer, "bias", None) is not None:
            assert not model.get_submodule(name).bias.any()


def test_scores_are_uniform_and_every_weight_starts_alive(problem: Problem) -> None:
    gem = Gem(problem.fresh(), seed=0)
    assert gem.alive.keys() == gem.scores.keys() == prunable(problem.dense).keys()
    scores = flat(gem.scores)
    assert alive(gem) == len(scores)
    assert (scores.min() >= 0, scores.max() < 1) == (True, True)
    assert float(scores.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * len(scores)))
    initial = flat(prunable(problem.fresh()))
    correlation = float(torch.corrcoef(torch.stack([scores, initial]))[0, 1])
    assert abs(correlation) < 4 / math.sqrt(len(scores))


def test_the_weights_used_are_those_alive_with_a_score_above_a_half(gem: Gem) -> None:
    for name, used in gem.chosen().items():
        expected = gem.weights[name] * ((gem.scores[name] > 0.5) & gem.alive[name])
        assert torch.equal(used, expected)


def test_the_gradient_of_scores_is_that_of_the_mask_and_zero_where_frozen(gem: Gem, batch: Batch) -> None:
    masks = {name: ((score > 0.5) & gem.alive[name]).float() for name, score in gem.scores.items()}
    leaves = {name: mask.requires_grad_() for name, mask in masks.items()}
    weights = {name: gem.weights[name] * mask for name, mask in leaves.items()}
    loss = nn.functional.cross_entropy(functional_call(copy.deepcopy(gem.model), weights, batch[:1]), batch[1])
    expected = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    slopes = gradients(gem, batch, 0.0)
    for name, flags in gem.alive.items():
        torch.testing.assert_close(slopes[name], expected[name] * flags)
        assert not slopes[name][~flags].any()
        assert expected[name][~flags].any()
        assert slopes[name][gem.scores[name].lt(0.5) & flags].any()


def test_the_penalty_adds_2_lambda_s_where_alive_and_nothing_where_frozen(gem: Gem, batch: Batch) -> None:
    plain, penalised = gradients(gem, batch, 0.0), gradients(gem, batch, 0.25)
    for name, flags in gem.alive.items():
        torch.testing.assert_close(penalised[name], plain[name] + 0.5 * gem.scores[name].detach() * flags)
        assert not penalised[name][~flags].any()
    value = sum(float((score.detach()[gem.alive[name]] ** 2).sum()) for name, score in gem.scores.items())
    assert float((gem.loss(*batch, 0.25) - gem.loss(*batch, 0.0)).detach()) == pytest.approx(value / 4, rel=1e-5)


def test_projection_clamps_scores_to_the_unit_interval(gem: Gem) -> None:
    with torch.no_grad():
        for score in gem.scores.values():
            score.mul_(4).sub_(2)
    before = flat(gem.scores).clone()
    gem.project()
    assert torch.equal(flat(gem.scores), before.clamp(0, 1))
    assert (before.min() < 0, before.max() > 1) == (True, True)


# ------------------------------------------------------------------------------------------------- freezing


def test_freezing_removes_the_smallest_scores_alive_and_revives_nothing(gem: Gem) -> None:
    before, start = gem.alive, alive(gem)
    gem.freeze(start - 1000)
    assert alive(gem) == start - 1000
    scores, was, still = flat(gem.scores), flat(before), flat(gem.alive)
    assert not (still & ~was).any()
    assert scores[was & ~still].max() < scores[still].min()


@pytest.mark.parametrize("removed", [1, 200, 421])
def test_scores_clamped_to_zero_go_in_the_order_of_their_first_values_at_exact_counts(
    problem: Problem, removed: int
) -> None:
    gem = Gem(problem.fresh(), seed=0)
    with torch.no_grad():
        for score in gem.scores.values():
            score.copy_(torch.where(score < 0.3, 0.0, score))
    total = alive(gem)
    gem.freeze(total - removed)
    assert alive(gem) == total - removed
    first, still = flat(gem.first), flat(gem.alive)
    assert torch.equal(still, first > first.sort().values[removed - 1])


def masks_along(problem: Problem, sparsity: float, epochs: int, l2: float = 1e-4) -> list[Masks]:
    return [gem.alive for gem in search(problem, sparsity, epochs, l2)]


@pytest.mark.parametrize(("kept_percent", "rate"), [(0.59, 0.162), (1.44, 0.136), (3.72, 0.107)])
def test_the_published_150_epochs_freeze_29_times_at_the_published_rate(
    small: Problem, kept_percent: float, rate: float
) -> None:
    counts = [
        sum(int(flags.sum()) for flags in masks.values()) for masks in masks_along(small, 1 - kept_percent / 100, 150)
    ]
    total = counts[0]
    assert len(counts) == 31
    exact = 1 - (counts[-1] / total) ** (1 / 29)
    assert exact == pytest.approx(rate, abs=6e-4)
    for before, after in pairwise(counts[:-2]):
        assert after == before - removed_count(exact, before)
    assert counts[-1] == counts[-2] == total - removed_count(1 - kept_percent / 100, total)
    assert 0 <= counts[-3] - removed_count(exact, counts[-3]) + 29 - counts[-1] <= 58


@pytest.mark.parametrize("l2", [0.0, 1e-2])
def test_flags_are_nested_over_rounds(problem: Problem, l2: float) -> None:
    chain = masks_along(problem, 0.9, 4, l2)
    assert len(chain) == 5
    for outer, inner in pairwise(chain):
        assert all(not (inner[name] & ~outer[name]).any() for name in outer)
    for outer, inner in pairwise(chain[:-1]):
        assert not same(dict(outer), dict(inner))


@pytest.mark.parametrize("epochs", [1, 2, 59])
def test_any_number_of_epochs_ends_at_the_exact_count(small: Problem, epochs: int) -> None:
    *_, last = masks_along(small, 0.777, epochs)
    total = sum(flags.numel() for flags in last.values())
    assert sum(int((~flags).sum()) for flags in last.values()) == removed_count(0.777, total)


# ------------------------------------------------------------------------------------------------- searching


def test_without_a_gradient_and_without_a_penalty_scores_never_shrink(black: Problem) -> None:
    *_, gem = search(black, 0.6, 4, l2=0.0)
    assert all(torch.equal(score, gem.first[name]) for name, score in gem.scores.items())
    first, still = flat(gem.first), flat(gem.alive)
    assert first[~still].max() < first[still].min()


def test_a_penalty_shrinks_every_score_alive(black: Problem) -> None:
    *_, gem = search(black, 0.0, 3, l2=1e-2)
    first, scores = flat(gem.first), flat(gem.scores)
    assert (scores[first > 0] < first[first > 0]).all()


@pytest.mark.parametrize("model", ["fc5-mini", "resnet8"])
def test_an_endless_penalty_puts_every_score_to_zero_and_keeps_the_count(small: Problem, model: str) -> None:
    *_, gem = search(replace(small, model_name=model), 0.6, 3, l2=1e6)
    assert not flat(gem.scores).any()
    assert not any(used.any() for used in gem.chosen().values())
    total = len(flat(gem.scores))
    assert alive(gem) == total - removed_count(0.6, total)


def test_the_search_moves_scores_alone(problem: Problem) -> None:
    gems = search(problem, 0.5, 2)
    gem = next(gems)
    before = {name: value.clone() for name, value in gem.model.named_parameters()}
    for _ in gems:
        pass
    assert all(torch.equal(value, before[name]) for name, value in gem.model.named_parameters())
    scores = flat(gem.scores)
    assert not torch.equal(scores, flat(gem.first))
    assert (scores.min() >= 0, scores.max() <= 1) == (True, True)


def test_a_search_depends_on_its_seed_alone(problem: Problem) -> None:
    results = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)
        before = torch.get_rng_state()
        *_, gem = search(replace(problem, seed=seed), 0.8, 2)
        assert torch.equal(torch.get_rng_state(), before)
        results.append((dict(gem.scores), dict(gem.alive)))
    assert same(results[0], results[1])
    assert not same(results[0][1], results[2][1])


def test_the_rate_of_scores_falls_on_a_cosine_over_epochs_and_not_over_steps(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    class Noted(torch.optim.SGD):
        def step(self, *arguments: Any, **options: Any) -> Any:
            used.append(self.param_groups[0]["lr"])
            return super().step(*arguments, **options)

    monkeypatch.setattr(torch.optim, "SGD", Noted)
    for _ in search(problem, 0.5, 4):
        pass
    assert used == [pytest.approx(0.05 * (1 + math.cos(math.pi * (step // 5) / 4))) for step in range(20)]


# ------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("name", ["rare-gems", "rare-gems-no-l2"])
def test_what_is_alive_is_trained_from_its_signed_constants(problem: Problem, name: str) -> None:
    *_, gem = search(problem, 0.8, 2, 1e-4 if name == "rare-gems" else 0.0)
    model = gem.model.requires_grad_(True)
    recipe = Recipe(2, 0.1, momentum=0.5, l2=1e-4, batch_size=40)
    assert recipe == problem.recipe
    train(model, problem.data, recipe, problem.seed, masks=gem.alive)
    result = pruner(name)(problem, 0.8)
    assert same(dict(result.masks), dict(gem.alive))
    assert same(dict(result.model.state_dict()), dict(model.state_dict()))


def test_weights_with_a_score_below_a_half_count_and_biases_are_not_masked(problem: Problem) -> None:
    result = _gem(problem, 0.8, l2=1e6)
    weights = prunable(result.model)
    assert all(torch.equal(weights[name] != 0, mask) for name, mask in result.masks.items())
    total = sum(weight.numel() for weight in weights.values())
    assert sum(int(weight.count_nonzero()) for weight in weights.values()) == total - removed_count(0.8, total)
    biases = [value for name, value in result.model.named_parameters() if name.endswith("bias")]
    assert len(biases) == 8
    assert all(bias.any() for bias in biases)


def test_convolutions_in_shortcuts_have_scores_too(problem: Problem) -> None:
    shortcut = replace(problem, model_name=f"{__name__}:Shortcut")
    masks = pruner("rare-gems")(shortcut, 0.5).masks
    assert list(masks) == ["main.weight", "side.down.weight", "head.weight"]
    removed = [int((~mask).sum()) for mask in masks.values()]
    assert all(removed)
    assert sum(removed) == removed_count(0.5, 72 + 8 + 80)
