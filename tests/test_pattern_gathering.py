import dataclasses

import pytest
import torch
from helpers import small_limit

from pruning_limits.evidence import solve
from pruning_limits.group_profile import GroupProfile
from pruning_limits.pattern_gathering import pattern_row, with_patterns


@pytest.fixture(scope="module")
def limit():
    return small_limit(metric="accuracy", pattern=("unstructured", "1:2", "blocks:3x1", "channels"))


@pytest.fixture(scope="module")
def plain():
    return small_limit(metric="accuracy")


def test_what_is_said_of_single_weights_does_not_depend_on_other_patterns(limit, plain):
    assert limit.evidence.patterns[0].name == "unstructured"
    evidence = dataclasses.replace(limit.evidence, patterns=(), cost=plain.evidence.cost)
    settings = dataclasses.replace(limit.settings, pattern=("unstructured",))
    assert solve(evidence, settings, limit.allowed, limit.profile) == plain
    assert plain.evidence.patterns == ()


def test_patterns_cost_no_product_and_their_passes_are_counted(limit, plain):
    assert (limit.cost.products, limit.cost.samples) == (plain.cost.products, plain.cost.samples)
    passes = (limit.cost.forward_samples - plain.cost.forward_samples) / limit.evidence.dense.samples
    assert passes == sum(2 * len(row.points) for row in limit.evidence.patterns[1:])


def test_rows_tell_groups_and_what_is_left(limit):
    rows = {row.name: row for row in limit.evidence.patterns}
    assert rows["1:2"].groups == 54
    assert rows["1:2"].most == 0.5
    assert rows["blocks:3x1"].groups == 36
    assert (rows["channels"].groups, rows["channels"].most) == (12, 11 / 12)
    assert rows["channels"].left == ()


def test_the_pattern_comes_beside_what_is_there(limit):
    profile = GroupProfile(limit.profile.weights, limit.profile.structure.groups["channels"])
    row = dataclasses.replace(pattern_row(profile), name="heads")
    names = [row.name for row in with_patterns(limit.evidence, (row,)).patterns]
    assert names == ["unstructured", "1:2", "blocks:3x1", "channels", "heads"]
    assert torch.equal(profile.vector, limit.profile.vector)
