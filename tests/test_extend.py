"""The page on extending: the files of its blocks are put where they belong, found by name and used."""

import json
import re
import sys
from dataclasses import replace
from importlib import import_module, invalidate_caches

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import ROOT
from torch import nn

import validation.commands.validate
import validation.pruners
from pruning_limits.magnitude import removed_count
from validation import cli
from validation.masks import prunable, sparsity_of
from validation.pruners import pruner, pruners
from validation.tables.discovery import sections, tables
from validation.tables.reading import load_suite
from validation.training import trained_network

PAGE = ROOT / "docs" / "howto" / "extend.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
FILES = {match[1]: source for _, source in BLOCKS if (match := re.match(r"# (validation/\S+\.py)\n", source))}
NETWORK = """
[[network]]
model = "fc3-tiny"
dataset = "digits"
seeds = [0, 1]
recipe = { epochs = 1, lr = 0.05 }
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The files of the page as if they lay in the packages that their paths name."""
    before = set(sys.modules)
    for path, source in FILES.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
        package = import_module(".".join(path.split("/")[:-1]))
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(file.parent)])
    invalidate_caches()
    yield
    for name in set(sys.modules) - before:
        if name in {path.removesuffix(".py").replace("/", ".") for path in FILES}:
            del sys.modules[name]
    validation.pruners._PRUNERS.pop("relative", None)


def python_blocks():
    return [source for kind, source in BLOCKS if kind == "python" and not source.startswith("# validation/")]


def test_every_part_takes_about_twenty_lines():
    assert set(FILES) == {"validation/pruners/relative.py", "validation/studies/limits/small_weights.py"}
    assert len(python_blocks()) == 2
    for kind, source in BLOCKS:
        lines = [line for line in source.splitlines() if line and not line.startswith(("from ", "import ", "#"))]
        assert kind == "toml" or len(lines) <= 27


def test_the_pruner_is_found_and_removes_what_is_small_for_its_layer(installed, problem):
    assert "relative" in pruners()
    pruned = pruner("relative")(replace(problem, epochs=problem.recipe.epochs), 0.6)
    weights = prunable(problem.dense)
    relative = {name: weight.abs() / weight.abs().mean() for name, weight in weights.items()}
    scores = torch.cat([relative[name].flatten() for name in weights])
    kept = torch.cat([pruned.masks[name].flatten() for name in weights])
    assert sparsity_of(pruned.masks) == removed_count(0.6, len(scores)) / len(scores)
    assert scores[~kept].max() <= scores[kept].min()


def test_the_table_is_found_with_its_section_and_written_from_the_command_line(
    installed, digits, tmp_path, monkeypatch
):
    toml = next(source for kind, source in BLOCKS if kind == "toml")
    path = tmp_path / "mine.toml"
    path.write_text(toml + NETWORK)
    suite = load_suite(str(path))
    assert sections()["small_weights"].__name__ == "SmallSettings"
    assert suite.plain(sections()["small_weights"]) == {"small_weights": {"below": 0.02}}
    arguments = ["validate", "--suite", str(path), "--table", "small-weights", "--out", str(tmp_path / "out")]
    # The command lists the tables when it is imported.
    monkeypatch.setattr(validation.commands, "validate", validation.commands.validate)
    monkeypatch.delitem(sys.modules, "validation.commands.validate")
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == f"wrote {tmp_path / 'out' / 'mine' / 'small-weights'}.json and .md"
    rows = json.loads((tmp_path / "out" / "mine" / "small-weights.json").read_text())["rows"]
    for row, network in zip(rows, suite.networks, strict=True):
        vector = np.concatenate(
            [w.detach().numpy().ravel() for w in prunable(trained_network(network, digits, tmp_path / "out")).values()]
        )
        assert row["share"] == pytest.approx(np.mean(np.abs(vector) < 0.02))
        assert 0 < row["share"] < 1


def test_a_section_is_unknown_where_no_table_declares_it(tmp_path):
    from estimators import UserError

    path = tmp_path / "mine.toml"
    path.write_text("[small_weights]\nbelow = 0.02\n" + NETWORK)
    with pytest.raises(UserError, match=r"mine.toml, line 1: unknown key 'small_weights'; expected compare, "):
        load_suite(str(path))
    assert "small-weights" not in tables()


def test_the_pattern_and_the_curvature_are_what_they_say(capsys):
    namespace = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for source in python_blocks():
            exec(compile(source, str(PAGE), "exec"), namespace)
    model, profile = namespace["model"], namespace["profile"]
    weights = {f"{name}.weight": model.get_parameter(f"{name}.weight").detach() for name in ("0", "2")}
    norms = torch.cat([weight.square().mean(1).sqrt() for weight in weights.values()])
    rows = torch.cat([mask.all(1) for mask in namespace["masks"].values()])
    assert all(((mask.all(1)) | (~mask).all(1)).all() for mask in namespace["masks"].values())
    assert norms[~rows].max() <= norms[rows].min()
    removed = sum(float(weight[~namespace["masks"][name]].square().sum()) for name, weight in weights.items())
    share = sum(int((~mask).sum()) for mask in namespace["masks"].values()) / profile.dimension
    assert namespace["curve"].squared_norm(share) == pytest.approx(removed, rel=1e-5)
    # The trace is the mean squared norm of the gradients of single samples.
    x, y, squares = namespace["x"], namespace["y"], []
    for sample, label in zip(x, y, strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(sample[None]), label[None]).backward()
        squares.append(sum(float(model.get_parameter(name).grad.square().sum()) for name in weights))
    trace = namespace["trace"]
    assert abs(trace.value - np.mean(squares)) < 4 * trace.standard_error + 1e-3 * np.mean(squares)
    assert 0 < namespace["limit"].sparsity < 1
    assert capsys.readouterr().out.startswith("trace ")
