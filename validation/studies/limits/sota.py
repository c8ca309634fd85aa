"""Table ``sota``: what every pruner reaches against what was predicted, as one scatter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pruning_limits.plotting import GREY, new_figure, save, sparsity_axis
from validation.studies.limits.algorithms import SECTIONS, CompareSettings, cells, reached, run, settings
from validation.studies.limits.predicted import limit_notes, predicted_limit
from validation.tables.kinds import kind
from validation.tables.suite import Suite
from validation.tables.table import Table
from validation.tables.writing import COLOURS, Column, Page, Row, write_table

NAME = "sota"
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("seed", "seed"),
    Column("pruner", "pruner"),
    Column("reached", "keeps the dense accuracy up to", ".2%"),
    Column("isotropic", "predicted one-shot", ".2%"),
    Column("retrained", "predicted re-trained", ".2%"),
    Column("over_isotropic", "reached - one-shot, points", "+.2f"),
    Column("over_retrained", "reached - re-trained, points", "+.2f"),
)


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table and draw reached against predicted sparsity."""
    compare = suite.settings(CompareSettings)
    tolerance = compare.tolerance
    table = []
    for run_of in dict.fromkeys((*kind(row), row["seed"], row["pruner"]) for row in rows if row["pruner"] != "dense"):
        own = [row for row in rows if (*kind(row), row["seed"], row["pruner"]) == run_of and row["refused"] is None]
        if own:
            end = reached(own, tolerance)
            table.append(
                {name: own[0][name] for name in ("model", "dataset", "penalty", "seed", "pruner")}
                | {"reached": end, "isotropic": own[0]["isotropic"], "retrained": own[0]["retrained"]}
                | {f"over_{name}": 100 * (end - own[0][name]) for name in ("isotropic", "retrained")}
            )
    above = sum(row["over_retrained"] > 0 for row in table)
    notes = [
        f"Made by `{command}`.",
        *limit_notes(suite),
        f"Reached: the sparsity up to which the pruned network stays within {100 * tolerance:g} points of the dense "
        "network's test accuracy, interpolated in the logarithm of the kept fraction between the sparsities tried "
        f"({', '.join(f'{s:.0%}' for s in compare.sparsities)}); it cannot exceed the last of them. Budget: the "
        f"recipe's epochs plus {compare.epochs}.",
        f"{above} of {len(table)} runs lie above the limit predicted for re-training.",
    ]
    write_table(folder, Page(NAME, f"Reached against predicted sparsity, suite {suite.name}", notes, COLUMNS), table)
    figure, panels = new_figure(1, 2, size=(11.0, 5.0))
    names = list(dict.fromkeys(row["pruner"] for row in table))
    least = 0.7 * min(min(1 - row["reached"], 1 - row["retrained"]) for row in table)
    for panel, key, label in zip(panels, ("isotropic", "retrained"), ("one-shot", "re-trained"), strict=True):
        for number, name in enumerate(names):
            own = [row for row in table if row["pruner"] == name]
            panel.plot(
                [1 - row[key] for row in own],
                [1 - row["reached"] for row in own],
                "osD^v<>pP*X"[number % 11],
                color=COLOURS[number % len(COLOURS)],
                markersize=5,
                alpha=0.8,
                label=name,
            )
        panel.plot([1, least], [1, least], color=GREY, linewidth=1, label="reached = predicted")
        sparsity_axis(panel.xaxis, least)
        sparsity_axis(panel.yaxis, least)
        panel.set(xlabel=f"predicted {label} limit (sparsity)", ylabel="reached sparsity, dense accuracy kept")
        panel.tick_params(axis="x", labelrotation=45, labelsize=8)
        panel.grid(alpha=0.25)
    panels[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, folder / f"{NAME}.png")


TABLE = Table(NAME, settings, run, write, cells, sections=SECTIONS, prepare=predicted_limit, rows_of="algorithms")
