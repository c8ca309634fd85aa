"""Tables written as JSON and Markdown from the same rows."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from estimators.files import write_bytes
from validation.tables.storage import write_json
from validation.tables.suite import Suite
from validation.training import Network, Recipe

Row = dict[str, Any]
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")


@dataclass(frozen=True)
class Column:
    """One column: key of the rows, heading, and how a number is printed."""

    key: str
    heading: str
    form: str = ""

    def text(self, row: Row) -> str:
        """Print the row's value; a missing value is a dash."""
        value = row.get(self.key)
        if value is None:
            return "-"
        return _escaped(format(value, self.form) if isinstance(value, int | float) else str(value))


def _escaped(text: str) -> str:
    """Make a text fit into one cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def environment() -> Row:
    """Versions and machine that a result was made with."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


@dataclass(frozen=True)
class Page:
    """What stands around the rows of a table.

    Attributes:
        name: Name of the table and of its files.
        title: Heading of the Markdown page.
        notes: Paragraphs between heading and table: what was done with which settings.
        columns: Columns in order.
    """

    name: str
    title: str
    notes: Sequence[str]
    columns: Sequence[Column]


def write_table(folder: Path, page: Page, rows: Sequence[Row], **extra: Any) -> None:
    """Write a table as JSON and Markdown; it tells of every device but the CPU that its rows were made on.

    Args:
        folder: Where to; the files are called ``page.name`` with the endings ``.json`` and ``.md``.
        page: Name, title, notes and columns.
        rows: One dictionary per row.
        extra: Further entries of the JSON file.
    """
    name, columns, notes = page.name, page.columns, list(page.notes)
    devices = sorted({row["device"] for row in rows if "device" in row})
    if any(device != "cpu" for device in devices):
        notes.append(f"Made on {', '.join(devices)}.")
    plain = {"title": page.title, "rows": list(rows), "environment": environment(), **extra}
    write_json(folder / f"{name}.json", plain)
    lines = [f"# {page.title}", "", *[line for note in notes for line in (note, "")]]
    lines += ["| " + " | ".join(_escaped(column.heading) for column in columns) + " |"]
    lines += ["|" + "|".join("---:" if column.form else "---" for column in columns) + "|"]
    lines += ["| " + " | ".join(column.text(row) for column in columns) + " |" for row in rows]
    write_bytes(folder / f"{name}.md", ("\n".join(lines) + "\n").encode())


def mean_and_spread(rows: Sequence[Row], key: str) -> tuple[float | None, float | None]:
    """Mean and standard deviation of a key over rows that have it; the deviation needs two."""
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values:
        return None, None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def between(values: Iterable[float | None], form: str) -> str:
    """Return the smallest and the largest of the known values in words, once where both print alike.

    Args:
        values: Numbers; None is left out.
        form: How a number is printed.

    Returns:
        Text such as ``"1.2 to 3.4"``; a dash where no value is known.

    Example:
        >>> between([3.4, None, 1.2], ".1f"), between([0.5, 0.501], ".0%"), between([], ".1f")
        ('1.2 to 3.4', '50%', '-')
    """
    known = [value for value in values if value is not None]
    ends = [format(end, form) for end in (min(known), max(known))] if known else ["-"]
    plain = [end if re.search("[1-9]", end) else end.lstrip("-") or "-" for end in ends]  # no sign before zero
    return " to ".join(dict.fromkeys(plain))


def with_means(rows: Sequence[Row], columns: Sequence[Column], keys: Sequence[str] = ("model", "dataset")) -> list[Row]:
    """Return the rows with a mean row after the seeds of each kind of network.

    Args:
        rows: Rows with ``seed``; those of one kind follow each other.
        columns: The numbers of columns with a form are averaged.
        keys: What makes a kind.

    Returns:
        All rows; a mean row also holds the standard deviations under ``spread``.
    """
    result: list[Row] = []
    for kind, part in groupby(rows, key=lambda row: [row[key] for key in keys]):
        seeds = list(part)
        result += seeds
        if len(seeds) > 1:
            numbers = [column.key for column in columns if column.form]
            mean: Row = dict(zip(keys, kind, strict=True)) | {"seed": f"mean of {len(seeds)}"}
            mean |= {key: mean_and_spread(seeds, key)[0] for key in numbers}
            mean["spread"] = {key: mean_and_spread(seeds, key)[1] for key in numbers}
            mean["model"] = f"**{mean['model']}**"
            mean |= {column.key: seeds[0][column.key] for column in columns if column.form == ",d"}
            result.append(mean)
    return result


def network_row(network: Network) -> Row:
    """Return what every table says of a network."""
    recipe = network.recipe
    penalty = f"L1 {recipe.l1:g}" if recipe.l1 else f"L2 {recipe.l2:g}" if recipe.l2 else "none"
    return {"model": network.model, "dataset": network.dataset, "penalty": penalty, "seed": network.seed}


def recipes(suite: Suite) -> str:
    """Return the sentence that says how every kind of network of a suite is trained."""
    texts = dict.fromkeys(f"{n.model} on {n.dataset}: {recipe_text(n.recipe)}" for n in suite.networks)
    return "Recipes: " + "; ".join(texts) + "."


def recipe_text(recipe: Recipe) -> str:
    """Return a recipe in one line, settings that are off left out."""
    values = recipe.settings() | {"milestones": recipe.milestones}
    if recipe.optimizer == "adamw":
        del values["momentum"], values["nesterov"]
    return ", ".join(f"{key} {value}" for key, value in values.items() if value not in (0, False, (), []))
