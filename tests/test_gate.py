"""The gate: a pruned network next to its dense parent, judged by the criterion or by the metric."""

import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from helpers import small_limit, with_bounds
from torch.nn import functional

from estimators import UserError
from pruning_limits import predict_limit
from pruning_limits.epsilon import Allowed
from pruning_limits.gate import compare
from pruning_limits.metric_drop import MetricDrop
from validation.commands.demo import NETWORK
from validation.training import trained_network

PLACES = {"achieved": 0.2, "limit": 0.25, "upper": 0.35, "beyond": 0.5}


@pytest.fixture(scope="module")
def limit(trained, digits):
    return predict_limit(trained, digits.batches("train", 1000), samples=64, steps=4, probes=1)


@pytest.fixture(scope="module")
def weights(limit):
    return limit.profile.weights


def pruned_to(limit, sparsity):
    masks = limit.mask(sparsity)
    return {name: weight * masks[name] for name, weight in limit.profile.weights.items()}


def judged(limit, pruned, rise=0.0, drop=None):
    return compare(limit, limit.profile.weights, pruned, limit.objective, limit.objective + rise, drop)


def allowing(limit, epsilon):
    return dataclasses.replace(limit, allowed=dataclasses.replace(limit.allowed, epsilon=epsilon))


def reasons(comparison):
    return {case.name: case.reason for case in comparison.cases}


def statuses(comparison):
    return {case.name: case.status for case in comparison.cases}


# --------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("holds", [True, False])
def test_every_place_where_the_criterion_decides(limit, place, holds):
    limit = dataclasses.replace(with_bounds(limit, 0.2, 0.38, numerical=0.02), sparsity=0.3, layer_table=())
    rise = limit.epsilon * (1 - 1e-6 if holds else 1 + 1e-6)
    result = judged(limit, pruned_to(limit, PLACES[place]), rise)
    beyond = place == "beyond"
    assert (result.place, result.sparsity) == (place, PLACES[place])
    assert result.status == ("infeasible" if not holds else "open" if beyond else "achievable")
    assert statuses(result) == {
        "sparsity": "achievable" if not beyond else "open" if holds else "infeasible",
        "loss": "achievable" if holds else "infeasible",
    }
    assert (result.rise, result.epsilon) == (pytest.approx(rise), limit.epsilon)
    assert "\n" not in result.reason


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize("rises", [True, False])
def test_every_place_where_the_metric_decides(limit, place, holds, rises):
    """A rise of the criterion, however large, is only told."""
    limit = dataclasses.replace(with_bounds(limit, 0.2, 0.4), sparsity=0.3, layer_table=())
    drop = MetricDrop(0.9, 0.9 - 0.01 * (1 - 1e-6 if holds else 1 + 1e-6), 0.003, 0.01, "accuracy")
    result = judged(limit, pruned_to(limit, PLACES[place]), 100 * limit.epsilon if rises else 0.0, drop)
    beyond = place == "beyond"
    assert result.place == place
    assert result.status == ("infeasible" if not holds else "open" if beyond else "achievable")
    assert statuses(result) == {
        "sparsity": "achievable" if not beyond else "open" if holds else "infeasible",
        "loss": "achievable",
        "metric": "achievable" if holds else "infeasible",
    }
    assert result.drop is drop
    assert reasons(result)["loss"].endswith("the accuracy decides")


def test_without_an_allowed_fall_the_metric_is_only_told(limit):
    limit = with_bounds(limit, 0.5, 0.9)
    drop = MetricDrop(0.9, 0.1, 0.01)
    for rise, status in ((0.0, "achievable"), (2 * limit.epsilon, "infeasible")):
        result = judged(limit, pruned_to(limit, 0.1), rise, drop)
        assert result.status == status
        assert statuses(result)["metric"] == "achievable"
        assert reasons(result)["metric"].endswith("; the loss decides")


@pytest.mark.parametrize(("sparsity", "place"), [(0.2, "achieved"), (0.25, "limit"), (0.9, "unbounded")])
@pytest.mark.parametrize("by_metric", [True, False])
def test_what_holds_passes_where_no_bound_is_established(limit, sparsity, place, by_metric):
    limit = dataclasses.replace(with_bounds(limit, 0.2, None), sparsity=0.3, layer_table=())
    alone = place == "achieved"
    for holds in (True, False):
        fall, rise = (0.0 if holds else 0.5), (0.0 if holds else 2 * limit.epsilon)
        drop = MetricDrop(0.9, 0.9 - fall, 0.01, 0.005) if by_metric else None
        result = judged(limit, pruned_to(limit, sparsity), rise, drop)
        assert result.place == place
        assert result.status == ("achievable" if holds else "infeasible")
        assert statuses(result)["sparsity"] == ("achievable" if holds or alone else "open")
        assert ("no bound is established (no reason)" in reasons(result)["sparsity"]) is not alone


def test_a_network_at_chance_never_passes():
    """Random labels: a network of random weights is no better than constant outputs."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(6, 3)
    data = [(torch.randn(200, 6, generator=generator), torch.randint(0, 3, (200,), generator=generator))]
    limit = predict_limit(model, data, progress=False)
    assert limit.evidence.dense.at_chance
    for sparsity, drop in itertools.product((0.0, 0.5, 0.9), (None, MetricDrop(0.3, 0.3, 0.1, 0.5))):
        result = judged(limit, pruned_to(limit, sparsity), -1.0, drop)
        assert result.status == "infeasible"
        assert result.reason.startswith("the network is no better than constant outputs: its loss is lower by -")
        assert result.reason.endswith("train it first")
        assert [case.name for case in result.cases][:2] == ["network", "sparsity"]
        assert result.cases[1].reason.endswith("% means nothing before the network is trained")


def test_the_criterion_has_its_own_name():
    from estimators import L2

    limit = small_limit(criterion="objective", penalty=L2(1e-3))
    result = judged(limit, pruned_to(limit, 0.01), 1.0)
    assert statuses(result)["objective"] == "infeasible"
    with pytest.raises(UserError, match=r"limit: the objective of dense was .*; give the data and the penalty that"):
        compare(limit, limit.profile.weights, pruned_to(limit, 0.5), limit.objective + 1, limit.objective)


def test_a_layer_is_suspicious_below_a_tenth_of_what_the_limit_keeps(limit, weights):
    name, size = next((layer.name, layer.weights) for layer in limit.layers() if layer.weights > 1000)
    rows = tuple(dataclasses.replace(row, sparsity=0.5 if row.name == name else 1.0) for row in limit.layers())
    limit = dataclasses.replace(with_bounds(limit, limit.lower, 1.0), layer_table=rows)
    pruned = dict(weights)
    for kept, suspicious in ((size // 20 + 1, False), (size // 20 - 1, True), (0, True)):
        mask = (torch.arange(size) < kept).view_as(weights[name])
        pruned[name] = torch.where(mask, torch.ones(()), torch.zeros(()))
        result = judged(limit, pruned)
        layers = [case for case in result.cases if case.name.startswith("layer ")]
        assert [case.name for case in layers] == [f"layer {name}"] * suspicious
        assert result.status == ("open" if suspicious else "achievable")
        assert ("removed altogether" in result.reason) == (kept == 0)
        assert result.layers[name] == pytest.approx(1 - kept / size)


def test_everything_removed_is_beyond(limit, weights):
    limit = with_bounds(limit, limit.lower, 0.9)
    result = judged(limit, {name: torch.zeros_like(weight) for name, weight in weights.items()}, 100.0)
    assert (result.sparsity, result.place, result.status) == (1.0, "beyond", "infeasible")


def test_a_network_that_was_retrained_may_change_every_weight_that_it_keeps(limit):
    pruned = {name: 2 * weight for name, weight in pruned_to(limit, limit.lower / 2).items()}
    assert judged(limit, pruned, -0.1).status == "achievable"


# ------------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("rise", "expected"),
    [
        (-0.04, "the loss falls by 0.04, a rise of 0.02 is allowed"),
        (0.0, "the loss does not change, a rise of 0.02 is allowed"),
        (0.01234, "the loss rises by 0.0123, a rise of 0.02 is allowed"),
        (0.0200001, "the loss rises by 0.0200001, a rise of 0.02 is allowed"),
        (0.3, "the loss rises by 0.3, a rise of 0.02 is allowed"),
    ],
)
def test_words_of_the_criterion(limit, rise, expected):
    dense = dataclasses.replace(limit.evidence.dense, objective=0.0)
    limit = dataclasses.replace(limit, evidence=dataclasses.replace(limit.evidence, dense=dense))
    result = judged(allowing(limit, 0.02), pruned_to(limit, 0.1), rise)
    assert reasons(result)["loss"] == expected
    assert result.status == ("achievable" if rise <= 0.02 else "infeasible")


@pytest.mark.parametrize(
    ("drop", "expected"),
    [
        (
            (0.9924, 0.9798, 0.0056, 0.005, "accuracy"),
            "falls by 1.26 +- 1.1 points (99.24 % to 97.98 %), a fall of 0.5",
        ),
        ((0.98, 0.99, 0.002, 0.005, "accuracy"), "rises by 1 +- 0.4 points (98.00 % to 99.00 %), a fall of 0.5 points"),
        ((0.98, 0.98, 0.002, 0.005, "accuracy"), "does not change, +- 0.4 points (98.00 %), a fall of 0.5 points is"),
        ((0.98, 0.98, 0.0, 0.005, "accuracy"), "does not change (98.00 %), a fall of 0.5 points is allowed"),
        ((-1.5, -1.75, None, 0.2, "score"), "falls by 0.25 (-1.5 to -1.75), a fall of 0.2 is allowed"),
        ((-1.5, -1.75, 0.05, None, "score"), "falls by 0.25 +- 0.1 (-1.5 to -1.75); the loss decides"),
    ],
)
def test_words_of_the_metric(limit, drop, expected):
    reason = reasons(judged(limit, pruned_to(limit, 0.1), 0.0, MetricDrop(*drop)))["metric"]
    assert reason.startswith(f"the {drop[-1]} {expected}")


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [
        (0.5, 0.9, "50.0 % is in reach: pruning alone reaches 50.0 %"),
        (0.5 - 1e-5, 0.9, "50 % is more than the 49.999 % that pruning alone reaches, and no more than the bound of "),
        (0.2, 0.5, "50.0 % is more than the 20.0 % that pruning alone reaches, and no more than the bound of the qua"),
        (0.2, 0.5 - 1e-5, "50 % is beyond 49.999 %, the bound of the quadratic model and its numerical error, and ye"),
    ],
)
def test_words_of_the_sparsity(limit, lower, upper, expected):
    """Two that differ are written so that they differ."""
    limit = with_bounds(limit, lower, upper)
    assert reasons(judged(limit, pruned_to(limit, 0.5)))["sparsity"].startswith(expected)


def test_what_was_not_measured_is_told_as_that_of_the_quadratic_model(limit):
    limit = with_bounds(dataclasses.replace(limit, achieved=None), 0.6, 0.9)
    expected = "50.0 % is in reach: pruning alone reaches by the quadratic model 60.0 %"
    assert reasons(judged(limit, pruned_to(limit, 0.5)))["sparsity"] == expected


def test_the_loss_is_told_beside_what_its_bar_stands_for(limit):
    settings = dataclasses.replace(limit.settings, metric="accuracy", max_drop=0.05)
    limit = dataclasses.replace(limit, settings=settings, allowed=Allowed(0.02, 0.01, 0.03, "max-drop"))
    drop = MetricDrop(0.5, 0.49, 0.01, 0.05)
    lost = "at which one-shot pruned networks have lost 5 points"
    for rise, expected in (
        (0.03, f"rises by 0.03, beyond the 0.02 {lost}"),
        (0.01, "rises by 0.01"),
        (0, "does not change"),
    ):
        reason = reasons(judged(limit, pruned_to(limit, 0.1), rise, drop))["loss"]
        assert reason == f"the loss {expected}; the accuracy decides"


# -------------------------------------------------------------------------------------------------- bad input


def test_wrong_pairs_are_refused(limit, weights):
    name = next(iter(weights))
    good = pruned_to(limit, 0.5)
    undefined = good[name].clone()
    undefined.view(-1)[0] = math.nan
    cases = {
        "pruned: expected .* got nothing": (weights, {key: value for key, value in good.items() if key != name}),
        "pruned: expected .* got \\(3,\\)": (weights, good | {name: torch.ones(3)}),
        "pruned: holds NaN": (weights, good | {name: undefined}),
        "dense: holds NaN": (good | {name: undefined}, good),
        "dense: 50.00% of its weights are zero": (good, good),
        "limit: belongs to other weights": ({key: 1.01 * value for key, value in weights.items()}, good),
    }
    for message, (dense, pruned) in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            compare(limit, dense, pruned, limit.objective, limit.objective)
        assert "\n" not in str(caught.value)
    zeros = weights | {name: weights[name].clone()}
    zeros[name].view(-1)[:5] = 0
    with pytest.raises(UserError, match=r"pruned: has 15,000 non-zero weights, dense 14,995; .*swapped"):
        compare(limit, zeros, weights, limit.objective, limit.objective)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_undefined_values_are_refused(limit, weights, value):
    with pytest.raises(UserError, match="pruned: expected a finite loss"):
        compare(limit, weights, weights, limit.objective, value)
    with pytest.raises(UserError, match=r"limit: the loss of dense was .*; give the data that the limit was predicted"):
        compare(limit, weights, weights, value, limit.objective)
    for network, means in (("dense", (value, 0.5)), ("pruned", (0.5, value))):
        with pytest.raises(UserError, match=f"{network}: expected a finite mean of the metric"):
            judged(limit, weights, 0.0, MetricDrop(*means, 0.1, 0.1))


def test_a_limit_of_other_parameters_is_refused(limit, weights):
    fewer = dict(list(weights.items())[1:])
    with pytest.raises(UserError, match="limit: belongs to other weights"):
        compare(limit, fewer, fewer, limit.objective, limit.objective)


# -------------------------------------------------------------------------- the two forms of the check agree


@pytest.fixture(scope="module")
def demonstrated(digits, tmp_path_factory):
    return trained_network(NETWORK, digits, tmp_path_factory.mktemp("demo"))


def passed(model, batches):
    """Mean loss and right answers of a network, by torch alone."""
    with torch.no_grad():
        outputs = [(model(x), y) for x, y in batches]
    losses = [functional.cross_entropy(z, y, reduction="none").double() for z, y in outputs]
    return float(torch.cat(losses).mean()), torch.cat([(z.argmax(1) == y).double() for z, y in outputs])


@pytest.mark.parametrize("max_drop", [None, 0.005, 0.02])
def test_a_sparsity_and_the_network_pruned_to_it_are_judged_alike(demonstrated, digits, max_drop):
    """At 200 sparsities; a stretch that passes again beyond the first crossing is left out.

    There a network is judged by what it does itself, a sparsity by the first crossing.
    """
    model, training, held_out = copy.deepcopy(demonstrated), digits.batches("train", 1000), digits.batches("test", 1000)
    options = {"samples": 64, "steps": 4, "probes": 1, "progress": False}
    limit = predict_limit(model, training, metric="accuracy", max_drop=max_drop, held_out=held_out, **options)
    dense, right = passed(model, training)[0], passed(model, held_out)[1]
    failing = next(point.sparsity for point in limit.evidence.points if point.sparsity > limit.lower)
    assert failing - limit.lower < 1e-3
    sparsities = sorted([*np.linspace(0.005, 0.999, 196), limit.lower, failing, 0.0, (limit.lower + failing) / 2])
    assert len(sparsities) == 200
    pairs = []
    for sparsity in sparsities:
        pruned = limit.prune(model, sparsity)
        weights = {name: dict(pruned.named_parameters())[name].detach() for name in limit.settings.parameters}
        drop = MetricDrop.between(right, passed(pruned, held_out)[1], max_drop)
        comparison = compare(limit, limit.profile.weights, weights, dense, passed(pruned, training)[0], drop)
        pairs.append((sparsity, limit.check(sparsity).status == "achievable", comparison.status == "achievable"))
    again = max((sparsity for sparsity, _, passes in pairs if passes and sparsity > failing), default=failing)
    asked = [pair for pair in pairs if pair[0] <= limit.lower or pair[0] == failing or pair[0] > again]
    assert [pair for pair in asked if pair[1] is not pair[2]] == []
    assert len(asked) > 170
    assert {passes for _, _, passes in asked} == {True, False}
    if max_drop is None:
        assert again == failing
