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
def plain():
    return json.loads(small_limit().to_json())


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


def test_fields_come_back_bit_for_bit(plain):
    limit = small_limit()
    fields = fields_of(plain)
    for name in ("sparsity", "lower", "upper", "retrained", "interval", "achieved", "epsilon", "rises", "layer_table"):
        assert fields[name] == getattr(limit, name), name
    assert to_plain(fields["hessian"]) == to_plain(limit.hessian)
    assert to_plain(fields["ggn"]) == to_plain(limit.ggn)
    assert to_plain(fields["directions"]) == to_plain(limit.directions)
    assert set(fields) == {field.name for field in dataclasses.fields(limit)} - {"profile"}


@pytest.mark.parametrize("name", ["sparsity", "lower", "upper", "retrained", "directional", "already_removed"])
@pytest.mark.parametrize("value", [-1e-9, 1 + 1e-9, math.nan, math.inf])
def test_sparsities_out_of_range_are_refused(plain, name, value):
    with pytest.raises(ValueError, match=f"^{name} is .*, expected 0 to 1$"):
        fields_of(plain | {name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective_error": -1.0}, "objective_error is -1.0"),
        ({"curve": {"sparsity": [0.0, 1.0], "squared": [0.0]}}, "knots of different number"),
        ({"curve": {"sparsity": [0.0, 1.0], "squared": [1.0, 0.5]}}, "curve does not rise"),
        ({"curve": {"sparsity": [0.0, math.nan], "squared": [0.0, 1.0]}}, "list of finite numbers"),
    ],
)
def test_values_that_contradict_each_other_are_refused(plain, change, message):
    with pytest.raises(ValueError, match=message):
        fields_of(plain | change)


def test_what_earlier_versions_lack_has_a_default(plain):
    older = {key: value for key, value in plain.items() if key not in ("already_removed", "objective_error")}
    fields = fields_of(older)
    assert (fields["already_removed"], fields["objective_error"]) == (0.0, 0.0)


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
