from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from estimators import UserError
from pruning_limits.forecast import FEATURES, FORMAT, Forecast, Rule
from pruning_limits.serial import to_plain

FULL = Rule(("one-shot", "re-tuned", "hessian"), -0.3, (0.2, 0.5, 0.3), -0.4, 0.3)
PAIR = Rule(("one-shot", "hessian"), -0.5, (0.6, 0.4), -0.5, 0.45)
ALONE = Rule(("hessian",), -0.2, (1.0,), -0.7, 0.6)
RANGES = (
    ("one-shot", 0.05, 0.8),
    ("re-tuned", 0.02, 0.6),
    ("hessian", 0.01, 0.5),
    ("weights", 500.0, 1e5),
    ("hessian error", 0.0, 0.02),
)
FORECAST = Forecast("made", 38, 8, 0.9, RANGES, (FULL, PAIR, ALONE))
KNOWN = {"one-shot": 0.4, "re-tuned": 0.2, "hessian": 0.1, "weights": 2e4, "hessian error": 0.01}


def without(*names: str, **changes: float) -> dict[str, float]:
    return {name: value for name, value in (KNOWN | changes).items() if name not in names}


def plain() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps({"format": FORMAT} | dataclasses.asdict(FORECAST)))
    return result


# ------------------------------------------------------------------------------------------------- what is told


def test_a_rule_is_linear_on_logarithms() -> None:
    told = FORECAST.of(KNOWN)
    assert told is not None
    centre = math.exp(-0.3) * 0.4**0.2 * 0.2**0.5 * 0.1**0.3
    assert told.kept == pytest.approx(centre)
    assert (told.low, told.high) == pytest.approx((centre * math.exp(-0.4), centre * math.exp(0.3)))
    assert told.outside == ()


@pytest.mark.parametrize(
    ("features", "rule"),
    [
        (without(), FULL),
        (without("re-tuned"), PAIR),
        (without("re-tuned", "one-shot"), ALONE),
        (without("re-tuned", "one-shot", "weights", "hessian error"), ALONE),
        (without("one-shot"), ALONE),
        (without(**{"re-tuned": 0.0}), PAIR),
        (without(**{"one-shot": 0.0}), ALONE),
    ],
)
def test_the_rule_of_most_known_features_is_taken(features: dict[str, float], rule: Rule) -> None:
    told = FORECAST.of(features)
    assert told is not None
    assert math.log(told.kept) == pytest.approx(rule.logarithm(features))
    assert told.high / told.low == pytest.approx(math.exp(rule.high - rule.low))


@pytest.mark.parametrize("features", [{}, without("hessian"), without(hessian=0.0), {"weights": 1e4}])
def test_where_no_rule_knows_its_features_nothing_is_told(features: dict[str, float]) -> None:
    assert FORECAST.of(features) is None


@pytest.mark.parametrize(
    ("known", "feature"),
    [(known, feature) for known in (FULL.features, ("one-shot", "hessian"), ("hessian",)) for feature in known],
)
def test_more_of_a_feature_never_keeps_less(known: tuple[str, ...], feature: str) -> None:
    base = {name: KNOWN[name] for name in known}
    values = [1e-6 * 10 ** (6 * n / 40) for n in range(41)]
    told = [FORECAST.of(base | {feature: value}) for value in values]
    kept = [forecast.kept for forecast in told if forecast is not None]
    assert len(kept) == 41
    assert kept == sorted(kept)
    assert kept[0] < kept[-1]
    assert all(0 <= forecast.low <= forecast.kept <= forecast.high <= 1 for forecast in told if forecast is not None)


def test_nothing_but_all_weights_can_be_kept() -> None:
    eager = dataclasses.replace(FORECAST, rules=(dataclasses.replace(ALONE, intercept=1.0),))
    told = eager.of({"hessian": 0.9})
    assert told is not None
    assert (told.kept, told.high) == (1.0, 1.0)
    assert told.low < 1


@pytest.mark.parametrize("intercept", [1e4, -1e4])
def test_extreme_coefficients_end_at_none_or_all(intercept: float) -> None:
    told = dataclasses.replace(FORECAST, rules=(dataclasses.replace(ALONE, intercept=intercept),)).of(KNOWN)
    assert told is not None
    assert {told.kept, told.low, told.high} == {float(intercept > 0)}


# ------------------------------------------------------------------------------------------------- outside the bench


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"one-shot": 0.9}, "one-shot 0.9, the bench has 0.05 to 0.8"),
        ({"one-shot": 0.04}, "one-shot 0.04, the bench has 0.05 to 0.8"),
        ({"re-tuned": 0.01}, "re-tuned 0.01, the bench has 0.02 to 0.6"),
        ({"hessian": 0.51}, "hessian 0.51, the bench has 0.01 to 0.5"),
        ({"weights": 1e6}, "weights 1e+06, the bench has 500 to 1e+05"),
        ({"hessian error": 0.1}, "hessian error 0.1, the bench has 0 to 0.02"),
    ],
)
def test_outside_the_bench_the_interval_is_twice_as_wide_and_says_why(changes: dict[str, float], words: str) -> None:
    features = KNOWN | changes
    told = FORECAST.of(features)
    assert told is not None
    assert told.outside == (words,)
    assert math.log(told.kept) == pytest.approx(FULL.logarithm(features))
    assert math.log(told.low / told.kept) == pytest.approx(2 * FULL.low)
    assert math.log(told.high / told.kept) == pytest.approx(2 * FULL.high)


def test_every_feature_outside_is_named() -> None:
    told = FORECAST.of(KNOWN | {"one-shot": 0.9, "weights": 10.0})
    assert told is not None
    assert [words.split(" ")[0] for words in told.outside] == ["one-shot", "weights"]
    assert math.log(told.high / told.kept) == pytest.approx(2 * FULL.high)


def test_what_else_was_not_seen_is_told_first_and_widens_once() -> None:
    told = FORECAST.of(KNOWN | {"weights": 10.0}, ("a loss of its own",))
    assert told is not None
    assert told.outside == ("a loss of its own", "weights 10, the bench has 500 to 1e+05")
    assert math.log(told.low / told.kept) == pytest.approx(2 * FULL.low)
    alone = FORECAST.of(KNOWN, ("a loss of its own",))
    assert alone is not None
    assert math.log(alone.high / alone.kept) == pytest.approx(2 * FULL.high)


def test_the_error_of_a_formula_counts_where_the_formula_does() -> None:
    measured = Rule(("one-shot",), -0.5, (1.0,), -0.3, 0.3)
    forecast = dataclasses.replace(FORECAST, rules=(measured, ALONE))
    for features, inside in ((KNOWN, True), (without("one-shot"), False)):
        told = forecast.of(features | {"hessian error": 0.1})
        assert told is not None
        assert (told.outside == ()) is inside


@pytest.mark.parametrize("value", [0.05, 0.8])
def test_the_ends_of_the_bench_lie_inside(value: float) -> None:
    told = FORECAST.of(KNOWN | {"one-shot": value})
    assert told is not None
    assert told.outside == ()


def test_a_feature_that_the_rule_does_not_take_may_lie_anywhere() -> None:
    told = FORECAST.of(without("one-shot", **{"re-tuned": 0.9}))
    assert told is not None
    assert told.outside == ()


# ------------------------------------------------------------------------------------------------- bad values


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"intercept": math.nan}, "not finite"),
        ({"intercept": math.inf}, "not finite"),
        ({"slopes": (0.1, math.nan, 0.1)}, "not finite"),
        ({"low": -math.inf}, "not finite"),
        ({"high": math.inf}, "not finite"),
        ({"low": 0.1}, "not around it"),
        ({"high": -0.1}, "not around it"),
        ({"slopes": (0.1, 0.2)}, "one slope for each"),
        (
            {"features": ("one-shot", "re-tuned", "epsilon")},
            "each of some of one-shot, re-tuned, hessian, ggn",
        ),
        ({"features": (), "slopes": ()}, "one slope for each"),
        ({"slopes": (0.1, -0.1, 0.2)}, "negative"),
    ],
)
def test_a_rule_refuses_bad_values(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        dataclasses.replace(FULL, **changes)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rules": ()}, "needs rules"),
        ({"coverage": 0.0}, "a coverage between 0 and 1"),
        ({"coverage": 1.0}, "a coverage between 0 and 1"),
        ({"coverage": math.nan}, "a coverage between 0 and 1"),
        ({"networks": 0}, "and networks"),
        ({"families": 0}, "and networks"),
        ({"ranges": (("epsilon", 0.1, 0.2),)}, "range of 'epsilon'"),
        ({"ranges": (("one-shot", 0.2, 0.1),)}, "range of 'one-shot'"),
        ({"ranges": (("one-shot", -0.1, 0.1),)}, "range of 'one-shot'"),
        ({"ranges": (("weights", 1.0, math.inf),)}, "range of 'weights'"),
        ({"ranges": (("weights", math.nan, 1.0),)}, "range of 'weights'"),
    ],
)
def test_a_forecast_refuses_bad_values(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        dataclasses.replace(FORECAST, **changes)


# ------------------------------------------------------------------------------------------------- files


def test_plain_values_and_back_are_the_same() -> None:
    assert Forecast.from_plain(plain()) == FORECAST
    assert Forecast.from_plain(json.loads(json.dumps(to_plain(FORECAST)))) == FORECAST


def test_rows_and_residuals_beside_a_calibration_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(plain() | {"rows": [{"network": "a", "residual": 0.1}]}))
    assert Forecast.read(file) == FORECAST
    assert Forecast.read(str(file)) == FORECAST


def changed(key: str, value: Any, rule: bool = False) -> dict[str, Any]:
    values = plain()
    (values["rules"][1] if rule else values)[key] = value
    return values


def lacking(key: str, rule: bool = False) -> dict[str, Any]:
    values = plain()
    del (values["rules"][1] if rule else values)[key]
    return values


DAMAGED = {
    "another format": (changed("format", "pruning-forecast/0"), "its format is 'pruning-forecast/0'"),
    "a limit": ({"format": "pruning-limit/7"}, "its format is 'pruning-limit/7'"),
    "no format": (lacking("format"), "'format' is missing"),
    "no version": (lacking("version"), "'version' is missing"),
    "no slopes": (lacking("slopes", rule=True), "'slopes' is missing"),
    "no rules": (changed("rules", []), "needs rules"),
    "rules of another type": (changed("rules", 3), "not iterable"),
    "a negative slope": (changed("slopes", [0.1, -0.1], rule=True), "a slope is negative"),
    "a slope that is no number": (changed("slopes", [0.1, "x"], rule=True), "could not convert"),
    "a slope of None": (changed("slopes", [0.1, None], rule=True), "NoneType"),
    "an infinite end": (changed("high", math.inf, rule=True), "not finite"),
    "a feature that is none": (changed("features", "one-shot", rule=True), "one slope for each"),
    "an infinite number": (changed("networks", math.inf), "infinity"),
    "a huge number": (changed("low", 10**400, rule=True), "too large"),
    "a range without ends": (changed("ranges", [["weights", 1.0]]), "not enough values"),
    "a list": ([1, 2], "list indices"),
    "a number": (7, "not subscriptable"),
    "nothing": (None, "not subscriptable"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    value, reason = DAMAGED[name]
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(value))
    assert_refused(file, reason)


def assert_refused(file: Path, reason: str = "") -> None:
    with pytest.raises(UserError) as caught:
        Forecast.read(file)
    text = str(caught.value)
    assert text.startswith(f"forecast: {file} is no calibration of format {FORMAT} (")
    assert text.endswith("); write one with pruning-limits validate --table forecast")
    assert reason in text
    assert "\n" not in text


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_file_that_was_cut_is_refused(share: float, tmp_path: Path) -> None:
    file, text = tmp_path / "calibration.json", json.dumps(plain())
    file.write_text(text[: int(share * len(text))])
    assert_refused(file)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x89PNG\r\n", b"[" * 100_000, b"{}", b"  "])
def test_a_file_of_another_kind_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_bytes(content)
    assert_refused(file)


def test_a_file_beyond_all_sizes_is_not_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    with file.open("wb") as hole:
        hole.truncate(1 << 33)
    assert_refused(file)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^forecast: cannot read .*none\.json: No such file or directory$"):
        Forecast.read(tmp_path / "none.json")
    with pytest.raises(UserError, match=r"^forecast: cannot read .*: Is a directory$"):
        Forecast.read(tmp_path)


@pytest.mark.parametrize("path", [7, None, 0.5, ["a"], "a\0b"])
def test_what_is_no_path_is_told(path: Any) -> None:
    with pytest.raises(UserError) as caught:
        Forecast.read(path)
    assert str(caught.value) == f"forecast: expected the path of a file, got {path!r}"


def test_the_package_has_a_calibration_of_its_own() -> None:
    shipped = Forecast.shipped()
    assert shipped is Forecast.shipped()
    assert shipped.networks >= 36
    assert shipped.families >= 8
    assert shipped.coverage == 0.9
    assert {name for name, _, _ in shipped.ranges} >= set(FEATURES) | {"weights"}
    assert [len(rule.features) for rule in shipped.rules] == sorted(
        (len(rule.features) for rule in shipped.rules), reverse=True
    )
    assert all(len(rule.slopes) + 1 <= 4 for rule in shipped.rules)
    assert ("hessian",) in {rule.features for rule in shipped.rules}
