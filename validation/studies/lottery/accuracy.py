"""Table ``lottery-accuracy``: accuracy against pruning ratio by magnitude, at random, and dense, at equal budgets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pruning_limits.plotting import BLUE, GREY, ORANGE, headline, new_figure, save
from validation.studies.limits.algorithms import CompareSettings
from validation.studies.lottery import compute
from validation.studies.lottery.compute import averaged, run, settings
from validation.tables.claims import RULE, judged
from validation.tables.kinds import kinds_of
from validation.tables.suite import Suite
from validation.tables.table import Cell, Table
from validation.tables.writing import Column, Page, Row, between, recipes, write_table

NAME = "lottery-accuracy"
DENSE, MAGNITUDE, RANDOM = "dense", "imp-no-rewind", "random"
RATIOS = (0.2, 0.5, 0.8, 0.9, 0.95)
USUAL = 0.8
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("pruner", "pruner"),
    Column("sparsity", "pruning ratio", ".0%"),
    Column("seeds", "seeds", "d"),
    Column("accuracy", "test accuracy", ".2%"),
    Column("accuracy_spread", "deviation", ".2%"),
    Column("gain", "pruned - dense, points", "+.2f"),
    Column("gain_error", "its standard error", ".2f"),
)


def cells(suite: Suite) -> list[Cell]:
    """Return one cell per network and ratio by magnitude and at random, and one for the dense network."""
    points = [(DENSE, 0.0), *((name, ratio) for name in (MAGNITUDE, RANDOM) for ratio in RATIOS)]
    return [
        Cell(network, {"pruner": name, "sparsity": ratio, "epochs": suite.settings(CompareSettings).epochs})
        for network in suite.networks
        for name, ratio in points
    ]


def words(table: Sequence[Row], tolerance: float) -> list[str]:
    """Judge S13 for every kind of network.

    Args:
        table: Averages over the seeds.
        tolerance: Accuracy that may be lost and still count as kept, in points.
    """
    return [_judged(", ".join(which), own, tolerance) for which, own in kinds_of(table).items()]


def _judged(said: str, rows: Sequence[Row], tolerance: float) -> str:
    by_size = {row["sparsity"]: row for row in rows if row["pruner"] == MAGNITUDE}
    by_chance = {row["sparsity"]: row for row in rows if row["pruner"] == RANDOM}
    best = max(by_size.values(), key=lambda row: row["gain"])
    kept = max((ratio for ratio, row in by_size.items() if row["gain"] >= -tolerance), default=0.0)
    losses = ", ".join(f"{ratio:.0%} {row['gain']:+.2f}" for ratio, row in by_chance.items())
    conditions = [
        (
            f"pruned by magnitude it beats the dense network by more than a standard error at some ratio: best "
            f"{best['gain']:+.2f} points ({_said(best, tolerance)}) at {best['sparsity']:.0%}",
            best["gain"] > _error(best, tolerance),
        ),
        (
            f"at {USUAL:.0%} it loses at most {tolerance:g} points: {by_size[USUAL]['gain']:+.2f}, and so up to "
            f"{kept:.0%}",
            by_size[USUAL]["gain"] >= -tolerance,
        ),
        (
            f"pruned at random it loses more than by magnitude and than its standard error at every ratio: {losses}",
            all(row["gain"] < min(by_size[ratio]["gain"], -_error(row, tolerance)) for ratio, row in by_chance.items()),
        ),
    ]
    return judged(f"S13, {said}, magnitude keeps or improves the accuracy and chance lowers it", conditions)


def _error(row: Row, tolerance: float) -> float:
    """Standard error of a gain in points; the tolerance stands for that of a single seed."""
    return tolerance if row["gain_error"] is None else float(row["gain_error"])


def _said(row: Row, tolerance: float) -> str:
    if row["gain_error"] is None:
        return f"one seed, an error of {tolerance:g} assumed"
    return f"standard error {row['gain_error']:.2f}"


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the averages and the verdict on S13, and draw accuracy against the pruning ratio."""
    table, compare = averaged(rows), suite.settings(CompareSettings)
    notes = [
        f"Made by `{command}`.",
        f"Dense and pruned networks may spend {compare.epochs} epochs beyond the recipe. By magnitude: "
        f"{MAGNITUDE}, iterative pruning that trains on from the trained weights, in rounds of 20 %, or fewer and "
        "larger ones where the budget has no epoch for each. At random: the trained network loses as many weights "
        "anywhere and is trained on.",
        recipes(suite),
        RULE,
        *words(table, 100 * compare.tolerance),
    ]
    title = f"Accuracy against pruning ratio, suite {suite.name}"
    write_table(folder, Page(NAME, title, notes, COLUMNS), table, cells=list(rows))
    _figure(table, folder / f"{NAME}.png")


def finding(table: Sequence[Row]) -> str:
    """Say what pruning by magnitude and at random changes of the accuracy at the usual ratio."""
    changes = [
        between((row["gain"] for row in table if (row["pruner"], row["sparsity"]) == (name, USUAL)), "+.1f")
        for name in (MAGNITUDE, RANDOM)
    ]
    return (
        f"At {USUAL:.0%} removed, accuracy changes by {changes[0]} points by magnitude and by {changes[1]} points at "
        "random"
    )


def _figure(table: Sequence[Row], path: Path) -> None:
    groups = kinds_of(table)
    figure, axes = new_figure(1, len(groups), size=(5.2 * len(groups), 3.8), squeeze=False)
    headline(figure, finding(table))
    for panel, (which, rows) in zip(axes[0], groups.items(), strict=True):
        dense = next(row for row in rows if row["pruner"] == DENSE)
        panel.axhline(100 * dense["accuracy"], color=GREY, linestyle=":", label="dense, equal budget")
        for name, said, colour, marker in (
            (MAGNITUDE, "by magnitude", BLUE, "o"),
            (RANDOM, "at random", ORANGE, "s"),
        ):
            own = [dense, *(row for row in rows if row["pruner"] == name)]
            panel.errorbar(
                [100 * row["sparsity"] for row in own],
                [100 * row["accuracy"] for row in own],
                [100 * (row["accuracy_spread"] or 0) for row in own],
                color=colour,
                marker=marker,
                capsize=2,
                label=said,
            )
        panel.set(xlabel="pruning ratio, %", ylabel="test accuracy, %", ylim=(0, 102))
        panel.set_title(f"{which[0]} on {which[1]}, penalty {which[2]}", loc="left", fontsize=9)
        panel.grid(alpha=0.25)
        panel.legend(fontsize=8)
    save(figure, path)


TABLE = Table(NAME, settings, run, write, cells, sections=(CompareSettings,), rows_of=compute.NAME)
