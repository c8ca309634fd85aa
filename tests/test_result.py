"""The pruning limit as an object: JSON, verdicts, masks, layers and summary."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest
import torch
from helpers import random, seeded, with_bounds
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from estimators import UserError
from pruning_limits import MagnitudeProfile, PruningLimit, Verdict, predict_limit
from pruning_limits.evidence import Evidence, solve
from pruning_limits.ladder import percent
from pruning_limits.magnitude import removed_count


def predicted(**options):
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        x = random(60, 6, seed=1)
        y = (model(x) + 0.3 * random(60, 3, seed=2)).argmax(1)
    return predict_limit(model, [(x, y)], **({"epsilon": 0.02, "parameters": ["0.weight", "2.weight"]} | options))


@pytest.fixture(scope="module")
def limit():
    return predicted()


@pytest.fixture(scope="module")
def unmeasured():
    return predicted(measure=False, parameters="*.weight", curvature="ggn", negative="clip")


# ------------------------------------------------------------------------------------------------------- JSON


def test_json_round_trip(any_limit, tmp_path):
    path = tmp_path / "new" / "folder" / "limit.json"
    text = any_limit.to_json(path)
    assert path.read_text() == text
    loaded = PruningLimit.from_json(path)
    assert loaded == any_limit
    assert loaded.to_json() == text
    assert loaded.profile is None
    for column in dataclasses.fields(PruningLimit):
        if column.name not in ("evidence", "profile"):
            assert getattr(loaded, column.name) == getattr(any_limit, column.name), column.name
    for column in dataclasses.fields(Evidence):
        if column.name not in ("hessian", "ggn", "curve", "directions"):
            mine, other = getattr(any_limit.evidence, column.name), getattr(loaded.evidence, column.name)
            assert other == mine, column.name
    for name in ("hessian", "ggn"):
        mine, other = getattr(any_limit.evidence, name), getattr(loaded.evidence, name)
        assert other.half_width(0.01) == mine.half_width(0.01)
        assert other.measure.exact == mine.measure.exact
        np.testing.assert_array_equal(other.measure.nodes, mine.measure.nodes)
        np.testing.assert_array_equal(other.measure.weights, mine.measure.weights)
    np.testing.assert_array_equal(loaded.evidence.curve.squared, any_limit.evidence.curve.squared)


def test_a_loaded_limit_answers_the_same_questions(limit, tmp_path):
    limit.to_json(str(tmp_path / "limit.json"))
    loaded = PruningLimit.from_json(str(tmp_path / "limit.json"))
    assert loaded.summary() == limit.summary()
    assert loaded.check(0.5) == limit.check(0.5)
    assert loaded.layers() == limit.layers()
    changes = {"epsilon": 0.05, "weight_scale": 2.0, "curvature_scale": 0.5}
    assert loaded.what_if(**changes) == limit.what_if(**changes)
    assert loaded.what_if() == limit.what_if() == limit


def test_a_loaded_limit_is_what_its_evidence_is_solved_to(any_limit, tmp_path):
    any_limit.to_json(tmp_path / "limit.json")
    loaded = PruningLimit.from_json(tmp_path / "limit.json")
    solved = solve(loaded.evidence, loaded.settings, loaded.allowed)
    assert dataclasses.replace(solved, layer_table=loaded.layer_table) == loaded


def test_limits_differ_when_anything_but_the_weights_differs(limit, unmeasured):
    assert limit != unmeasured
    assert limit != dataclasses.replace(limit, status="other")
    assert limit != limit.what_if(weight_scale=2.0)
    assert limit == dataclasses.replace(limit, profile=None)
    assert limit != "limit"


def test_json_is_strict_and_names_its_format(limit):
    def refuse(constant):
        raise AssertionError(constant)

    plain = json.loads(limit.to_json(), parse_constant=refuse)
    assert plain["format"] == "pruning-limit/7"
    assert plain["settings"]["parameters"] == ["0.weight", "2.weight"]
    assert "profile" not in plain


def test_json_takes_numbers_of_numpy_and_torch(tmp_path):
    limit = predicted(epsilon=np.float32(0.25), samples=np.int64(60), tolerance=np.float64(0.01))
    limit.to_json(tmp_path / "limit.json")
    assert PruningLimit.from_json(tmp_path / "limit.json") == limit
    assert predicted(epsilon=torch.tensor(0.25)).to_json()


def refused(path, message):
    with pytest.raises(UserError) as caught:
        PruningLimit.from_json(path)
    assert str(caught.value).startswith(f"limit: {message}")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path):
    refused(tmp_path / "none.json", "cannot read")
    refused(tmp_path, "cannot read")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"hello\nworld"])
def test_files_that_are_not_json(tmp_path, content):
    (tmp_path / "limit.json").write_bytes(content)
    refused(tmp_path / "limit.json", f"{tmp_path}")


@pytest.mark.parametrize("content", ["[]", "3", "null", "{}", '{"format": "pruning-limit/0"}', '{"format": ["a"]}'])
def test_files_of_another_format(tmp_path, content):
    (tmp_path / "limit.json").write_text(content)
    refused(tmp_path / "limit.json", f"{tmp_path}")


def places(value, path=()):
    """Every place of a nested JSON value, lists at both ends."""
    yield path
    if isinstance(value, dict):
        for key, child in value.items():
            yield from places(child, (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))
        yield from places(value[-1], (*path, len(value) - 1))


def test_a_limit_with_anything_missing_is_refused(limit, tmp_path):
    path = tmp_path / "limit.json"
    for place in places(json.loads(limit.to_json())):
        if place and isinstance(place[-1], str):
            plain = json.loads(limit.to_json())
            parent = plain
            for key in place[:-1]:
                parent = parent[key]
            del parent[place[-1]]
            path.write_text(json.dumps(plain))
            refused(path, f"{path} is ")


@pytest.mark.parametrize("value", [None, "x", [], {}, -1, math.nan, 10**400], ids=lambda value: str(value)[:8])
def test_a_damaged_limit_is_refused_or_still_works(limit, tmp_path, value):
    path = tmp_path / "limit.json"
    for place in places(json.loads(limit.to_json())):
        plain = json.loads(limit.to_json())
        parent = plain
        for key in place[:-1]:
            parent = parent[key]
        if place:
            parent[place[-1]] = value
        path.write_text(json.dumps(plain if place else value))
        try:
            loaded = PruningLimit.from_json(path)
        except UserError:
            refused(path, "")
            continue
        assert loaded.summary(), place
        assert loaded.check(0.5), place
        assert loaded.to_json(), place
        assert loaded.what_if(epsilon=0.5).sparsity > 0, place


def test_json_to_a_place_that_cannot_be_written(limit, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*limit\.json"):
        limit.to_json(tmp_path / "file" / "limit.json")


# --------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("sparsity", "status", "margin"),
    [
        (0.0, "achievable", 0.6),
        (0.59, "achievable", 0.01),
        (0.6, "achievable", 0.0),
        (0.6 + 1e-9, "open", 1e-9),
        (0.65, "open", 0.05),
        (0.75, "open", 0.05),
        (0.8, "open", 0.0),
        (0.8 + 1e-9, "infeasible", 1e-9),
        (0.999, "infeasible", 0.199),
    ],
)
@pytest.mark.parametrize("numerical", [0.0, 0.1])
def test_verdicts(limit, sparsity, status, margin, numerical):
    verdict = with_bounds(limit, 0.6, 0.8 - numerical, numerical).check(sparsity)
    assert isinstance(verdict, Verdict)
    assert verdict.status == status
    assert verdict.margin == pytest.approx(margin, abs=1e-12)
    assert "\n" not in verdict.reason
    assert verdict.reason.startswith(percent(sparsity))


def test_verdicts_where_the_bounds_meet(limit):
    both = with_bounds(limit, 0.7, 0.7)
    assert [both.check(s).status for s in (0.69, 0.7, 0.71)] == ["achievable", "achievable", "infeasible"]
    assert with_bounds(limit, 1.0, 1.0).check(0.9999).status == "achievable"
    assert with_bounds(limit, 0.0, 1.0).check(0.0).status == "achievable"


def test_verdicts_say_how_the_lower_bound_was_found(limit, unmeasured):
    assert "measured" in limit.check(0.01).reason
    assert "quadratic model" in unmeasured.check(0.01).reason


@pytest.mark.parametrize("sparsity", [1.0, -0.01, 1.5, math.nan, math.inf])
def test_verdicts_need_a_sparsity(limit, sparsity):
    with pytest.raises(UserError, match=r"^sparsity: .*\[0, 1\)"):
        limit.check(sparsity)


WRONG = ("0.5", True, [0.5], np.array([0.5]), torch.tensor([0.5, 0.6]), b"x", 1j, math.nan, 50)


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_whatever_is_no_sparsity_is_refused_by_every_question(limit, wrong):
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)))
    for ask in (
        limit.check,
        limit.mask,
        limit.saving,
        limit.ratios,
        limit.epsilon_for,
        limit.weight_scale_for,
        limit.curvature_scale_for,
        limit.summary,
        lambda sparsity: limit.prune(model, sparsity),
        lambda sparsity: limit.retune(model, [], sparsity),
    ):
        with pytest.raises(UserError, match=r"^sparsity: expected .*, got ") as caught:
            ask(wrong)
        assert "\n" not in str(caught.value)
    for scale in ("weight_scale", "curvature_scale"):
        with pytest.raises(UserError, match=rf"^{scale}: expected a number from 1e-50 to 1e\+50, got "):
            limit.what_if(**{scale: math.inf if isinstance(wrong, int) and wrong > 1 else wrong})
    with pytest.raises(UserError, match=r"^macs: expected a number in \(0, 1\), .*, got "):
        limit.for_budget(macs=wrong)
    with pytest.raises(UserError, match=r"^rung: expected one of "):
        limit.answer(wrong if isinstance(wrong, str | bytes | list) else [wrong])


@pytest.mark.parametrize("kind", [np.float32, np.array, torch.tensor])
def test_numbers_of_other_libraries_are_taken_as_plain_ones(limit, kind):
    assert limit.check(kind(0.5)) == limit.check(0.5)
    assert type(limit.saving(kind(0.5)).sparsity) is float
    assert limit.saving(kind(0.5)) == limit.saving(0.5)
    assert limit.for_budget(macs=kind(0.5)) == limit.for_budget(macs=0.5)
    assert limit.what_if(weight_scale=kind(0.5)) == limit.what_if(weight_scale=0.5)
    assert limit.epsilon_for(kind(0.5)) == limit.epsilon_for(0.5)


def test_bounds_are_ordered(any_limit):
    assert 0 <= any_limit.lower <= any_limit.upper <= 1
    assert 0 <= any_limit.interval[0] <= any_limit.sparsity <= any_limit.interval[1] <= 1
    assert any_limit.retrained <= any_limit.upper
    bound = any_limit.answer("bound")
    if any_limit.achieved is not None and bound.sparsity is not None:
        assert any_limit.headroom == bound.sparsity - any_limit.achieved >= 0
    assert [answer.rung for answer in any_limit.answers] == ["one-shot", "re-trained", "bound", "formula"]
    for answer in any_limit.answers:
        if answer.sparsity is not None:
            assert 0 <= answer.low <= answer.sparsity <= answer.high <= 1


@given(st.floats(1e-6, 1e3), st.floats(0.01, 100), st.floats(0.01, 100))
def test_bounds_are_ordered_whatever_is_asked(limit, epsilon, weight_scale, curvature_scale):
    answer = limit.what_if(epsilon=epsilon, weight_scale=weight_scale, curvature_scale=curvature_scale)
    assert 0 <= answer.lower <= answer.upper <= 1
    assert 0 <= answer.sparsity <= 1
    assert answer.retrained <= answer.upper


def test_headroom(limit, unmeasured):
    assert with_bounds(limit, limit.lower, 0.9).headroom == pytest.approx(0.9 - limit.achieved)
    assert unmeasured.headroom is None


# ----------------------------------------------------------------------------------------------- masks, layers


@pytest.mark.parametrize("sparsity", [0.0, 0.003, 0.25, 0.5, 2 / 3, 0.9999, 1.0])
def test_masks_have_the_exact_count(limit, sparsity):
    masks = limit.mask(sparsity)
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == {"0.weight": (12, 6), "2.weight": (8, 12)}
    assert all(mask.dtype == torch.bool for mask in masks.values())
    removed = sum(int((~mask).sum()) for mask in masks.values())
    assert removed == removed_count(sparsity, 168) == math.ceil(sparsity * 168 - 1e-6)
    kept = torch.cat([limit.profile.weights[name][mask].abs() for name, mask in masks.items()])
    gone = torch.cat([limit.profile.weights[name][~mask].abs() for name, mask in masks.items()])
    assert not len(kept) or not len(gone) or kept.min() >= gone.max()


def test_masks_need_weights_and_a_sparsity(limit, tmp_path):
    limit.to_json(tmp_path / "limit.json")
    with pytest.raises(UserError, match=r"^mask: "):
        PruningLimit.from_json(tmp_path / "limit.json").mask(0.5)
    for sparsity in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match=r"^sparsity: "):
            limit.mask(sparsity)


def test_layers(limit, unmeasured):
    for known in (limit, unmeasured):
        rows = known.layers()
        assert tuple(row.name for row in rows) == known.settings.parameters
        assert sum(row.weights for row in rows) == known.parameters
        removed = sum(row.weights * row.sparsity for row in rows)
        assert removed == pytest.approx(removed_count(known.sparsity, known.parameters), abs=1e-9)
        assert sum(row.trace for row in rows) == known.sharpness.trace
        assert all(row.trace_error >= 0 for row in rows)
        for row in rows:
            assert row.norm == pytest.approx(float(known.profile.weights[row.name].norm()))


def test_the_layer_table_is_a_copy_and_absent_where_it_does_not_hold(limit):
    limit.layers().clear()
    assert len(limit.layers()) == 2
    assert limit.what_if().layers() == limit.layers()
    other = limit.what_if(epsilon=1.0)
    removed = sum(row.weights * row.sparsity for row in other.layers())
    assert removed == pytest.approx(removed_count(other.sparsity, other.parameters), abs=1e-9)
    assert limit.what_if(weight_scale=2.0).layers() == []  # the weights are others


def test_sharpness(limit):
    nodes = limit.evidence.hessian.measure.nodes  # all eigenvalues: the model is small
    sharpness = limit.sharpness
    assert len(nodes) == 168
    assert sharpness.top_eigenvalue == nodes.max()
    spread = sum(row.trace_error for row in limit.layers())
    assert abs(sharpness.trace - nodes.sum()) < 3 * spread
    assert sharpness.effective_dimension == pytest.approx(168 * (1 - limit.sparsity))
    assert sharpness.negative_share == pytest.approx(-nodes[nodes < 0].sum() / np.abs(nodes).sum())
    assert 0 < sharpness.negative_share < 1


def test_the_error_of_the_trace_is_shown_and_scaled(limit):
    sharpness, rows = limit.sharpness, limit.layers()
    assert 0 < sharpness.trace_error < sharpness.trace
    assert abs(sharpness.trace - limit.evidence.hessian.measure.nodes.sum()) < 3 * sharpness.trace_error
    assert 0.5 < sharpness.trace_error / sum(row.trace_error**2 for row in rows) ** 0.5 < 2
    assert f"{sharpness.trace:.4g} +- {sharpness.trace_error:.2g}" in limit.details()
    assert limit.what_if(curvature_scale=3.0).sharpness.trace_error == pytest.approx(3 * sharpness.trace_error)


def test_the_profile_is_that_of_the_weights(limit):
    assert isinstance(limit.profile, MagnitudeProfile)
    assert limit.profile.dimension == limit.parameters == 168
    assert limit.evidence.curve.squared_norm(1.0) == pytest.approx(float(limit.profile.vector.square().sum()))


# ------------------------------------------------------------------------------------------- summary, estimates


def test_the_limits_of_two_measures_meet_at_the_geometric_mean_of_what_is_kept(limit):
    pair = dataclasses.replace(limit.evidence.ggn, above=limit.evidence.ggn.measure.scaled(2.0), growth=1.5)
    assert pair.limit(lambda measure: 0.96 if measure is pair.measure else 0.99) == pytest.approx(1 - 1.5 * 0.02)
    assert pair.limit(lambda measure: 1 + 1e-16) == pair.limit(lambda measure: 1 + 1e-9) == 1
    assert pair.limit(lambda measure: 0.0) == 0
    assert pair.on_samples(pair.limit(lambda measure: 0.9)) == pytest.approx(0.9)


# ------------------------------------------------------------------------------------------- notebooks, tables


def test_repr_is_short_and_tells_the_answer(any_limit):
    text = repr(any_limit)
    assert text.startswith(f"PruningLimit(one-shot {any_limit.lower:.4f}, ")
    assert any_limit.status in text
    assert len(text) < 400
    assert "\n" not in text


def test_layers_as_a_data_frame(limit):
    frame = limit.to_pandas()
    assert list(frame.columns) == ["name", "weights", "norm", "trace", "trace_error", "macs", "sparsity"]
    assert frame.to_dict("records") == [dataclasses.asdict(layer) for layer in limit.layers()]
    empty = limit.what_if(weight_scale=2.0).to_pandas()
    assert list(empty.columns) == list(frame.columns)
    assert len(empty) == 0


def test_a_data_frame_without_pandas(limit, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"^to_pandas: needs the package pandas; .*pip install pandas$"):
        limit.to_pandas()
