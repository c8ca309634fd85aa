"""Every number that is called measured is what an independent evaluation of the pruned network gives."""

import copy
import math

import pytest
import torch
from helpers import random, seeded
from torch import nn
from torch.nn import functional

from pruning_limits import L1, L2, predict_limit
from validation.models import build_model
from validation.training import Recipe, train

COARSE = {"steps": 8, "probes": 1, "samples": 256, "tolerance": 0.05, "progress": False}


def pruned(model, names, sparsity):
    """Set the smallest weights to zero by a sort of their absolute values."""
    model = copy.deepcopy(model)
    weights = [dict(model.named_parameters())[name] for name in names]
    flat = torch.cat([weight.detach().reshape(-1) for weight in weights])
    keep = torch.ones_like(flat, dtype=torch.bool)
    keep[torch.argsort(flat.abs(), stable=True)[: math.ceil(sparsity * len(flat) - 1e-6)]] = False
    with torch.no_grad():
        for weight, mask in zip(weights, keep.split([weight.numel() for weight in weights]), strict=True):
            weight.mul_(mask.view_as(weight))
    return model


@torch.no_grad()
def mean_of(values, model, batches):
    """Average per-sample values over batches."""
    return float(torch.cat([values(model, batch).double() for batch in batches]).mean())


def right(model, batch):
    return (model(batch[0]).argmax(1) == batch[1]).double()


def entropy(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def assert_measured(limit, model, training, held_out, loss, metric):
    """Hold every measured rung and every measured point against forward passes of this module."""
    names = limit.settings.parameters
    assert limit.dense_metric == pytest.approx(mean_of(metric, model, held_out), abs=1e-6)
    dense = mean_of(loss, model, training)
    measured = [answer for answer in limit.answers if answer.basis == "measured"]
    assert [answer.rung for answer in measured] == ["one-shot"]
    for answer in measured:
        assert answer.metric == pytest.approx(
            mean_of(metric, pruned(model, names, answer.sparsity), held_out), abs=1e-6
        )
    points = limit.evidence.points
    for point in points[:: max(1, len(points) // 6)]:
        network = pruned(model, names, point.sparsity)
        assert limit.dense_metric - point.drop == pytest.approx(mean_of(metric, network, held_out), abs=1e-6)
        assert point.rise == pytest.approx(mean_of(loss, network, training) - dense, abs=1e-5 + 1e-4 * abs(point.rise))


@pytest.fixture(scope="module")
def decayed(digits):
    """A small network on digits, trained with weight decay."""
    model = build_model("fc5-mini", digits.shape, digits.classes, seed=0)
    train(model, digits, Recipe(epochs=10, lr=0.05, l2=1e-3), seed=0)
    return model.eval()


@pytest.mark.parametrize(("kind", "penalty"), [("trained", L1(1e-3)), ("decayed", L2(1e-3))])
def test_networks_on_digits(request, digits, kind, penalty):
    model = request.getfixturevalue(kind)
    training, held_out = digits.batches("train", 500), digits.batches("test", 500)
    options = COARSE | {"metric": "accuracy", "max_drop": 0.01, "held_out": held_out, "penalty": penalty}
    limit = predict_limit(model, training, **options)
    assert_measured(limit, model, training, held_out, entropy, right)
    one_shot = limit.answer("one-shot")
    held = mean_of(right, pruned(model, limit.settings.parameters, one_shot.sparsity), held_out)
    assert held >= limit.dense_metric - 0.01 - 1e-9
    (first,) = [point for point in limit.evidence.points if point.sparsity > one_shot.sparsity][:1]
    assert mean_of(right, pruned(model, limit.settings.parameters, first.sparsity), held_out) < held + 1e-9
    assert first.drop > 0.01
    assert limit.allowed.origin == "max-drop"
    assert limit.allowed.low <= limit.epsilon <= limit.allowed.high
    rises = [point.rise for point in limit.evidence.points]
    assert min(rises) <= limit.epsilon <= max(rises)
    # a penalty that falls does not make a network achievable that has lost its accuracy
    beyond = limit.check(0.98)
    assert beyond.status != "achievable"
    assert mean_of(right, pruned(model, limit.settings.parameters, 0.98), held_out) < limit.dense_metric - 0.01


def test_a_linear_probe_on_frozen_features(digits, trained):
    features = nn.Sequential(*list(trained.children())[:-1]) if len(list(trained.children())) > 1 else trained
    probe = nn.Sequential(copy.deepcopy(features), seeded(lambda: nn.Linear(_width(features, digits), 10)).float())
    for parameter in probe[0].parameters():
        parameter.requires_grad_(False)
    optimiser = torch.optim.Adam(probe[1].parameters(), lr=0.05)
    x, y = digits.train_x[:500], digits.train_y[:500]
    (inputs, _), *_ = digits.batches("train", 500)
    for _ in range(60):
        optimiser.zero_grad()
        functional.cross_entropy(probe(inputs), y[: len(inputs)]).backward()
        optimiser.step()
    assert len(x) == len(inputs)
    training = [(inputs, y)]
    limit = predict_limit(probe, training, metric="accuracy", parameters="1.weight", epsilon=0.05, **COARSE)
    assert_measured(limit, probe, training, training, entropy, right)
    assert limit.settings.parameters == ("1.weight",)
    assert not limit.evidence.dense.at_chance


def _width(features, digits):
    (inputs, _), *_ = digits.batches("train", 4)
    with torch.no_grad():
        return features(inputs[:1]).shape[1]


def test_a_regression_with_a_metric_of_its_own():
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 2))).float()
    x = random(400, 8, seed=1).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
        y = model(x) + 0.1 * random(400, 2, seed=2).float()

    def squared(network, batch):
        return (network(batch[0]) - batch[1]).square().mean(1)

    def within(network, batch):
        return ((network(batch[0]) - batch[1]).abs().amax(1) < 0.5).double()

    batches = [(x[:200], y[:200]), (x[200:], y[200:])]
    limit = predict_limit(model, batches[:1], squared, within, max_drop=0.05, held_out=batches[1:], **COARSE)
    assert_measured(limit, model, batches[:1], batches[1:], squared, within)
    assert limit.metric == "within"
    assert "within -0.05 of" in limit.summary()


class Tiny(nn.Module):
    """A character model from a configuration: embedding, one gated recurrence by hand, logits ``[n, T, C]``."""

    def __init__(self, words, width):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.mix, self.head = nn.Linear(2 * width, width), nn.Linear(width, words)

    def forward(self, tokens):
        state, states = torch.zeros(len(tokens), self.mix.out_features), []
        for step in self.embed(tokens).unbind(1):
            state = torch.tanh(self.mix(torch.cat([state, step], 1)))
            states.append(state)
        return self.head(torch.stack(states, 1))


def test_a_language_model_with_losses_of_tokens_and_perplexity_as_metric():
    config = {"words": 6, "width": 12}
    model = seeded(lambda: Tiny(**config)).float()
    generator = torch.Generator().manual_seed(3)
    starts = torch.randint(0, 6, (160, 1), generator=generator)
    tokens = (starts + 2 * torch.arange(9)) % 6  # every text counts on by two
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)

    def tokens_lost(network, batch):
        logits = network(batch["tokens"][:, :-1])
        return functional.cross_entropy(logits.transpose(1, 2), batch["tokens"][:, 1:], reduction="none").mean(1)

    def minus_perplexity(network, batch):
        return -tokens_lost(network, batch).exp()

    for _ in range(60):
        optimiser.zero_grad()
        tokens_lost(model, {"tokens": tokens[:120]}).mean().backward()
        optimiser.step()
    training, held_out = [{"tokens": tokens[:120]}], [{"tokens": tokens[120:]}]
    options = {"metric": minus_perplexity, "max_drop": 0.05, "held_out": held_out}
    limit = predict_limit(model, training, tokens_lost, **options, **COARSE)
    assert_measured(limit, model, training, held_out, tokens_lost, minus_perplexity)
    assert limit.dense_metric < -1
    assert limit.evidence.dense.resolution is None


def test_a_network_of_several_labels():
    model = seeded(lambda: nn.Sequential(nn.Linear(10, 30), nn.ReLU(), nn.Linear(30, 5))).float()
    x = random(300, 10, seed=1).float()
    y = (x @ random(10, 5, seed=2).float() > 0).float()

    def binary(network, batch):
        return functional.binary_cross_entropy_with_logits(network(batch[0]), batch[1], reduction="none").mean(1)

    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(80):
        optimiser.zero_grad()
        binary(model, (x, y)).mean().backward()
        optimiser.step()

    def labels_right(network, batch):
        return ((network(batch[0]) > 0) == (batch[1] > 0.5)).double().mean(1)

    data = [(x, y)]
    limit = predict_limit(model, data, binary, metric="accuracy", max_drop=0.02, **COARSE)
    assert_measured(limit, model, data, data, binary, labels_right)
    assert "training samples" in limit.summary()


def test_a_network_without_training_is_never_in_reach():
    model = seeded(lambda: nn.Sequential(nn.Linear(10, 30), nn.ReLU(), nn.Linear(30, 4))).float()
    data = [(random(300, 10, seed=1).float(), torch.arange(300) % 4)]
    limit = predict_limit(model, data, metric="accuracy", **COARSE)
    assert limit.evidence.dense.at_chance
    assert "no better than constant outputs" in limit.notes[0]
    for sparsity in (0.0, 0.3, 0.9, 0.999):
        verdict = limit.check(sparsity)
        assert verdict.status == "open"
        assert "no better than constant outputs" in verdict.reason
