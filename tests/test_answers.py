"""The rungs: each with its own interval, basis and status, and what settles it."""

import dataclasses

import pytest
from helpers import small_limit, unknown_limit

from pruning_limits import answers
from pruning_limits.answers import (
    Answer,
    bound,
    crossed,
    directional,
    ggn_formula,
    one_shot,
    retrained,
    settled_text,
    spectral_features,
    with_window,
)
from pruning_limits.epsilon import Allowed
from pruning_limits.evidence import solve
from pruning_limits.forecast import Forecast
from pruning_limits.kinematics import concentration_width
from pruning_limits.settings import OWN_LOSS, Retuning


@pytest.fixture(scope="module")
def limit():
    return small_limit(metric="accuracy", max_drop=0.05, epsilon="batch-std")


@pytest.fixture(scope="module")
def by_loss():
    return small_limit()


def with_error(evidence, error):
    """Return evidence whose bound has a numerical error."""
    ggn = dataclasses.replace(evidence.ggn, step_error=error, sample_error=0.0, above=None, bracket=None)
    return dataclasses.replace(evidence, ggn=ggn, directions=dataclasses.replace(evidence.directions, step_error=0.0))


def test_pruning_alone_lies_between_the_last_that_holds_and_the_first_that_fails(by_loss):
    answer = by_loss.answer("one-shot")
    rises = {point.sparsity: point.rise for point in by_loss.evidence.points}
    assert rises[answer.low] <= by_loss.epsilon < rises[answer.high]
    assert all(rise <= by_loss.epsilon for sparsity, rise in rises.items() if sparsity <= answer.low)
    assert answer.sparsity == answer.low
    assert answer.basis == "measured"
    assert f"{answer.high:.2%}" in answer.status


def test_the_metric_decides_where_a_fall_is_allowed(limit):
    answer = limit.answer("one-shot")
    points = limit.evidence.points
    assert all(point.drop <= 0.05 for point in points if point.sparsity <= answer.sparsity)
    first = next(point for point in points if point.sparsity > answer.sparsity)
    assert first.drop > 0.05
    assert answer.low <= answer.sparsity < first.sparsity <= answer.high
    assert answer.metric == pytest.approx(limit.dense_metric - max(0.0, _drop_at(points, answer.sparsity)))
    assert "60 training samples" in answer.status


def _drop_at(points, sparsity):
    return next(point.drop for point in points if point.sparsity == sparsity)


def test_without_a_measurement_pruning_alone_is_a_formula():
    answer = small_limit(measure=False).answer("one-shot")
    assert (answer.basis, answer.metric) == ("formula", None)
    assert answer.status.startswith("not measured")
    assert answer.low <= answer.sparsity <= answer.high


@pytest.mark.parametrize("error", [0.0, 0.01])
def test_the_bound_is_the_directional_limit_and_the_window(by_loss, error):
    at = 0.8
    answer = bound(with_error(by_loss.evidence, error), Allowed.exactly(by_loss.epsilon), at, 0.5)
    expected = at + concentration_width(at * 108, 108) / 108
    if with_window(at + error, 108) >= 1:
        pytest.skip("the window alone reaches 100 %")
    assert answer.sparsity == pytest.approx(expected) == with_window(at, 108)
    assert (answer.low, answer.high) == pytest.approx((with_window(at - error, 108), with_window(at + error, 108)))
    assert answer.basis == "bound"


def test_samples_move_what_the_bound_keeps_by_a_factor(by_loss):
    evidence, allowed, at = with_error(by_loss.evidence, 0.0), Allowed.exactly(by_loss.epsilon), 0.5
    drawn = dataclasses.replace(evidence, directions=dataclasses.replace(evidence.directions, spread=0.5))
    exact, answer = bound(evidence, allowed, at, 0.1), bound(drawn, allowed, at, 0.1)
    assert answer.sparsity == exact.sparsity
    assert answer.high == pytest.approx(with_window(1 - 0.5 / 1.5, 108))
    assert answer.low == pytest.approx(with_window(1 - 0.5 * 1.5, 108))


def test_samples_multiply_what_the_steps_leave_of_the_bound(by_loss):
    evidence, allowed, at = with_error(by_loss.evidence, 0.05), Allowed.exactly(by_loss.epsilon), 0.2
    drawn = dataclasses.replace(evidence, directions=dataclasses.replace(evidence.directions, spread=3.0))
    answer = bound(drawn, allowed, at, 0.1)
    assert answer.high == pytest.approx(with_window(1 - (0.8 - 0.05) / 4, 108))
    assert answer.high < 1
    assert answer.low == 0.1  # what pruning alone reaches


def test_the_directional_limit_grows_by_itself(by_loss):
    evidence, allowed = by_loss.evidence, Allowed.exactly(by_loss.epsilon)
    grown = dataclasses.replace(evidence, directions=dataclasses.replace(evidence.directions, growth=2.0))
    assert 1 - directional(grown, allowed) == pytest.approx(2 * (1 - directional(evidence, allowed)))


def test_steps_move_the_bound_as_they_move_the_directional_limit(by_loss):
    evidence, allowed = by_loss.evidence, Allowed.exactly(by_loss.epsilon)
    apart = evidence.ggn.measure.scaled(2.0)
    ggn = dataclasses.replace(evidence.ggn, step_error=0.9, sample_error=0.0, above=apart, bracket=None, growth=1.0)
    evidence = dataclasses.replace(
        evidence, ggn=ggn, directions=dataclasses.replace(evidence.directions, step_error=0.01)
    )
    ends = [
        evidence.directions.limit(measure, evidence.curve, allowed.epsilon).sparsity for measure in (ggn.measure, apart)
    ]
    at = directional(evidence, allowed)
    answer = bound(evidence, allowed, at, 0.0)
    widest = max(abs(end - at) for end in ends)
    assert 0 < widest < 0.5
    assert answer.low == pytest.approx(with_window(at - widest - 0.01, 108))


def test_a_bound_is_unknown_where_it_says_nothing(by_loss):
    evidence, allowed = by_loss.evidence, Allowed.exactly(by_loss.epsilon)
    wide = bound(with_error(evidence, 0.99), allowed, 0.5, 0.1)
    refuted = bound(with_error(evidence, 0.0), allowed, 0.3, 0.99)
    silent = bound(unknown_limit().evidence, allowed, None, 0.1)
    for answer in (wide, refuted, silent):
        assert answer.basis == "unknown"
        assert answer.sparsity is answer.low is answer.high is None
    assert wide.status.endswith(f"bound, {with_window(0.5, 108):.2%}, reaches 100 %")
    assert refuted.status.startswith(answers.REFUTED)
    assert "99.00%" in refuted.status
    assert silent.status.startswith("the GGN is zero")


def test_re_training_is_forecast_by_the_loss(by_loss):
    answer, features = by_loss.answer("re-trained"), {"weights": by_loss.parameters, "one-shot": 1 - by_loss.lower}
    features |= spectral_features(by_loss.evidence, by_loss.settings, by_loss.epsilon)
    forecast = Forecast.shipped().of(features)
    assert answer.basis == "forecast"
    assert 1 - answer.sparsity == pytest.approx(forecast.kept)
    assert (1 - answer.high, 1 - answer.low) == pytest.approx((forecast.low, min(forecast.high, 1 - by_loss.lower)))
    assert "9 of 10 networks" in answer.status
    assert ("outside the bench" in answer.status) == bool(forecast.outside)


def test_nothing_is_claimed_of_the_formula_for_re_training(by_loss):
    settings = dataclasses.replace(by_loss.settings, criterion="objective")
    answer = solve(by_loss.evidence, settings, by_loss.allowed).answer("re-trained")
    assert answer == ggn_formula(by_loss.evidence, by_loss.allowed)
    assert answer.basis == "formula"
    assert "nothing is claimed" in answer.status
    assert answer.low <= answer.sparsity <= answer.high


def test_other_re_tuning_is_outside_the_bench(by_loss):
    settings = dataclasses.replace(by_loss.settings, retune=Retuning(samples=512))
    tuned = Answer("re-tuned", 0.6, 0.6, 0.6, "measured", None, "")
    reached = (by_loss.answer("one-shot"), tuned)
    answer = retrained(by_loss.evidence, settings, by_loss.allowed, reached)
    assert "re-tuning took 512 samples a stage" in answer.status
    usual = dataclasses.replace(settings, retune=Retuning())
    assert "re-tuning took" not in retrained(by_loss.evidence, usual, by_loss.allowed, reached).status


def test_a_loss_of_the_users_own_is_outside_the_bench(by_loss):
    settings = dataclasses.replace(by_loss.settings, loss=OWN_LOSS)
    answer = solve(by_loss.evidence, settings, by_loss.allowed).answer("re-trained")
    assert "the loss is the user's own, the bench has cross-entropy" in answer.status


@pytest.mark.parametrize(("ends", "settled"), [((0.5, 0.5), True), ((0.49, 0.51), True), ((0.48, 0.51), False)])
def test_an_answer_is_settled_within_the_tolerance_to_both_sides(ends, settled):
    answer = Answer("formula", 0.5, *ends, "formula", None, "")
    assert answer.settled(0.01) is settled
    assert not dataclasses.replace(answer, sparsity=None, low=None, high=None, basis="unknown").settled(1.0)


def test_the_status_names_what_is_settled():
    answer = Answer("formula", 0.5, 0.5, 0.5, "formula", None, "")
    wide = dataclasses.replace(answer, rung="re-trained", low=0.4, high=0.6)
    unknown = Answer("bound", None, None, None, "unknown", None, "why")
    assert settled_text((answer,), 0.01) == "settled: formula"
    assert settled_text((unknown,), 0.01) == "not settled: bound (unknown)"
    text = settled_text((answer, wide, unknown), 0.01)
    assert text == "settled: formula; not settled: re-trained (+- 10.0 points), bound (unknown)"


def test_a_crossing_at_another_epsilon_is_read_off_the_same_points(by_loss):
    for factor in (0.1, 0.5, 2.0):
        where = crossed(by_loss.evidence, by_loss.settings, factor * by_loss.epsilon)
        answer = one_shot(by_loss.evidence, by_loss.settings, Allowed.exactly(factor * by_loss.epsilon))
        assert (answer.low, answer.high) == (where.low, where.high)
