"""Every Python block of the pages on models runs, the blocks of a page one after another in one namespace."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "docs" / "models"
PAGES = sorted(FOLDER.glob("*.md"))
OPTIONAL = {"transformers", "timm"}


def blocks(page):
    """Line number and source of the blocks of a page."""
    text = page.read_text()
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text[: match.start()].count("\n") + 2, match[1]


def missing(source):
    """Names the optional packages that a block imports and this machine lacks."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in nodes}
    return {name.split(".")[0] for name in names} & {one for one in OPTIONAL if not importlib.util.find_spec(one)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
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
    names = {page.stem for page in PAGES}
    assert names == {"vision", "transformers", "sequences", "regression-and-other-losses", "pruned-and-wrapped"}
    assert all(list(blocks(page)) for page in PAGES)
