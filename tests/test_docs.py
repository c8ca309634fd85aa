"""The README is short, the scripts of the gallery compile, and the reference lists what is public.

Links are the business of ``test_documentation.py``.
"""

import importlib
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "docs" / "gallery").glob("plot_*.py"))


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
