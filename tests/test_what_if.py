"""``what_if`` with an allowed fall of the metric, from what was measured."""

import dataclasses

import numpy as np
import pytest
from helpers import small_limit

from estimators import UserError
from pruning_limits.epsilon import from_max_drop


@pytest.fixture(scope="module")
def limit():
    return small_limit(metric="accuracy", epsilon="batch-std", max_drop=0.05)


def test_the_same_fall_gives_the_same_limit(limit):
    assert limit.what_if(max_drop=0.05) == limit
    plain = small_limit(metric="accuracy")
    assert plain.what_if(max_drop=0.05).settings == limit.settings
    assert plain.what_if(max_drop=0.05).allowed.origin == "max-drop"


def test_epsilon_and_pruning_alone_follow_from_another_fall(limit):
    for drop in (0.01, 0.02, 0.1, 0.2):
        answer = limit.what_if(max_drop=drop)
        passing = [0.0]
        for point in limit.evidence.points:
            if point.drop > drop:
                break
            passing.append(point.sparsity)
        assert answer.lower == passing[-1]
        assert answer.allowed == from_max_drop(limit.evidence.points, drop)
        assert answer.sparsity == pytest.approx(limit.what_if(epsilon=answer.epsilon).sparsity, abs=1e-12)
    reached = [limit.what_if(max_drop=drop).lower for drop in np.geomspace(0.01, 0.3, 8)]
    assert reached == sorted(reached)


def test_under_scaled_weights_only_the_rise_follows(limit):
    answer = limit.what_if(max_drop=0.1, weight_scale=0.5)
    assert answer.max_drop is None
    assert answer.allowed == limit.what_if(max_drop=0.1).allowed
    assert answer.achieved is None


@pytest.mark.parametrize("scales", [{"curvature_scale": 4.0}, {"weight_scale": 2.0}, {"weight_scale": 0.5}])
def test_the_forecast_of_scaled_conditions_is_that_of_another_epsilon(scales):
    """All rises of the quadratic model go with curvature and squared weights, so that epsilon over these decides."""
    plain = small_limit()
    times = scales.get("curvature_scale", 1.0) * scales.get("weight_scale", 1.0) ** 2
    scaled, other = plain.what_if(**scales), plain.what_if(epsilon=plain.epsilon / times)
    assert scaled.answer("re-trained").basis == other.answer("re-trained").basis == "forecast"
    assert scaled.retrained == pytest.approx(other.retrained, abs=1e-9)
    assert scaled.retrained != pytest.approx(small_limit(measure=False).what_if(**scales).retrained, abs=1e-3)


@pytest.mark.parametrize("scale", ["weight_scale", "curvature_scale"])
def test_the_forecast_does_not_jump_where_a_scale_leaves_one(scale):
    plain = small_limit()
    assert plain.what_if(**{scale: 1 + 1e-9}).retrained == pytest.approx(plain.retrained, abs=1e-6)


def test_scaled_conditions_say_what_the_forecast_rests_on(limit):
    told = "; under scaled conditions it takes what pruning alone reaches by the scaled rises"
    assert told in limit.what_if(weight_scale=2.0).answer("re-trained").status
    assert told not in limit.answer("re-trained").status
    assert told not in small_limit(measure=False).what_if(weight_scale=2.0).answer("re-trained").status
    tuned = small_limit(retune=True).what_if(curvature_scale=2.0).answer("re-trained")
    assert f"{told}, and leaves out what was re-tuned" in tuned.status


def test_falls_without_an_answer_are_refused(limit):
    with pytest.raises(UserError, match=r"^max_drop: epsilon follows from it; give the one or the other$"):
        limit.what_if(epsilon=0.1, max_drop=0.1)
    with pytest.raises(UserError, match=r"no network that was measured has lost 0.9 of the metric; ask for less"):
        limit.what_if(max_drop=0.9)
    with pytest.raises(UserError, match=r"^max_drop: expected a positive number"):
        limit.what_if(max_drop=-0.1)
    with pytest.raises(UserError, match=r"name it with metric="):
        small_limit().what_if(max_drop=0.1)
    with pytest.raises(UserError, match=r"nothing was measured under these conditions"):
        limit.what_if(weight_scale=2.0).what_if(max_drop=0.1)


def test_a_fall_that_no_rise_goes_with_takes_the_fluctuation_of_a_batch(limit):
    points = tuple(dataclasses.replace(point, drop=0.0) for point in limit.evidence.points)
    evidence = dataclasses.replace(limit.evidence, points=points)
    plain = small_limit(metric="accuracy", epsilon="batch-std")
    answer = dataclasses.replace(plain, evidence=evidence).what_if(max_drop=0.1)
    assert answer.allowed == plain.allowed
    assert answer.lower == points[-1].sparsity
    assert any("no rise of the loss goes with" in note for note in answer.notes)
    with pytest.raises(UserError, match=r"no network that was measured has lost 0.1 of the metric"):
        dataclasses.replace(small_limit(metric="accuracy"), evidence=evidence).what_if(max_drop=0.1)
