import dataclasses

import pytest
import torch
from helpers import random, seeded, small_limit
from torch import nn

from pruning_limits import predict_limit
from pruning_limits.evidence import solve
from pruning_limits.group_profile import GroupProfile
from pruning_limits.measured import Bar, crossing
from pruning_limits.pattern_gathering import pattern_row, with_patterns

QUICK = {"steps": 4, "probes": 1, "samples": 64, "progress": False}


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


@pytest.mark.parametrize(("rows", "width"), [(300, 0.05), (5000, 1.0)])
def test_blocks_of_one_weight_are_narrowed_down_like_single_weights(rows, width):
    """Of few samples to a twentieth of the tolerance; where draws decide, as of 5,000 samples, to the tolerance."""
    model = seeded(lambda: nn.Sequential(nn.Linear(40, 20), nn.Tanh(), nn.Linear(20, 3))).eval()
    x = random(rows, 40)
    data = [(x, model(x).detach().argmax(1))]
    limit = predict_limit(model, data, epsilon=0.02, tolerance=0.01, pattern=("unstructured", "blocks:1x1"), **QUICK)
    ends = []
    for pattern in ("unstructured", "blocks:1x1"):
        evidence = limit.for_pattern(pattern).evidence
        where = crossing(evidence.points, Bar(0.02), 0.0)
        assert round(860 * (where.high - where.low)) <= max(1, round(860 * width * 0.01))
        ends.append((where.low, where.high))
    assert rows > 300 or ends[0] == ends[1]
