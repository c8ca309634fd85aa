"""Losses of layers that are pruned alone, against networks that are pruned and evaluated one by one."""

import copy
import math

import pytest
import torch
from helpers import random, seeded, small_limit
from torch import nn

from estimators import L2, Objective, UserError
from pruning_limits import sensitivity
from pruning_limits.patterns import groups_of
from pruning_limits.sensitivity import curves_of, layer_sensitivities, pruned_layer
from pruning_limits.split import best_split


def network():
    return seeded(lambda: nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 3)))


def right(model, batch):
    return (model(batch[0]).argmax(1) == batch[1]).double()


@pytest.fixture(scope="module")
def data():
    return [(random(40, 8, seed=1), torch.arange(40) % 3), (random(23, 8, seed=2), torch.arange(23) % 3)]


def smallest(weight, count):
    order = sorted(range(weight.numel()), key=lambda k: abs(float(weight.flatten()[k])))
    mask = torch.ones(weight.numel(), dtype=torch.bool)
    mask[order[:count]] = False
    return mask.reshape(weight.shape)


@pytest.mark.parametrize("penalty", [None, L2(0.3)])
def test_what_is_reported_is_what_the_pruned_network_loses(data, penalty):
    objective, metric = Objective(network(), data, penalty=penalty), Objective(network(), data, right)
    rows = layer_sensitivities(objective, metric, (0.3, 0.9), samples=None)
    assert {row.name for row in rows} == {"0.weight", "2.weight", "4.weight"}
    for row in rows:
        for point, sparsity in zip(row.points, (0.3, 0.9), strict=True):
            model = copy.deepcopy(objective.model)
            weight = model.get_parameter(row.name)
            count = math.ceil(sparsity * weight.numel())
            assert point.sparsity == count / weight.numel()
            with torch.no_grad():
                weight.mul_(smallest(weight, count))
            pruned = Objective(model, data, penalty=penalty)
            assert point.rise == pytest.approx(pruned.value() - objective.value(), abs=1e-9)
            differences = pruned.sample_losses()[0] - objective.sample_losses()[0]
            assert point.rise_error == pytest.approx(float(differences.std()) / 63**0.5)
            fall = metric.value() - Objective(model, data, right).value()
            assert point.drop == pytest.approx(fall, abs=1e-12)
    assert [row.sensitivity for row in rows] == sorted((row.points[-1].rise for row in rows), reverse=True)


def test_a_draw_is_that_of_the_objective(data):
    objective = Objective(network(), data)
    rows = layer_sensitivities(objective, sparsities=(0.5,), samples=20, seed=3)
    part = objective.subset(20, 3)
    for row in rows:
        share, pruned = pruned_layer(objective.chosen[row.name], row.name, 0.5)
        vector = torch.cat([(pruned if n == row.name else w).flatten() for n, w in objective.chosen.items()])
        assert row.points[0].rise == pytest.approx(part.value(vector) - part.value(), abs=1e-9)
        assert (row.samples, row.points[0].sparsity) == (20, share)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "blocks:3x2"])
def test_layers_in_a_pattern(data, pattern):
    objective = Objective(network(), data)
    groups = groups_of(pattern, objective)
    rows = {row.name: row for row in layer_sensitivities(objective, groups=groups, samples=None, sparsities=(0.4, 0.8))}
    assert set(rows) == ({"0.weight", "2.weight"} if ":4" in pattern else set(objective.names))
    for name, row in rows.items():
        if ":4" in pattern:
            assert [point.sparsity for point in row.points] == [0.5 if pattern == "2:4" else 0.75]
        weight = objective.chosen[name]
        _, pruned = pruned_layer(weight, name, row.points[-1].sparsity, groups)
        vector = torch.cat([(pruned if n == name else w).flatten() for n, w in objective.chosen.items()])
        assert row.points[-1].rise == pytest.approx(objective.value(vector) - objective.value(), abs=1e-9)
        assert int((pruned == 0).sum()) == round(row.points[-1].sparsity * weight.numel())


def test_few_layers_at_a_time_give_the_same(data, monkeypatch):
    objective = Objective(network(), data)
    expected = layer_sensitivities(objective, samples=None)
    monkeypatch.setattr(sensitivity, "MOST_BYTES", 1)
    assert layer_sensitivities(objective, samples=None) == expected


def test_curves_serve_the_best_split(data):
    objective = Objective(network(), data)
    rows = layer_sensitivities(objective, samples=None, sparsities=(0.25, 0.5, 0.75, 1.0))
    curves = curves_of(rows)
    assert [curve.counts[-1] for curve in curves] == [row.weights for row in rows]
    split = best_split(curves, 100)
    assert sum(split.values()) == 100


def test_losses_that_are_not_finite_come_first(data):
    def loss(model, batch):
        output = model(batch[0])
        return torch.where(model[0].weight.abs().sum() < 10, math.nan, 1.0) * output.square().sum(1)

    rows = layer_sensitivities(Objective(network(), data, loss), samples=None)
    assert rows[0].name == "0.weight"
    assert rows[0].sensitivity == math.inf
    assert math.isfinite(rows[1].sensitivity)
    assert len(curves_of(rows)[0].counts) < 4


def test_bad_input(data):
    objective = Objective(network(), data)
    for wrong in ((), (0.0,), (0.5, 1.5), 0.5, None, "0.5", ["a"]):
        with pytest.raises(UserError, match=r"^sparsities: expected numbers in \(0, 1\]"):
            layer_sensitivities(objective, sparsities=wrong)
    for wrong in (0, 1.5, "x"):
        with pytest.raises(UserError, match=r"^samples: expected at least 1 or None, got"):
            layer_sensitivities(objective, samples=wrong)
    with pytest.raises(UserError, match=r"^layers: those of channels share groups"):
        layer_sensitivities(objective, groups=groups_of("channels", objective))


# ------------------------------------------------------------------------------------------------ from a limit


def test_a_limit_measures_its_layers():
    limit = small_limit(metric="accuracy", pattern=("unstructured", "1:2"))
    rows = limit.layers(measured=True)
    assert {row.name for row in rows} == {"0.weight", "2.weight"}
    assert rows == limit.layers(measured=True)
    assert all(row.macs == row.weights for row in rows)
    assert [point.sparsity for point in limit.for_pattern("1:2").layers(measured=True)[0].points] == [0.5]
    assert rows[0].points[0].drop is not None
    assert [row.name for row in limit.layers()] == ["0.weight", "2.weight"]


def test_a_limit_from_a_file_has_no_data(tmp_path):
    limit = small_limit()
    limit.to_json(tmp_path / "limit.json")
    loaded = type(limit).from_json(tmp_path / "limit.json")
    with pytest.raises(UserError, match=r"^layers: this limit holds no network and data to measure with"):
        loaded.layers(measured=True)


def test_a_network_that_has_changed_is_refused():
    limit = small_limit()
    model = limit.profile.structure.source.subject.model
    with torch.no_grad():
        model[0].weight.add_(1.0)
    with pytest.raises(UserError, match=r"^layers: the weights of the network have changed since it was predicted"):
        limit.layers(measured=True)


def test_copies_of_a_limit_hold_no_network():
    import pickle

    source = small_limit().profile.structure.source
    assert pickle.loads(pickle.dumps(source)).subject is None
    assert copy.deepcopy(source).subject is None
