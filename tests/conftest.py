from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import settings
from torch import nn

from pruning_limits import PruningLimit
from validation.data import DATA_DIR_VARIABLE, ImageData, load_data
from validation.models import build_model
from validation.pruners import Problem
from validation.tables import executors
from validation.tables.reading import load_suite
from validation.tables.suite import Suite
from validation.training import Recipe, train

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread for every process, those that tests start included: the processes share the cores among them.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# Modules that take longest, the longest begun first, so that no process is left with one of them at the end.
SLOW = (
    *("test_differences", "test_predict", "test_cuda", "test_one_shot", "test_fuzz", "test_gpu_benchmark"),
    *("test_retuning", "test_distributed", "test_derivatives", "test_experiments", "test_first_hour", "test_pruners"),
    *("test_devices", "test_substitution_intact", "test_documentation", "test_packaging", "test_theory_vs_actual"),
    *("test_losses", "test_any_vision", "test_cli", "test_koopman_tables", "test_estimates", "test_samples"),
    *("test_lottery_tables", "test_memory", "test_killed", "test_resume", "test_executors"),
)
PLACES = {name: place for place, name in enumerate(SLOW)}

settings.register_profile("steady", deadline=None)
settings.load_profile("steady")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: PLACES.get(item.path.stem, len(SLOW)))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let sums be taken in the same order here and in worker processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def forking() -> BaseContext:
    """Processes that start at once, forked off one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.forked"])
    return context


@pytest.fixture
def forked_workers(forking: BaseContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``run_all`` fork its workers, where what it does with them does not depend on how they start."""
    monkeypatch.setattr(executors, "multiprocessing", SimpleNamespace(get_context=lambda _: forking))


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return load_data("digits")


@pytest.fixture(scope="session")
def trained(digits: ImageData) -> nn.Module:
    """A small L1-trained network on digits."""
    model = build_model("fc5-mini", digits.shape, digits.classes, seed=0)
    train(model, digits, Recipe(epochs=10, lr=0.05, l1=1e-3), seed=0)
    return model.eval()


@pytest.fixture(scope="session")
def problem(digits: ImageData) -> Problem:
    """A batch-normalised network after two epochs on 200 digits, five steps each, with two more epochs to spend."""
    few = dataclasses.replace(digits, train_x=digits.train_x[:200], train_y=digits.train_y[:200])
    recipe = Recipe(epochs=2, lr=0.1, momentum=0.5, l2=1e-4, batch_size=40)
    model = build_model("resnet8", few.shape, few.classes, seed=0)
    train(model, few, recipe, seed=0)
    return Problem("resnet8", few, recipe, 0, model.eval(), 4)


@pytest.fixture
def tiny() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A float64 network of 72 weights and ragged batches."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    x = torch.randn(50, 6, generator=generator).double()
    y = torch.randint(0, 3, (50,), generator=generator)
    return model, [(x[:20], y[:20]), (x[20:40], y[20:40]), (x[40:], y[40:])]


@pytest.fixture(scope="module")
def suite_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suite that a test module holds as text in ``SUITE``, as a file."""
    path = tmp_path_factory.mktemp("suites") / "little.toml"
    path.write_text(request.module.SUITE)
    return path


@pytest.fixture(scope="module")
def suite(suite_file: Path) -> Suite:
    """That suite, read."""
    return load_suite(str(suite_file))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs for a test module, in which tests that want the same cells find them finished."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real data sets, where there is one."""
    folder = os.environ.get(DATA_DIR_VARIABLE)
    if not folder or not (Path(folder) / "mnist.npz").is_file():
        pytest.skip(f"{DATA_DIR_VARIABLE} names no folder with mnist.npz, so there are no real images to test with")
    return Path(folder)


@pytest.fixture(params=["measured", "unmeasured", "loaded", "what if"])
def any_limit(
    request: pytest.FixtureRequest, limit: PruningLimit, unmeasured: PruningLimit, tmp_path: Path
) -> PruningLimit:
    """Each kind of limit in turn, made from a module's own fixtures ``limit`` and ``unmeasured``."""
    if request.param == "loaded":
        limit.to_json(tmp_path / "limit.json")
        return PruningLimit.from_json(tmp_path / "limit.json")
    changed = limit.what_if(epsilon=0.1, curvature_scale=2.0)
    return {"measured": limit, "unmeasured": unmeasured, "what if": changed}[request.param]
