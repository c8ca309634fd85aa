from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers import isotonic
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from pruning_limits.measured import Bar, Crossing, Point, at_sparsity, crossing, level, monotone

numbers = st.floats(-10, 10).map(lambda value: round(value, 3))
errors = st.floats(0.01, 5).map(lambda value: round(value, 3))
rows = st.lists(st.tuples(numbers, errors), min_size=1, max_size=8)


@given(rows)
def test_the_isotonic_fit_is_that_of_the_min_max_formula(pairs: list[tuple[float, float]]) -> None:
    values, deviations = [value for value, _ in pairs], [error for _, error in pairs]
    weights = [error**-2 for error in deviations]
    fit = monotone(values, deviations)
    assert fit == pytest.approx(isotonic(values, weights), abs=1e-9)
    assert monotone(values) == pytest.approx(isotonic(values, [1.0] * len(values)), abs=1e-9)


def test_the_isotonic_fit_solves_its_quadratic_program() -> None:
    """Least squares over a beginning of any sign and steps that are not negative."""
    generator = np.random.default_rng(0)
    values = np.linspace(0, 1, 30) + generator.normal(0, 0.3, 30)
    deviations = generator.uniform(0.1, 1, 30)
    steps = np.tril(np.ones((30, 30))) / deviations[:, None]
    lowest = np.r_[-np.inf, np.zeros(29)]
    program = lsq_linear(steps, values / deviations, (lowest, np.inf), tol=1e-14)
    fit = monotone(list(values), list(deviations))
    assert fit == pytest.approx(np.cumsum(program.x), abs=1e-6)
    assert (np.diff(fit) >= 0).all()
    assert not (np.diff(values) >= 0).all()


def test_an_error_of_zero_counts_as_the_smallest_other_one() -> None:
    values = [0.0, 3.0, 1.0, 2.0]
    assert list(monotone(values, [0.0, 0.0, 0.5, 1.0])) == list(monotone(values, [0.5, 0.5, 0.5, 1.0]))
    assert list(monotone(values, [0.0] * 4)) == list(monotone(values)) == [0.0, 2.0, 2.0, 2.0]


def test_errors_of_a_single_sample_are_infinite_and_weight_all_alike() -> None:
    assert list(monotone([2.0, 0.0, 3.0], [math.inf] * 3)) == [1.0, 1.0, 3.0]


@pytest.mark.parametrize("allowed", [0.0, 0.5])
def test_a_bar_reads_the_rise_or_the_fall(allowed: float) -> None:
    point = Point(0.5, rise=0.5, drop=0.25)
    assert Bar(allowed).loss(point) == 0.5
    assert Bar(allowed, of_metric=True).loss(point) == 0.25
    assert Bar(allowed).passes(allowed)
    assert not Bar(allowed).passes(allowed + 1e-9)
    assert not Bar(allowed).passes(math.nan)
    assert not Bar(allowed).passes(math.inf)
    assert not Bar(allowed, of_metric=True).passes(Bar(allowed, of_metric=True).loss(Point(0.5, rise=0.0)))


def test_a_scaled_point_rises_in_proportion_and_forgets_the_metric() -> None:
    point = Point(0.5, rise=0.2, rise_error=0.01, drop=0.1, drop_error=0.02)
    assert point.scaled(4.0) == Point(0.5, rise=0.8, rise_error=0.04)


@given(st.lists(st.booleans(), max_size=14), st.sampled_from([0.0, 0.25]))
def test_a_crossing_is_where_enumeration_finds_it(passing: list[bool], start: float) -> None:
    places = [start + (1 - start) * (n + 1) / (len(passing) + 1) for n in range(len(passing))]
    points = [Point(s, 0.1 if good else 0.9) for s, good in zip(places, passing, strict=True)]
    first = passing.index(False) if False in passing else len(passing)
    expected_low = places[first - 1] if first else start
    expected_high = places[first] if first < len(passing) else 1.0
    stretches: list[tuple[float, float]] = []
    for n in range(first + 1, len(passing)):
        for last in range(n, len(passing)):
            alone = not passing[n - 1] and (last + 1 == len(passing) or not passing[last + 1])
            if alone and all(passing[n : last + 1]):
                stretches.append((places[n], places[last]))
    assert crossing(points, Bar(0.5), start) == Crossing(expected_low, expected_high, tuple(stretches))


def test_what_is_not_finite_does_not_pass() -> None:
    points = [Point(0.5, 0.1), Point(0.6, math.nan), Point(0.7, math.inf), Point(0.8, 0.1)]
    assert crossing(points, Bar(0.2)) == Crossing(0.5, 0.6, ((0.8, 0.8),))
    points = [replace(point, drop=drop) for point, drop in zip(points, [0.0, math.inf, None, 0.3], strict=True)]
    assert crossing(points, Bar(0.2, of_metric=True)) == Crossing(0.5, 0.6)


def test_where_nothing_fails_up_to_the_last_weight_both_ends_are_1() -> None:
    assert crossing([Point(0.5, 0.1), Point(1.0, 0.1)], Bar(0.2)) == Crossing(1.0, 1.0)


def by_scan(points: list[Point], allowed: float, shift: float, start: float) -> float:
    """Read where the fit first lies above the level off a fine scan of the kept fraction's logarithm."""
    fit = isotonic([row.drop or 0.0 for row in points], [(row.drop_error or 0.0) ** -2 for row in points])
    values = [0.0, *(value + shift * (row.drop_error or 0.0) for value, row in zip(fit, points, strict=True))]
    places = [-math.log(1 - s) for s in (start, *(row.sparsity for row in points))]
    scan = np.linspace(places[0], places[-1], 200_001)
    above = np.flatnonzero(np.interp(scan, places, values) > allowed)
    return float(1 - math.exp(-scan[above[0]])) if len(above) else 1.0


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3]), st.sampled_from([-2.0, 0.0, 2.0]))
def test_the_level_is_where_a_scan_finds_it(seed: int, start: float, shift: float) -> None:
    generator = np.random.default_rng(seed)
    sparsities = start + (0.99 - start) * np.sort(generator.uniform(0.01, 1, 8))
    drops = np.sort(generator.uniform(0, 1, 8)) + generator.normal(0, 0.1, 8)
    points = [
        Point(float(s), 0.0, 0.0, float(drop), float(error))
        for s, drop, error in zip(sparsities, drops, generator.uniform(0.01, 0.2, 8), strict=True)
    ]
    allowed = float(generator.uniform(0.05, 0.9))
    expected = by_scan(points, allowed, shift, start)
    assert level(points, allowed, shift, start) == pytest.approx(expected, abs=5e-5)
    assert (
        level(points, allowed, 2.0, start) <= level(points, allowed, 0.0, start) <= level(points, allowed, -2.0, start)
    )


@pytest.mark.parametrize("start", [0.0, 0.2])
def test_a_first_point_above_the_level_is_read_against_the_dense_network(start: float) -> None:
    """From no fall at the start to 0.04 at 60 %: 0.01 is lost after a quarter of the way in the logarithm."""
    kept = (1 - start) ** 0.75 * 0.4**0.25
    assert level([Point(0.6, 0.0, 0.0, 0.04, 1e-3)], 0.01, start=start) == pytest.approx(1 - kept)
    assert level([Point(0.6, 0.0, 0.0, 0.01, 1e-3)], 0.01, start=start) == 1.0  # at the level is not beyond it


def test_a_level_that_no_point_exceeds_is_1() -> None:
    points = [Point(0.5, 0.1, 0.0, 0.001, 1e-4), Point(1.0, 0.2, 0.0, 0.002, 1e-4)]
    assert level(points, 0.01) == 1.0
    assert level([], 0.01) == 1.0
    assert level([Point(0.5, 9.0)], 0.01) == 1.0


def test_an_infinite_fall_is_beyond_every_level_whatever_comes_after() -> None:
    points = [Point(0.5, 0.1, 0.0, 0.001, 1e-4), Point(0.7, 0.2, 0.0, math.inf, 0.0), Point(0.8, 0.1, 0.0, 0.0, 1e-4)]
    for shift in (-2.0, 0.0, 2.0):
        assert level(points, 0.01, shift) == 0.7
        assert level(points[1:], 0.01, shift) == 0.7
    assert level(points, 5e-4) == pytest.approx(1 - 0.5**0.5)


def test_a_single_sample_leaves_the_level_open() -> None:
    points = [Point(0.5, 0.1, 0.0, 0.0, math.inf), Point(0.75, 0.2, 0.0, 1.0, math.inf)]
    assert level(points, 0.5) == pytest.approx(1 - 0.5 * 0.5**0.5)
    assert level(points, 0.5, 2.0, start=0.1) == pytest.approx(0.1)
    assert level(points, 0.5, -2.0) == 1.0


@given(st.integers(0, 10_000), st.floats(0, 0.99))
def test_values_between_points_are_linear_in_the_logarithm_of_the_kept_fraction(seed: int, sparsity: float) -> None:
    generator = np.random.default_rng(seed)
    places = np.sort(generator.uniform(0.3, 0.99, 5))
    values = generator.normal(0, 1, 5)
    points = [Point(float(s), float(value), drop=-float(value)) for s, value in zip(places, values, strict=True)]
    if sparsity > places[-1]:
        assert at_sparsity(points, sparsity, "rise", 0.3) is None
        return
    after = int(np.searchsorted(places, sparsity))
    low, low_value = (0.3, 0.0) if after == 0 else (places[after - 1], values[after - 1])
    share = math.log((1 - low) / (1 - sparsity)) / math.log((1 - low) / (1 - places[after]))
    expected = 0.0 if sparsity <= 0.3 else low_value + share * (values[after] - low_value)
    assert at_sparsity(points, sparsity, "rise", 0.3) == pytest.approx(expected, abs=1e-9)
    assert at_sparsity(points, sparsity, "drop", 0.3) == pytest.approx(-expected, abs=1e-9)


def test_values_that_were_not_measured_or_are_not_finite_are_left_out() -> None:
    points = [Point(0.5, 0.2, 0.01), Point(0.6, math.inf), Point(0.75, 0.4, drop=0.3)]
    assert at_sparsity(points, 1 - 0.5**1.5, "rise") == pytest.approx(0.3)
    assert at_sparsity(points, 0.5, "rise_error") == 0.01
    assert at_sparsity(points, 0.5, "drop") == pytest.approx(0.15)
    assert at_sparsity(points[:2], 0.1, "drop") is None
    assert at_sparsity([], 0.0, "rise") is None
    assert at_sparsity(points, 0.8, "rise") is None


def test_all_weights_removed_is_a_point_like_others() -> None:
    assert at_sparsity([Point(0.5, 0.2), Point(1.0, 0.4)], 1.0, "rise") == 0.4
