"""Runs the cells of a table, in this process or on an executor, and writes the table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from estimators import UserError
from validation.data import ImageData, load_data
from validation.devices import chosen_device, described
from validation.tables.discovery import tables
from validation.tables.executors import run_all
from validation.tables.storage import folder_of, read_json, run_folder, write_json
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import Row
from validation.training import CPU, Network


@dataclass(frozen=True)
class Run:
    """Where and how the cells of tables are computed; it is no part of what a cell is.

    A cell that is finished stays finished on every device, though another device sums in another order and so gives
    other last digits; its row names the device that made it.

    Args:
        out: Folder of all runs; a table goes to ``out/<suite>``.
        data_dir: Where data lie; None for the usual places.
        resume: Keep finished cells.
        jobs: Number of cells computed at the same time.
        executor: ``"process"`` or ``"ray"``; one job runs in this process.
        command: The command to note in the tables.
        device: Where networks are trained, pruned and measured: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    """

    out: Path
    data_dir: Path | None = None
    resume: bool = True
    jobs: int = 1
    executor: str = "process"
    command: str = ""
    device: str = "cpu"


def run_table(name: str, suite: Suite, run: Run) -> Path:
    """Compute the missing cells of a table and write it.

    Args:
        name: A name from ``tables()``.
        suite: Networks and settings.
        run: Folders, and how cells are computed.

    Returns:
        The folder of the table.

    Raises:
        UserError: The suite asks nothing of the table, the output folder cannot be written, or a cell fails on what
            the user gave; or the device cannot be used.
    """
    chosen_device(run.device)
    table = tables()[name]
    cells = table.cells(suite)
    if not cells:
        section = "".join(f" in section [{kind.section}]" for kind in table.sections)
        raise UserError(f"table: suite {suite.name} asks nothing of {name}; say what{section}")
    if not run.resume:
        for file in {_row_file(table, suite, run.out, cell) for cell in cells}:
            if file.exists():
                file.unlink()
    missing = missing_cells(table, suite, run.out)
    work = partial(_work, name, suite, run)
    if run.jobs == 1:
        run_all(work, missing, run.jobs, run.executor, name)
    else:
        first: dict[Network | Cell, list[Cell]] = {}
        for cell in missing:
            first.setdefault(cell.start or cell, [])
            if cell.start is not None:
                first[cell.start].append(cell)
        run_all(work, list(first), run.jobs, run.executor, name, then=lambda task: first.get(task, ()))
    rows = [read_json(_row_file(table, suite, run.out, cell)) for cell in cells]
    folder = run.out / suite.name
    table.write(rows, suite, folder, run.command)
    return folder


def missing_cells(table: Table, suite: Suite, out: Path) -> list[Cell]:
    """Return the cells of a table that have no row yet, in order; nothing is written.

    Args:
        table: A table.
        suite: Networks and settings.
        out: Folder of all runs; it need not exist.
    """
    return [cell for cell in table.cells(suite) if read_json(_row_file(table, suite, out, cell)) is None]


def settings_of(table: Table, suite: Suite, cell: Cell) -> dict[str, Any]:
    """Everything that the row of a cell depends on."""
    return {
        "table": table.rows_of or table.name,
        **({} if cell.start is None else {"network": cell.start.settings()}),
        **cell.part,
        **table.settings(suite),
    }


def _row_file(table: Table, suite: Suite, out: Path, cell: Cell) -> Path:
    return folder_of(out, table.rows_of or table.name, settings_of(table, suite, cell)) / "row.json"


def _work(name: str, suite: Suite, run: Run, task: Network | Cell) -> None:
    """Compute a cell; or prepare a network before its cells want it."""
    table, progress = tables()[name], run.jobs == 1
    if isinstance(task, Network):
        table.prepare(task, Bench(suite, _data(task, run), run.out, run.out, progress))
        return
    folder = run_folder(run.out, table.rows_of or table.name, settings_of(table, suite, task))
    data = None if task.start is None else _data(task.start, run)
    row: Row = table.run(task, Bench(suite, data, run.out, folder, progress))
    made_on = CPU if data is None else data.device  # a table without networks computes on the CPU
    write_json(folder / "row.json", row | {"device": described(made_on)})


def _data(network: Network, run: Run) -> ImageData:
    return load_data(network.dataset, run.data_dir).to(chosen_device(run.device))
