"""Physically smaller networks: what they put out, how they are built, and how long they take."""

import pytest
import torch
from helpers import assert_close, random, seeded
from torch import nn

from estimators import UserError
from pruning_limits import predict_limit
from pruning_limits.shrinking import shrunk, timings


def network():
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.Tanh(),
            nn.Conv2d(6, 4, 2, stride=2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(36, 3),
        )
    )


@pytest.fixture(scope="module")
def data():
    return [(random(24, 2, 6, 6, seed=1), torch.arange(24) % 3)]


@pytest.fixture(scope="module")
def limit(data):
    return predict_limit(network(), data, epsilon=0.1, pattern=("channels", "2:4"), steps=8, probes=1, progress=False)


@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.5, "most"])
def test_the_smaller_network_is_the_masked_one(limit, data, sparsity):
    model, most = network(), limit.evidence.own.most
    sparsity = most if sparsity == "most" else sparsity
    smaller, zeros = limit.shrink(model, data, sparsity), limit.prune(model, sparsity)
    assert [module.training for module in smaller.modules()] == [module.training for module in model.modules()]
    assert_close(smaller.eval()(data[0][0]), zeros.eval()(data[0][0]))
    kept = sum(smaller.get_parameter(name).numel() for name in limit.settings.parameters)
    assert kept == limit.parameters - limit.profile.count(sparsity)
    saving = limit.saving(1 - kept / limit.parameters)
    assert sum(p.numel() for p in smaller.parameters()) == pytest.approx(saving.parameters)
    assert saving.macs is not None


def test_a_limit_from_a_file_shrinks_too(limit, data, tmp_path):
    limit.to_json(tmp_path / "limit.json")
    loaded = type(limit).from_json(tmp_path / "limit.json")
    first, second = shrunk(loaded, network(), data, 0.4), shrunk(limit, network(), data, 0.4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_dense_network_is_timed_beside_the_smaller_ones(limit, data, monkeypatch):
    monkeypatch.setattr("pruning_limits.shrinking.SECONDS", 0.01)
    threads = torch.get_num_threads()
    times = timings(limit, network(), data, (0.3, limit.evidence.own.most))
    assert torch.get_num_threads() == threads
    expected = [0.0, limit.profile.count(0.3) / limit.parameters, limit.evidence.own.most]
    assert [timing.sparsity for timing in times] == pytest.approx(expected)
    assert all(0 < timing.low <= timing.seconds <= timing.high for timing in times)
    assert times[0].device == f"cpu, {threads} threads"


def test_a_large_layer_takes_less_time_without_most_of_its_channels(monkeypatch):
    monkeypatch.setattr("pruning_limits.shrinking.SECONDS", 0.05)
    model = seeded(
        lambda: nn.Sequential(nn.Linear(400, 1500), nn.ReLU(), nn.Linear(1500, 1500), nn.ReLU(), nn.Linear(1500, 3))
    )
    data = [(random(64, 400), torch.arange(64) % 3)]
    limit = predict_limit(
        model, data, epsilon=0.1, pattern="channels", steps=1, probes=1, measure=False, progress=False
    )
    dense, smaller = limit.latency(model, data, sparsities=(0.95,))
    assert smaller.seconds < dense.seconds / 2
    budget = limit.for_budget(latency=0.9, timings=(dense, smaller))
    assert 0 < budget.sparsity < smaller.sparsity
    with pytest.raises(
        UserError, match=r"^latency: the networks that were timed take .* of the dense one's, got 1e-05$"
    ):
        limit.for_budget(latency=1e-5, timings=(dense, smaller))


def test_other_patterns_and_losses_are_refused(limit, data):
    with pytest.raises(
        UserError, match=r"^pattern: channels alone make a network smaller, got 2:4; see limit\.for_pattern$"
    ):
        limit.for_pattern("2:4").shrink(network(), data, 0.5)
    with pytest.raises(UserError, match=r"^pattern: channels alone"):
        limit.for_pattern("2:4").latency(network(), data)
    with pytest.raises(UserError, match=r"^sparsity: channels removes at most"):
        limit.shrink(network(), data, 1.0)
    for wrong in (0.5, None, "x", [2]):
        with pytest.raises(UserError, match=r"^sparsities: expected numbers in \[0, 1\], removed fractions, got"):
            limit.latency(network(), data, wrong)

    def loss(model, batch):
        x = batch[0]
        for module in model:
            x = module(x)
        return nn.functional.cross_entropy(x, batch[1], reduction="none")

    with pytest.raises(UserError, match=r"^loss_fn: it does not call the model as a whole"):
        limit.latency(network(), data, (0.3,), loss)
