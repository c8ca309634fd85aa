from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from pruning_limits.forecast import Rule
from tests.forecast_bench import FACTOR, MODELS, planted_cases, planted_rows
from validation.models import MODELS as KNOWN
from validation.studies.limits.calibration import calibrated, fitted, root_mean_square, usable
from validation.studies.limits.forecast_skill import (
    ASIDE,
    FALLING,
    FAMILIES,
    MEASURED,
    PREDICTORS,
    RULES,
    aside,
    bootstrapped,
    by_family,
    cases_of,
    covered,
    family_of,
    holds,
    network_name,
    ratios,
    residuals_of,
    skill_rows,
    spread_of_runs,
    told_with,
)
from validation.tables.reading import load_suite

Row = dict[str, Any]


# ------------------------------------------------------------------------------------------------- families


def test_every_model_of_the_suite_has_a_family_of_at_least_four_networks() -> None:
    networks = load_suite("forecast").networks
    counts = Counter(family_of(network.model) for network in networks)
    assert set(counts) == set(FAMILIES.values())
    assert min(counts.values()) >= 4
    assert sum(counts.values()) >= 36


def test_networks_that_are_kept_aside_come_last_in_the_suite() -> None:
    families = [family_of(network.model) for network in load_suite("forecast").networks]
    first = min(families.index(family) for family in ASIDE)
    assert set(families[first:]) == set(ASIDE)


@pytest.mark.parametrize(("family", "model"), MODELS.items())
def test_families_are_told_by_the_beginning_of_the_name(family: str, model: str) -> None:
    assert family_of(model) == family
    assert family_of(f"{model}-wide") == family


def test_models_of_other_suites_belong_to_families_too() -> None:
    assert family_of("lenet-300-100") == "fully connected"
    assert family_of("vit-tiny") == "vision transformer"
    unknown = {name for name in KNOWN if family_of(name) == name}
    assert unknown == {"alexnet"}
    assert family_of("package.module:factory") == "package.module:factory"


# ------------------------------------------------------------------------------------------------- cases


def level(**values: Any) -> Row:
    base = {"name": "loss +0.1", "key": "rise", "allowed": 0.1, "epsilon": 0.1, "alone": 0.5}
    return base | {"again-0": 0.2, "again-1": 0.05} | values


def row(*levels: Row, **values: Any) -> Row:
    base = {"model": "fc-narrow", "dataset": "d", "recipe": "r", "seed": 0, "parameters": 500, "dense": {"loss": 0.3}}
    points = [{"kept": 0.5, "rise": 0.1}, {"kept": 0.25, "rise": 0.3}, {"kept": 0.125, "rise": 0.4}]
    return base | {"levels": list(levels), "curves": {"alone": points}} | values


def test_the_truth_is_the_geometric_mean_of_the_runs() -> None:
    (case,) = cases_of([row(level(hessian=0.3, ggn=None, hessian_error=0.01))])
    assert case.kept == pytest.approx(0.1)
    assert (case.network, case.family, case.level) == ("fc-narrow on d, r, seed 0", "fully connected", "loss +0.1")
    features = {"one-shot": 0.5, "hessian": 0.3, "epsilon": 0.1, "weights": 500.0, "loss": 0.3, "hessian error": 0.01}
    features["one-shot, twice"] = math.sqrt(0.5 * 0.25)
    assert case.features == pytest.approx(features)


@pytest.mark.parametrize(
    "without",
    [level(**{"again-1": None}), level(epsilon=None), {"name": "n", "key": "rise", "allowed": 0.1, "epsilon": 0.1}],
)
def test_a_level_without_an_end_within_the_grid_is_no_case(without: Row) -> None:
    assert [case.level for case in cases_of([row(without, level(name="other"))])] == ["other"]


def test_a_network_is_told_by_all_that_it_depends_on() -> None:
    rows = [
        row(level()),
        row(level(), seed=1),
        row(level(), recipe="s"),
        row(level(), dataset="e"),
        row(level(), model="m"),
    ]
    assert len({network_name(network_row) for network_row in rows}) == 5


def test_runs_spread_by_their_deviation() -> None:
    pairs = [(0.2, 0.3), (0.1, 0.1), (0.5, 0.4)]
    levels = [level(**{"again-0": a, "again-1": b}) for a, b in pairs]
    variances = [np.var(np.log(pair), ddof=1) for pair in pairs]
    rows = [row(*levels[:2]), row(levels[2], level(**{"again-1": None}))]
    assert spread_of_runs(rows) == pytest.approx(math.exp(math.sqrt(np.mean(variances))))
    assert math.isnan(spread_of_runs([row()]))


# ------------------------------------------------------------------------------------------------- planted truths


@pytest.mark.parametrize("feature", ["one-shot", "hessian", "re-tuned"])
def test_the_planted_predictor_wins_and_its_slope_is_recovered(feature: str) -> None:
    rows = skill_rows(planted_cases(feature))
    error = math.sqrt(2) * 0.08 / math.sqrt(96 * 3**2 / 12)  # of a slope, the features being uniform over 3
    assert [row["predictor"] for row in rows] == [predictor.name for predictor in PREDICTORS]
    named = {predictor.name: predictor for predictor in PREDICTORS}
    alone = next(row for row in rows if named[row["predictor"]].features == (feature,))
    for row in rows:
        features = named[row["predictor"]].features
        if feature in features:
            assert row["rms"] < 1.05 * alone["rms"]
            assert row["fit"][features.index(feature)] == pytest.approx(0.8, abs=4 * error)
        elif feature != "one-shot" or "one-shot, twice" not in features:
            assert row["rms"] > 1.4 * alone["rms"]
    noise = math.exp(math.sqrt(2) * 0.08)
    assert noise - 0.02 < alone["rms"] < noise + 0.03
    assert alone["rms_low"] < alone["rms"] < alone["rms_high"] < 1.25
    assert alone["within"] == pytest.approx(math.exp(1.645 * math.sqrt(2) * 0.08), abs=0.04)
    assert (alone["cases"], alone["networks"]) == (96, 32)
    assert told_with(rows, alone["predictor"]) is alone


def test_intervals_cover_families_that_were_left_out() -> None:
    cases = planted_cases(each=8)
    coverage = covered(cases, ("one-shot",))
    assert 0.87 < coverage.share < 0.96
    assert coverage.factor == pytest.approx(math.exp(1.645 * math.sqrt(2) * 0.08), abs=0.06)


def test_a_family_that_differs_is_not_covered() -> None:
    shifted = [
        dataclasses.replace(case, kept=3 * case.kept) if case.family == "VGG" else case for case in planted_cases()
    ]
    rows = {row["family"]: row for row in by_family(shifted, ("one-shot",))}
    assert rows["VGG"]["bias"] == pytest.approx(3, rel=0.1)
    assert rows["VGG"]["rms"] > 2.5
    assert all(0.6 < row["bias"] < 1 for name, row in rows.items() if name != "VGG")
    assert {(row["networks"], row["cases"]) for row in rows.values()} == {(4, 12)}
    rule = calibrated([case for case in shifted if case.family != "VGG"], ("one-shot",))
    assert not any(holds(rule, case) for case in shifted if case.family == "VGG")
    assert covered(shifted, ("one-shot",)).share <= 28 / 32


def test_a_network_with_many_levels_covers_no_more_than_one_with_few() -> None:
    cases = planted_cases()
    twice = [*cases, *(case for case in cases if case.network.endswith("seed 0"))]
    assert covered(twice, ("one-shot",)).share == pytest.approx(covered(cases, ("one-shot",)).share)


def test_what_was_kept_aside_is_told_by_the_other_families_alone() -> None:
    cases = planted_cases()
    apart = [case for case in cases if case.family in ASIDE]
    others = [case for case in cases if case.family not in ASIDE]
    rule = calibrated(others, ("one-shot",))
    residuals = [math.log(case.kept) - rule.logarithm(case.features) for case in apart]
    told = aside(cases, ("one-shot",))
    assert told is not None
    assert told["rms"] == pytest.approx(root_mean_square(residuals, [case.network for case in apart]))
    assert told["bias"] == pytest.approx(math.exp(np.mean(residuals)))
    assert told["coverage"] == pytest.approx(np.mean([rule.low <= value <= rule.high for value in residuals]))
    assert 0.8 < told["coverage"] <= 1


def test_too_few_networks_tell_nothing_of_what_was_kept_aside() -> None:
    cases = [case for case in planted_cases() if case.family in ASIDE or case.network.endswith("seed 0")]
    assert len({case.network for case in cases}) == 14  # six without those kept aside
    assert aside(cases, ("one-shot",)) is None
    assert covered(cases, ("one-shot",)).share > 0.8
    assert aside([case for case in cases if case.family not in ASIDE], ("one-shot",)) is None


def test_a_kept_fraction_of_zero_is_left_out_of_the_skill() -> None:
    cases = planted_cases()
    zero = dataclasses.replace(cases[0], network="another", features=cases[0].features | {"ggn": 0.0})
    assert {row["networks"] for row in skill_rows([*cases, zero])} == {32}


def test_residuals_of_a_predictor_obey_its_signs() -> None:
    cases = planted_cases("hessian", slope=-0.5)
    predictor = next(predictor for predictor in PREDICTORS if predictor.features == ("hessian",))
    constant = next(predictor for predictor in PREDICTORS if not predictor.features)
    assert residuals_of(cases, predictor) == pytest.approx(residuals_of(cases, constant))
    assert {"epsilon", "loss", "weights"} == set(FALLING)


# ------------------------------------------------------------------------------------------------- numbers


def test_the_bootstrap_draws_networks() -> None:
    rng = np.random.default_rng(3)
    names = [str(number // 3) for number in range(60)]
    residuals = (0.2 * rng.standard_normal(20).repeat(3) + 0.1 * rng.standard_normal(60)).tolist()
    low, high = bootstrapped(residuals, names, 4000)
    squares = np.square(residuals).reshape(20, 3).mean(1)
    draws = [np.sqrt(np.mean(rng.choice(squares, 20))) for _ in range(4000)]
    assert (math.log(low), math.log(high)) == pytest.approx(np.quantile(draws, (0.05, 0.95)).tolist(), rel=0.03)
    assert low < root_mean_square(residuals, names) < high
    assert bootstrapped(residuals, names) == bootstrapped(residuals, names)
    assert bootstrapped([0.1] * 6, list("aabbcc")) == pytest.approx((math.exp(0.1),) * 2)


def test_ratios_are_geometric_means_of_what_both_know() -> None:
    cases = cases_of(
        [
            row(level(iterative=0.2, schur=0.1, optimised=0.2), seed=0),
            row(level(iterative=0.05, schur=0.3, optimised=0.2), seed=1),
            row(level(), seed=2),
        ]
    )
    mean, spread, count = ratios(cases, "iterative", "again") or (0, 0, 0)
    assert (mean, count) == (pytest.approx(1.0), 2)  # 0.2 and 0.05 beside 0.1
    assert spread == pytest.approx(math.exp(np.std(np.log([2, 0.5]), ddof=1)))
    mean, _, _ = ratios(cases, "schur", "optimised") or (0, 0, 0)
    assert mean == pytest.approx(math.sqrt(0.5 * 1.5))
    assert ratios(cases[:1], "iterative", "again") is None
    assert ratios(cases, "directional", "again") is None


def test_a_case_is_held_between_the_ends_of_a_rule() -> None:
    (case,) = cases_of([row(level(alone=0.5))])
    centre = math.log(0.1 / 0.5)
    assert holds(Rule(("one-shot",), centre, (1.0,), 0.0, 0.0), dataclasses.replace(case, kept=0.5 * math.exp(centre)))
    for shift, inside in ((0.19, True), (0.21, False), (-0.09, True), (-0.11, False)):
        assert holds(Rule(("one-shot",), centre - shift, (1.0,), -0.1, 0.2), case) is inside


def test_every_rule_and_predictor_takes_features_that_are_measured() -> None:
    known = {*MEASURED, "one-shot, twice", "epsilon", "weights", "loss"}
    assert {name for predictor in PREDICTORS for name in predictor.features} <= known
    assert all(len(features) + 1 <= 4 for features in RULES)  # coefficients of a rule that ships
    assert [len(features) for features in RULES] == sorted((len(features) for features in RULES), reverse=True)
    baselines = [predictor for predictor in PREDICTORS if predictor.baseline]
    assert not any("hessian" in name or "ggn" in name for predictor in baselines for name in predictor.features)
    assert usable(planted_cases(), sorted(known))
    assert fitted(planted_cases(noise=0.0), ("one-shot",)).intercept == pytest.approx(math.log(FACTOR))
    assert len(planted_rows()) == 32
