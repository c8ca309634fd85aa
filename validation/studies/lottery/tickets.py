"""Table ``lottery-tickets``: iterative pruning's winning tickets against re-initialised and shuffled ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from estimators import Objective
from pruning_limits.plotting import BLUE, GREY, ORANGE, headline, new_figure, save, sparsity_axis
from validation.data import ImageData
from validation.masks import Masks, shuffled, sparsity_of
from validation.pruners import Problem
from validation.pruners.imp import levels
from validation.pruners.random_masks import mask_seed
from validation.studies.limits.algorithms import CompareSettings
from validation.tables.claims import RULE, judged
from validation.tables.kinds import kinds_of
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import (
    COLOURS,
    Column,
    Page,
    Row,
    between,
    mean_and_spread,
    network_row,
    recipes,
    write_table,
)
from validation.training import Course, accuracy, fresh_network, train

NAME = "lottery-tickets"
SPARSITY, ROUNDS, COMPARED = 0.95, 8, (2, 5, 8)
OTHER_WEIGHTS = 1_000
NEAR, FROM = 0.05, 0.8
TICKET, DENSE = "winning ticket", "dense"
CONTROLS = ("shuffled", "re-initialised")
KINDS = (TICKET, *CONTROLS)
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("kind", "network"),
    Column("sparsity", "sparsity", ".1%"),
    Column("seeds", "seeds", "d"),
    Column("accuracy", "test accuracy", ".2%"),
    Column("accuracy_spread", "deviation", ".2%"),
    Column("gain", "against dense, points", "+.2f"),
    Column("gain_error", "its standard error", ".2f"),
    Column("lowest", "lowest test loss", ".4f"),
    Column("arrived", "seeds that reach the dense loss", "d"),
    Column("epochs", "epochs to it, mean of those", ".1f"),
)


class Epochs:
    """Test loss and accuracy at the end of every epoch of a training; an ``on_step`` callback.

    Args:
        data: Images.
        batch_size: Samples per step.
    """

    def __init__(self, data: ImageData, batch_size: int) -> None:
        self._data, self._per_epoch = data, len(data.batches("train", batch_size))
        self.losses: list[float] = []
        self.accuracies: list[float] = []

    def __call__(self, step: int, model: nn.Module) -> None:
        """Measure the model if an epoch ends with this step."""
        if step % self._per_epoch == 0:
            self.losses.append(Objective(model, self._data.batches("test", 1000)).value())
            self.accuracies.append(accuracy(model, self._data))

    def taken(self) -> Row:
        """Return what was measured since the last call."""
        measured = {"losses": self.losses, "accuracies": self.accuracies}
        self.losses, self.accuracies = [], []
        return measured


def run(cell: Cell, bench: Bench) -> Row:
    """Prune one network iteratively from its initial weights, and train both controls beside some of its tickets."""
    network, data = cell.network, bench.data
    recipe = network.recipe
    epochs = Epochs(data, recipe.batch_size)
    problem = Problem(network.model, data, recipe, network.seed, bench.model(network), (ROUNDS + 1) * recipe.epochs)
    points: list[Row] = []
    for number, level in enumerate(levels(problem, SPARSITY, rewind=0, rounds=ROUNDS, on_step=epochs)):
        own = {"sparsity": sparsity_of(level.masks)}
        points.append({"kind": TICKET if number else DENSE, **own, **epochs.taken()})
        if number in COMPARED:
            for kind, (seed, masks) in _controls(level.masks, network.seed).items():
                model = fresh_network(replace(network, seed=seed), data)
                train(model, data, recipe, network.seed, masks=masks, course=Course(on_step=epochs))
                points.append({"kind": kind, **own, **epochs.taken()})
    return network_row(network) | {"points": [_summed_up(point, points[0]) for point in points]}


def _controls(masks: Masks, seed: int) -> dict[str, tuple[int, Masks]]:
    """Seed of the initial weights and masks of both controls."""
    return dict(zip(CONTROLS, ((seed, shuffled(masks, mask_seed(seed))), (seed + OTHER_WEIGHTS, masks)), strict=True))


def _summed_up(point: Row, dense: Row) -> Row:
    level = (1 + NEAR) * min(dense["losses"])
    arrival = next((number for number, loss in enumerate(point["losses"], 1) if loss <= level), None)
    last = point["accuracies"][-1]
    gain = 100 * (last - dense["accuracies"][-1])
    return point | {"accuracy": last, "gain": gain, "lowest": min(point["losses"]), "epochs": arrival}


def averaged(rows: Sequence[Row]) -> list[Row]:
    """Average the seeds of every kind of network, ticket or control, and round.

    Args:
        rows: Rows of the cells.

    Returns:
        One row each, in the order of the rounds; ``arrived`` counts seeds that reach the dense loss and ``epochs`` is
        the mean over those.
    """
    table: list[Row] = []
    for group, own in kinds_of(rows).items():
        for number, first in enumerate(own[0]["points"]):
            same = [row["points"][number] for row in own]
            row: Row = dict(zip(("model", "dataset", "penalty"), group, strict=True))
            row |= {"kind": first["kind"], "sparsity": first["sparsity"], "seeds": len(same)}
            for key in ("accuracy", "gain", "lowest", "epochs"):
                row[key], row[f"{key}_spread"] = mean_and_spread(same, key)
            spread = row["gain_spread"]
            row["gain_error"] = None if spread is None else spread / np.sqrt(len(same))
            row["arrived"] = sum(point["epochs"] is not None for point in same)
            table.append(row)
    return table


def words(table: Sequence[Row], tolerance: float) -> list[str]:
    """Judge S3 for every kind of network.

    Args:
        table: Rows from ``averaged``.
        tolerance: Accuracy that may be lost and still count as kept, in points.
    """
    return [_judged(", ".join(which), own, tolerance) for which, own in kinds_of(table).items()]


def _judged(said: str, rows: Sequence[Row], tolerance: float) -> str:
    tickets = {row["sparsity"]: row for row in rows if row["kind"] == TICKET}
    dense = next(row for row in rows if row["kind"] == DENSE)
    rivals = [row for row in rows if row["kind"] in CONTROLS and row["sparsity"] >= FROM]
    ahead = [(tickets[row["sparsity"]], row) for row in rivals]
    better = all(ticket["gain"] - row["gain"] > (row["gain_error"] or 0.0) for ticket, row in ahead)
    sooner = all(_place(ticket) < _place(row) for ticket, row in ahead)
    winning = [row for row in tickets.values() if row["gain"] >= -tolerance]
    most = max((row["sparsity"] for row in winning), default=0.0)
    quick = [f"{row['sparsity']:.1%} {_arrival(row)}" for row in winning if _place(row) <= _place(dense)]
    margins = "; ".join(
        f"{row['sparsity']:.1%} removed, {ticket['gain']:+.2f} points against dense, {row['kind']} {row['gain']:+.2f}"
        for ticket, row in ahead
    )
    times = "; ".join(
        f"{row['sparsity']:.1%} {_arrival(ticket)}, {row['kind']} {_arrival(row)}" for ticket, row in ahead
    )
    conditions = [
        (
            f"from {FROM:.0%} removed on, the ticket is more accurate than both controls by more than their standard "
            f"error: {margins}",
            better,
        ),
        (f"from {FROM:.0%} on, it comes to the dense test loss before both: {times}", sooner),
        (
            f"some ticket with {FROM:.0%} or more removed loses at most {tolerance:g} points: kept up to {most:.1%}",
            most >= FROM,
        ),
        (
            f"some of those that keep the accuracy comes to the dense loss no later than the dense network "
            f"({_arrival(dense)}): {', '.join(quick) or 'none'}",
            bool(quick),
        ),
    ]
    return judged(f"S3, {said}, iterative pruning finds winning tickets", conditions)


def _place(row: Row) -> tuple[int, float]:
    """Sort networks by how many seeds arrive, then by when."""
    return -row["arrived"], row["epochs"] or 0.0


def _arrival(row: Row) -> str:
    return f"in {row['epochs']:.1f} epochs" if row["arrived"] else "never"


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the averages and the verdict on S3, and draw accuracy and epochs against sparsity."""
    table, tolerance = averaged(rows), 100 * suite.settings(CompareSettings).tolerance
    notes = [
        f"Made by `{command}`.",
        f"Iterative magnitude pruning in {ROUNDS} rounds to {SPARSITY:.0%}, the same fraction of what is left in each; "
        "every round rewinds to the initial weights, and every network of the table is trained by the whole recipe. "
        "Shuffled: the same initial weights, the mask permuted within every layer. Re-initialised: the same mask, "
        f"other initial weights. Both are trained at rounds {', '.join(map(str, COMPARED))}.",
        f"The dense loss is the lowest test loss that the dense network has at the end of an epoch, plus {NEAR:.0%}; "
        "epochs to it are counted to the end of the first epoch at or below.",
        recipes(suite),
        RULE,
        *words(table, tolerance),
    ]
    title = f"Winning tickets against shuffled and re-initialised ones, suite {suite.name}"
    write_table(folder, Page(NAME, title, notes, COLUMNS), table, cells=list(rows))
    _figure(table, folder / f"{NAME}.png")


def finding(table: Sequence[Row]) -> str:
    """Say what tickets and controls change of the accuracy where most is removed."""
    last = [
        row for own in kinds_of(table).values() for row in own if row["sparsity"] == max(r["sparsity"] for r in own)
    ]
    changes = [f"{kind} {between((r['gain'] for r in last if r['kind'] == kind), '+.1f')}" for kind in KINDS]
    return (
        f"With {between((row['sparsity'] for row in last), '.0%')} removed, points of accuracy against dense: "
        f"{', '.join(changes)}"
    )


def _figure(table: Sequence[Row], path: Path) -> None:
    groups = kinds_of(table)
    figure, axes = new_figure(len(groups), 2, size=(10.5, 3.7 * len(groups)), squeeze=False)
    headline(figure, finding(table))
    for (left, right), (which, rows) in zip(axes, groups.items(), strict=True):
        dense = next(row for row in rows if row["kind"] == DENSE)
        left.axhline(100 * dense["accuracy"], color=GREY, linestyle=":", label=DENSE)
        for kind, colour, marker in zip(KINDS, (BLUE, ORANGE, COLOURS[3]), "os^", strict=True):
            own = [row for row in rows if row["kind"] == kind]
            places = [1 - row["sparsity"] for row in own]
            values, spreads = (
                [100 * row["accuracy"] for row in own],
                [100 * (row["accuracy_spread"] or 0) for row in own],
            )
            left.errorbar(places, values, spreads, color=colour, marker=marker, markersize=4, capsize=2, label=kind)
            _arrivals(right, [dense, *own] if kind == TICKET else own, colour, marker, kind)
        left.set_ylabel("test accuracy, %")
        right.axhline(dense["epochs"], color=GREY, linestyle=":", label=DENSE)
        right.set(ylabel="epochs to the dense test loss", ylim=(0, None))
        for panel in (left, right):
            sparsity_axis(panel.xaxis, 0.9 * (1 - SPARSITY))
            panel.set_xlabel("sparsity (removed fraction)")
            panel.set_title(f"{which[0]} on {which[1]}, penalty {which[2]}", loc="left", fontsize=9)
            panel.grid(alpha=0.25)
            panel.legend(fontsize=7)
    save(figure, path)


def _arrivals(panel: Any, rows: Sequence[Row], colour: str, marker: str, said: str) -> None:
    """Draw when networks arrive: filled where all seeds do, hollow where some do, nothing where none does."""
    arrived = [row for row in rows if row["arrived"]]
    panel.plot([1 - row["sparsity"] for row in arrived], [row["epochs"] for row in arrived], color=colour, linewidth=1)
    for whole, face in ((True, colour), (False, "white")):
        own = [row for row in arrived if (row["arrived"] == row["seeds"]) == whole]
        label = said if whole else f"{said}, some seeds"
        panel.plot(
            [1 - row["sparsity"] for row in own],
            [row["epochs"] for row in own],
            marker,
            color=colour,
            markerfacecolor=face,
            label=label if own else None,
        )


def settings(suite: Suite) -> dict[str, Any]:
    """Return the constants that a row depends on."""
    return {"sparsity": SPARSITY, "rounds": ROUNDS, "compared": list(COMPARED), "near": NEAR}


TABLE = Table(NAME, settings, run, write, sections=(CompareSettings,))
