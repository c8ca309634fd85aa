"""The page on moving from 0.1: new names exist, old ones are gone, and the version is one everywhere."""

import configparser
import importlib
import re
from functools import reduce

import pytest
from helpers import ROOT, small_limit

PAGE = (ROOT / "docs" / "howto" / "moving.md").read_text()
TABLE = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| `")]
VERSION = "0.2.0"


def names(text, root):
    """Dotted names in code that begin with a root; what is called or compared is left out."""
    return re.findall(rf"`({root}(?:\.\w+)+)", text)


@pytest.fixture(scope="module")
def limit():
    return small_limit(steps=4)


def test_there_are_rows():
    assert len(TABLE) >= 9
    assert all(len(row) == 2 for row in TABLE)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_old_names_of_a_limit_are_gone_and_new_ones_are_there(row, limit):
    old, new = row
    for name in names(old, "limit"):
        if name != "limit.status":  # which says something else now
            assert not hasattr(limit, name.partition(".")[2])
    for name in names(new, "limit"):
        reduce(getattr, name.split(".")[1:], limit)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_new_names_of_packages_can_be_imported(row):
    for name in names(row[1], "(?:pruning_limits|validation)"):
        try:
            importlib.import_module(name)
        except ImportError:
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute)


def test_names_that_stay_are_there(limit):
    (kept,) = re.findall(r"stay: (.*?)\. Read", PAGE, re.DOTALL)
    kept_names = re.findall(r"`(\w+)`", kept)
    assert len(kept_names) > 10
    assert all(hasattr(limit, name) for name in kept_names)


def test_points_hold_what_rises_held(limit):
    assert all({"sparsity", "rise"} <= set(dir(point)) for point in limit.evidence.points)
    assert limit.evidence.points


def test_the_version_is_one_everywhere():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    assert parser["metadata"]["version"] == VERSION
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{VERSION}] - " in (ROOT / "CHANGELOG.md").read_text()
