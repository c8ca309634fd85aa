"""``pruning-limits validate``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from estimators.files import refuse_unwritable
from validation.data import DATA_DIR_VARIABLE
from validation.launch import alone
from validation.tables.discovery import tables
from validation.tables.executors import EXECUTORS
from validation.tables.reading import known_suites, load_suite
from validation.tables.runner import Run, run_table
from validation.training import PRECISIONS


@click.command()
@click.option(
    "--suite", "suite_name", default="quick", show_default=True, help=f"{', '.join(known_suites())}, or a .toml file."
)
@click.option(
    "--table",
    "names",
    multiple=True,
    type=click.Choice(list(tables())),
    help="Default: every table that the suite asks for.",
)
@click.option("--data-dir", type=click.Path(path_type=Path), help=f"Where data lie (or {DATA_DIR_VARIABLE}).")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True)
@click.option("--only", default="", help="Only networks whose model-dataset-seed matches this pattern.")
@click.option("--resume/--fresh", default=True, show_default=True, help="Keep finished cells, or compute all anew.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Cells computed at the same time.")
@click.option("--executor", type=click.Choice(EXECUTORS), default="process", show_default=True, help="Where jobs run.")
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Where networks are trained, pruned and measured: cpu, cuda, cuda:1 ...",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Train every network of the suite in mixed precision, or none; what is measured stays in float32.",
)
@alone
def validate(suite_name: str, names: tuple[str, ...], only: str, precision: str | None, **options: Any) -> None:
    """Train, prune and measure: tables of predicted against actual limits."""
    run = Run(**options, command=shlex.join(["pruning-limits", *sys.argv[1:]]))
    suite = load_suite(suite_name).only(only)
    if precision is not None:
        suite = suite.trained_in(precision)
    refuse_unwritable(run.out / "table.json")
    for table in names or [name for name, table in tables().items() if table.cells(suite)]:
        folder = run_table(table, suite, run)
        click.echo((folder / f"{table}.md").read_text())
        *endings, last = (ending for ending in (".json", ".md", ".png") if (folder / f"{table}{ending}").exists())
        click.echo(f"wrote {folder / table}{', '.join(endings)} and {last}")
