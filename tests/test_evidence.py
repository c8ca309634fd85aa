"""One solver: what predict_limit, what_if and a file say of the same evidence is the same."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from helpers import random, seeded
from torch import nn

from pruning_limits import L1, PruningLimit, predict_limit
from pruning_limits.answers import ggn_formula
from pruning_limits.epsilon import Allowed
from pruning_limits.evidence import solve
from pruning_limits.forecast import Forecast

EPSILONS = np.geomspace(0.002, 0.6, 10).tolist()
SETTINGS = {"parameters": ["0.weight", "2.weight"], "probes": 2}


@pytest.fixture(scope="module")
def problem():
    """A float64 network of 168 weights, whose spectra are exact, with labels that it mostly gets right."""
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        x = random(60, 6, seed=1)
        y = (model(x) + 0.3 * random(60, 3, seed=2)).argmax(1)
    return model, [(x, y)]


ALONE = next(rule for rule in Forecast.shipped().rules if rule.features == ("one-shot",))


@pytest.fixture(scope="module")
def limit(problem):
    return predict_limit(*problem, epsilon=0.03, penalty=L1(1e-3), metric="accuracy", **SETTINGS)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_a_what_if_is_a_fresh_prediction_at_that_epsilon(problem, limit, epsilon):
    fresh = predict_limit(*problem, epsilon=epsilon, penalty=L1(1e-3), metric="accuracy", **SETTINGS)
    answer = limit.what_if(epsilon=epsilon)
    assert answer.settings == fresh.settings
    assert answer.allowed == fresh.allowed
    for name in ("sparsity", "interval", "objective", "dense_metric", "max_drop"):
        assert getattr(answer, name) == pytest.approx(getattr(fresh, name), abs=1e-9), name
    assert answer.sharpness == fresh.sharpness
    assert answer.layers() == fresh.layers()
    assert answer.answer("formula") == fresh.answer("formula")
    assert ggn_formula(answer.evidence, answer.allowed) == ggn_formula(fresh.evidence, fresh.allowed)
    # the forecast takes what pruning reaches alone, which is known up to its bracket
    for told in (answer, fresh):
        if told.lower < 1:
            kept = math.exp(ALONE.intercept) * (1 - told.lower) ** ALONE.slopes[0]
            assert told.retrained == pytest.approx(max(told.lower, 1 - kept), abs=1e-9)
    # directions are measured at sparsities near the answer, and interpolated between
    assert answer.directional == pytest.approx(fresh.directional, abs=0.02)
    # what pruning reaches alone lies in the bracket of the networks that were measured
    bracket, measured = answer.answer("one-shot"), fresh.answer("one-shot")
    assert bracket.low - 1e-9 <= measured.low <= measured.high <= bracket.high + 1e-9
    assert (bracket.basis, measured.basis) == ("measured", "measured")
    assert model_notes(answer) == model_notes(fresh)


def model_notes(limit):
    """Notes that do not compare with what was measured, which a what-if knows at fewer sparsities."""
    return [note for note in limit.notes if not note.startswith(("pruning alone", "the formula is"))]


def test_the_same_evidence_gives_the_same_answer(limit):
    solved = solve(limit.evidence, limit.settings, limit.allowed, limit.profile)
    assert solved == limit == limit.what_if()
    assert solved.layers() == limit.layers()


def test_a_limit_from_a_file_is_its_evidence_solved(limit, tmp_path):
    limit.to_json(tmp_path / "limit.json")
    loaded = PruningLimit.from_json(tmp_path / "limit.json")
    for epsilon in EPSILONS[::3]:
        answer, other = (asked.what_if(epsilon=epsilon) for asked in (limit, loaded))
        assert dataclasses.replace(answer, layer_table=()) == dataclasses.replace(other, layer_table=())


def test_an_error_of_one_rung_does_not_enter_another(limit):
    clean = solve(limit.evidence, limit.settings, limit.allowed)
    noisy = dataclasses.replace(limit.evidence.hessian, sample_error=0.3)
    blurred = solve(dataclasses.replace(limit.evidence, hessian=noisy), limit.settings, limit.allowed)
    for rung in ("one-shot", "re-trained", "bound"):
        assert blurred.answer(rung) == clean.answer(rung)
    assert blurred.answer("formula").high > clean.answer("formula").high
    for sparsity in (0.1, 0.5, 0.9, 0.99):
        assert blurred.check(sparsity) == clean.check(sparsity)


@pytest.mark.parametrize(("weight_scale", "curvature_scale"), [(2.0, 1.0), (1.0, 0.5), (0.5, 3.0)])
def test_scaled_evidence_scales_every_rise(limit, weight_scale, curvature_scale):
    factor = weight_scale**2 * curvature_scale
    scaled = limit.evidence.scaled(weight_scale, curvature_scale)
    assert not scaled.measured
    for point, other in zip(limit.evidence.points, scaled.points, strict=True):
        assert other.rise == pytest.approx(factor * point.rise)
        assert other.drop is None
    for row, other in zip(limit.evidence.model_points, scaled.model_points, strict=True):
        assert other.rise == pytest.approx(factor * row.rise)
    for layer, other in zip(limit.evidence.layers, scaled.layers, strict=True):
        assert other.norm == pytest.approx(weight_scale * layer.norm)
        assert other.trace == pytest.approx(curvature_scale * layer.trace)
    assert limit.evidence.scaled(1.0, 1.0) is limit.evidence
    answer = solve(scaled, limit.settings, limit.allowed)
    assert answer.achieved is None
    assert answer.answer("one-shot").basis == "formula"


def test_the_allowed_rise_moves_every_rung_up(limit):
    solved = [solve(limit.evidence, limit.settings, Allowed.exactly(epsilon)) for epsilon in EPSILONS]
    for rung in ("one-shot", "re-trained", "formula"):
        values = [answer.answer(rung).sparsity for answer in solved]
        assert values == sorted(values)
        assert values[0] < values[-1]
