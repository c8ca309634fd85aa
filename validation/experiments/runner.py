"""Runs the cells of a table, in this process or several, and writes the table."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from estimators.errors import UserError
from validation.data import load_data
from validation.experiments import theory_vs_actual
from validation.storage import run_folder
from validation.suite import Suite
from validation.tables import Row
from validation.training import Network


@dataclass(frozen=True)
class Table:
    """A table of the validation: one cell per network, and a way to write the rows."""

    settings: Callable[[Network, Suite], dict[str, Any]]
    run_cell: Callable[..., Row]
    write: Callable[[Sequence[Row], Suite, Path, str], None]


TABLES = {
    theory_vs_actual.NAME: Table(theory_vs_actual.settings_of, theory_vs_actual.run_cell, theory_vs_actual.write),
}


def run_table(
    name: str, suite: Suite, data_dir: Path | None, out: Path, only: str, resume: bool, jobs: int, command: str
) -> Path:
    """Compute the missing cells of a table and write it.

    Args:
        name: A key of ``TABLES``.
        suite: Networks and settings.
        data_dir: Where data lie.
        out: Folder of all runs; the table goes to ``out/<suite>``.
        only: Keep networks whose ``model-dataset-seed`` contains this text.
        resume: Keep finished cells.
        jobs: Number of processes.
        command: The command to note in the table.

    Returns:
        The folder of the table.
    """
    chosen = tuple(n for n in suite.networks if only in f"{n.model}-{n.dataset}-{n.seed}")
    if not chosen:
        raise UserError(f"only: no network of suite {suite.name} contains {only!r} in its model-dataset-seed")
    suite = replace(suite, networks=chosen)
    table = TABLES[name]
    if not resume:
        for network in chosen:
            (run_folder(out, name, table.settings(network, suite)) / "row.json").unlink(missing_ok=True)
    cell = partial(_cell, name, suite, data_dir, out)
    if jobs == 1:
        rows = [cell(network, True) for network in tqdm(chosen, desc=name, unit="cell", disable=None)]
    else:
        context = multiprocessing.get_context("spawn")
        threads = max(1, (os.cpu_count() or 1) // jobs)
        with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
            rows = list(tqdm(pool.map(cell, chosen), total=len(chosen), desc=name, unit="cell", disable=None))
    folder = out / suite.name
    table.write(rows, suite, folder, command)
    return folder


def _cell(name: str, suite: Suite, data_dir: Path | None, out: Path, network: Network, progress: bool = False) -> Row:
    data = load_data(network.dataset, data_dir)
    return TABLES[name].run_cell(network, suite, data, out, progress)
