"""What the tables ``koopman-*`` share in words and numbers: settings, notes, means over seeds, verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from validation.studies.koopman.recording import KoopmanSettings
from validation.studies.limits.algorithms import kind
from validation.tables.suite import Suite
from validation.tables.writing import Row, mean_and_spread, recipes

GAP = 2.0
ALIKE = 0.95
RULE = (
    "A claim counts as reproduced where all of its conditions hold, as partly reproduced where some do, and as not "
    "reproduced where none does; every condition is stated with what was measured, over the means of the seeds."
)


def settings(suite: Suite) -> dict[str, Any]:
    """Return the suite's settings that rows of tables of recorded runs depend on."""
    koopman = asdict(suite.settings(KoopmanSettings))
    return {"koopman": {key: koopman[key] for key in ("epochs", "compressions", "batch_size", "refined", "branches")}}


def recording_notes(suite: Suite) -> list[str]:
    """Return the paragraphs that say what was recorded, and by which rule claims are judged."""
    batch = suite.settings(KoopmanSettings).batch_size
    said = "the recipe's batch size" if batch is None else f"batch size {batch}, the rate scaled in proportion"
    return [
        "Snapshots of all convolution and linear weights and biases, classifier included, after every step of one "
        f"epoch, in one training run per network with {said}. An epoch stands for the recording of that epoch alone, "
        "converged for one further epoch after the recipe's last at a constant rate of 0.2 times the peak. Exact "
        "dynamic mode decomposition by the method of snapshots; singular values of at most 1e-7 times the largest are "
        "dropped. Compression c keeps the fraction 1/c of convolution and linear weights; sparsity is 1 - 1/c.",
        recipes(suite),
        RULE,
    ]


def verdict(conditions: Sequence[bool]) -> str:
    """Say whether a claim is reproduced, by the conditions that it consists of.

    Example:
        >>> verdict([True, True]), verdict([True, False]), verdict([False])
        ('reproduced', 'partly reproduced', 'not reproduced')
    """
    if all(conditions):
        return "reproduced"
    return "partly reproduced" if any(conditions) else "not reproduced"


def judged(claim: str, conditions: Sequence[tuple[str, bool]]) -> str:
    """Return one line: the claim, its verdict, and every condition with what was measured.

    Args:
        claim: The claim in words.
        conditions: Texts that state a condition and what was measured, and whether each holds.
    """
    parts = [f"{text} ({'holds' if holds else 'fails'})" for text, holds in conditions]
    return f"{claim}: **{verdict([holds for _, holds in conditions])}**. {'; '.join(parts)}."


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


def labels_of(rows: Sequence[Row]) -> list[str]:
    """Labels of the recorded epochs in order, ``"converged"`` last."""
    return list(dict.fromkeys(row["label"] for row in rows))


def largest(rows: Sequence[Row], value: Callable[[Row], float]) -> float:
    """Largest value over rows; 0 where there is none."""
    return max((value(row) for row in rows), default=0.0)


def when(label: str) -> str:
    """Label of a recorded epoch in words."""
    return label if label == "converged" else f"epoch {label}"


def compression_axis(panel: Any, compressions: Sequence[float]) -> None:
    """Give a panel a logarithmic axis of compressions with the values that were measured as ticks."""
    panel.set_xscale("log", base=2)
    panel.set_xticks(compressions, [f"{value:g}" for value in compressions])
    panel.set_xlabel("compression 1 / (1 - sparsity)")
    panel.grid(alpha=0.25)
