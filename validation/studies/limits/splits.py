"""Table ``splits``: a budget divided over the layers by measured curves, by the model, by magnitude, and evenly."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from estimators import Objective, UserError
from pruning_limits import MagnitudeProfile
from pruning_limits.plotting import headline, new_figure, save
from pruning_limits.sensitivity import curves_of, layer_sensitivities
from pruning_limits.split import compare_splits
from pruning_limits.weight_uses import weight_uses
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import COLOURS, Column, Page, Row, network_row, recipes, with_means, write_table
from validation.training import apply_masks, train

NAME = "splits"
GRID = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
SPLITS = {
    "curves": "best by measured curves",
    "blocks": "best by the GGN's blocks",
    "magnitude": "global magnitude",
    "uniform": "same share of every layer",
}
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("budget", "budget"),
    Column("share", "removed", ".0%"),
    Column("seed", "seed"),
    *(Column(key, name, ".4g") for key, name in SPLITS.items()),
    *(Column(f"{key}_again", f"{name}, whole recipe", "+.4f") for key, name in SPLITS.items()),
)
KEYS = ("model", "dataset", "penalty", "budget", "share")


@dataclass(frozen=True)
class SplitSettings:
    """Which budgets are split over the layers.

    Args:
        shares: Removed shares of all weights, or of all multiply-accumulates.
    """

    section: ClassVar[str] = "splits"

    shares: tuple[float, ...] = (0.5, 0.8)

    def __post_init__(self) -> None:
        if not all(0 < share < 1 for share in self.shares):
            raise UserError(f"splits: shares must be in (0, 1), got {self.shares}")


def cells(suite: Suite) -> list[Cell]:
    """Return a cell for every network, kind of budget and removed share."""
    kinds = dict.fromkeys((network.model, network.dataset, network.recipe) for network in suite.networks)
    return [
        Cell(network, {"budget": budget, "share": share})
        for kind in kinds
        for budget in ("weights", "multiply-accumulates")
        for share in suite.settings(SplitSettings).shares
        for network in suite.networks
        if (network.model, network.dataset, network.recipe) == kind
    ]


def run(cell: Cell, bench: Bench) -> Row:
    """Split one budget over the layers of one network in four ways, prune, measure, train, and measure again."""
    network, budget, share = cell.network, cell.part["budget"], cell.part["share"]
    objective = Objective(bench.model(network), bench.data.batches("train", 1000))
    uses = None if budget == "weights" else {name: often or 0.0 for name, often in weight_uses(objective).items()}
    curves = curves_of(layer_sensitivities(objective, sparsities=GRID, samples=None))
    by_curves = compare_splits(objective, share, curves, uses=uses)
    by_blocks = compare_splits(objective, share, uses=uses)
    splits = {
        "curves": by_curves.best,
        "blocks": by_blocks.best,
        "magnitude": by_curves.magnitude,
        "uniform": by_curves.uniform,
    }
    row = network_row(network) | {"budget": budget, "share": share}
    for key, split in splits.items():
        row |= {key: split.measured, f"{key}_again": _again(cell, bench, objective, split.counts)}
    return row | {"counts": {key: split.counts for key, split in splits.items()}}


def masks_of(objective: Objective, counts: dict[str, int]) -> dict[str, Tensor]:
    """Return masks that remove so many of the smallest weights of every layer.

    Args:
        objective: The objective of a network.
        counts: Number of removed weights by parameter name.
    """
    masks = {}
    for name, weight in objective.chosen.items():
        masks[name] = MagnitudeProfile({name: weight}).masks(counts[name] / weight.numel())[name]
    return masks


def _again(cell: Cell, bench: Bench, objective: Objective, counts: dict[str, int]) -> float:
    """Train the pruned network with its whole recipe once more, and return the rise of the mean training loss."""
    model = copy.deepcopy(objective.model)
    masks = masks_of(objective, counts)
    apply_masks(model, masks)
    try:
        train(model, bench.data, cell.network.recipe, cell.network.seed + 1000, masks=masks)
    except UserError:  # a layer that is gone leaves nothing to train
        return float("inf")
    return Objective(model.eval(), bench.data.batches("train", 1000)).value() - objective.value()


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table, count which split is best, and draw the rises."""
    notes = [
        f"Made by `{command}`.",
        "Numbers are rises of the mean training loss, after pruning and after the whole training recipe once more on "
        "the fixed mask. Within a layer all splits remove the smallest weights. Measured curves: every layer pruned "
        f"alone to {', '.join(f'{share:.0%}' for share in GRID)} on all training samples. The GGN's blocks: the "
        "block-diagonal quadratic model.",
        recipes(suite),
        *(_words(rows, ending, said) for ending, said in (("", "After pruning"), ("_again", "After the whole recipe"))),
    ]
    table = with_means(rows, COLUMNS, KEYS)
    write_table(folder, Page(NAME, f"A budget over the layers, suite {suite.name}", notes, COLUMNS), table)
    figure, panels = new_figure(1, 2, size=(10.0, 4.8), sharey=False)
    headline(figure, finding(rows))
    for panel, ending, title in zip(panels, ("", "_again"), ("after pruning", "after the whole recipe"), strict=True):
        for number, (key, name) in enumerate(SPLITS.items()):
            places = [place + 0.15 * (number - 1.5) for place in range(len(rows))]
            values = [row[f"{key}{ending}"] for row in rows]
            panel.plot(places, values, "o", color=COLOURS[number], markersize=4, label=name)
        panel.set_yscale("symlog", linthresh=1e-3)
        panel.set(xlabel="network and budget, in the order of the table", ylabel="rise of the loss")
        panel.set_title(title, loc="left", fontsize=10)
        panel.grid(alpha=0.25)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=4)
    save(figure, folder / f"{NAME}.png")


def least_rises(rows: Sequence[Row], ending: str) -> dict[str, int]:
    """Count for every split the cases in which no other rises less, ties included.

    Args:
        rows: Rows of the table.
        ending: Empty for rises after pruning, ``"_again"`` for those after the whole recipe.
    """
    best = dict.fromkeys(SPLITS, 0)
    for row in rows:
        rises = {key: row[f"{key}{ending}"] for key in SPLITS}
        least = min(rises.values())
        for key, rise in rises.items():
            best[key] += rise == least and math.isfinite(rise)
    return best


def finding(rows: Sequence[Row]) -> str:
    """Say which split most often has the least rise after pruning and after the whole recipe, ties included."""
    parts = []
    for ending, said in (("", "after pruning"), ("_again", "after the whole recipe")):
        best = least_rises(rows, ending)
        most = max(best.values())
        names = " and ".join(f'"{SPLITS[key]}"' for key, count in best.items() if count == most)
        parts.append(f"{names} {said} ({most} of {len(rows)} cases)")
    return f"Least rise, ties included: most often {'; '.join(parts)}"


def _words(rows: Sequence[Row], ending: str, said: str) -> str:
    counts = ", ".join(f"{SPLITS[key]} {count}" for key, count in least_rises(rows, ending).items())
    return f"{said} the least rise has, ties included: {counts}."


def settings(suite: Suite) -> dict[str, Any]:
    """Return the suite's settings that a row depends on."""
    return {**suite.plain(SplitSettings), "grid": GRID}


TABLE = Table(NAME, settings, run, write, cells, sections=(SplitSettings,))
