"""Table ``iterative-and-l2``: the limit after every round of IMP, and of Rare Gems with and without l2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from pruning_limits.magnitude import removed_count
from pruning_limits.plotting import BLUE, GREEN, GREY, ORANGE, headline, new_figure, save, sparsity_axis
from validation.masks import Masks, prunable, sparsity_of
from validation.pruners import Problem, pruner
from validation.pruners.budget import alive_counts
from validation.pruners.imp import RATE, levels
from validation.studies.limits.predicted import BriefSettings, brief_limit, brief_words, limit_notes
from validation.tables.kinds import kind, kinds_of
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import Column, Page, Row, mean_and_spread, network_row, write_table
from validation.training import accuracy

NAME = "iterative-and-l2"
PRUNERS = ("imp", "rare-gems", "rare-gems-no-l2")
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("pruner", "pruner"),
    Column("round", "round"),
    Column("seeds", "seeds"),
    Column("sparsity", "removed already", ".2%"),
    Column("accuracy", "test accuracy", ".2%"),
    Column("norm", "norm of the weights", ".2f"),
    Column("trace", "trace of H", ".4g"),
    Column("isotropic", "predicted one-shot", ".2%"),
    Column("isotropic_spread", "deviation", ".2%"),
    Column("retrained", "predicted re-trained", ".2%"),
    Column("lower", "measured one-shot", ".2%"),
)


@dataclass(frozen=True)
class IterativeSettings(BriefSettings):
    """How the limit is followed along iterative pruning.

    Args:
        sparsity: Where pruning ends.
        epochs: Epochs of every training; None takes the network's whole recipe each time.
        samples: See ``BriefSettings``; ``steps`` and ``probes`` likewise.
    """

    section: ClassVar[str] = "iterative"

    sparsity: float = 0.9
    epochs: int | None = None


def cells(suite: Suite) -> list[Cell]:
    """Return one cell per network and pruner."""
    return [Cell(network, {"pruner": name}) for network in suite.networks for name in PRUNERS]


def run(cell: Cell, bench: Bench) -> Row:
    """Prune one network and predict the limit of every network on the way."""
    network, name, settings = cell.network, cell.part["pruner"], bench.suite.settings(IterativeSettings)
    dense = bench.model(network)
    total = sum(weight.numel() for weight in prunable(dense).values())
    counts = alive_counts(total, total - removed_count(settings.sparsity, total), RATE, most=total)
    trainings = len(counts) if name == "imp" else 2
    epochs = trainings * (settings.epochs or network.recipe.epochs)
    problem = Problem(network.model, bench.data, network.recipe, network.seed, dense, epochs)
    if name == "imp":
        points = [_point(cell, bench, level.model, level.masks) for level in levels(problem, settings.sparsity)]
    else:
        pruned = pruner(name)(problem, settings.sparsity)
        points = [_point(cell, bench, pruned.model, pruned.masks)]
    return network_row(network) | {"pruner": name, "points": points}


def _point(cell: Cell, bench: Bench, model: nn.Module, masks: Masks) -> Row:
    limit = brief_limit(model, cell.network, bench, bench.suite.settings(IterativeSettings))
    return {
        "sparsity": sparsity_of(masks),
        "accuracy": accuracy(model, bench.data),
        "norm": limit.evidence.curve.squared_norm(1.0) ** 0.5,
        "trace": limit.sharpness.trace,
        "isotropic": limit.sparsity,
        "retrained": limit.retrained,
        "lower": limit.lower,
        "epsilon": limit.epsilon,
    }


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table and draw limit and accuracy against what has been removed."""
    table: list[Row] = []
    groups = dict.fromkeys((*kind(row), row["pruner"]) for row in rows)
    for group in groups:
        own = [row for row in rows if (*kind(row), row["pruner"]) == group]
        for number in range(len(own[0]["points"])):
            points = [row["points"][number] for row in own]
            means = {key: mean_and_spread(points, key)[0] for key in points[0]}
            first = {key: own[0][key] for key in ("model", "dataset", "penalty", "pruner")}
            spread = mean_and_spread(points, "isotropic")[1]
            last = number if group[-1] == "imp" else "-"
            table.append(first | means | {"round": last, "seeds": len(own), "isotropic_spread": spread})
    settings = suite.settings(IterativeSettings)
    each = "the epochs of its network's whole recipe" if settings.epochs is None else f"{settings.epochs} epochs"
    notes = [
        f"Made by `{command}`.",
        *limit_notes(suite)[:1],
        f"Limits: {brief_words(settings)}; they count "
        "from the dense size, so weights removed already are part of the sparsity. IMP rewinds and removes 20 % of the "
        f"remaining weights per round up to {settings.sparsity:.0%}; every training has {each}. Rare Gems has as "
        "many for its search, and as many again for training the weights.",
        *_words(table),
    ]
    write_table(
        folder, Page(NAME, f"Limit along iterative pruning, and Rare Gems, suite {suite.name}", notes, COLUMNS), table
    )
    kinds = kinds_of(table)
    figure, axes = new_figure(len(kinds), 1, size=(7.0, 3.8 * len(kinds)), squeeze=False)
    up, rounds = (sum(numbers) for numbers in zip(*(_rises(own) for own in kinds.values()), strict=True))
    headline(figure, f"The predicted one-shot limit rises in {up} of {rounds} rounds of iterative pruning")
    for panel, (which, own) in zip(axes[:, 0], kinds.items(), strict=True):
        imp = [row for row in own if row["pruner"] == "imp"]
        removed = [1 - row["sparsity"] for row in imp]
        for key, colour, label in (
            ("isotropic", ORANGE, "predicted one-shot"),
            ("retrained", GREEN, "predicted re-trained"),
            ("lower", BLUE, "measured one-shot"),
        ):
            panel.plot(removed, [1 - row[key] for row in imp], ".-", color=colour, label=f"IMP, {label}")
            for row, marker in zip([row for row in own if row["pruner"] != "imp"], "s^", strict=True):
                panel.plot(
                    [1 - row["sparsity"]], [1 - row[key]], marker, color=colour, label=f"{row['pruner']}, {label}"
                )
        panel.plot([1, min(removed)], [1, min(removed)], color=GREY, linewidth=1, label="removed already")
        least = 0.7 * min(1 - max(row["retrained"], row["sparsity"], row["lower"]) for row in own)
        sparsity_axis(panel.xaxis, 0.9 * min(removed))
        sparsity_axis(panel.yaxis, max(least, 1e-4))
        panel.set(xlabel="removed already (sparsity)", ylabel="limit (sparsity)")
        panel.set_title(", ".join(which), loc="left", fontsize=10)
        panel.grid(alpha=0.25)
        panel.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, folder / f"{NAME}.png")


def _rises(own: Sequence[Row]) -> tuple[int, int]:
    """Return in how many rounds of IMP the predicted one-shot limit of a kind of network rises, and the rounds."""
    limits = [row["isotropic"] for row in own if row["pruner"] == "imp"]
    return sum(b > a for a, b in pairwise(limits)), len(limits) - 1


def _words(table: Sequence[Row]) -> list[str]:
    lines = []
    for which, own in kinds_of(table).items():
        imp = [row["isotropic"] for row in own if row["pruner"] == "imp"]
        rising, rounds = _rises(own)
        gems = {row["pruner"]: row for row in own if row["pruner"] != "imp"}
        change = 100 * (gems["rare-gems"]["isotropic"] - gems["rare-gems-no-l2"]["isotropic"])
        lines.append(
            f"{', '.join(which)}: the predicted one-shot limit goes from {imp[0]:.2%} to {imp[-1]:.2%} over "
            f"{rounds} rounds and rises in {rising} of them; the l2 penalty on scores moves that of Rare Gems by "
            f"{change:+.2f} points."
        )
    return lines


def settings(suite: Suite) -> dict[str, Any]:
    """Return the suite's settings that a row depends on."""
    return suite.plain(IterativeSettings)


TABLE = Table(NAME, settings, run, write, cells, sections=(IterativeSettings,))
