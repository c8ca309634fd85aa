"""The gate: a pruned checkpoint next to its dense parent, verdicts, exit codes, JSON and JUnit."""

import dataclasses
import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from test_cli import FAST, TASK, elsewhere, refuse, run  # noqa: F401
from torch import nn
from torch.nn.utils import prune

from estimators import L1, Objective, UserError
from pruning_limits import MagnitudeProfile, predict_limit
from pruning_limits.gate import Case, compare, junit
from pruning_limits.state_dicts import without_masks
from validation.models import build_model

PENALTY = ("--l1", 1e-3)


@pytest.fixture(scope="module")
def limit(trained, digits):
    found = predict_limit(trained, digits.batches("train", 1000), penalty=L1(1e-3), samples=64, steps=4, probes=1)
    exact = dataclasses.replace(found.ggn, step_error=0.0, sample_error=0.0)
    directions = dataclasses.replace(found.directions, step_error=0.0)
    return dataclasses.replace(found, ggn=exact, directions=directions, upper=max(found.upper, found.sparsity))


@pytest.fixture(scope="module")
def weights(limit):
    return limit.profile.weights


@pytest.fixture
def files(limit, trained):
    """Write the limit and the dense checkpoint; return a function that writes a pruned one."""
    limit.to_json("limit.json")
    torch.save(trained.state_dict(), "dense.pt")

    def write(sparsity, path="pruned.pt"):
        masks = limit.mask(sparsity)
        state = {name: value * masks[name] if name in masks else value for name, value in trained.state_dict().items()}
        torch.save(state, path)
        return state

    return write


COMPARE = ("check", *TASK, *PENALTY, "--limit", "limit.json", "--dense", "dense.pt", "--pruned", "pruned.pt")


def pruned_to(limit, sparsity):
    masks = limit.mask(sparsity)
    return {name: weight * masks[name] for name, weight in limit.profile.weights.items()}


def judged(limit, pruned, rise=0.0):
    dense = limit.profile.weights
    return compare(limit, dense, pruned, limit.objective, limit.objective + rise)


# --------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize("where", ["achieved", "limit", "upper", "beyond"])
@pytest.mark.parametrize("holds", [True, False])
def test_every_place_and_both_objectives(limit, where, holds):
    limit = dataclasses.replace(limit, lower=0.2, sparsity=0.3, upper=0.4, layer_table=())
    sparsity = {"achieved": 0.2, "limit": 0.25, "upper": 0.35, "beyond": 0.5}[where]
    found = judged(limit, pruned_to(limit, sparsity), limit.epsilon * (1 - 1e-6 if holds else 1 + 1e-6))
    assert found.place == where
    assert found.sparsity == pytest.approx(sparsity, abs=1e-12)
    beyond = where == "beyond"
    assert found.status == ("infeasible" if not holds else "open" if beyond else "achievable")
    statuses = {case.name: case.status for case in found.cases}
    assert statuses["objective"] == ("achievable" if holds else "infeasible")
    assert statuses["sparsity"] == ("achievable" if not beyond else "open" if holds else "infeasible")
    assert "\n" not in found.reason
    assert (f"{found.epsilon:.4g} is allowed" in found.reason) == (not holds or not beyond)


def test_a_layer_is_suspicious_below_a_tenth_of_what_the_limit_keeps(limit, weights):
    name, size = next((layer.name, layer.weights) for layer in limit.layers() if layer.weights > 1000)
    rows = tuple(dataclasses.replace(row, sparsity=0.5 if row.name == name else 1.0) for row in limit.layers())
    limit = dataclasses.replace(limit, layer_table=rows, upper=1.0)
    pruned = dict(weights)
    for kept, suspicious in ((size // 20 + 1, False), (size // 20 - 1, True), (0, True)):
        mask = (torch.arange(size) < kept).view_as(weights[name])
        pruned[name] = torch.where(mask, torch.ones(()), torch.zeros(()))
        found = judged(limit, pruned)
        layers = [case for case in found.cases if case.name.startswith("layer ")]
        assert [case.name for case in layers] == [f"layer {name}"] * suspicious
        assert found.status == ("open" if suspicious else "achievable")
        assert ("removed altogether" in found.reason) == (kept == 0)
        assert found.layers[name] == pytest.approx(1 - kept / size)


def test_everything_removed_is_beyond(limit, weights):
    limit = dataclasses.replace(limit, upper=0.9)
    found = judged(limit, {name: torch.zeros_like(weight) for name, weight in weights.items()}, 100.0)
    assert (found.sparsity, found.place, found.status) == (1.0, "beyond", "infeasible")


def test_a_network_that_was_retrained_may_change_every_weight_that_it_keeps(limit):
    pruned = {name: 2 * weight for name, weight in pruned_to(limit, limit.lower / 2).items()}
    assert judged(limit, pruned, -0.1).status == "achievable"


# -------------------------------------------------------------------------------------------------- bad input


def test_wrong_pairs_are_refused(limit, weights):
    name = next(iter(weights))
    good = pruned_to(limit, 0.5)
    undefined = good[name].clone()
    undefined.view(-1)[0] = math.nan
    cases = {
        "pruned: expected .* got nothing": (weights, {key: value for key, value in good.items() if key != name}),
        "pruned: expected .* got \\(3,\\)": (weights, good | {name: torch.ones(3)}),
        "pruned: holds NaN": (weights, good | {name: undefined}),
        "dense: holds NaN": (good | {name: undefined}, good),
        "dense: 50.00% of its weights are zero": (good, good),
        "limit: belongs to other weights": ({key: 1.01 * value for key, value in weights.items()}, good),
    }
    for message, (dense, pruned) in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            compare(limit, dense, pruned, limit.objective, limit.objective)
        assert "\n" not in str(caught.value)
    zeros = weights | {name: weights[name].clone()}
    zeros[name].view(-1)[:5] = 0
    with pytest.raises(UserError, match=r"pruned: has 15,000 non-zero weights, dense 14,995; .*swapped"):
        compare(limit, zeros, weights, limit.objective, limit.objective)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_undefined_objective_is_refused(limit, weights, value):
    with pytest.raises(UserError, match="pruned: expected a finite objective"):
        compare(limit, weights, weights, limit.objective, value)
    with pytest.raises(UserError, match="limit: the objective of dense was"):
        compare(limit, weights, weights, value, limit.objective)


def test_a_limit_of_other_parameters_is_refused(limit, weights):
    fewer = dict(list(weights.items())[1:])
    with pytest.raises(UserError, match="limit: belongs to other weights"):
        compare(limit, fewer, fewer, limit.objective, limit.objective)


# ------------------------------------------------------------------------------------------------------ masks


def test_masks_of_torch_are_applied():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Conv1d(4, 2, 1))
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.random_unstructured(model[0], "bias", 0.5)
    prune.ln_structured(model[2], "weight", 0.5, n=2, dim=0)
    found = without_masks(model.state_dict())
    for module, name in ((model[0], "weight"), (model[0], "bias"), (model[2], "weight")):
        prune.remove(module, name)
    expected = model.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_is_no_pair_stays():
    state = {"a_orig": torch.ones(2), "b_mask": torch.ones(2), "c_orig": 1, "c_mask": 2, 3: "x", "_orig": torch.ones(1)}
    assert without_masks(state) == state
    with pytest.raises(UserError, match=r"weight_mask has shape \(2,\), its weight \(3,\)"):
        without_masks({"weight_orig": torch.ones(3), "weight_mask": torch.ones(2)})


# --------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize("share", [0.5, 0.999])
def test_comparison_of_files(files, limit, trained, digits, share):
    sparsity = limit.lower * share if share < 0.9 else share
    state = files(sparsity)
    model = build_model("fc5-mini", digits.shape, digits.classes)
    model.load_state_dict(state)
    batches = digits.batches("train", 1000)
    values = [Objective(one, batches, penalty=L1(1e-3)).value() for one in (trained, model)]
    expected = compare(limit, limit.profile.weights, MagnitudeProfile(weights_of(model)).weights, *values)
    code = {"achievable": 0, "open": 3, "infeasible": 4}[expected.status]
    assert (code == 0) == (share == 0.5)
    assert run(*COMPARE, code=code).stdout == f"{expected.status}: {expected.reason}\n"
    result = run(*COMPARE, "--json", "--junit", "reports/gate.xml", code=code)
    plain = json.loads(result.stdout)
    assert plain["rise"] == pytest.approx(expected.rise, rel=1e-4, abs=1e-6)
    assert plain["sparsity"] == expected.sparsity
    suite = ElementTree.parse("reports/gate.xml").getroot()
    assert suite.get("tests") == str(len(expected.cases))


def weights_of(model):
    return dict(Objective(model, [(torch.zeros(1, 1, 8, 8), torch.zeros(1).long())]).chosen)


def test_a_checkpoint_with_masks_is_read_alike(files, limit, trained):
    state = files(limit.lower / 2)
    plain = run(*COMPARE).stdout
    masked = dict(trained.state_dict())
    for name, mask in limit.mask(limit.lower / 2).items():
        masked |= {f"{name}_orig": masked.pop(name), f"{name}_mask": mask.float()}
    assert set(masked) != set(state)
    torch.save({"state_dict": masked}, "pruned.pt")
    assert run(*COMPARE).stdout == plain


def test_without_a_limit_it_is_predicted_from_the_dense_network(files):
    files(0.05)
    arguments = [one for one in COMPARE if one not in ("--limit", "limit.json")]
    assert run(*arguments, *FAST).stdout.startswith("achievable: 5.00% is at most")


def test_pairs_of_files_that_are_refused(files, trained):
    files(0.5)
    assert "the data and the penalty" in refuse(*(one for one in COMPARE if one not in PENALTY))
    swapped = [{"dense.pt": "pruned.pt", "pruned.pt": "dense.pt"}.get(one, one) for one in COMPARE]
    assert refuse(*swapped).startswith("Error: dense: 50.00% of its weights are zero")
    state = trained.state_dict() | {"1.bias": trained.state_dict()["1.bias"] * math.nan}
    torch.save(state, "pruned.pt")
    assert "pruned: expected a finite objective" in refuse(*COMPARE)
    torch.save(build_model("small-cnn", (1, 8, 8), 10).state_dict(), "pruned.pt")
    assert "pruned.pt does not fit the model: missing 1.weight" in refuse(*COMPARE)
    masked = trained.state_dict()
    masked |= {"1.weight_orig": masked.pop("1.weight"), "1.weight_mask": torch.ones(2)}
    torch.save(masked, "pruned.pt")
    assert "1.weight_mask has shape (2,)" in refuse(*COMPARE)
    Path("pruned.pt").unlink()
    assert "pruned.pt does not exist" in refuse(*COMPARE)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--dense", "dense.pt"),
        ("--pruned", "pruned.pt", "--sparsity", 0.5),
        ("--dense", "dense.pt", "--pruned", "pruned.pt", "--sparsity", 0.5),
        ("--dense", "dense.pt", "--pruned", "pruned.pt", "--checkpoint", "net.pt"),
        ("--dense", "dense.pt", "--pruned", "pruned.pt", "--limit", "limit.json"),
        (),
    ],
)
def test_options_that_do_not_go_together(files, arguments):
    refuse("check", *arguments, code=2)


# ------------------------------------------------------------------------------------------------------ JUnit


@pytest.mark.parametrize(("sparsity", "code", "kind"), [(0.1, 0, None), (0.5, 3, "skipped"), (0.9, 4, "failure")])
def test_junit_of_a_sparsity(files, limit, sparsity, code, kind):
    dataclasses.replace(limit, lower=0.2, upper=0.6).to_json("limit.json")
    result = run("check", "--sparsity", sparsity, "--limit", "limit.json", "--junit", "gate.xml", code=code)
    suite = ElementTree.parse("gate.xml").getroot()
    assert suite.tag == "testsuite"
    assert suite.get("tests") == "1"
    counts = {"skipped": suite.get("skipped"), "failure": suite.get("failures")}
    assert counts == {name: str(int(name == kind)) for name in counts}
    (case,) = suite
    assert case.attrib == {"classname": "pruning-limits", "name": "sparsity"}
    (entry,) = case
    assert entry.tag == (kind or "system-out")
    assert result.output.endswith(f"{entry.get('message') or entry.text}\n")


def test_junit_holds_any_text():
    text = 'a<b> & "c" \x00\x1b\ud800 é 😀 ]]> \n'
    suite = ElementTree.fromstring(
        junit([Case(text, "infeasible", text), Case(text, "achievable", text)], 1.5).encode()
    )
    assert suite.get("time") == "1.500"
    assert suite[0].get("name").startswith('a<b> & "c" ??? é 😀 ]]>')
    assert suite[1][0].text == 'a<b> & "c" ??? é 😀 ]]> \n'


def test_junit_to_a_place_that_cannot_be_written(files):
    files(0.5)
    Path("file").touch()
    error = refuse("check", "--sparsity", 0.5, "--limit", "limit.json", "--junit", "file/gate.xml")
    assert "cannot write file/gate.xml" in error
