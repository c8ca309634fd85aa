"""Measured pruning in patterns against networks that are pruned and evaluated one by one."""

import pytest
import torch
from helpers import random, seeded
from torch import nn

from estimators import Objective
from pruning_limits.group_profile import GroupProfile
from pruning_limits.measured import Bar
from pruning_limits.one_shot import PairedDifferences, draws_of
from pruning_limits.pattern_points import pattern_points
from pruning_limits.patterns import groups_of

EPSILON = 0.05
RISE = Bar(EPSILON)


def right(model, batch):
    return (model(batch[0]).argmax(1) == batch[1]).double()


def network():
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)))
    x = random(60, 8, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        y = (model(x) + 0.3 * random(60, 3, seed=2)).argmax(1)
    return model, [(x, y)]


def measured(name, bar=RISE, width=0.0):
    model, data = network()
    objective, metric = Objective(model, data), Objective(model, data, right)
    profile = GroupProfile(objective.chosen, groups_of(name, objective))
    rise = PairedDifferences(draws_of(objective), profile, objective.sample_losses())
    drop = PairedDifferences(draws_of(metric), profile, metric.sample_losses(), -1)
    return objective, metric, profile, pattern_points(rise, drop, bar, width)


@pytest.mark.parametrize("name", ["2:4", "1:8", "blocks:4x1", "blocks:2x2", "channels"])
def test_every_point_is_that_of_the_network_pruned_to_it(name):
    objective, metric, profile, points = measured(name)
    for point in points:
        weights = profile.vector - profile.removed(point.sparsity)
        assert point.sparsity * profile.dimension == pytest.approx(profile.count(point.sparsity))
        assert point.rise == pytest.approx(objective.value(weights) - objective.value(), abs=1e-12)
        assert point.drop == pytest.approx(metric.value() - metric.value(weights), abs=1e-12)
        assert point.rise_error == 0


@pytest.mark.parametrize("name", ["blocks:4x1", "blocks:2x2", "channels"])
@pytest.mark.parametrize("bar", [Bar(EPSILON), Bar(0.1, of_metric=True)])
def test_the_last_bracket_is_one_step_wide_and_holds_the_first_crossing_of_its_neighbourhood(name, bar):
    *_, profile, points = measured(name, bar)
    passing = [point.sparsity for point in points if bar.passes(bar.loss(point))]
    failing = [point.sparsity for point in points if not bar.passes(bar.loss(point))]
    high = min(failing)
    low = max([0.0, *(sparsity for sparsity in passing if sparsity < high)])
    counts = profile.counts.tolist()
    places = [counts.index(round(sparsity * profile.dimension)) for sparsity in (low, high)]
    assert places[1] - places[0] == 1
    assert max(failing) > high  # points beyond show what comes after


def test_of_one_sparsity_there_is_one_point():
    *_, points = measured("2:4")
    assert [point.sparsity for point in points] == [0.5]


def test_a_network_that_has_the_pattern_is_not_measured():
    model, data = network()
    objective = Objective(model, data)
    profile = GroupProfile(objective.chosen, groups_of("2:4", objective))
    with torch.no_grad():
        for name, mask in profile.masks(0.5).items():
            model.get_parameter(name).mul_(mask)
    objective = Objective(model, data)
    profile = GroupProfile(objective.chosen, groups_of("2:4", objective))
    rise = PairedDifferences(draws_of(objective), profile, objective.sample_losses())
    assert pattern_points(rise, None, Bar(EPSILON), 0.0) == ()
    assert rise.samples == 0
