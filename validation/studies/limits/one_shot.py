"""Table ``one-shot``: what is predicted of one-shot pruning beside what it reaches; nothing is trained again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pruning_limits.plotting import BLUE, GREY, ORANGE, headline, new_figure, save, sparsity_axis
from validation.studies.limits import protocols
from validation.studies.limits.predicted import LimitSettings, limit_notes, predicted_limit
from validation.studies.limits.protocols import ACCURACY, ALONE, LOSS, OBJECTIVE, Alone, TruthSettings, case
from validation.studies.limits.theory_vs_actual import COLUMNS, HOLDS, held, lines, networks_note, points
from validation.tables.kinds import kinds_of
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import Page, Row, between, write_table

NAME = "one-shot"
QUESTIONS = tuple(question for question in protocols.QUESTIONS if question.truth == ALONE)
SIDES = {
    ("paper", OBJECTIVE): "where the objective crosses",
    ("paper", ACCURACY): "the knee of the accuracy",
    ("user", LOSS): "where the loss crosses",
    ("user", ACCURACY): "where the accuracy crosses",
}
AXES = ((OBJECTIVE, OBJECTIVE, "rise of the objective"), (ACCURACY, "held_out_drop", "fall of the accuracy"))
SHOWN = (-2.0, 6.0)  # of what is allowed


def settings(suite: Suite) -> dict[str, Any]:
    """Return the suite's settings that a row depends on."""
    return suite.plain(LimitSettings) | {TruthSettings.section: {"drop": suite.settings(TruthSettings).drop}}


def run(cell: Cell, bench: Bench) -> Row:
    """Predict one network's one-shot limits by both protocols, and prune it.

    Args:
        cell: The network.
        bench: Its data and the suite's settings.

    Returns:
        What is said of the network, ``cases`` with a prediction and a truth each, and the curve behind them.
    """
    alone = Alone.of(cell.network, bench)
    cases = [case(question, alone.limits[question.by], alone.ends) for question in QUESTIONS]
    allowed = {level.name: level.allowed for level in alone.levels}
    return alone.row() | {"allowed": allowed, "cases": cases, "curves": {"alone": alone.curve}}


def misses(rows: Sequence[Row], protocol: str, level: str) -> list[float]:
    """Return by how many points of sparsity the formula misses one-shot pruning, a number for every network known."""
    asked = (protocol, "formula", level)
    cases = [case for row in rows for case in row["cases"] if (case["protocol"], case["rung"], case["level"]) == asked]
    known = [case for case in cases if case["predicted"] is not None and case["actual"] is not None]
    return [100 * abs(case["predicted"] - case["actual"]) for case in known]


def finding(rows: Sequence[Row]) -> str:
    """Say how far the formula and the measurement of a prediction are from what one-shot pruning reaches.

    Args:
        rows: Rows of networks, see ``run``.
    """
    paper, user = (between(misses(rows, *side), ".1f") for side in (("paper", OBJECTIVE), ("user", LOSS)))
    measured = [case for row in rows for case in row["cases"] if case["rung"] == "one-shot"]
    return (
        f"The formula misses one-shot pruning by {paper} points of sparsity by the paper's protocol and by {user} by "
        f"the user's loss; intervals of measured one-shot pruning hold in {held(measured) or 'no known case'}"
    )


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table as JSON and Markdown and draw its figure.

    Args:
        rows: One row per network.
        suite: The suite behind them.
        folder: Where to.
        command: The command that made the table.
    """
    notes = [f"Made by `{command}`.", *limit_notes(suite), _protocols(suite), HOLDS, networks_note(rows)]
    notes.append(f"{finding(rows)}.")
    far = [f"{between(misses(rows, *side), '.2f')} from {words} ({side[0]}'s)" for side, words in SIDES.items()]
    notes.append(f"Distances of the formula, in points of sparsity, smallest to largest: {'; '.join(far)}.")
    title = f"Predicted and actual one-shot limits, suite {suite.name}"
    write_table(folder, Page(NAME, title, notes, COLUMNS), lines(rows), networks=list(rows))
    _figure(rows, folder / f"{NAME}.png")


def _protocols(suite: Suite) -> str:
    drop = points(suite.settings(TruthSettings).drop)
    return (
        "Pruned are the smallest weights of all layers together, and nothing is trained again. Paper's protocol: what "
        "must not rise by more than epsilon is the objective; the formula with the Hessian is held against where it "
        f"does, and against the knee of the accuracy, where {drop} of it is lost on held-out data. User's protocol: "
        "`predict_limit` by its defaults, with the loss alone as criterion and epsilon as above (*loss*), or with that "
        "fall of the accuracy (*accuracy*). Truths are measured on all data."
    )


def _figure(rows: Sequence[Row], path: Path) -> None:
    groups = kinds_of(rows)
    figure, axes = new_figure(len(groups), len(AXES), size=(10.0, 1.0 + 2.7 * len(groups)), squeeze=False)
    headline(figure, finding(rows))
    for panels, (kind, group) in zip(axes, groups.items(), strict=True):
        for panel, (level, key, label) in zip(panels, AXES, strict=True):
            _draw(panel, group, level, key)
            panel.set_ylabel(f"{label} / allowed", fontsize=9)
        seeds = f"{len(group)} seeds" if len(group) > 1 else "one seed"
        panels[0].set_title(f"{kind[0]} on {kind[1]}, penalty {kind[2]}, {seeds}", loc="left", fontsize=10)
    for panel in axes[-1]:
        panel.set_xlabel("sparsity (removed fraction)", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, loc="outside lower center", ncols=3)
    save(figure, path)


def _draw(panel: Any, group: Sequence[Row], level: str, key: str) -> None:
    """Draw how much of what is allowed the seeds of a kind lose along pruning, and where the formula sees the limit."""
    ends = [point["kept"] for row in group for point in row["curves"]["alone"]]
    for place, row in enumerate(group):
        points = [{"kept": 1.0, key: 0.0}, *row["curves"]["alone"]]
        shares = [point[key] / row["allowed"][level] for point in points]
        kept = [point["kept"] for point in points]
        panel.plot(kept, shares, ".-", color=BLUE, linewidth=1, label="_" if place else "pruned, nothing else")
        for known in row["cases"]:
            if (known["protocol"], known["level"]) == ("paper", level) and known["predicted"] is not None:
                label = "_" if place else "limit predicted by the formula"
                ends.append(1 - known["predicted"])
                panel.axvline(ends[-1], color=ORANGE, linestyle="--", label=label)
    panel.axhline(1.0, color=GREY, linestyle=":", label="allowed")
    panel.set_ylim(*SHOWN)
    sparsity_axis(panel.xaxis, 0.9 * min(ends))
    panel.tick_params(axis="x", labelrotation=45, labelsize=8)
    panel.grid(alpha=0.25)


TABLE = Table(NAME, settings, run, write, sections=(LimitSettings, TruthSettings), prepare=predicted_limit)
