"""Texts, numbers and figures that the tables of recorded runs share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from validation.studies.koopman.recording import KoopmanSettings
from validation.tables.claims import RULE, judged, stated
from validation.tables.suite import Suite
from validation.tables.writing import Row, recipes

GAP = 2.0
ALIKE = 0.95
CLAIMED = "20"  # the epoch that K3, K4 and K5 speak of


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


def labels_of(rows: Sequence[Row]) -> list[str]:
    """Labels of the recorded epochs in order, ``"converged"`` last."""
    return list(dict.fromkeys(row["label"] for row in rows))


def claimed(labels: Sequence[str]) -> str:
    """Return epoch 20 where it was recorded, else the last epoch before convergence, or ``"converged"`` alone.

    Example:
        >>> claimed(["1", "20", "24", "converged"]), claimed(["1", "10", "converged"]), claimed(["converged"])
        ('20', '10', 'converged')
    """
    early = [label for label in labels if label != "converged"]
    return CLAIMED if CLAIMED in early else (early or list(labels))[-1]


def judged_at(label: str, claim: str, conditions: Sequence[tuple[str, bool]]) -> str:
    """Judge a claim that speaks of epoch 20 by what was measured there; another epoch leaves it open.

    Args:
        label: The recorded epoch that the conditions are about.
        claim: The claim in words.
        conditions: Texts that state a condition and what was measured, and whether each holds.
    """
    if label == CLAIMED:
        return judged(claim, conditions)
    return f"{claim}: **open**. Epoch {CLAIMED}, of which it speaks, was not recorded; instead: {stated(conditions)}."


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
