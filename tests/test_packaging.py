"""What a user of the installed package relies on: quiet imports, few dependencies, complete types."""

import subprocess
import sys

import pytest
from helpers import ROOT, python

BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("matplotlib", "cvxpy", "torchvision", "sklearn", "pandas", "click", "PIL"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import torch
from pruning_limits import PruningLimit, UserError, predict_limit

model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
limit = predict_limit(model, [(torch.randn(64, 4), torch.randint(0, 2, (64,)))])
assert limit.check(0.999).status in ("open", "infeasible")
limit.to_json("limit.json")
loaded = PruningLimit.from_json("limit.json")
assert loaded == limit and loaded.what_if(epsilon=1.0).epsilon == 1.0
print(repr(limit), limit.summary(), limit._repr_html_(), limit.mask(0.5).keys())
for asked in (limit.to_pandas, limit.plot):
    try:
        asked()
    except UserError as error:
        assert "pip install" in str(error) and chr(10) not in str(error), error
"""


@pytest.mark.parametrize("module", ["pruning_limits", "estimators"])
def test_imports_are_quiet(module, tmp_path):
    result = python("-c", f"import {module}", folder=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_limit_needs_none_of_the_packages_for_figures_data_and_tables(tmp_path):
    result = python("-c", BLOCK, folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


WITHOUT_STUDIES = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(BLOCKED):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
BLOCKED = ("validation",)
import pruning_limits
assert all(getattr(pruning_limits, name) for name in pruning_limits.__all__)
BLOCKED = ("validation.studies.koopman", "validation.studies.lottery")
from validation import cli
from validation.commands import check, demo, predict, retune, spectrum
from validation.studies.limits import algorithms, bounds, early, meaning, oracle, patterns, sota, theory_vs_actual
from validation.tables import runner, writing
assert not [name for name in sys.modules if name.startswith(BLOCKED)]
"""


def test_neither_side_study_is_needed_by_the_library_or_by_the_study_of_limits(tmp_path):
    result = python("-c", WITHOUT_STUDIES, folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


PROGRAM = """
from typing import assert_type

import torch
from estimators import GGN, L1, Hessian, Objective, SpectralMeasure, spectral_measure
from matplotlib.axes import Axes
from pruning_limits import PruningLimit, UserError, Verdict, predict_limit
from pruning_limits.gate import Comparison, compare
from pruning_limits.plotting import plot_crossing, plot_spectrum

model = torch.nn.Linear(4, 2)
batches = [(torch.randn(64, 4), torch.randint(0, 2, (64,)))]


def told(stage: str, done: int, total: int) -> None:
    print(stage, done, total)


def loss(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


limit = predict_limit(model, batches, loss, penalty=L1(1e-4), epsilon="batch-std", progress=told, checkpoint="run.pt")
assert_type(limit, PruningLimit)
assert_type(limit.check(0.9), Verdict)
assert_type(limit.sparsity, float)
assert_type(limit.achieved, float | None)
assert_type(limit.interval, tuple[float, float])
assert_type(limit.mask(0.5), dict[str, torch.Tensor])
assert_type([layer.trace for layer in limit.layers()], list[float])
assert_type(limit.what_if(epsilon=0.1), PruningLimit)
assert_type(PruningLimit.from_json("limit.json").summary(), str)
hessian = Hessian(Objective(model, batches))
assert_type(hessian @ torch.randn(8), torch.Tensor)
measure = spectral_measure(hessian, probes=2)
assert_type(measure, SpectralMeasure)
assert_type(measure.integrate(abs), tuple[float, float])
assert_type(plot_crossing(limit), Axes)
assert_type(plot_spectrum(measure), Axes)
assert_type(compare(limit, {}, {}, 0.0, 0.0), Comparison)
predict_limit(model, batches, curvature="fisher")  # type: ignore[arg-type]
predict_limit(model, batches, samples="many")  # type: ignore[arg-type]
"""


def test_a_program_is_checked_strictly_against_the_installed_package(tmp_path):
    """An environment whose packages are this checkout and those of the tests, as if installed there."""
    (tmp_path / "program.py").write_text(PROGRAM)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "user"], check=True)
    (packages,) = (tmp_path / "user").glob("lib/python*/site-packages")
    (packages / "pruning-limits.pth").write_text("\n".join([str(ROOT), *(p for p in sys.path if "site-packages" in p)]))
    user = ("--python-executable", tmp_path / "user" / "bin" / "python")
    options = ("--strict", *user, "--cache-dir", ROOT / ".mypy_cache")
    result = python("-m", "mypy", *options, "program.py", folder=tmp_path)
    assert result.stdout.startswith("Success"), result.stdout + result.stderr
