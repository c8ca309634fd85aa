from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from helpers import isotonic
from scipy.optimize import brentq

from pruning_limits.epsilon import Allowed, from_max_drop
from pruning_limits.measured import Point

SPARSITIES = [0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]


def points_of(
    rise: Callable[[float], float], drop: Callable[[float], float], error: float = 1e-3, start: float = 0.0
) -> list[Point]:
    return [Point(s, rise(s), 0.0, drop(s), error * (1 + s)) for s in SPARSITIES if s > start]


def directly(points: list[Point], max_drop: float, shift: float, start: float = 0.0) -> float | None:
    """Rise at the root of the fall's fit, both between points as functions of the kept fraction's logarithm."""
    places = -np.log1p([-start, *(-row.sparsity for row in points)])
    errors = np.array([row.drop_error or 0.0 for row in points])
    falls = np.r_[0.0, (np.array(isotonic([row.drop or 0.0 for row in points], errors**-2.0)) + shift * errors)]
    rises = np.r_[0.0, isotonic([row.rise for row in points], np.ones(len(points)))]
    after = np.flatnonzero(falls > max_drop)
    if not len(after):
        return None
    n = after[0]
    root = brentq(lambda at: np.interp(at, places, falls) - max_drop, places[n - 1], places[n], xtol=1e-15)
    return float(np.interp(root, places, rises))


@pytest.mark.parametrize("start", [0.0, 0.4])
@pytest.mark.parametrize("max_drop", [0.004, 0.01, 0.05])
@pytest.mark.parametrize("seed", range(5))
def test_the_rise_and_its_ends_are_those_of_a_direct_computation(start: float, max_drop: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    noise = generator.normal(0, 1, (2, 100))
    points = points_of(
        lambda s: 0.3 * s**3 + 0.02 * noise[0][int(100 * s) - 1],
        lambda s: 0.2 * s**8 + 0.004 * noise[1][int(100 * s) - 1],
        start=start,
    )
    rises = isotonic([row.rise for row in points], np.ones(len(points)))
    allowed = from_max_drop(points, max_drop, start)
    epsilon = directly(points, max_drop, 0.0, start)
    assert allowed is not None
    assert epsilon is not None
    assert allowed.epsilon == pytest.approx(epsilon, rel=1e-9)
    assert allowed.low == pytest.approx(max(0.0, directly(points, max_drop, 2.0, start) or 0.0), rel=1e-9)
    upper = directly(points, max_drop, -2.0, start)
    assert allowed.high == pytest.approx(rises[-1] if upper is None else upper, rel=1e-9)
    assert allowed.low <= allowed.epsilon <= allowed.high
    assert allowed.origin == "max-drop"


def test_a_fall_in_proportion_to_the_rise_gives_the_proportion() -> None:
    points = points_of(lambda s: 4 * s**6, lambda s: s**6)
    for max_drop in (0.001, 0.02, 0.5):
        allowed = from_max_drop(points, max_drop)
        assert allowed is not None
        assert allowed.epsilon == pytest.approx(4 * max_drop, rel=1e-9)


def test_the_ends_are_as_far_as_two_standard_errors_of_the_fall_reach() -> None:
    """Between two far points all is linear: two errors of 0.001 of the fall are 0.004 / 0.1 of the rise's step."""
    points = [Point(0.5, 0.2, 0.0, 0.0, 1e-3), Point(0.9, 0.6, 0.0, 0.1, 1e-3)]
    allowed = from_max_drop(points, 0.05)
    assert allowed is not None
    assert allowed.epsilon == pytest.approx(0.4)
    assert allowed.low == pytest.approx(0.4 - 0.4 * 0.002 / 0.1)
    assert allowed.high == pytest.approx(0.4 + 0.4 * 0.002 / 0.1)


def test_the_upper_end_is_the_largest_rise_where_noise_hides_the_fall() -> None:
    points = [Point(0.5, 0.2, 0.0, 0.0, 0.01), Point(0.9, 0.6, 0.0, 0.06, 0.01)]
    allowed = from_max_drop(points, 0.05)
    assert allowed is not None
    assert allowed.high == 0.6


def test_the_lower_end_is_never_negative() -> None:
    points = [Point(0.5, -0.1, 0.0, 0.01, 0.05), Point(0.9, 0.6, 0.0, 0.2, 0.05)]
    allowed = from_max_drop(points, 0.1)
    assert allowed is not None
    assert allowed.low == 0.0


def test_a_metric_that_never_falls_so_far_gives_none() -> None:
    assert from_max_drop(points_of(lambda s: s, lambda s: 0.01 * s), 0.02) is None
    assert from_max_drop(points_of(lambda s: s, lambda s: -s), 0.02) is None


def test_a_metric_that_falls_by_less_up_to_the_last_weight_gives_none() -> None:
    points = [Point(0.5, 0.1, 0.0, 0.001, 1e-4), Point(1.0, 0.2, 0.0, 0.002, 1e-4)]
    assert from_max_drop(points, 0.01) is None


def test_all_weights_removed_counts_where_only_that_lowers_the_metric() -> None:
    points = [Point(0.9, 0.1, 0.0, 0.0, 1e-4), Point(1.0, 2.1, 0.0, 0.5, 1e-4)]
    allowed = from_max_drop(points, 0.25)
    assert allowed is not None
    assert allowed.epsilon == pytest.approx(1.1)


def test_a_criterion_that_does_not_rise_gives_none() -> None:
    assert from_max_drop(points_of(lambda s: -s, lambda s: s), 0.5) is None
    assert from_max_drop(points_of(lambda s: 0.0, lambda s: s), 0.5) is None


def test_points_without_a_metric_give_none() -> None:
    assert from_max_drop([Point(0.5, 0.1), Point(0.9, 0.4)], 0.01) is None
    assert from_max_drop([], 0.01) is None


def test_points_that_are_not_finite_are_left_out() -> None:
    points = points_of(lambda s: 4 * s**6, lambda s: s**6)
    expected = from_max_drop(points, 0.02)
    for broken in (Point(0.97, math.inf, 0.0, 0.9, 1e-3), Point(0.97, 3.0, 0.0, math.inf, 0.0)):
        assert from_max_drop([*points, broken], 0.02) == expected


def test_a_number_has_no_error() -> None:
    assert Allowed.exactly(0.3) == Allowed(0.3, 0.3, 0.3, "number")
    assert Allowed.exactly(0.3, "batch-std").origin == "batch-std"
