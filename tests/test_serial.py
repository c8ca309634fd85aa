"""Plain values of a limit: what JSON can hold, back without loss, and refused where it is something else."""

import dataclasses
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
from helpers import small_limit

from estimators import SpectralMeasure, UserError
from pruning_limits.serial import MOST_BYTES, fields_of, read_plain, to_plain


@dataclass(frozen=True)
class Inner:
    numbers: np.ndarray
    pair: tuple[int, str]


@pytest.fixture(scope="module")
def limit():
    return small_limit()


@pytest.fixture(scope="module")
def plain(limit):
    return json.loads(limit.to_json())


def test_nested_values_become_plain():
    measure = SpectralMeasure.from_eigenvalues(np.array([1.0, 2.0]))
    value = {
        "a": Inner(np.array([1.5, 2.0]), (3, "x")),
        "b": [np.float64(0.1), np.int64(4)],
        "c": (measure, None, True),
    }
    rule = {"nodes": [1.0, 2.0], "weights": [0.5, 0.5]}
    assert to_plain(value) == {
        "a": {"numbers": [1.5, 2.0], "pair": [3, "x"]},
        "b": [0.1, 4],
        "c": [{"dimension": 2, "exact": True, "rules": [rule]}, None, True],
    }


def test_fields_come_back_bit_for_bit(limit, plain):
    fields = fields_of(plain)
    assert set(fields) == {field.name for field in dataclasses.fields(limit)} - {"profile"}
    for name in sorted(set(fields) - {"evidence"}):
        assert fields[name] == getattr(limit, name), name
    for field in dataclasses.fields(limit.evidence):
        mine, other = (to_plain(getattr(evidence, field.name)) for evidence in (limit.evidence, fields["evidence"]))
        assert mine == other, field.name


@pytest.mark.parametrize("name", ["sparsity", "lower", "upper", "retrained", "directional"])
@pytest.mark.parametrize("value", [-1e-9, 1 + 1e-9, math.nan, math.inf])
def test_sparsities_out_of_range_are_refused(plain, name, value):
    message = "expected 0 to 1$" if math.isfinite(value) else "^expected a finite number"
    with pytest.raises(ValueError, match=message):
        fields_of(plain | {name: value})


def changed(plain, path, value):
    """Return a deep copy with one value exchanged."""
    copy = json.loads(json.dumps(plain))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("evidence already_removed", 1.5, "already_removed is 1.5, expected 0 to 1"),
        ("evidence curve", {"sparsity": [0.0, 1.0], "squared": [0.0]}, "knots of different number"),
        ("evidence curve", {"sparsity": [0.0, 1.0], "squared": [1.0, 0.5]}, "curve does not rise"),
        ("evidence curve", {"sparsity": [0.0, math.nan], "squared": [0.0, 1.0]}, "list of finite numbers"),
        ("evidence dense", {}, "Dense has other entries than expected"),
        ("evidence points", [{}], "rise"),
        ("evidence measured", "yes", "measured is 'yes'"),
        ("allowed origin", "a guess", "expected one of batch-std, number, max-drop, got 'a guess'"),
        ("allowed epsilon", 0.0, "expected a positive number"),
        ("allowed low", 1e9, "expected a positive number within"),
        ("answers", [], "a rung is missing"),
        ("settings tolerance", -1.0, "tolerance: expected a positive number"),
        ("settings max_drop", 0.1, "max_drop: is a fall of the metric"),
    ],
)
def test_values_that_contradict_each_other_are_refused(plain, path, value, message):
    with pytest.raises((ValueError, KeyError, UserError), match=message):
        fields_of(changed(plain, path.split(), value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"basis": "unknown"}, "one-shot: an unknown answer has a number"),
        ({"low": None}, "one-shot: an unknown answer has a number"),
        ({"rung": "second"}, "expected one of one-shot, .*, got 'second'"),
        ({"high": 1.1}, "high is 1.1, expected 0 to 1"),
    ],
)
def test_answers_that_contradict_themselves_are_refused(plain, change, message):
    first, *others = plain["answers"]
    with pytest.raises(ValueError, match=message):
        fields_of(plain | {"answers": [first | change, *others]})


def test_an_infinite_rise_is_kept(plain):
    points = plain["evidence"]["points"]
    broken = changed(plain, ["evidence", "points"], [*points[:-1], points[-1] | {"rise": None}])
    loaded = fields_of(broken)["evidence"]
    assert loaded.points[-1].rise == math.inf
    assert to_plain(loaded)["points"] == broken["evidence"]["points"]


def test_an_infinite_fall_is_kept_where_a_metric_was_measured():
    plain = json.loads(small_limit(metric="accuracy").to_json())
    points = plain["evidence"]["points"]
    broken = changed(plain, ["evidence", "points"], [*points[:-1], points[-1] | {"drop": None}])
    assert fields_of(broken)["evidence"].points[-1].drop == math.inf


@pytest.mark.parametrize("content", ["", "{", '{"a": NaN}', '{"a": -Infinity}', '{"a": 1, "a": 2}', "[" * 100_000])
def test_text_that_is_not_strict_json_is_refused(tmp_path, content):
    path = tmp_path / "limit.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"^limit: .*limit\.json is not valid JSON$"):
        read_plain(path)


def test_files_that_are_absent_too_large_or_not_text_are_refused(tmp_path):
    path = tmp_path / "limit.json"
    with pytest.raises(UserError, match=r"limit: cannot read .*: No such file"):
        read_plain(path)
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="is not valid JSON"):
        read_plain(path)
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(UserError, match="has more than 64 MiB and is no limit"):
        read_plain(path)
    path.write_text('{"a": [1, {"b": 0.1}]}')
    assert read_plain(path) == {"a": [1, {"b": 0.1}]}
