"""Runs the cells of a table, in this process or on an executor, and writes the table."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from estimators.errors import UserError
from validation.data import load_data
from validation.tables.discovery import tables
from validation.tables.executors import run_all
from validation.tables.storage import read_json, run_folder, write_json
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import Row
from validation.training import Network


def run_table(
    name: str,
    suite: Suite,
    data_dir: Path | None,
    out: Path,
    only: str = "",
    resume: bool = True,
    jobs: int = 1,
    executor: str = "process",
    command: str = "",
) -> Path:
    """Compute the missing cells of a table and write it.

    Args:
        name: A name from ``tables()``.
        suite: Networks and settings.
        data_dir: Where data lie.
        out: Folder of all runs; the table goes to ``out/<suite>``.
        only: Keep networks in whose ``model-dataset-seed`` this regular expression is found.
        resume: Keep finished cells.
        jobs: Number of cells computed at the same time.
        executor: ``"process"`` or ``"ray"``; one job runs in this process.
        command: The command to note in the table.

    Returns:
        The folder of the table.

    Raises:
        UserError: No network is left, or the output folder cannot be written.
    """
    try:
        chosen = tuple(n for n in suite.networks if re.search(only, f"{n.model}-{n.dataset}-{n.seed}"))
    except re.error as error:
        raise UserError(f"only: {only!r} is not a regular expression: {error}") from None
    if not chosen:
        raise UserError(f"only: no network of suite {suite.name} matches {only!r} in its model-dataset-seed")
    suite = replace(suite, networks=chosen)
    table = tables()[name]
    cells = table.cells(suite)
    if not resume:
        for cell in cells:
            (_folder(table, suite, out, cell) / "row.json").unlink(missing_ok=True)
    missing = [cell for cell in cells if read_json(_folder(table, suite, out, cell) / "row.json") is None]
    work = partial(_work, name, suite, data_dir, out, jobs == 1)
    if jobs == 1:
        run_all(work, missing, jobs, executor, name)
    else:
        first: dict[Network | Cell, list[Cell]] = {}
        for cell in missing:
            first.setdefault(cell.start or cell, [])
            if cell.start is not None:
                first[cell.start].append(cell)
        run_all(work, list(first), jobs, executor, name, then=lambda task: first.get(task, ()))
    rows = [read_json(_folder(table, suite, out, cell) / "row.json") for cell in cells]
    folder = out / suite.name
    table.write(rows, suite, folder, command)
    return folder


def settings_of(table: Table, suite: Suite, cell: Cell) -> dict[str, Any]:
    """Everything that the row of a cell depends on."""
    return {
        "table": table.rows_of or table.name,
        **({} if cell.start is None else {"network": cell.start.settings()}),
        **cell.part,
        **table.settings(suite),
    }


def _folder(table: Table, suite: Suite, out: Path, cell: Cell) -> Path:
    return run_folder(out, table.rows_of or table.name, settings_of(table, suite, cell))


def _work(name: str, suite: Suite, data_dir: Path | None, out: Path, progress: bool, task: Network | Cell) -> None:
    """Compute a cell; or prepare a network before its cells want it."""
    table = tables()[name]
    if isinstance(task, Network):
        bench = Bench(suite, load_data(task.dataset, data_dir), out, out, progress)
        table.prepare(task, bench)
        return
    folder = _folder(table, suite, out, task)
    data = None if task.start is None else load_data(task.start.dataset, data_dir)
    row: Row = table.run(task, Bench(suite, data, out, folder, progress))
    write_json(folder / "row.json", row)
