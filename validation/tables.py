"""Tables written as JSON, CSV and Markdown from the same rows."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from estimators.files import write_bytes
from validation.storage import write_json

Row = dict[str, Any]


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
        return format(value, self.form) if isinstance(value, int | float) else str(value)


def environment() -> Row:
    """Versions and machine that a result was made with."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def write_table(
    folder: Path,
    name: str,
    title: str,
    notes: Sequence[str],
    columns: Sequence[Column],
    rows: Sequence[Row],
    **extra: Any,
) -> None:
    """Write ``name.json``, ``name.csv`` and ``name.md``.

    Args:
        folder: Where to.
        name: Name of the table.
        title: Heading of the Markdown page.
        notes: Paragraphs between heading and table: what was done with which settings.
        columns: Columns in order.
        rows: One dictionary per row.
        extra: Further entries of the JSON file.
    """
    write_json(folder / f"{name}.json", {"title": title, "rows": list(rows), "environment": environment(), **extra})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.key for column in columns])
    writer.writerows([[row.get(column.key) for column in columns] for row in rows])
    write_bytes(folder / f"{name}.csv", text.getvalue().encode())
    lines = [f"# {title}", "", *[line for note in notes for line in (note, "")]]
    lines += ["| " + " | ".join(column.heading for column in columns) + " |"]
    lines += ["|" + "|".join("---:" if column.form else "---" for column in columns) + "|"]
    lines += ["| " + " | ".join(column.text(row) for column in columns) + " |" for row in rows]
    write_bytes(folder / f"{name}.md", ("\n".join(lines) + "\n").encode())


def mean_and_spread(rows: Sequence[Row], key: str) -> tuple[float | None, float | None]:
    """Mean and standard deviation of a key over rows that have it; the deviation needs two."""
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values:
        return None, None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
