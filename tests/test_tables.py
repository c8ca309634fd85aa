from __future__ import annotations

import json
import math
import os
import re
import resource
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from estimators import UserError
from estimators.files import load_tensors, save_tensors
from validation.studies.limits.predicted import LimitSettings, limit_notes
from validation.tables.storage import read_json, write_bytes, write_json
from validation.tables.suite import Suite
from validation.tables.writing import (
    Column,
    Page,
    Row,
    between,
    mean_and_spread,
    network_row,
    recipe_text,
    with_means,
    write_table,
)
from validation.training import Network, Recipe

COLUMNS = (
    Column("model", "model"),
    Column("weights", "D", ",d"),
    Column("limit", "limit |s|", ".2%"),
    Column("difference", "difference, points", "+.2f"),
    Column("status", "status"),
    Column("plain", "plain number"),
)
ROWS: list[Row] = [
    {"model": "a", "weights": 12345, "limit": 2 / 3, "difference": -0.123456789, "status": "converged", "plain": 1e-17},
    {
        "model": "b",
        "weights": 7,
        "limit": 1.0,
        "difference": 1e3 / 7,
        "status": 'unresolved: |x| > "1",\nno',
        "more": [1],
    },
    {"model": "c", "weights": None, "limit": np.float64(0.1), "difference": 0, "status": "", "plain": 0.1 + 0.2},
]


def cells(line: str) -> list[str]:
    """Split one line of a Markdown table at its bars, except at escaped ones."""
    assert line.startswith("|")
    assert line.endswith("|")
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line[1:-1])]


# --------------------------------------------------------------------------------------------------- two files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_table(tmp_path / "quick", Page("mine", "A title", ["First note.", "Second."], COLUMNS), ROWS, extra=[1, 2])
    return tmp_path / "quick"


def test_a_table_is_two_files(folder: Path) -> None:
    assert sorted(file.name for file in folder.iterdir()) == ["mine.json", "mine.md"]


def test_json_holds_whole_rows_and_how_they_were_made(folder: Path) -> None:
    stored = json.loads((folder / "mine.json").read_text())
    assert stored["rows"] == ROWS
    assert (stored["title"], stored["extra"]) == ("A title", [1, 2])
    assert stored["environment"]["torch"] == torch.__version__
    assert stored["environment"]["threads"] == torch.get_num_threads()


def test_markdown_prints_the_same_numbers_rounded(folder: Path) -> None:
    text = (folder / "mine.md").read_text()
    lines = text.splitlines()
    assert lines[:6] == ["# A title", "", "First note.", "", "Second.", ""]
    table = [cells(line) for line in lines[6:]]
    assert table == [
        [column.heading for column in COLUMNS],
        ["---", "---:", "---:", "---:", "---", "---"],
        ["a", "12,345", "66.67%", "-0.12", "converged", "1e-17"],
        ["b", "7", "100.00%", "+142.86", 'unresolved: |x| > "1", no', "-"],
        ["c", "-", "10.00%", "+0.00", "", "0.30000000000000004"],
    ]
    assert text.endswith("|\n")


def test_writing_again_gives_the_same_bytes(folder: Path) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    write_table(folder, Page("mine", "A title", ["First note.", "Second."], COLUMNS), ROWS, extra=[1, 2])
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_table_without_rows_has_headings(tmp_path: Path) -> None:
    write_table(tmp_path, Page("empty", "None", [], COLUMNS), [])
    lines = (tmp_path / "empty.md").read_text().splitlines()
    assert len(lines) == 4
    assert cells(lines[2]) == [column.heading for column in COLUMNS]


# ------------------------------------------------------------------------------------------------- summaries


def test_mean_and_spread_agree_with_the_definition() -> None:
    mean, spread = mean_and_spread([{"x": 1.0}, {"x": None}, {"x": 2.0}, {}, {"x": 6.0}], "x")
    assert mean == 3.0
    assert spread == pytest.approx(math.sqrt((4 + 1 + 9) / 2))


def test_between_names_ends_that_differ_in_print() -> None:
    assert between([2.0, None, -1.0, 0.5], "+.1f") == "-1.0 to +2.0"
    assert between([0.11, 0.12], ".1f") == "0.1"
    assert between([-0.04, -0.01], "+.1f") == "0.0"
    assert between([None], ".1f") == between([], ".1f") == "-"


def test_mean_and_spread_say_none_where_there_is_none() -> None:
    assert mean_and_spread([], "x") == (None, None)
    assert mean_and_spread([{"x": None}, {}], "x") == (None, None)
    assert mean_and_spread([{"x": 4}], "x") == (4.0, None)
    assert mean_and_spread([{"x": 0.0}, {"x": 0.0}], "x") == (0.0, 0.0)


def test_a_mean_row_follows_the_seeds_of_each_kind() -> None:
    columns = (Column("model", "model"), Column("parameters", "D", ",d"), Column("value", "value", ".2f"))
    rows: list[Row] = [
        {"model": "a", "dataset": "x", "seed": 0, "parameters": 9, "value": 1.0},
        {"model": "a", "dataset": "x", "seed": 1, "parameters": 9, "value": 2.0},
        {"model": "a", "dataset": "y", "seed": 0, "parameters": 8, "value": 5.0},
        {"model": "b", "dataset": "y", "seed": 0, "parameters": 7, "value": 1.0},
        {"model": "b", "dataset": "y", "seed": 1, "parameters": 7, "value": None},
        {"model": "b", "dataset": "y", "seed": 2, "parameters": 7, "value": 4.0},
    ]
    table = with_means(rows, columns)
    assert [row for row in table if not str(row["seed"]).startswith("mean")] == rows
    assert [(n, row["seed"]) for n, row in enumerate(table) if row not in rows] == [(2, "mean of 2"), (7, "mean of 3")]
    first, second = table[2], table[7]
    assert (first["model"], first["dataset"], first["parameters"], first["value"]) == ("**a**", "x", 9, 1.5)
    assert (second["parameters"], second["value"]) == (7, 2.5)
    assert first["spread"]["value"] == pytest.approx(math.sqrt(0.5))
    assert columns[1].text(first) == "9"


def test_a_network_is_described_by_model_data_penalty_and_seed() -> None:
    row = {"model": "fc5", "dataset": "digits", "seed": 2}
    assert network_row(Network("fc5", "digits", Recipe(1, 0.1), 2)) == row | {"penalty": "none"}
    assert network_row(Network("fc5", "digits", Recipe(1, 0.1, l1=5e-5), 2)) == row | {"penalty": "L1 5e-05"}
    assert network_row(Network("fc5", "digits", Recipe(1, 0.1, l2=1e-4), 2)) == row | {"penalty": "L2 0.0001"}


def test_a_recipe_in_one_line_leaves_out_what_is_off() -> None:
    text = recipe_text(Recipe(4, 0.1, momentum=0.0, l1=1e-3, augment=True))
    assert text.startswith("epochs 4, lr 0.1, l1 0.001, ")
    assert "augment True" in text
    assert not any(word in text for word in ("momentum", "l2", "warmup", "nesterov", "milestones", "optimizer"))
    stepped = recipe_text(Recipe(4, 0.1, schedule="multistep", milestones=(1, 3)))
    assert "schedule multistep, milestones (1, 3), gamma 0.1" in stepped
    adaptive = recipe_text(Recipe(4, 0.1, optimizer="adamw", decay=0.05))
    assert adaptive.endswith("optimizer adamw, decay 0.05")
    assert "momentum" not in adaptive


def test_the_notes_name_every_recipe_and_the_settings_of_the_prediction() -> None:
    networks = tuple(Network("fc5", "digits", Recipe(1, lr), seed) for lr in (0.1, 0.2) for seed in (0, 1))
    text = " ".join(limit_notes(Suite("s", networks, (LimitSettings(samples=64, steps=8),))))
    assert text.count("fc5 on digits: ") == 2
    assert "lr 0.1" in text
    assert "lr 0.2" in text
    assert "samples 64, Lanczos steps 8, probes chosen by the engine" in text


# ------------------------------------------------------------------------------------------------- whole files


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write_json(path, {"b": 1, "a": [0.1]})
    assert read_json(path) == {"a": [0.1], "b": 1}
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, hard))
    try:
        for target in (path, tmp_path / "new" / "other.json"):
            with pytest.raises(UserError, match=r"cannot write .*File too large"):
                write_bytes(target, b"something long")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in path.parent.iterdir()] == ["file.json"]
    assert path.read_bytes() == before
    write_bytes(path, b"changed")
    assert path.read_bytes() == b"changed"


def test_the_part_of_a_file_is_removed_and_the_whole_has_the_usual_access(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = []

    def spy(_: Any, file: Any) -> None:
        parts.extend(tmp_path.iterdir())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", spy)
        with pytest.raises(KeyboardInterrupt):
            save_tensors(tmp_path / "state.pt", {})
    assert len(parts) == 1
    assert parts[0].name != "state.pt"
    assert list(tmp_path.iterdir()) == []
    for mask in (0o022, 0o077):
        before = os.umask(mask)
        try:
            write_bytes(tmp_path / "file", b"")
            (tmp_path / "plain").touch()
            assert os.umask(mask) == mask
        finally:
            os.umask(before)
        modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        assert modes == {0o666 & ~mask}
        (tmp_path / "plain").unlink()


def test_a_writer_that_is_stopped_before_the_end_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.json"
    write_bytes(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_bytes(path, b"new")
    assert path.read_bytes() == b"old"


def test_tensors_are_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.pt"
    save_tensors(path, {"w": torch.ones(3)})

    def cut(_: Any, file: Any) -> None:
        file.write(b"half") if hasattr(file, "write") else Path(file).write_bytes(b"half")
        raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", cut)
        with pytest.raises(RuntimeError, match="stopped"):
            save_tensors(path, {"w": torch.zeros(3)})
    assert load_tensors(path)["w"].tolist() == [1, 1, 1]
