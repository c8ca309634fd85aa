"""Limits of patterns: masks and pruned copies, of the same network and of another one of its layers."""

import copy

import pytest
import torch
from helpers import random, seeded, small_limit
from torch import nn

from estimators import UserError
from pruning_limits import MagnitudeProfile, PruningLimit
from pruning_limits.group_profile import GroupProfile
from pruning_limits.pattern_profiles import other_pattern, profile_for

ASKED = ("unstructured", "1:2", "channels")


@pytest.fixture(scope="module")
def limit():
    return small_limit(pattern=ASKED)


def network(seed=5):
    return seeded(lambda: nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)), seed)


@pytest.mark.parametrize("pattern", ["unstructured", "1:2", "channels", "blocks:3x1"])
def test_masks_are_those_of_the_pattern(limit, pattern):
    own = limit.for_pattern(pattern)
    assert own.pattern == pattern
    assert own.profile.groups.pattern.name == pattern if pattern != "unstructured" else True
    masks = own.mask(0.4)
    removed = sum(int((~mask).sum()) for mask in masks.values())
    assert removed == own.profile.count(0.4)
    assert removed >= 0.4 * 108
    assert own.for_pattern("unstructured").answers == limit.answers


@pytest.mark.parametrize("pattern", ["1:2", "channels", "blocks:3x1"])
def test_a_copy_is_pruned_by_its_own_weights(limit, pattern):
    model, own = network(), limit.for_pattern(pattern)
    result = own.prune(model, 0.4)
    weights = {name: model.get_parameter(name).detach() for name in own.settings.parameters}
    profile = GroupProfile(weights, own.profile.groups)
    for name, mask in profile.masks(0.4).items():
        assert torch.equal(result.get_parameter(name).data, weights[name] * mask)
    if pattern == "channels":
        kept = profile.companions(0.4)["0.bias"]
        assert torch.equal(result.get_parameter("0.bias").data, model.get_parameter("0.bias") * kept)
        assert not kept.all()


def test_a_pattern_of_one_sparsity_needs_none(limit):
    own, model = limit.for_pattern("1:2"), network()
    assert all(torch.equal(own.mask()[name], mask) for name, mask in own.mask(0.5).items())
    assert torch.equal(own.prune(model)[0].weight, own.prune(model, 0.5)[0].weight)
    with pytest.raises(UserError, match=r"^sparsity: expected a number in \[0, 1\); channels has many sparsities$"):
        limit.for_pattern("channels").mask()


def test_a_pattern_that_was_not_asked_for_is_not_measured_but_compared(limit):
    own = limit.for_pattern("blocks:3x1")
    assert own.achieved is None
    assert own.answer("one-shot").basis == "unknown"
    assert own.answer("formula").sparsity == own.sparsity < limit.sparsity
    assert own.cost == limit.cost
    assert own.for_pattern("1:2").answers == limit.for_pattern("1:2").answers


def test_limits_from_files(limit, tmp_path):
    path = tmp_path / "limit.json"
    limit.to_json(path)
    loaded = PruningLimit.from_json(path)
    model = network()
    for pattern in ASKED:
        assert loaded.for_pattern(pattern).answers == limit.for_pattern(pattern).answers
    result = loaded.for_pattern("1:2").prune(model, 0.5)
    expected = limit.for_pattern("1:2").prune(model, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(result.parameters(), expected.parameters(), strict=True))
    with pytest.raises(UserError, match=r"^prune: this limit holds no groups of channels; predict it again"):
        loaded.for_pattern("channels").prune(model, 0.5)
    with pytest.raises(UserError, match=r"^mask: this limit holds no weights"):
        loaded.for_pattern("1:2").mask(0.5)
    for pattern in ("blocks:3x1", "heads"):
        with pytest.raises(UserError, match=rf"^pattern: nothing is known of {pattern} here; predict it with pattern="):
            loaded.for_pattern(pattern)


def test_what_cannot_be_grouped_or_does_not_fit_is_refused(limit):
    with pytest.raises(UserError, match=r"^pattern: nothing is known of heads here"):
        limit.for_pattern("heads")
    with pytest.raises(UserError, match=r"^pattern: expected unstructured, N:M such as 2:4"):
        limit.for_pattern("rows")
    with pytest.raises(UserError, match=r"^pattern: 5:7 fits no layer of this network \(0\.weight: 6 inputs are no"):
        limit.for_pattern("5:7")
    with pytest.raises(UserError, match=r"^sparsity: 1:2 removes at most 0\.5000 of the weights here, got 0\.6$"):
        limit.for_pattern("1:2").mask(0.6)


def test_profiles(limit):
    weights = {"w": random(2, 4)}
    assert type(profile_for(limit, nn.Linear(4, 2), weights)) is MagnitudeProfile
    evidence, profile = other_pattern(limit.evidence, None, "1:2")
    assert profile is None
    assert evidence.pattern == "1:2"
    model = copy.deepcopy(network())
    chosen = {name: model.get_parameter(name) for name in limit.settings.parameters}
    assert isinstance(profile_for(limit.for_pattern("channels"), model, chosen), GroupProfile)
