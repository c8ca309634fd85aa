"""``pruning-limits check``: a sparsity or a pruned network, exit codes, what may be lost, and files for pipelines."""

import json
import re
import shlex
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from helpers import ROOT, with_bounds
from scipy import stats
from test_cli import FAST, TASK, elsewhere, refuse, run  # noqa: F401
from torch.nn import functional

from estimators import L1
from pruning_limits import predict_limit
from pruning_limits.gate import compare
from pruning_limits.gate_files import markdown
from validation import cli
from validation.models import build_model

METRICS = """
def likelihood(model, batch):
    return model(batch[0]).log_softmax(1).gather(1, batch[1][:, None])[:, 0]


def confidence(model, batch):
    return model(batch[0]).softmax(1).amax(1)


def digits(split="train", pair=False):
    from validation.data import load_data

    data = load_data("digits")
    return (data.batches("train", 1000), data.batches("test", 1000)) if pair else data.batches(split, 1000)
"""
COMPARE = ("check", *TASK, "--limit", "limit.json", "--dense", "dense.pt", "--pruned", "pruned.pt")
SETTINGS = {"samples": 64, "steps": 4, "probes": 1}
CODES = {"achievable": 0, "open": 3, "infeasible": 4}


@pytest.fixture(scope="module")
def limit(trained, digits):
    return predict_limit(trained, digits.batches("train", 1000), **SETTINGS)


@pytest.fixture(scope="module")
def measured(trained, digits):
    held_out = digits.batches("test", 1000)
    return predict_limit(
        trained, digits.batches("train", 1000), metric="accuracy", max_drop=0.02, held_out=held_out, **SETTINGS
    )


@pytest.fixture
def pruned(limit, trained):
    """Write the dense checkpoint; return a function that writes a pruned one and returns the network."""
    limit.to_json("limit.json")
    torch.save(trained.state_dict(), "dense.pt")
    Path("own.py").write_text(METRICS)

    def write(sparsity):
        model = limit.prune(trained, sparsity)
        torch.save(model.state_dict(), "pruned.pt")
        return model

    return write


def outputs(model, batches):
    with torch.no_grad():
        parts = [(model(x), y) for x, y in batches]
    return torch.cat([z for z, _ in parts]), torch.cat([y for _, y in parts])


def loss(model, batches):
    return float(functional.cross_entropy(*outputs(model, batches), reduction="none").double().mean())


def right(model, batches):
    z, y = outputs(model, batches)
    return (z.argmax(1) == y).double()


def prunable(model, limit):
    return {name: dict(model.named_parameters())[name].detach() for name in limit.settings.parameters}


# ----------------------------------------------------------------------------------------------- two networks


@pytest.mark.parametrize("share", [0.5, 0.999])
def test_comparison_of_files(pruned, limit, trained, digits, share):
    sparsity = limit.lower * share if share < 0.9 else share
    model, batches = pruned(sparsity), digits.batches("train", 1000)
    expected = compare(
        limit, limit.profile.weights, prunable(model, limit), loss(trained, batches), loss(model, batches)
    )
    code = CODES[expected.status]
    assert (code == 0) == (share == 0.5)
    assert run(*COMPARE, code=code).stdout == f"{expected.status}: {expected.reason}\n"
    result = run(*COMPARE, "--json", "--junit", "reports/gate.xml", "--markdown", "reports/gate.md", code=code)
    plain = json.loads(result.stdout)
    assert plain["rise"] == pytest.approx(expected.rise, rel=1e-4, abs=1e-6)
    assert (plain["sparsity"], plain["drop"]) == (expected.sparsity, None)
    suite = ElementTree.parse("reports/gate.xml").getroot()
    assert suite.get("tests") == str(len(expected.cases))
    assert Path("reports/gate.md").read_text() == markdown(expected, limit)


@pytest.mark.parametrize("options", [(), ("--max-drop", 0.5), ("--max-drop", 1e-4)])
def test_the_metric_of_the_limit_is_measured_on_held_out_data(pruned, measured, trained, digits, options):
    """The allowed fall of the command line takes the place of that of the limit."""
    measured.to_json("limit.json")
    model, held_out = pruned(0.8), digits.batches("test", 1000)
    measured.to_json("limit.json")
    allowed = options[1] if options else 0.02
    before, after = right(trained, held_out), right(model, held_out)
    fall = float(before.mean() - after.mean())
    assert 0.02 < fall < 0.5
    holds = allowed == 0.5
    plain = json.loads(run(*COMPARE, *options, "--json", code=0 if holds else 4).stdout)
    assert plain["status"] == ("achievable" if holds else "infeasible")
    drop = plain["drop"]
    assert (drop["dense"], drop["pruned"]) == pytest.approx((float(before.mean()), float(after.mean())), abs=1e-12)
    assert drop["error"] == pytest.approx(fall / stats.ttest_rel(before, after).statistic, rel=1e-9)
    assert (drop["allowed"], drop["name"]) == (allowed, "accuracy")
    assert [case["name"] for case in plain["cases"]][:3] == ["sparsity", "loss", "metric"]


def test_a_metric_is_named_where_the_limit_has_none(pruned, trained, digits):
    model, held_out = pruned(0.8), digits.batches("test", 1000)
    for name, values in (
        ("accuracy", right),
        ("likelihood", lambda *pair: -functional.cross_entropy(*outputs(*pair), reduction="none").double()),
    ):
        metric = "accuracy" if name == "accuracy" else f"own.py:{name}"
        fall = float(values(trained, held_out).mean() - values(model, held_out).mean())
        for allowed, code in ((fall * 1.001, 0), (fall * 0.999, 4)):
            plain = json.loads(run(*COMPARE, "--metric", metric, "--max-drop", allowed, "--json", code=code).stdout)
            assert plain["drop"]["name"] == name
            assert plain["drop"]["dense"] - plain["drop"]["pruned"] == pytest.approx(fall, rel=1e-5)
        told = json.loads(run(*COMPARE, "--metric", metric, "--json", code=4).stdout)
        assert told["cases"][2]["status"] == "achievable"
        assert told["reason"].startswith("the loss rises by")
    assert json.loads(run(*COMPARE, "--max-drop", 0.5, "--json").stdout)["drop"]["name"] == "accuracy"


def test_a_metric_that_is_a_function_is_named_again(pruned, trained, digits):
    Path("own.py").write_text(METRICS)
    from validation.references import resolve

    likelihood = resolve("metric", "own.py:likelihood")
    batches = digits.batches("train", 1000)
    limit = predict_limit(trained, batches, metric=likelihood, max_drop=0.5, held_out=batches, **SETTINGS)
    model = pruned(0.3)
    limit.to_json("limit.json")
    error = refuse(*COMPARE)
    assert error == (
        "Error: metric: that of the limit is the function likelihood; name it again with --metric path.py:likelihood"
    )
    others = ("--held-out", "own.py:digits", "--held-out-arg", "split=train")
    plain = json.loads(run(*COMPARE, "--metric", "own.py:likelihood", *others, "--json").stdout)
    assert plain["drop"]["allowed"] == 0.5
    assert plain["drop"]["pruned"] == pytest.approx(-loss(model, batches), abs=1e-6)
    error = refuse(*COMPARE, "--metric", "own.py:confidence")
    assert error == "Error: max-drop: that of the limit is a fall of likelihood; give --max-drop for confidence"
    run(*COMPARE, "--metric", "own.py:confidence", "--max-drop", 0.5)
    data = ("--model", "fc5-mini", "--model-arg", "shape=(1, 8, 8)", "--model-arg", "classes=10")
    task = (*data, "--data", "own.py:digits", "--metric", "own.py:likelihood")
    files = [argument for argument in COMPARE if argument not in TASK]
    error = refuse(*files, *task)
    assert error == ("Error: held-out: the limit measured its metric on held-out data; name them with --held-out")
    run(*files, *task, "--data-arg", "pair=True")
    assert refuse(*files, *task[:-2], "--max-drop", 0.1).startswith("Error: metric: that of the limit is the function")


def test_a_fall_of_no_metric_is_refused(pruned):
    pruned(0.3)
    data = ("--model", "fc5-mini", "--model-arg", "shape=(1, 8, 8)", "--model-arg", "classes=10")
    files = [argument for argument in COMPARE if argument not in TASK]
    error = refuse(*files, *data, "--data", "own.py:digits", "--max-drop", 0.1, code=2)
    assert error == "Error: --max-drop is a fall of the metric; name it with --metric"
    assert "max_drop: expected a positive number" in refuse(*COMPARE, "--max-drop", -1)


def test_a_checkpoint_with_masks_is_read_alike(pruned, limit, trained):
    plain_state = pruned(limit.lower / 2).state_dict()
    plain = run(*COMPARE).stdout
    masked = dict(trained.state_dict())
    for name, mask in limit.mask(limit.lower / 2).items():
        masked |= {f"{name}_orig": masked.pop(name), f"{name}_mask": mask.float()}
    assert set(masked) != set(plain_state)
    torch.save({"state_dict": masked}, "pruned.pt")
    assert run(*COMPARE).stdout == plain


def test_without_a_limit_it_is_predicted_from_the_dense_network(pruned):
    """With the accuracy of the data set as its metric, so that an allowed fall decides."""
    pruned(0.05)
    arguments = [argument for argument in COMPARE if argument not in ("--limit", "limit.json")]
    assert run(*arguments, *FAST).stdout.startswith("achievable: 5.0 % is in reach: pruning alone reaches ")
    told = json.loads(run(*arguments, *FAST, "--max-drop", 0.01, "--json").stdout)
    assert told["cases"][1]["reason"].endswith("the accuracy decides")


def test_pairs_of_files_that_are_refused(pruned, trained, digits, limit):
    pruned(0.5)
    swapped = [{"dense.pt": "pruned.pt", "pruned.pt": "dense.pt"}.get(argument, argument) for argument in COMPARE]
    assert refuse(*swapped).startswith("Error: dense: 50.00% of its weights are zero")
    state = trained.state_dict() | {"1.bias": trained.state_dict()["1.bias"] * torch.nan}
    torch.save(state, "pruned.pt")
    assert "pruned: expected a finite loss" in refuse(*COMPARE)
    assert "metric: 397 of 397 values are NaN" in refuse(*COMPARE, "--metric", "own.py:likelihood", "--max-drop", 0.1)
    torch.save(build_model("small-cnn", (1, 8, 8), 10).state_dict(), "pruned.pt")
    assert "pruned.pt does not fit the model: missing 1.weight" in refuse(*COMPARE)
    masked = trained.state_dict()
    masked |= {"1.weight_orig": masked.pop("1.weight"), "1.weight_mask": torch.ones(2)}
    torch.save(masked, "pruned.pt")
    assert "1.weight_mask has shape (2,)" in refuse(*COMPARE)
    Path("pruned.pt").unlink()
    assert "pruned.pt does not exist" in refuse(*COMPARE)
    pruned(0.5)
    batches = digits.batches("train", 1000)
    predict_limit(trained, batches, criterion="objective", penalty=L1(1e-3), **SETTINGS).to_json("limit.json")
    assert "the data and the penalty" in refuse(*COMPARE)
    assert run(*COMPARE, "--l1", 1e-3).stdout.startswith("achievable")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--dense", "dense.pt"),
        ("--pruned", "pruned.pt", "--sparsity", 0.5),
        ("--dense", "dense.pt", "--pruned", "pruned.pt", "--sparsity", 0.5),
        ("--dense", "dense.pt", "--pruned", "pruned.pt", "--checkpoint", "net.pt"),
        ("--dense", "dense.pt", "--pruned", "pruned.pt", "--limit", "limit.json"),
        ("--dense", "dense.pt", "--pruned", "pruned.pt", "--limit", "limit.json", *TASK, "--criterion", "loss"),
        (),
    ],
)
def test_options_that_do_not_go_together(pruned, arguments):
    pruned(0.5)
    refuse("check", *arguments, code=2)


# ------------------------------------------------------------------------------------------- files for others


@pytest.mark.parametrize(("sparsity", "code", "kind"), [(0.1, 0, None), (0.5, 3, "skipped"), (0.9, 4, "failure")])
def test_files_of_a_sparsity(limit, sparsity, code, kind):
    limit = with_bounds(limit, 0.2, 0.6)
    limit.to_json("limit.json")
    files = ("--junit", "gate.xml", "--markdown", "gate.md")
    result = run("check", "--sparsity", sparsity, "--limit", "limit.json", *files, code=code)
    assert Path("gate.md").read_text() == markdown(limit.check(sparsity), limit)
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


@pytest.mark.parametrize("option", ["--junit", "--markdown"])
def test_files_to_a_place_that_cannot_be_written(limit, option):
    limit.to_json("limit.json")
    Path("file").touch()
    error = refuse("check", "--sparsity", 0.5, "--limit", "limit.json", option, "file/gate")
    assert "cannot write file/gate" in error


# ----------------------------------------------------------------------------------------------------- pages


COMMAND = re.compile(r"pruning-limits (check|predict) ((?:\\\n|\n +--|[^\n`|])*)")
WRITTEN = [
    (page.name, *command)
    for page in (ROOT / "docs/gate.md", ROOT / "docs/howto/command-line.md")
    for command in COMMAND.findall(page.read_text())
]


@pytest.mark.parametrize(("page", "name", "arguments"), WRITTEN)
def test_commands_on_pages_have_the_options_that_they_name(page, name, arguments):
    words = [word for word in shlex.split(arguments.replace("\\\n", " ")) if word != "..."]
    command = getattr(import_module(f"validation.commands.{name}"), name)
    with cli.main.make_context("pruning-limits", [name]) as parent:
        assert command.make_context(name, words, parent=parent).args == []


def test_there_are_commands_for_every_pipeline():
    forms = [arguments for page, name, arguments in WRITTEN if page == "gate.md" and "--markdown" in arguments]
    assert len(forms) == 2
    assert all("--junit reports/pruning-limit.xml" in arguments for arguments in forms)
