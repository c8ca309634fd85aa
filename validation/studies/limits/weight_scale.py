"""Table ``weight-scale``: the limit against scaled weights and scaled curvature, for every way of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from pruning_limits.plotting import new_figure, save, sparsity_axis
from validation.studies.limits.predicted import LimitSettings, limit_notes, predicted_limit
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import COLOURS, Column, Page, Row, network_row, with_means, write_table

NAME = "weight-scale"
FACTORS = (1, 2, 3, 4, 5)
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("seed", "seed"),
    Column("norm", "norm of the weights", ".2f"),
    Column("trace", "trace of H", ".4g"),
    *(Column(f"weights_{factor}", f"weights x{factor}", ".2%") for factor in FACTORS),
    *(Column(f"curvature_{factor}", f"curvature x{factor}", ".2%") for factor in FACTORS[1:]),
)


@dataclass(frozen=True)
class PenaltySettings:
    """Penalties that are compared side by side with no penalty; a network's own replaces the value here.

    Args:
        l1: Coefficient of the L1 penalty.
        l2: Coefficient of the L2 penalty.
    """

    section: ClassVar[str] = "penalties"

    l1: float = 5e-5
    l2: float = 5e-4


def cells(suite: Suite) -> list[Cell]:
    """Return three cells per network: trained with L1, with L2 and without a penalty."""
    result = []
    for network in suite.networks:
        own = network.recipe
        l1, l2 = own.l1 or suite.settings(PenaltySettings).l1, own.l2 or suite.settings(PenaltySettings).l2
        for recipe in (replace(own, l1=l1, l2=0.0), replace(own, l1=0.0, l2=l2), replace(own, l1=0.0, l2=0.0)):
            result.append(Cell(replace(network, recipe=recipe)))
    return sorted(dict.fromkeys(result), key=lambda cell: _place(cell, suite))


def _place(cell: Cell, suite: Suite) -> tuple[int, float, float]:
    """Order by kind of network, then penalty; the sort is stable, so seeds stay in order."""
    kinds = [(network.model, network.dataset) for network in suite.networks]
    recipe = cell.network.recipe
    return kinds.index((cell.network.model, cell.network.dataset)), -recipe.l1, -recipe.l2


def run(cell: Cell, bench: Bench) -> Row:
    """Ask one network's limit what scaled weights and scaled curvature would do."""
    limit = predicted_limit(cell.network, bench)
    return (
        network_row(cell.network)
        | {"norm": limit.evidence.curve.squared_norm(1.0) ** 0.5, "trace": limit.sharpness.trace}
        | {f"weights_{factor}": limit.what_if(weight_scale=factor).sparsity for factor in FACTORS}
        | {f"curvature_{factor}": limit.what_if(curvature_scale=factor).sparsity for factor in FACTORS}
    )


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table and draw the limit against the factor."""
    falling = all(row[f"{what}_{a}"] > row[f"{what}_{a + 1}"] for row in rows for what in WHAT for a in FACTORS[:-1])
    notes = [
        f"Made by `{command}`.",
        *limit_notes(suite),
        f"Every network is trained three times with the same recipe: with L1, with L2 (coefficient "
        f"{suite.settings(PenaltySettings).l2:g}) and without a penalty.",
        "Weights x a: R becomes a R while the curvature stays; curvature x a: the spectrum is multiplied while the "
        "weights stay. Both are answered by the stored spectrum, because only epsilon / (a R^2 x curvature) matters.",
        f"The limit falls strictly with every step of either factor: {'yes' if falling else 'no'}.",
    ]
    table = with_means(rows, COLUMNS, ("model", "dataset", "penalty"))
    write_table(
        folder, Page(NAME, f"Limit against weight scale and curvature, suite {suite.name}", notes, COLUMNS), table
    )
    figure, panels = new_figure(1, 2, size=(10.0, 4.5), sharey=True)
    always = "falls with every step of" if falling else "does not always fall with"
    figure.suptitle(f"The predicted limit {always} the size of the weights and of the curvature", fontsize=11)
    groups = list(dict.fromkeys((row["model"], row["dataset"], row["penalty"]) for row in rows))
    for axes, what in zip(panels, WHAT, strict=True):
        for colour, group in zip(COLOURS * 3, groups, strict=False):
            for row in rows:
                if (row["model"], row["dataset"], row["penalty"]) == group:
                    values = [1 - row[f"{what}_{factor}"] for factor in FACTORS]
                    label = f"{group[0]}, {group[1]}, {group[2]}"
                    axes.plot(FACTORS, values, ".-", color=colour, linewidth=1, label=label)
                    label = "_"
        axes.set(xlabel=f"factor on the {what}", xticks=FACTORS)
        axes.grid(alpha=0.25)
    least = 0.7 * min(1 - row["weights_1"] for row in rows)
    sparsity_axis(panels[0].yaxis, least)
    panels[0].set_ylabel("predicted limit (sparsity)")
    handles, labels = panels[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    panels[1].legend(unique.values(), unique.keys(), fontsize=7)
    save(figure, folder / f"{NAME}.png")


WHAT = ("weights", "curvature")
TABLE = Table(
    NAME,
    lambda suite: suite.plain(LimitSettings),
    run,
    write,
    cells,
    sections=(LimitSettings, PenaltySettings),
    prepare=predicted_limit,
)
