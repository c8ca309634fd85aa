"""Every example in a docstring of the three packages runs and prints what it says."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
PACKAGES = ("estimators", "pruning_limits", "validation")


def modules():
    for package in PACKAGES:
        yield package
        path = importlib.import_module(package).__path__
        yield from (module.name for module in pkgutil.walk_packages(path, f"{package}."))


NAMES = sorted(modules())


@pytest.mark.parametrize("name", NAMES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_there_are_examples_of_what_users_call():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {test.name for name in NAMES for test in finder.find(importlib.import_module(name), name) if test.examples}
    wanted = {
        "estimators.curvature.GGN",
        "estimators.curvature.Hessian",
        "estimators.eigenpairs.eigenpairs",
        "estimators.objective.Objective",
        "estimators.penalty.L1",
        "estimators.penalty.L2",
        "estimators.measure.SpectralMeasure.cumulative",
        "estimators.measure.SpectralMeasure.integrate",
        "estimators.operator.check_symmetric",
        "estimators.trace.diagonal",
        "estimators.trace.hutch_plus_plus",
        "estimators.trace.hutchinson",
        "estimators.trace.row_norms",
        "estimators.trace.xtrace",
        "pruning_limits.bounds.isotropic_limit",
        "pruning_limits.gate.compare",
        "pruning_limits.gate.junit",
        "pruning_limits.magnitude.MagnitudeProfile",
        "pruning_limits.predict.predict_limit",
        "pruning_limits.state_dicts.matching_state",
        "pruning_limits.state_dicts.without_masks",
        "validation.data.load_data",
        "validation.models.build_model",
    }
    assert wanted <= found


TOP = {"README.md", "CHANGELOG.md", "docs"}
PAGES = sorted(path for path in ROOT.rglob("*.md") if path.parts[len(ROOT.parts)] in TOP)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            there = page.parent / file if file else page
            assert there.exists(), target
            if anchor:
                headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}, target
