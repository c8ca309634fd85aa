"""The gate on networks that are pruned in patterns, also physically smaller ones."""

import copy
import json

import pytest
import torch
from click.testing import CliRunner
from helpers import random, small_limit
from test_cli import FAST, TASK, elsewhere  # noqa: F401

from pruning_limits import PruningLimit, predict_limit
from pruning_limits.gate import compare
from pruning_limits.groups import Groups
from pruning_limits.pattern_gate import fit_of, pattern_of, pattern_sparsity
from pruning_limits.pattern_names import parsed
from pruning_limits.patterns import Matrix, blocks, runs
from validation.cli import main

CODES = {"achievable": 0, "open": 3, "infeasible": 4}
ASKED = ("unstructured", "2:4", "channels")


def weights():
    return {"w": random(4, 8, seed=1), "v": random(2, 6, seed=2)}


LAYERS = {"w": Matrix(0, 1), "v": Matrix(0, 1)}


def test_runs_fit_where_none_keeps_too_many():
    groups = runs(parsed("2:4"), weights(), LAYERS)
    pruned = weights()
    assert fit_of(groups, pruned).misfits == {"w": (8, 8)}
    pruned["w"][:, 0::4] = pruned["w"][:, 1::4] = 0
    assert fit_of(groups, pruned).fits
    assert fit_of(groups, pruned).reason(groups) == "the zeros are those of 2:4; 1 layers that do not fit are left out"
    pruned["w"][1, 0] = 1.0
    fit = fit_of(groups, pruned)
    assert (fit.misfits, fit.fits) == ({"w": (1, 8)}, False)
    assert fit.reason(groups) == "the zeros are not those of 2:4 (w: 1 of 8 runs keep more)"
    pruned["w"][1] = 0  # more zeros than needed fit as well
    assert fit_of(groups, pruned).fits


def test_groups_fit_where_all_zeros_are_whole_groups():
    groups = blocks(parsed("blocks:2x1"), weights(), LAYERS)
    pruned = weights()
    assert not fit_of(groups, pruned).fits
    assert fit_of(groups, pruned).reason(groups) == "the zeros are not those of blocks:2x1 (nothing is zero)"
    pruned["w"][:2, 3] = 0
    assert fit_of(groups, pruned).fits
    pruned["w"][2, 5] = 0
    fit = fit_of(groups, pruned)
    assert (fit.misfits, fit.fits) == ({"w": (1, 3)}, False)
    assert "w: 1 of 3 zeros are no part of a group that is zero" in fit.reason(groups)


def test_a_weight_of_two_groups_is_explained_by_either():
    groups = Groups(parsed("channels"), 4, ({"w": torch.tensor([[0], [1]])}, {"w": torch.tensor([[2, 3]])}))
    pruned = {"w": torch.tensor([[0.0, 0.0], [0.0, 1.0]])}
    assert fit_of(groups, pruned).fits
    pruned["w"][0, 1] = 2.0
    assert fit_of(groups, pruned).fits
    assert fit_of(groups, {"w": torch.tensor([[0.0, 2.0], [3.0, 1.0]])}).misfits == {"w": (1, 1)}


def test_the_first_pattern_that_fits_is_told():
    groups = {
        name: (runs if ":" in name[:2] else blocks)(parsed(name), weights(), LAYERS) for name in ("2:4", "blocks:4x1")
    }
    pruned = weights()
    assert pattern_of(groups, pruned) == "unstructured"
    pruned["w"][:, 2] = 0
    assert pattern_of(groups, pruned) == "blocks:4x1"
    pruned["w"][:, [0, 4, 5]] = 0
    assert pattern_of(groups, pruned) == "2:4"


# --------------------------------------------------------------------------------------------------- verdicts


@pytest.fixture(scope="module")
def limit():
    return small_limit(pattern=("unstructured", "1:2", "channels"))


def compared(limit, pattern, value_rise, sparsity=0.5, asked=None):
    own = limit.for_pattern(pattern)
    dense = dict(limit.profile.weights)
    pruned = {name: dense[name] * mask for name, mask in own.mask(sparsity).items()}
    groups = limit.profile.structure.groups
    return compare(limit, dense, pruned, limit.objective, limit.objective + value_rise, None, groups, asked)


def test_a_network_is_judged_by_the_limit_of_its_pattern(limit):
    result = compared(limit, "channels", 0.5 * limit.epsilon)
    assert result.pattern == "channels"
    cases = {case.name: case for case in result.cases}
    assert cases["pattern"].reason == "the zeros are those of channels"
    assert result.status == "achievable"
    assert "no bound is established (for this pattern" in cases["sparsity"].reason
    assert cases["sparsity"].reason.endswith("and the loss was measured to hold")
    assert result.place == "unbounded"
    assert compared(limit, "channels", 2 * limit.epsilon).status == "infeasible"


def test_a_pattern_of_one_sparsity_is_told_with_what_it_costs_alone(limit):
    result = compared(limit, "1:2", 0.5 * limit.epsilon)
    assert result.pattern == "1:2"
    reason = {case.name: case for case in result.cases}["sparsity"].reason
    assert reason.startswith("by pruning alone 1:2 raises the loss by ")
    assert reason.endswith("; the loss was measured to hold")
    status, text = pattern_sparsity(limit.for_pattern("1:2"), False, "loss")
    assert (status, text) == ("open", f"by pruning alone {limit.for_pattern('1:2').check().reason}")
    assert pattern_sparsity(limit, True, "loss") is None


def test_single_weights_stay_single_weights_and_a_pattern_that_is_asked_for_has_to_fit(limit):
    assert compared(limit, "unstructured", 0.0, 0.2).pattern == "unstructured"
    result = compared(limit, "unstructured", 0.0, 0.2, asked="1:2")
    assert result.status == "infeasible"
    assert result.cases[0].name == "pattern"
    assert "runs keep more" in result.cases[0].reason


def test_what_was_not_measured_is_told(limit):
    own = small_limit(measure=False, pattern=("unstructured", "1:2"))
    result = compared(own, "1:2", 0.0)
    assert result.status == "achievable"
    assert "1:2: what pruning reaches alone was not measured" in result.reason
    assert pattern_sparsity(own.for_pattern("1:2"), False, "loss")[0] == "open"


# ---------------------------------------------------------------------------------------------- command line

SETTINGS = {"samples": 64, "steps": 4, "probes": 1, "metric": "accuracy", "max_drop": 0.05}
COMPARE = ("check", *TASK, "--limit", "limit.json", "--dense", "dense.pt", "--pruned", "pruned.pt", "--json")


def invoked(*more):
    return CliRunner().invoke(main, [str(part) for part in (*COMPARE, *more)])


@pytest.fixture(scope="module")
def predicted(trained, digits):
    held_out = digits.batches("test", 1000)
    return predict_limit(trained, digits.batches("train", 1000), held_out=held_out, pattern=ASKED, **SETTINGS)


@pytest.fixture
def files(predicted, trained):
    predicted.to_json("limit.json")
    torch.save(trained.state_dict(), "dense.pt")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("pattern", ["2:4", "channels"])
def test_the_command_finds_the_pattern_of_a_masked_checkpoint(predicted, trained, pattern):
    own = predicted.for_pattern(pattern)
    sparsity = None if pattern == "2:4" else own.lower or 0.1
    torch.save(own.prune(trained, sparsity).state_dict(), "pruned.pt")
    result = invoked()
    told = json.loads(result.stdout)
    assert told["pattern"] == pattern
    assert result.exit_code == CODES[told["status"]]
    assert told["cases"][0]["name"] == "pattern"
    assert f"the zeros are those of {pattern}" in told["cases"][0]["reason"]
    if pattern == "2:4":
        drop = own.evidence.points[-1].drop
        assert told["drop"]["dense"] - told["drop"]["pruned"] == pytest.approx(drop, abs=1e-9)
    if pattern == "channels" and own.lower:
        assert told["status"] == "achievable"


@pytest.mark.usefixtures("files")
def test_a_physically_smaller_checkpoint_is_judged_like_the_masked_one(predicted, trained, digits):
    own = predicted.for_pattern("channels")
    smaller = own.shrink(trained, digits.batches("train", 1000), 0.3)
    torch.save(smaller.state_dict(), "pruned.pt")
    result = invoked()
    told = json.loads(result.stdout)
    assert "of a network without" in result.stderr
    torch.save(own.prune(trained, 0.3).state_dict(), "pruned.pt")
    masked = json.loads(invoked().stdout)
    assert told["pattern"] == masked["pattern"] == "channels"
    assert told["sparsity"] == masked["sparsity"] == own.profile.count(0.3) / own.parameters
    assert told["rise"] == pytest.approx(masked["rise"], abs=1e-5)
    assert told["drop"]["pruned"] == pytest.approx(masked["drop"]["pruned"])
    assert told["status"] == masked["status"]


@pytest.mark.usefixtures("files")
def test_the_command_predicts_patterns():
    arguments = ("predict", *TASK, *FAST, "--checkpoint", "dense.pt", "--pattern", "2:4", "--pattern", "channels")
    result = CliRunner().invoke(main, [*map(str, arguments), "--json", "new.json"])
    assert result.exit_code == 0, result.output
    limit = PruningLimit.from_json("new.json")
    assert limit.pattern == "2:4"
    assert [own.name for own in limit.evidence.patterns] == ["unstructured", "2:4", "channels"]
    assert "removes at most" in result.stdout
    asked = CliRunner().invoke(main, ["predict", *TASK, "--checkpoint", "none.pt", "--pattern", "x"])
    assert asked.exit_code == 1
    assert "pattern: expected unstructured, N:M such as 2:4" in asked.output


@pytest.mark.usefixtures("files")
def test_checkpoints_of_other_sizes_and_patterns_that_do_not_fit(predicted, trained):
    state = copy.deepcopy(trained.state_dict())
    name = predicted.settings.parameters[0]
    state[name] = state[name][:-1]
    torch.save(state, "pruned.pt")
    result = invoked()
    assert result.exit_code == 1
    assert "pruned: its sizes are not those of coupled channels" in result.output
    torch.save(predicted.prune(trained, 0.3).state_dict(), "pruned.pt")
    result = invoked("--pattern", "2:4")
    assert result.exit_code == 4
    assert "the zeros are not those of 2:4" in result.stdout
    result = invoked("--pattern", "blocks:4x1")
    assert result.exit_code == 1
    assert "pattern: the limit knows nothing of blocks:4x1; predict it with --pattern blocks:4x1" in result.output
