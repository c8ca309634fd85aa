from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from estimators import UserError
from pruning_limits.forecast import Rule
from validation.studies.limits.calibration import (
    Case,
    Fit,
    calibrated,
    fitted,
    grouped_quantile,
    interval,
    left_out,
    root_mean_square,
    usable,
    within,
)

Floats = NDArray[np.float64]
BOTH = ("one-shot", "hessian")


def cases(
    networks: int = 24, slopes: Sequence[float] = (0.5, 0.3), noise: float = 0.1, seed: int = 0, families: int = 4
) -> list[Case]:
    """Kept fractions that are products of powers of two features, with noise that a network's levels share in part."""
    rng = np.random.default_rng(seed)
    result = []
    for number in range(networks):
        common = noise * rng.standard_normal()
        for level in range(1 + number % 4):
            x = np.exp(rng.uniform(-3, -0.2, 2))
            kept = math.exp(-0.4 + float(np.log(x) @ slopes) + common + noise * rng.standard_normal())
            features = dict(zip(BOTH, x.tolist(), strict=True))
            result.append(Case(f"network {number}", f"family {number % families}", f"level {level}", features, kept))
    return result


def design(rows: Sequence[Case], features: Sequence[str]) -> tuple[Floats, Floats]:
    columns = [[1.0, *(math.log(case.features[name]) for name in features)] for case in rows]
    return np.array(columns), np.array([math.log(case.kept) for case in rows])


# ------------------------------------------------------------------------------------------------- fits


@pytest.mark.parametrize("features", [(), ("one-shot",), BOTH])
def test_a_fit_is_least_squares_in_which_every_network_counts_the_same(features: tuple[str, ...]) -> None:
    """Levels of a network are repeated until all networks have twelve rows."""
    rows = cases()
    levels = {name: [case for case in rows if case.network == name] for name in {case.network for case in rows}}
    repeated = [case for own in levels.values() for case in own * (12 // len(own))]
    assert {len(own) for own in levels.values()} == {1, 2, 3, 4}
    wanted = np.linalg.lstsq(*design(repeated, features), rcond=None)[0]
    fit = fitted(rows, features)
    assert (fit.intercept, *fit.slopes) == pytest.approx(wanted.tolist(), abs=1e-9)
    by_case = np.linalg.lstsq(*design(rows, features), rcond=None)[0]
    assert abs(fit.intercept - by_case[0]) > 1e-4


def test_levels_that_are_told_twice_change_nothing() -> None:
    rows = cases()
    twice = [*rows, *(case for case in rows if case.network in ("network 3", "network 7"))]
    assert fitted(twice, BOTH).slopes == pytest.approx(fitted(rows, BOTH).slopes)


@pytest.mark.parametrize(("slopes", "falling"), [((0.6, -0.4), ()), ((0.6, 0.4), ("hessian",))])
def test_a_slope_of_the_wrong_sign_is_zero_and_the_rest_is_fitted_without(
    slopes: tuple[float, float], falling: tuple[str, ...]
) -> None:
    rows = cases(slopes=slopes)
    fit, without = fitted(rows, BOTH, falling), fitted(rows, ("one-shot",))
    assert fit.slopes == pytest.approx((without.slopes[0], 0.0), abs=1e-9)
    assert fit.intercept == pytest.approx(without.intercept)
    assert without.slopes[0] > 0.1


def test_a_slope_may_fall_where_it_is_said_so() -> None:
    rows = cases(slopes=(0.6, -0.4), noise=0.0)
    fit = fitted(rows, BOTH, ("hessian", "another"))
    assert (fit.intercept, *fit.slopes) == pytest.approx((-0.4, 0.6, -0.4))


def test_all_slopes_of_the_wrong_sign_leave_the_mean() -> None:
    rows = cases(slopes=(-0.6, -0.4))
    fit = fitted(rows, BOTH)
    assert fit.slopes == pytest.approx((0.0, 0.0), abs=1e-12)
    assert fit.intercept == pytest.approx(fitted(rows, ()).intercept)


def test_a_residual_is_the_logarithm_of_the_truth_over_what_is_told() -> None:
    fit = Fit(BOTH, -0.1, (0.5, 2.0))
    case = Case("n", "f", "l", {"one-shot": 0.25, "hessian": 0.5, "epsilon": 0.1}, 0.3)
    told = math.exp(-0.1) * 0.25**0.5 * 0.5**2
    assert math.exp(fit.logarithm(case)) == pytest.approx(told)
    assert fit.residual(case) == pytest.approx(math.log(0.3 / told))


def test_cases_without_a_feature_are_not_usable() -> None:
    known = Case("a", "f", "l", {"one-shot": 0.2, "hessian": 0.1}, 0.3)
    lacking = Case("b", "f", "l", {"one-shot": 0.2}, 0.3)
    zero = Case("c", "f", "l", {"one-shot": 0.2, "hessian": 0.0}, 0.3)
    assert usable([known, lacking, zero], BOTH) == [known]
    assert usable([known, lacking, zero], ("one-shot",)) == [known, lacking, zero]
    with pytest.raises(UserError, match=r"^forecast: no case has all of one-shot, hessian$"):
        fitted(usable([lacking], BOTH), BOTH)


# ------------------------------------------------------------------------------------------------- families left out


def test_residuals_are_those_of_fits_on_the_other_families() -> None:
    rows = cases(networks=12, families=3)
    residuals = left_out(rows, lambda part: fitted(part, BOTH))
    assert len(residuals) == len(rows)
    for case, residual in zip(rows, residuals, strict=True):
        others = [other for other in rows if other.family != case.family]
        assert residual == fitted(others, BOTH).residual(case)


@pytest.mark.parametrize("family", [f"family {number}" for number in range(4)])
def test_no_network_stands_on_both_sides(family: str) -> None:
    """Whatever a family's truths are, the fit that judges it stays as it is, and all other fits change."""
    rows = cases()
    poisoned = [dataclasses.replace(case, kept=1e-6) if case.family == family else case for case in rows]
    parts: list[set[str]] = []

    def fit(part: Sequence[Case]) -> Fit:
        parts.append({case.network for case in part})
        return fitted(part, BOTH)

    clean, dirty = left_out(rows, fit), left_out(poisoned, fit)
    told = [(math.log(case.kept) - residual) for case, residual in zip(rows, clean, strict=True)]
    retold = [(math.log(case.kept) - residual) for case, residual in zip(poisoned, dirty, strict=True)]
    for case, before, after in zip(rows, told, retold, strict=True):
        assert (before == pytest.approx(after, abs=1e-12)) is (case.family == family)
    names = {case.network: case.family for case in rows}
    assert len(parts) == 8
    assert sorted(len({names[network] for network in part}) for part in parts) == 8 * [3]


def test_one_family_cannot_be_left_out() -> None:
    with pytest.raises(UserError, match=r"^forecast: needs networks of two families at least, got family 0$"):
        left_out(cases(families=1), lambda part: fitted(part, BOTH))


# ------------------------------------------------------------------------------------------------- intervals


def hierarchical(rng: np.random.Generator, groups: int) -> tuple[list[float], list[str]]:
    """Values with random effects of groups of random sizes; large groups spread less."""
    values, names = list[float](), list[str]()
    for group in range(groups):
        size = int(rng.integers(1, 6))
        effect, spread = rng.standard_normal(), 1.5 / size
        values += (effect + spread * rng.standard_normal(size)).tolist()
        names += size * [str(group)]
    return values, names


@pytest.mark.parametrize(("groups", "most"), [(9, 0.98), (25, 0.95), (79, 0.93)])
def test_a_new_value_of_a_new_group_is_covered_as_often_as_asked_for(groups: int, most: float) -> None:
    """At least nominal for any number of groups, and not far above for many."""
    rng, hits, draws = np.random.default_rng(groups), 0, 600
    for _ in range(draws):
        values, names = hierarchical(rng, groups)
        (new, *_), _ = hierarchical(rng, 1)
        hits += new <= grouped_quantile(values, names, 0.9)
    error = math.sqrt(0.9 * 0.1 / draws)
    assert 0.9 - 2 * error < hits / draws < most


def test_both_ends_together_cover_as_often_as_asked_for() -> None:
    rng, hits, draws = np.random.default_rng(5), 0, 300
    for _ in range(draws):
        low, high = interval(*hierarchical(rng, 59), coverage=0.8)
        hits += low <= hierarchical(rng, 1)[0][0] <= high
    error = math.sqrt(0.8 * 0.2 / draws)
    assert 0.8 - 2 * error < hits / draws < 0.8 + 0.03 + 2 * error


def test_single_values_have_the_quantile_of_split_conformal_prediction() -> None:
    values = np.random.default_rng(0).standard_normal(30)
    names = [str(number) for number in range(30)]
    for share in (0.5, 0.75, 0.9, 0.95):
        rank = math.ceil(share * 31)
        assert grouped_quantile(values.tolist(), names, share) == np.sort(values)[rank - 1]
    assert grouped_quantile(values.tolist(), names, 0.98) == math.inf


def test_a_large_group_weighs_no_more_than_a_small_one() -> None:
    values, names = [1.0] * 50 + [2.0, 3.0], ["large"] * 50 + ["b", "c"]
    assert grouped_quantile(values, names, 0.25) == 1.0
    assert grouped_quantile(values, names, 0.26) == 2.0
    assert grouped_quantile(values, names, 0.5) == 2.0
    assert grouped_quantile(values, names, 0.51) == 3.0
    assert grouped_quantile(values, names, 0.76) == math.inf


def test_ends_mirror_each_other() -> None:
    values, names = hierarchical(np.random.default_rng(1), 40)
    low, high = interval(values, names)
    assert interval([-value for value in values], names) == (low, high)
    assert low == -high < 0


# ------------------------------------------------------------------------------------------------- calibrations


def test_a_calibration_joins_the_fit_on_all_with_residuals_of_families_left_out() -> None:
    rows = cases(networks=40)
    lacking = Case("other", "family 0", "l", {"one-shot": 0.2}, 1e-9)
    rule = calibrated([*rows, lacking], BOTH)
    whole = fitted(rows, BOTH)
    residuals = left_out(rows, lambda part: fitted(part, BOTH))
    low, high = interval(residuals, [case.network for case in rows])
    assert rule == Rule(BOTH, whole.intercept, whole.slopes, low, high)
    assert rule.low < -0.1
    assert rule.high > 0.1
    assert calibrated(rows, BOTH, 0.5).high < rule.high


def test_an_interval_lies_around_what_is_told() -> None:
    """Where all residuals have one sign, one of its ends is what is told."""
    rows = cases(networks=40, noise=0.0)
    exact = calibrated(rows, BOTH)
    assert (exact.low, exact.high) == pytest.approx((0.0, 0.0), abs=1e-9)
    assert exact.low <= 0 <= exact.high


@pytest.mark.parametrize(("coverage", "fewest"), [(0.9, 9), (0.8, 4), (0.75, 3)])
def test_too_few_networks_are_refused_with_the_number_that_is_needed(coverage: float, fewest: int) -> None:
    assert calibrated(cases(networks=fewest, families=2), ("one-shot",), coverage).high >= 0
    with pytest.raises(UserError) as caught:
        calibrated(cases(networks=fewest - 1, families=2), ("one-shot",), coverage)
    assert str(caught.value) == (
        f"forecast: {fewest - 1} networks are too few for an interval of {coverage:.0%}; at least {fewest} are needed"
    )


# ------------------------------------------------------------------------------------------------- errors


def test_errors_are_factors_in_which_every_network_counts_the_same() -> None:
    residuals, names = [0.3, -0.3, 0.1, 0.5, -0.1], ["a", "a", "b", "b", "c"]
    mean = (0.09 + (0.01 + 0.25) / 2 + 0.01) / 3
    assert root_mean_square(residuals, names) == pytest.approx(math.exp(math.sqrt(mean)))
    assert root_mean_square([0.2, -0.2], ["a", "b"]) == pytest.approx(math.exp(0.2))


def test_so_many_cases_lie_within_a_factor() -> None:
    residuals = np.random.default_rng(0).permutation(np.linspace(-0.5, 1.0, 301))
    factor = within(residuals.tolist())
    assert np.mean(np.abs(residuals) <= math.log(factor) + 1e-12) == pytest.approx(0.9, abs=1 / 301)
    assert within([0.1, -0.4, 0.2], 1.0) == pytest.approx(math.exp(0.4))
