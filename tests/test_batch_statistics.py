"""Batch normalisation while a network is re-tuned."""

import copy

import pytest
import torch
from helpers import assert_close, random
from retuning_problems import classes
from torch import nn

from estimators import Objective
from pruning_limits.batch_statistics import ByBatch, measured_statistics, normalising


def by_batch(model, data):
    objective = Objective(model, data)
    objective.loss_fn = ByBatch(objective.loss_fn, normalising(model).values())
    return objective


def in_training_mode(model, momentum):
    twin = copy.deepcopy(model)
    for layer in normalising(twin).values():
        layer.train()
        layer.momentum = momentum
    return twin


def test_losses_are_those_of_layers_in_training_mode():
    model, data = classes(normalised=True)
    objective = by_batch(model, data)
    twin = in_training_mode(model, 0.1)
    x, y = data[0]
    expected = nn.functional.cross_entropy(twin(x), y, reduction="none")
    assert_close(objective.losses(objective.chosen, data[0]), expected)
    assert not any(module.training for module in model.modules())


def test_statistics_of_one_batch_are_those_that_torch_keeps():
    model, data = classes(normalised=True)
    twin = in_training_mode(model, 1.0)
    twin(data[0][0])
    objective = by_batch(model, data)
    statistics = measured_statistics(objective, objective.chosen, [(data[0], 50)])
    assert set(statistics) == {"1.running_mean", "1.running_var"}
    for name, value in statistics.items():
        assert_close(value, dict(twin.named_buffers())[name])


def test_statistics_of_several_batches_are_those_of_all_their_inputs():
    model, data = classes(normalised=True)
    objective = by_batch(model, data)
    statistics = measured_statistics(objective, objective.chosen, [(batch, 50) for batch in data])
    inputs = model[0](torch.cat([x for x, _ in data]))
    assert_close(statistics["1.running_mean"], inputs.mean(0))
    assert_close(statistics["1.running_var"], inputs.var(0))


def test_images_are_counted_per_channel_and_the_model_is_left_as_it_is():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2)).double().eval()
    before = copy.deepcopy(model.state_dict())
    data = [(random(5, 1, 6, 6), torch.tensor([0, 1, 0, 1, 0]))]
    objective = by_batch(model, data)
    statistics = measured_statistics(objective, objective.chosen, [(data[0], 5)])
    inputs = model[0](data[0][0]).transpose(0, 1).flatten(1)
    assert_close(statistics["1.running_var"], inputs.var(1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_layers_and_those_without_statistics_are_left_out(frozen):
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False))
    model[0].requires_grad_(not frozen)
    assert list(normalising(model)) == ([] if frozen else ["0"])
