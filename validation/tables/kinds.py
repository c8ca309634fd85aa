"""Group the rows of all seeds of one kind of network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from validation.tables.writing import Row, mean_and_spread


def kind(row: Row) -> tuple[Any, ...]:
    """Return what the seeds of one kind of network share."""
    return row["model"], row["dataset"], row["penalty"]


def kinds_of(rows: Sequence[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """Group rows by kind of network, in order."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(kind(row), []).append(row)
    return groups


def averaged(rows: Sequence[Row], keys: Sequence[str], name: str = "points") -> list[Row]:
    """Average the points of the seeds of every kind of network.

    Args:
        rows: Rows of networks, each with a list of points.
        keys: What tells the points of one row apart; all else in them is averaged.
        name: Key of that list.

    Returns:
        One row per kind and point, in order, with ``seeds`` and the deviations of ``x`` under ``x_spread``.
    """
    result: list[Row] = []
    for group, own in kinds_of(rows).items():
        points: dict[tuple[Any, ...], list[Row]] = {}
        for row in own:
            for point in row[name]:
                points.setdefault(tuple(point[key] for key in keys), []).append(point)
        for values, same in points.items():
            row = dict(zip(("model", "dataset", "penalty"), group, strict=True)) | dict(zip(keys, values, strict=True))
            row["seeds"] = len(same)
            for key in same[0]:
                if key not in keys:
                    row[key], row[f"{key}_spread"] = mean_and_spread(same, key)
            result.append(row)
    return result
