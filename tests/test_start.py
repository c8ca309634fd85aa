"""What the quick commands import, and that names which are imported later are what they were."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pruning_limits
from pruning_limits import predict_limit
from validation import cli

ROOT = Path(__file__).parent.parent

PROGRAM = """
import json, sys
from validation.cli import main
try:
    main(sys.argv[1:], prog_name="pruning-limits")
except SystemExit as end:
    code = end.code
print(json.dumps([code, [name for name in ("torch", "scipy", "matplotlib") if name in sys.modules]]))
"""


def started(folder, *arguments):
    """Run a command in a process of its own: its output, its exit code and the slow packages that it imported."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", PROGRAM, *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    *output, last = result.stdout.splitlines()
    return "\n".join(output), *json.loads(last)


@pytest.fixture(scope="module")
def folder(trained, digits, tmp_path_factory):
    place = tmp_path_factory.mktemp("start")
    predict_limit(trained, digits.batches("train", limit=100), samples=64, steps=4, probes=1).to_json(
        place / "limit.json"
    )
    return place


def test_quick_commands_import_nothing_slow(folder):
    limit = pruning_limits.PruningLimit.from_json(folder / "limit.json")
    verdict = limit.check(0.9)
    code = {"achievable": 0, "open": 3, "infeasible": 4}[verdict.status]
    check = ("check", "--limit", "limit.json", "--sparsity", "0.9", "--junit", "gate.xml", "--markdown", "gate.md")
    assert started(folder, *check) == (f"{verdict.status}: {verdict.reason}", code, [])
    assert (folder / "gate.xml").read_text().startswith("<?xml")
    assert (folder / "gate.md").read_text().startswith(f"### Pruning limit: {verdict.status}\n")
    assert started(folder, "report", "limit.json", "-o", "page.html") == ("wrote page.html", 0, [])
    assert limit.summary().splitlines()[0] in (folder / "page.html").read_text()
    output, code, slow = started(folder, "--version")
    assert (output.startswith("pruning-limits, version "), code, slow) == (True, 0, [])
    output, code, slow = started(folder, "--help")
    assert (output.startswith("Usage: "), code, slow) == (True, 0, [])


def test_the_probe_sees_slow_packages(folder):
    assert started(folder, "predict", "--help")[1:] == (0, [])
    assert "torch" in started(folder, "validate", "--help")[2]


@pytest.mark.parametrize("name", cli.SUMMARIES)
def test_the_first_line_of_help_is_that_of_the_command(name):
    command = importlib.import_module(f"validation.commands.{name}")
    assert getattr(command, name).help.startswith(cli.SUMMARIES[name].rstrip("."))
