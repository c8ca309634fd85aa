"""Table ``lottery-compute``: accuracy and multiply-accumulates of pruned networks beside dense ones of equal budget."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from pruning_limits.plotting import GREY, headline, new_figure, save
from validation.macs import layer_macs, total_macs
from validation.pruners import Problem, pruner
from validation.pruners.imp import levels
from validation.studies.limits.algorithms import CompareSettings
from validation.tables.kinds import kind
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import COLOURS, Column, Page, Row, between, mean_and_spread, network_row, write_table
from validation.training import accuracy

NAME = "lottery-compute"
DENSE, SHORT, ITERATIVE, RANDOM = "dense", "dense-short", "imp", "random"
SPARSITIES = (0.5, 0.8, 0.9)
SAID = {
    ITERATIVE: "imp rewinds to 2 % of the first training",
    "imp-no-rewind": "imp-no-rewind trains on from its weights",
    "gmp": "gmp prunes the trained network once",
    RANDOM: "random removes as many weights anywhere",
    SHORT: f"dense-short is trained as briefly as in imp to {SPARSITIES[0]:.0%} before it is pruned",
}
HIGH, FACTOR = 0.9, 5.0
PUBLISHED = (  # accuracies in per cent, dense and pruned
    ("LeNet-5", 98.05, 98.41),
    ("Conv-6", 77.52, 80.02),
    ("ResNet-50 on CIFAR-10", 94.31, 94.82),
    ("ResGCN-28", 80.02, 81.88),
    ("BERT on MNLI", 82.39, 83.08),
)
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("pruner", "pruner"),
    Column("sparsity", "sparsity", ".0%"),
    Column("seeds", "seeds", "d"),
    Column("accuracy", "test accuracy", ".2%"),
    Column("accuracy_spread", "deviation", ".2%"),
    Column("gain", "pruned - dense, points", "+.2f"),
    Column("gain_error", "its standard error", ".2f"),
    Column("macs", "MACs of one image", ",.0f"),
    Column("factor", "fewer MACs by", ".1f"),
)


def cells(suite: Suite) -> list[Cell]:
    """Return one cell per network, pruner and sparsity, and one for every dense network to compare with."""
    magnitude = suite.settings(CompareSettings).magnitude
    points = [(DENSE, 0.0), *((name, s) for name in (*magnitude, RANDOM) for s in SPARSITIES)]
    if ITERATIVE in magnitude:
        points.append((SHORT, 0.0))
    return [
        Cell(network, {"pruner": name, "sparsity": sparsity, "epochs": suite.settings(CompareSettings).epochs})
        for network in suite.networks
        for name, sparsity in points
    ]


def run(cell: Cell, bench: Bench) -> Row:
    """Prune and re-train one network, and count what its kept weights compute."""
    network, data = cell.network, bench.data
    recipe, name = network.recipe, cell.part["pruner"]
    problem = Problem(
        network.model, data, recipe, network.seed, bench.model(network), recipe.epochs + cell.part["epochs"]
    )
    if name == DENSE:
        model, masks = problem.retrained({}), None
    elif name == SHORT:
        model, masks = next(levels(problem, SPARSITIES[0])).model, None
    else:
        pruned = pruner(name)(problem, cell.part["sparsity"])
        model, masks = pruned.model, pruned.masks
    before, after = total_macs(layer_macs(model, data.shape, masks))
    return network_row(network) | cell.part | {"accuracy": accuracy(model, data), "macs": after, "dense_macs": before}


def averaged(rows: Sequence[Row]) -> list[Row]:
    """Average the seeds of every network kind, pruner and sparsity, each seed beside its own dense network.

    Args:
        rows: Rows of the cells.

    Returns:
        One row per kind, pruner and sparsity, in the order of the cells; ``gain`` in points of test accuracy.
    """
    dense = {(kind(row), row["seed"]): row["accuracy"] for row in rows if row["pruner"] == DENSE}
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        gain = 100 * (row["accuracy"] - dense[kind(row), row["seed"]])
        groups.setdefault((kind(row), row["pruner"], row["sparsity"]), []).append(row | {"gain": gain})
    table = []
    for own in groups.values():
        row = {key: own[0][key] for key in ("model", "dataset", "penalty", "pruner", "sparsity")}
        row["seeds"] = len(own)
        row["accuracy"], row["accuracy_spread"] = mean_and_spread(own, "accuracy")
        row["gain"], spread = mean_and_spread(own, "gain")
        row["gain_error"] = None if spread is None else spread / np.sqrt(len(own))
        row["gains"] = [cell["gain"] for cell in own]
        row["macs"] = float(np.mean([cell["macs"] for cell in own]))
        row["factor"] = own[0]["dense_macs"] / row["macs"]
        table.append(row)
    return table


def verdicts(table: Sequence[Row], tolerance: float) -> list[str]:
    """Say in words what the averages of every network kind make of the claims S2 and S14.

    Args:
        table: Rows from ``averaged``.
        tolerance: Accuracy that may be lost and still count as kept, in points; a single seed's standard error.

    Returns:
        Two sentences per network kind.
    """
    lines = []
    for name, part in groupby(table, key=kind):
        own = list(part)
        dense = [row for row in own if row["pruner"] in (DENSE, SHORT)]
        magnitude = [row for row in own if row["pruner"] not in (DENSE, SHORT, RANDOM)]
        said = " ".join(name)
        rival = _best(dense)
        lines.append(f"S2, {said}: {_better(magnitude, rival, tolerance)}")
        lines.append(f"S14, {said}: {_cheaper(magnitude, rival, tolerance)}")
    return lines


def _best(rows: Sequence[Row]) -> Row:
    return max(rows, key=lambda row: (row["gain"], row["sparsity"]))


def _gain(row: Row, rival: Row, tolerance: float) -> tuple[float, float, str]:
    """Return the gain over a dense network in points, its error, and both in words."""
    gains = np.subtract(row["gains"], rival["gains"])
    lone = len(gains) == 1
    error = tolerance if lone else float(gains.std(ddof=1) / np.sqrt(len(gains)))
    spread = "one seed" if lone else f"standard error {error:.2f}"
    against = "one of equal budget" if rival["pruner"] == DENSE else f"one of short training ({SHORT})"
    gain = float(gains.mean())
    return gain, error, f"{gain:+.2f} points ({spread}) against the dense {against}"


def _better(magnitude: Sequence[Row], rival: Row, tolerance: float) -> str:
    best = _best(magnitude)
    gain, error, words = _gain(best, rival, tolerance)
    word = "reproduced" if gain > error else "partly reproduced" if gain >= -error else "not reproduced"
    return f"{word}; the best pruned network ({best['pruner']} at {best['sparsity']:.0%}) is {words}."


def _cheaper(magnitude: Sequence[Row], rival: Row, tolerance: float) -> str:
    best = _best([row for row in magnitude if row["sparsity"] == HIGH])
    gain, _, words = _gain(best, rival, tolerance)
    keeps, cheap = gain >= -tolerance, best["factor"] >= FACTOR
    word = "reproduced" if keeps and cheap else "partly reproduced" if keeps or cheap else "not reproduced"
    return (
        f"{word}; at {HIGH:.0%} removed, {best['pruner']} is {words} and needs {best['factor']:.1f} times fewer "
        "multiply-accumulates."
    )


def _published() -> str:
    """Return the slide's own rows."""
    rows = "; ".join(f"{name} {dense:.2f} to {pruned:.2f} %" for name, dense, pruned in PUBLISHED)
    return f"The slide's own rows of S2, dense to pruned accuracy: {rows}."


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the averages and the verdicts, and draw accuracy against sparsity and multiply-accumulates."""
    table, tolerance = averaged(rows), 100 * suite.settings(CompareSettings).tolerance
    epochs, magnitude = suite.settings(CompareSettings).epochs, suite.settings(CompareSettings).magnitude
    names = dict.fromkeys(row["pruner"] for row in table)
    said = ", ".join(SAID[name] for name in names if name in SAID)
    notes = [
        f"Made by `{command}`.",
        f"Every network is trained by the recipe of the suite; dense and pruned networks may spend {epochs} epochs "
        f"more. {said}. A multiply-accumulate (MAC) counts per kept weight and use in convolution and linear layers; "
        "hardware that skips zeros is assumed.",
        "Verdicts. S2: reproduced where the best network pruned by magnitude beats the better dense one by more than a "
        f"standard error over seeds, {tolerance:g} points where there is one seed, partly where it is within that; it "
        f"is the best of {len(magnitude) * len(SPARSITIES)} on the test set, which favours the claim. S14: reproduced "
        f"where at {HIGH:.0%} removed at most {tolerance:g} points are lost against the better dense one and MACs fall "
        f"by {FACTOR:g} or more, partly where one holds.",
        _published(),
        *verdicts(table, tolerance),
    ]
    title = f"Accuracy and compute of pruned networks, suite {suite.name}"
    write_table(folder, Page(NAME, title, notes, COLUMNS), table, cells=list(rows))
    _draw(table, folder / f"{NAME}.png")


def finding(table: Sequence[Row]) -> str:
    """Say what the best network pruned by magnitude loses and saves where most is removed."""
    best = []
    for _, part in groupby(table, key=kind):
        own = [row for row in part if row["pruner"] not in (DENSE, SHORT, RANDOM) and row["sparsity"] == HIGH]
        best += [_best(own)] if own else []
    return (
        f"At {HIGH:.0%} removed, the best network pruned by magnitude is {between((r['gain'] for r in best), '+.1f')} "
        f"points from the dense one and needs {between((r['factor'] for r in best), '.1f')} times fewer MACs"
    )


def _draw(table: Sequence[Row], path: Path) -> None:
    groups = [list(part) for _, part in groupby(table, key=kind)]
    figure, grid = new_figure(len(groups), 2, size=(13.0, 4.2 * len(groups)), squeeze=False)
    headline(figure, finding(table))
    for panels, group in zip(grid, groups, strict=True):
        for number, name in enumerate(dict.fromkeys(row["pruner"] for row in group if row["pruner"] != DENSE)):
            own = [row for row in group if row["pruner"] == name]
            for panel, key, scale in zip(panels, ("sparsity", "factor"), (100, 1), strict=True):
                panel.errorbar(
                    [scale * row[key] for row in own],
                    [row["gain"] for row in own],
                    [row["gain_error"] or 0 for row in own],
                    marker="osD^v"[number],
                    color=COLOURS[number],
                    capsize=2,
                    label=name,
                )
        for panel in panels:
            panel.axhline(0, color=GREY, linestyle=":", label="dense, equal budget")
            panel.set_yscale("symlog", linthresh=2)
            panel.set_yticks([2, 1, 0, -1, -2, -5, -10, -20, -50, -100], [2, 1, 0, -1, -2, -5, -10, -20, -50, -100])
            panel.set_ylim(-120, 2.5)
            panel.set_ylabel("pruned - dense, points of test accuracy")
            panel.grid(alpha=0.25)
        panels[0].set_xlabel("sparsity, %")
        panels[1].axvline(FACTOR, color=GREY, linewidth=1, label=f"{FACTOR:g} times fewer MACs")
        panels[1].set_xscale("log")
        panels[1].set_xticks([1, 2, 5, 10], ["1", "2", "5", "10"])
        panels[1].minorticks_off()
        panels[1].set_xlabel("times fewer multiply-accumulates")
        panels[1].legend(fontsize=10, loc="center left", bbox_to_anchor=(1.0, 0.5))
        model, dataset, penalty = kind(group[0])
        panels[0].set_title(f"{model} on {dataset}, penalty {penalty}", loc="left", fontsize=10)
    save(figure, path)


def settings(suite: Suite) -> dict[str, Any]:
    """Return nothing: the cells name all settings besides the network."""
    return {}


TABLE = Table(NAME, settings, run, write, cells, sections=(CompareSettings,))
