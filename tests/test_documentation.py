"""The documentation: its examples run, its scripts compile, its links lead somewhere, and nothing is missing."""

import ast
import doctest
import importlib
import importlib.util
import json
import pkgutil
import re
from fnmatch import fnmatch

import pytest
import torch
from helpers import ROOT

PACKAGES = ("estimators", "pruning_limits", "validation")
SCRIPTS = sorted((ROOT / "docs" / "gallery").glob("plot_*.py"))
MODELS = ROOT / "docs" / "models"
MODEL_PAGES = sorted(MODELS.glob("*.md"))
OPTIONAL = {"transformers", "timm"}

# -------------------------------------------------------------------------------------- examples in docstrings


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
    names = {test.name for name in NAMES for test in finder.find(importlib.import_module(name), name) if test.examples}
    called = {
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
        "pruning_limits.isotropic.isotropic_limit",
        "pruning_limits.gate.compare",
        "pruning_limits.gate_files.junit",
        "pruning_limits.gate_files.markdown",
        "pruning_limits.magnitude.MagnitudeProfile",
        "pruning_limits.predict.predict_limit",
        "pruning_limits.state_dicts.matching_state",
        "pruning_limits.state_dicts.without_masks",
        "validation.data.load_data",
        "validation.models.build_model",
    }
    assert called <= names


# ------------------------------------------------------------------------------------------- pages and links

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
                assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, (
                    target
                )


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_every_block_of_code_has_lines_of_its_own():
    pages = [*ROOT.glob("*.md"), *(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)]
    for page in pages:
        fences = [line for line in page.read_text().splitlines() if "```" in line]
        assert len(fences) % 2 == 0, page
        assert not [line for line in fences if not re.fullmatch(r" *```[\w{}-]*", line)], page


def test_there_are_scripts():
    assert len(SCRIPTS) >= 6


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_compile(script):
    source = script.read_text()
    compile(source, str(script), "exec")
    assert source.startswith('"""\n')  # the title of its page


@pytest.mark.parametrize("package", ["estimators", "pruning_limits", "pruning_limits.cones"])
def test_reference_lists_every_public_name(package):
    page = (ROOT / "docs" / "api" / f"{package.rpartition('.')[2]}.md").read_text()
    listed = set(re.findall(r"^\.\. auto\w+:: (\w+)$", page, re.MULTILINE))
    public = set(importlib.import_module(package).__all__)
    if package == "pruning_limits":
        public -= {"L1", "L2", "UserError"}  # on the page of estimators
    assert public <= listed


def contents(page):
    blocks = re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith(":")]


def test_every_page_is_in_the_contents():
    docs = ROOT / "docs"
    pages = {str(page.relative_to(docs).with_suffix("")) for page in docs.rglob("*.md") if "_build" not in page.parts}
    tables = {page for pattern in contents(docs / "tables.md") for page in pages if fnmatch(page, pattern)}
    assert pages - tables - {"index"} <= set(contents(docs / "index.md"))


def test_the_home_page_shows_what_the_demo_printed():
    page = (ROOT / "docs" / "index.md").read_text()
    shown = re.search(r"```text\n(.*?)```", page, re.DOTALL)[1].splitlines()
    printed = (ROOT / "docs" / "results" / "demo.txt").read_text().splitlines()
    assert len(shown) > 5
    assert [line for line in shown if line not in printed] == []


def test_the_reference_by_topic_names_what_exists():
    listed = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    rows = [line.split("|") for line in (ROOT / "docs" / "api.md").read_text().splitlines() if line.startswith("| ")]
    names = {name for row in rows[1:] for name in re.findall(r"`(\w+)`", row[2])}
    assert len(names) > 50
    assert {name for name in names if not re.search(rf"\b{name}\b", listed)} == set()


# ------------------------------------------------------------------------------------------ committed results

RESULTS = ROOT / "docs" / "results"


def test_results_are_small():
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6e6
    assert not [path for path in files if path.suffix == ".csv"]
    assert not [path for path in files if path.suffix == ".json" and path.stat().st_size > 100_000]


def test_a_thinned_table_names_what_is_left_out_and_the_command_that_makes_it_whole():
    thinned = {}
    for path in RESULTS.rglob("*.json"):
        content = json.loads(path.read_text())
        if "thinned" in content:
            thinned[path] = content
    assert thinned
    for path, content in thinned.items():
        assert content["thinned"]["left out"], path
        assert f"`{content['thinned']['command']}`" in path.with_suffix(".md").read_text()


# ----------------------------------------------------------------------------- blocks of the pages on models


def blocks(page):
    """Line number and source of the blocks of a page."""
    text = page.read_text()
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text[: match.start()].count("\n") + 2, match[1]


def missing(source):
    """Names the optional packages that a block imports and this machine lacks."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in nodes}
    return {name.split(".")[0] for name in names} & {name for name in OPTIONAL if not importlib.util.find_spec(name)}


@pytest.mark.parametrize("page", MODEL_PAGES, ids=lambda page: page.stem)
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace, skipped = {"__name__": page.stem}, set()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for line, source in blocks(page):
            absent = missing(source)
            skipped |= absent
            if not absent:
                exec(compile("\n" * (line - 1) + source, str(page), "exec"), namespace)
    if skipped:
        pytest.skip(f"{', '.join(sorted(skipped))} is not installed; the blocks that do without it ran")


def test_there_is_a_page_for_every_family():
    names = {page.stem for page in MODEL_PAGES}
    assert names == {"vision", "transformers", "sequences", "regression-and-other-losses", "pruned-and-wrapped"}
    assert all(list(blocks(page)) for page in MODEL_PAGES)
