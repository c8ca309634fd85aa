"""Table ``sota``: the sparsity that every pruner reaches against the predicted one, as a scatter plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pruning_limits.plotting import BLACK, BLUE, GREEN, GREY, headline, new_figure, save, sparsity_axis
from validation.studies.limits.algorithms import SECTIONS, CompareSettings, cells, reached, run, settings
from validation.studies.limits.predicted import limit_notes, predicted_limit
from validation.tables.kinds import kind, kinds_of
from validation.tables.suite import Suite
from validation.tables.table import Table
from validation.tables.writing import Column, Page, Row, write_table

NAME = "sota"
NAMED, ONE_SHOT, REST = 5, "lomp", "all others"
PREDICTED = (("isotropic", BLUE, "predicted one-shot"), ("retrained", GREEN, "predicted re-trained"))
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
    _figure(table, f"{above} of {len(table)} runs reach more than is predicted for re-training", folder / f"{NAME}.png")


def _figure(table: Sequence[Row], title: str, path: Path) -> None:
    """Draw what the methods reach, a panel per kind of network: the best few by name, all others in one line."""
    groups = kinds_of(table)
    names = named(table)
    places = {name: place for place, name in enumerate([*names, REST][::-1])}
    figure, axes = new_figure(1, len(groups), size=(9.0, 0.42 * len(places) + 2.2), squeeze=False)
    headline(figure, title)
    for panel, (which, own) in zip(axes[0], groups.items(), strict=True):
        for key, colour, label in PREDICTED:
            limits = [1 - row[key] for row in own]
            panel.axvspan(min(limits), max(limits), color=colour, alpha=0.3, linewidth=0, label=label)
        for row in own:
            known = row["pruner"] in names
            place = places[row["pruner"] if known else REST]
            panel.plot(1 - row["reached"], place, "o", color=BLACK if known else GREY, markersize=5, alpha=0.7)
        panel.set_yticks(list(places.values()), list(places), fontsize=9)
        sparsity_axis(panel.xaxis, 0.7 * min(min(1 - row["reached"], 1 - row["retrained"]) for row in table))
        panel.set(xlabel="sparsity, dense accuracy kept")
        panel.set_title(f"{which[0]}, {which[1]}, penalty {which[2]}", loc="left", fontsize=9)
        panel.tick_params(axis="x", labelrotation=45, labelsize=8)
        panel.grid(alpha=0.25)
    for panel in axes[0, 1:]:
        panel.tick_params(labelleft=False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    save(figure, path)


def named(table: Sequence[Row]) -> list[str]:
    """Return the methods that a figure names, the best first by mean sparsity, and one-shot magnitude pruning."""

    def mean(name: str) -> float:
        own = [row["reached"] for row in table if row["pruner"] == name]
        return float(sum(own)) / len(own)

    order = sorted({row["pruner"] for row in table}, key=mean, reverse=True)
    return [name for place, name in enumerate(order) if place < NAMED or name == ONE_SHOT]


TABLE = Table(NAME, settings, run, write, cells, sections=SECTIONS, prepare=predicted_limit, rows_of="algorithms")
