"""Rungs of patterns: the isotropic equation with R by brute force, verdicts, and margins."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import small_limit
from scipy.optimize import brentq

from pruning_limits import PruningLimit, Retuning, UserError
from pruning_limits.measured import Point
from pruning_limits.pattern_answers import NO_BOUND, cost_text, equivalent
from pruning_limits.tuned_points import TunedPoint, Tuning

ASKED = ("unstructured", "1:2", "blocks:3x1", "channels")


@pytest.fixture(scope="module")
def limit():
    return small_limit(metric="accuracy", pattern=ASKED)


@pytest.fixture(scope="module")
def by_metric():
    return small_limit(metric="accuracy", max_drop=0.1, epsilon="batch-std", pattern=ASKED)


def eigenvalues(limit):
    """All of them: the network is small enough for that."""
    (rule,) = limit.evidence.hessian.measure.rules
    return np.repeat(rule[0], np.round(rule[1] * limit.parameters).astype(int))


def brute_force_curve(limit, pattern):
    """R^2 of the pattern at every sparsity, by removing groups one after the other."""
    a, b = (weight.double() for weight in limit.profile.weights.values())
    if pattern == "channels":
        squares = (a.square().sum(1) + b.square().sum(0)).sort().values[:-1]
        sizes = np.full(len(squares), 9)
    else:
        parts = [w.reshape(-1, 3, w.shape[1]).square().sum(1).flatten() for w in (a, b)]
        squares, sizes = torch.cat(parts).sort().values, np.full(36, 3)
    counts = np.concatenate([[0], np.cumsum(sizes)])
    return counts / limit.parameters, np.concatenate([[0], np.cumsum(squares.numpy())])


@pytest.mark.parametrize("pattern", ["blocks:3x1", "channels"])
def test_the_equation_with_r_of_the_pattern(limit, pattern):
    own, spectrum = limit.for_pattern(pattern), np.abs(eigenvalues(limit))
    sparsities, squared = brute_force_curve(limit, pattern)

    def excess(s):
        c = 2 * limit.epsilon / np.interp(s, sparsities, squared)
        return float((c / (c + spectrum)).mean()) - s

    assert own.sparsity == pytest.approx(brentq(excess, 1e-6, sparsities[-1]), abs=1e-9)
    assert own.sparsity < limit.sparsity


def test_of_one_sparsity_the_answer_is_what_its_r_allows(limit):
    own, spectrum = limit.for_pattern("1:2"), np.abs(eigenvalues(limit))
    pairs = torch.cat([w.reshape(-1, 2).abs().min(1).values for w in limit.profile.weights.values()])
    c = 2 * limit.epsilon / float(pairs.square().sum())
    assert own.sparsity == pytest.approx(float((c / (c + spectrum)).mean()), abs=1e-9)
    points = 100 * (own.sparsity - 0.5)
    side = "to spare" if points > 0 else "short"
    assert own.answer("formula").status.endswith(
        f"at the R of 1:2, which removes 50.00%: {abs(points):.1f} points {side}"
    )


@pytest.mark.parametrize("pattern", ["blocks:3x1", "channels"])
def test_what_pruning_reaches_alone_is_the_first_crossing_of_its_points(limit, pattern):
    own = limit.for_pattern(pattern)
    points = own.evidence.points
    first = next(number for number, point in enumerate(points) if point.rise > limit.epsilon)
    assert own.achieved == own.lower == (points[first - 1].sparsity if first else 0.0)
    assert own.answer("one-shot").high == points[first].sparsity
    bound = own.answer("bound")
    assert (bound.sparsity, bound.basis, bound.status) == (None, "unknown", NO_BOUND)
    assert own.upper == 1
    assert own.directional is None
    assert own.retrained is not None


def with_point(limit, rise, drop=None, error=None):
    """The limit of 1:2 as if it had been measured to cost so much."""
    rows = tuple(
        dataclasses.replace(row, points=(Point(0.5, rise, 0.0, drop, error),)) if row.name == "1:2" else row
        for row in limit.evidence.patterns
    )
    changed = dataclasses.replace(limit, evidence=dataclasses.replace(limit.evidence, patterns=rows))
    return changed.for_pattern("1:2")


def same_cost(own):
    single = own.for_pattern("unstructured").evidence
    return equivalent(own.evidence.points[-1], single.points, own.settings)


def test_a_pattern_that_holds_has_a_margin_in_sparsity(limit):
    rise = limit.epsilon / 2
    own = with_point(limit, rise)
    same = same_cost(own)
    points = [point for point in limit.evidence.points if point.rise < limit.epsilon]
    assert points[0].sparsity <= same <= limit.lower
    verdict = own.check()
    assert verdict == own.check(0.5) == own.check(0.2)
    assert verdict.status == "achievable"
    assert own.lower == own.achieved == 0.5
    spare = f"as much as {same:.1%} of single weights, {100 * (limit.lower - same):.1f} points of sparsity to spare"
    assert verdict.reason == f"1:2 raises the loss by {rise:.2g}, {limit.epsilon:.3g} are allowed (measured): {spare}"
    assert verdict.margin == pytest.approx(limit.lower - same)


def test_a_pattern_that_fails_is_open(limit):
    own = with_point(limit, 2 * limit.epsilon)
    verdict = own.check()
    assert verdict.status == "open"
    assert own.lower == own.achieved == 0
    assert "points of sparsity too many; training may bring it back" in verdict.reason
    assert own.check(0.51).status == "infeasible"
    assert own.check(0.51).reason == "1:2 removes at most 50.00% of the weights of this network"


def test_the_cost_is_told_in_the_metric_where_that_decides(by_metric):
    own = with_point(by_metric, 1.0, drop=0.003, error=0.0005)
    assert cost_text(own.evidence, own.settings, own.allowed) == "1:2 costs 0.3 +- 0.1 points of accuracy, 10 may go"
    assert own.check().status == "achievable"
    assert own.check().metric == pytest.approx(by_metric.dense_metric - 0.003)
    assert with_point(by_metric, 0.0, drop=0.2, error=0.01).check().status == "open"


def test_a_pattern_that_costs_nothing_or_too_much_has_no_equivalent(limit):
    for rise in (-0.1, 0.0, 1e9):
        own = with_point(limit, rise)
        assert same_cost(own) is None
        assert own.check().margin == 0


def re_tuned(limit, pattern, *points):
    """The limit of a pattern as if these networks had been measured, and as if pruning alone did not hold."""
    rows = tuple(
        dataclasses.replace(row, retuned=Tuning(points, 64, 100.0, 3.0)) if row.name == pattern else row
        for row in limit.evidence.patterns
    )
    evidence = dataclasses.replace(limit.evidence, patterns=rows)
    settings = dataclasses.replace(limit.settings, retune=Retuning())
    changed = dataclasses.replace(limit, evidence=evidence, settings=settings)
    return changed.for_pattern("unstructured").for_pattern(pattern)


def test_what_was_re_tuned_in_a_pattern_is_its_answer_up_to_what_it_removes(limit):
    holds, fails = TunedPoint(10 / 12, 0.5 * limit.epsilon), TunedPoint(11 / 12, 2 * limit.epsilon, start=10 / 12)
    answer = re_tuned(limit, "channels", holds, fails).answer("re-tuned")
    assert (answer.sparsity, answer.low, answer.high, answer.basis) == (10 / 12, 10 / 12, 11 / 12, "measured")
    last = dataclasses.replace(fails, rise=0.5 * limit.epsilon)
    own = re_tuned(limit, "channels", holds, last)
    answer = own.answer("re-tuned")
    assert (answer.sparsity, answer.high) == (11 / 12, 11 / 12)
    assert "re-tuning reaches it" in own.check(0.9).reason
    assert re_tuned(limit, "channels", holds, last).for_pattern("1:2").answer("re-tuned").basis == "unknown"


def test_of_one_sparsity_re_tuning_holds_or_not_by_its_worst_run(by_metric):
    alone = with_point(by_metric, 1.0, drop=0.2, error=0.01)
    assert alone.check().status == "open"
    good, bad = (TunedPoint(0.5, 1.0, 0.0, drop, 0.01, seed=seed) for seed, drop in enumerate((0.05, 0.15)))
    own = re_tuned(alone, "1:2", good)
    answer = own.answer("re-tuned")
    assert (answer.sparsity, answer.low, answer.high) == (0.5, 0.5, 0.5)
    assert answer.metric == pytest.approx(by_metric.dense_metric - 0.05)
    assert answer.status.startswith("re-tuned, 1:2 costs 5 +- 2 points of accuracy, 10 may go, measured; 64 training")
    assert own.check().status == "open"
    assert "; re-tuning reaches it: 1:2 costs 5 +- 2 points of accuracy, 10 may go (measured)" in own.check().reason
    assert own.lower == 0
    answer = re_tuned(alone, "1:2", good, bad).answer("re-tuned")
    assert (answer.sparsity, answer.metric) == (0.0, alone.answer("one-shot").metric)
    assert "costs 15 +- 2 points" in answer.status
    holds = with_point(by_metric, 1.0, drop=0.01, error=0.001)
    assert re_tuned(holds, "1:2", bad).answer("re-tuned").sparsity == 0.5  # pruning alone does


def test_a_sparsity_is_needed_where_there_are_many(limit):
    for pattern in ("unstructured", "channels"):
        with pytest.raises(UserError, match=r"^sparsity: expected a number in \[0, 1\); .* has many sparsities$"):
            limit.for_pattern(pattern).check()


def test_no_more_than_the_pattern_removes(limit):
    own = limit.for_pattern("channels")
    assert own.what_if(epsilon=1e6).answer("formula").sparsity == 11 / 12
    row = dataclasses.replace(own.evidence.patterns[-1], points=(Point(11 / 12, 0.5 * limit.epsilon),))
    evidence = dataclasses.replace(limit.evidence, patterns=(*limit.evidence.patterns[:-1], row))
    answer = dataclasses.replace(limit, evidence=evidence).for_pattern("channels").answer("one-shot")
    assert (answer.sparsity, answer.low, answer.high) == (11 / 12, 11 / 12, 11 / 12)
    assert answer.status == "measured; the pattern removes no more than 91.67%"
    assert own.check(0.95).status == "infeasible"


def test_what_if_keeps_the_pattern_and_takes_epsilon_from_single_weights(by_metric):
    own = by_metric.for_pattern("channels")
    other = own.what_if(max_drop=0.2)
    assert other.pattern == "channels"
    assert other.epsilon == by_metric.what_if(max_drop=0.2).epsilon
    assert other.for_pattern("unstructured") == by_metric.what_if(max_drop=0.2)
    scaled = by_metric.what_if(weight_scale=2.0).for_pattern("channels")
    assert scaled == own.what_if(weight_scale=2.0)
    assert scaled.answer("one-shot").basis == "formula"
    assert (
        by_metric.what_if(curvature_scale=2.0).for_pattern("1:2").check().reason.count("scaled from what was measured")
    )


def test_files_and_notes(limit, tmp_path):
    for pattern in ASKED:
        own = limit.for_pattern(pattern)
        own.to_json(tmp_path / "limit.json")
        assert PruningLimit.from_json(tmp_path / "limit.json") == own
        assert own.pattern in ("unstructured", pattern)


def test_the_first_pattern_is_returned():
    own = small_limit(pattern="1:2", measure=False)
    assert own.pattern == "1:2"
    assert own.achieved is None
    assert own.lower == 0
    assert own.check().status == "open"
    assert "not measured" in own.check().reason
    assert own.answer("one-shot").sparsity is None
