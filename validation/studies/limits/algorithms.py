"""Table ``algorithms``: every pruner at several sparsities at an equal training budget, beside the predicted limit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from matplotlib.axes import Axes

from estimators import Objective, UserError
from pruning_limits.plotting import GREEN, GREY, ORANGE, headline, new_figure, save, sparsity_axis
from validation.masks import sparsity_of
from validation.pruners import Problem, pruner
from validation.studies.limits.predicted import LimitSettings, limit_notes, predicted_limit
from validation.tables.kinds import kind
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import COLOURS, Column, Page, Row, mean_and_spread, network_row, write_table
from validation.training import accuracy

NAME = "algorithms"
ONE_SHOT = "lomp"
SHOWN = (ONE_SHOT, "gmp", "imp", "imp-no-rewind", "rare-gems", "obs-layerwise", "retuned")  # in colour in the figure
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("pruner", "pruner"),
    Column("sparsity", "sparsity", ".2%"),
    Column("seeds", "seeds", "d"),
    Column("accuracy", "test accuracy", ".2%"),
    Column("accuracy_spread", "deviation", ".2%"),
    Column("loss_of_accuracy", "dense - pruned, points", "+.2f"),
    Column("rise", "rise of the objective", ".4f"),
    Column("epsilon", "allowed", ".4f"),
    Column("side", "against the predicted limits"),
    Column("keeps", "keeps dense accuracy"),
    Column("epochs", "epochs spent", ".0f"),
    Column("seconds", "seconds", ".0f"),
    Column("refused", "refused"),
)


@dataclass(frozen=True)
class CompareSettings:
    """Which pruners are compared where, and with how much training.

    Args:
        pruners: Names of pruners.
        sparsities: Sparsities at which each is run.
        epochs: Training after the dense network's own, the same for all: the whole budget is the recipe's plus these.
        tolerance: Accuracy that a pruned network may lose and still count as good, as a fraction.
        magnitude: Pruners that stand for pruning by magnitude in ``lottery-compute``; iterative ones train the whole
            budget anew at every sparsity.
    """

    section: ClassVar[str] = "compare"

    pruners: tuple[str, ...] = ("lomp", "gmp", "imp", "rare-gems", "smart-ratio", "kmp", "random-layerwise")
    sparsities: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.98)
    epochs: int = 5
    tolerance: float = 0.005
    magnitude: tuple[str, ...] = ("gmp", "imp", "imp-no-rewind")


def cells(suite: Suite) -> list[Cell]:
    """Return one cell per network, pruner and sparsity, and one for the dense network at the same budget."""
    compare = suite.settings(CompareSettings)
    points = [("dense", 0.0), *((name, s) for name in compare.pruners for s in compare.sparsities)]
    return [
        Cell(network, {"pruner": name, "sparsity": sparsity, "epochs": compare.epochs})
        for network in suite.networks
        for name, sparsity in points
    ]


def run(cell: Cell, bench: Bench) -> Row:
    """Prune one network once; a pruner that refuses leaves its reason in the row."""
    network, data = cell.network, bench.data
    name, sparsity = cell.part["pruner"], cell.part["sparsity"]
    dense, limit = bench.model(network), predicted_limit(network, bench)
    recipe = network.recipe
    problem = Problem(network.model, data, recipe, network.seed, dense, recipe.epochs + cell.part["epochs"])
    row: Row = network_row(network) | cell.part
    row |= {"isotropic": limit.sparsity, "retrained": limit.retrained, "upper": limit.upper, "epsilon": limit.epsilon}
    row |= {"dense_accuracy": accuracy(dense, data), "lower": limit.lower}
    started = time.perf_counter()
    try:
        if name == "dense":
            model, realised, spent = problem.retrained({}), 0.0, problem.epochs
        else:
            pruned = pruner(name)(problem, sparsity)
            model, realised, spent = pruned.model, sparsity_of(pruned.masks), pruned.epochs
    except UserError as error:
        return row | {"refused": str(error)}
    objective = Objective(model, data.batches("train", 1000), penalty=recipe.penalty).value()
    return row | {
        "realised": realised,
        "accuracy": accuracy(model, data),
        "rise": objective - limit.objective,
        "epochs": spent,
        "seconds": time.perf_counter() - started,
        "refused": None,
    }


def averaged(rows: Sequence[Row], tolerance: float) -> list[Row]:
    """Average the seeds of every network kind, pruner and sparsity.

    Args:
        rows: Rows of the cells.
        tolerance: Accuracy that may be lost, as a fraction.

    Returns:
        One row per kind, pruner and sparsity, in the order of the cells.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((*kind(row), row["pruner"], row["sparsity"]), []).append(row)
    result = []
    for own in groups.values():
        first = own[0]
        numbers = ("accuracy", "rise", "epsilon", "epochs", "seconds", "isotropic", "retrained", "upper", "lower")
        row = {key: first[key] for key in ("model", "dataset", "penalty", "pruner", "sparsity")}
        row |= {key: mean_and_spread(own, key)[0] for key in (*numbers, "dense_accuracy")}
        row |= {"seeds": sum(seed_row.get("accuracy") is not None for seed_row in own), "refused": first["refused"]}
        row["accuracy_spread"] = mean_and_spread(own, "accuracy")[1]
        if row["accuracy"] is not None:
            row["loss_of_accuracy"] = 100 * (row["dense_accuracy"] - row["accuracy"])
            row["keeps"] = "yes" if row["accuracy"] >= row["dense_accuracy"] - tolerance else "no"
        row["side"] = side(row)
        result.append(row)
    return result


def side(row: Row) -> str:
    """Say where a sparsity lies among the predicted limits."""
    sparsity = row["sparsity"]
    if sparsity <= min(row["isotropic"], row["retrained"]):
        return "below both"
    if sparsity > row["upper"]:
        return "above the upper bound"
    return "above both" if sparsity > max(row["isotropic"], row["retrained"]) else "between one-shot and re-trained"


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table and draw accuracy against sparsity for every pruner."""
    compare = suite.settings(CompareSettings)
    notes = [
        f"Made by `{command}`.",
        *limit_notes(suite),
        f"Every pruner may spend the recipe's epochs plus {compare.epochs}; the column says what it spent. LOMP does "
        "not re-train and leaves the rest unspent. A network keeps the dense accuracy when its mean test accuracy is "
        f"at most {100 * compare.tolerance:g} points below that of the dense network it came from.",
        *crossings(rows, compare.tolerance),
    ]
    table = averaged(rows, compare.tolerance)
    write_table(
        folder,
        Page(NAME, f"Pruners against the predicted limit, suite {suite.name}", notes, COLUMNS),
        table,
        cells=list(rows),
    )
    groups = [list(part) for _, part in groupby(table, key=kind)]
    figure, axes = new_figure(len(groups), 1, size=(8.0, 4.2 * len(groups)), squeeze=False)
    headline(figure, _finding(groups))
    for panel, group in zip(axes[:, 0], groups, strict=True):
        _draw(panel, group)
    save(figure, folder / f"{NAME}.png")


def _finding(groups: Sequence[Sequence[Row]]) -> str:
    """Say in how many cases one-shot magnitude pruning keeps more accuracy than every other pruner."""
    cases, best = 0, 0
    for group in groups:
        pruned = [row for row in group if row["pruner"] != "dense" and row["accuracy"] is not None]
        for sparsity in dict.fromkeys(row["sparsity"] for row in pruned):
            rivals = [row for row in pruned if row["sparsity"] == sparsity]
            cases += 1
            best += max(rivals, key=lambda row: row["accuracy"])["pruner"] == ONE_SHOT
    return f"One-shot magnitude pruning (lomp) is best in {best} of {cases} cases"


def _draw(panel: Axes, group: Sequence[Row]) -> None:
    """Draw accuracy against sparsity of one kind of network: some pruners in colour, the others grey."""
    names = dict.fromkeys(row["pruner"] for row in group if row["pruner"] != "dense")
    others = [name for name in names if name not in SHOWN]
    for name in [*others, *(name for name in SHOWN if name in names)]:
        own = [row for row in group if row["pruner"] == name and row["accuracy"] is not None]
        places, heights = [1 - row["sparsity"] for row in own], [100 * row["accuracy"] for row in own]
        if name in others:
            label = "_" if name != others[0] else f"{len(others)} others"
            panel.plot(places, heights, ".-", color="#c8c8c8", linewidth=0.8, markersize=3, label=label)
            continue
        number = SHOWN.index(name)
        panel.errorbar(
            places,
            heights,
            [100 * (row["accuracy_spread"] or 0) for row in own],
            marker="osD^v<>"[number],
            color=COLOURS[number],
            linewidth=1.5,
            markersize=5,
            capsize=2,
            label=name,
        )
    first = group[0]
    panel.axhline(100 * first["dense_accuracy"], color=GREY, linestyle=":", linewidth=1, label="dense")
    for key, colour, label in (("isotropic", ORANGE, "one-shot"), ("retrained", GREEN, "re-trained")):
        panel.axvline(1 - first[key], color=colour, linestyle="--", label=f"predicted {label} {first[key]:.1%}")
    least = 0.7 * min(1 - max(row["sparsity"] for row in group), 1 - first["retrained"])
    sparsity_axis(panel.xaxis, least)
    panel.set(ylabel="test accuracy, %", xlabel="sparsity (removed fraction)")
    panel.set_title(f"{first['model']}, {first['dataset']}, penalty {first['penalty']}", loc="left", fontsize=10)
    panel.grid(alpha=0.25)
    panel.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))


def reached(rows: Sequence[Row], tolerance: float) -> float:
    """Sparsity up to which a pruner keeps the dense accuracy, interpolated in the logarithm of what is kept.

    Args:
        rows: Rows of one network kind and pruner with ``sparsity``, ``accuracy`` and ``dense_accuracy``.
        tolerance: Accuracy that may be lost, as a fraction.

    Returns:
        The end of the sustained region from 0 on; the last sparsity tried when nothing failed.

    Example:
        >>> base = {"dense_accuracy": 0.9}
        >>> rows = [base | {"sparsity": 0.9, "accuracy": 0.9}, base | {"sparsity": 0.99, "accuracy": 0.88}]
        >>> round(reached(rows, 0.01), 3)
        0.968
    """
    last_kept, last_margin = 1.0, tolerance
    for row in sorted((row for row in rows if row["accuracy"] is not None), key=lambda row: row["sparsity"]):
        margin = row["accuracy"] - row["dense_accuracy"] + tolerance
        kept = 1 - row["sparsity"]
        if margin < 0:
            share = last_margin / (last_margin - margin)
            return 1 - float(np.exp((1 - share) * np.log(last_kept) + share * np.log(kept)))
        last_kept, last_margin = kept, margin
    return 1 - last_kept


def crossings(rows: Sequence[Row], tolerance: float) -> list[str]:
    """Say in words which pruners keep the dense accuracy beyond the predicted limits, and by how much."""
    table = averaged(rows, tolerance)
    lines = []
    for group, part in groupby(table, key=kind):
        own = list(part)
        ends = {
            name: reached([row for row in own if row["pruner"] == name], tolerance)
            for name in dict.fromkeys(row["pruner"] for row in own)
            if name != "dense" and any(row["accuracy"] is not None for row in own if row["pruner"] == name)
        }
        for key, label in (("isotropic", "one-shot limit"), ("retrained", "re-trained limit")):
            limit = own[0][key]
            over = [f"{name} by {100 * (end - limit):.1f}" for name, end in ends.items() if end > limit]
            under = [f"{name} by {100 * (limit - end):.1f}" for name, end in ends.items() if end <= limit]
            lines.append(
                f"{' '.join(group)}: predicted {label} {limit:.2%}. Crossed (points of sparsity): "
                f"{', '.join(over) or 'by none'}. Not reached: {', '.join(under) or 'by none'}."
            )
    return lines


SECTIONS = (LimitSettings, CompareSettings)


def settings(suite: Suite) -> dict[str, Any]:
    """Return the suite's settings that a row depends on."""
    return suite.plain(LimitSettings)


TABLE = Table(NAME, settings, run, write, cells, sections=SECTIONS, prepare=predicted_limit)
