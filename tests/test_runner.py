"""Which cells a run still has to compute, and that asking for them leaves the folder as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from estimators import UserError
from validation.tables.discovery import tables
from validation.tables.reading import known_suites, load_suite
from validation.tables.runner import Run, missing_cells, run_table, settings_of
from validation.tables.storage import folder_of, run_folder, write_json
from validation.tables.suite import Suite


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", known_suites())
def test_asking_what_is_missing_writes_nothing(name: str, tmp_path: Path) -> None:
    suite = load_suite(name)
    for table in tables().values():
        assert missing_cells(table, suite, tmp_path / "out") == table.cells(suite)
    assert not list(tmp_path.iterdir())


def test_a_cell_is_missing_until_its_row_is_there(tmp_path: Path) -> None:
    suite, table = load_suite("quick"), tables()["splits"]
    first, second, *others = table.cells(suite)
    folder = run_folder(tmp_path, "splits", settings_of(table, suite, second))
    before = contents(tmp_path)
    assert missing_cells(table, suite, tmp_path) == [first, second, *others]
    assert contents(tmp_path) == before
    write_json(folder / "row.json", {"seed": 0})
    before = contents(tmp_path)
    assert missing_cells(table, suite, tmp_path) == [first, *others]
    assert contents(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 1


def test_the_folder_that_would_be_is_the_one_that_is_made(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "network", {"epochs": 3})
    assert not folder.exists()
    assert run_folder(tmp_path, "network", {"epochs": 3}) == folder
    assert folder.exists()


def test_a_fresh_run_into_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"^out: cannot write to "):
        run_table("bounds", load_suite("quick"), Run(tmp_path / "file" / "deeper", resume=False))


def test_a_suite_of_some_networks_keeps_its_settings() -> None:
    suite = load_suite("quick")
    some = suite.only("cnn-digits-[12]$")
    assert [(network.model, network.seed) for network in some.networks] == [("small-cnn", 1), ("small-cnn", 2)]
    assert (some.name, some.sections) == (suite.name, suite.sections)
    assert isinstance(some, Suite)
    assert suite.only("") == suite
