"""Table ``meaning``: how close each prediction comes to each truth, with and without L1, next to a constant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pruning_limits.plotting import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, headline, new_figure, save, sparsity_axis
from validation.studies.limits import theory_vs_actual
from validation.studies.limits.predicted import limit_notes, predicted_limit
from validation.studies.limits.protocols import (
    ALONE,
    LOSS,
    OBJECTIVE,
    SECTIONS,
    SHORT,
    WHOLE,
    run,
    settings,
    shortened,
)
from validation.studies.limits.theory_vs_actual import kept_factor, protocol_notes
from validation.studies.limits.weight_scale import PenaltySettings
from validation.tables.suite import Suite
from validation.tables.table import Cell, Table
from validation.tables.writing import Column, Page, Row, write_table

NAME = "meaning"
CONSTANT = "constant"
PREDICTIONS = {
    "hessian": "formula, Hessian",
    "ggn": "formula, GGN",
    "directional": "directional, GGN",
    "forecast": "forecast",
    "alone": "measured one-shot",
    CONSTANT: "a constant (naive)",
}
COLOURS = (ORANGE, GREEN, BLUE, BLACK, PURPLE, GREY)
TRUTHS = ((ALONE, OBJECTIVE), (ALONE, LOSS), (SHORT, OBJECTIVE), (WHOLE, LOSS))
GROUPS = {"L1": "with L1", "none": "without"}
ALL = "all"
COLUMNS = (
    Column("prediction", "prediction"),
    *(
        Column(f"{truth}, {level}, {group}", f"{truth}, by {level}, {words}", ".2f")
        for truth, level in TRUTHS
        for group, words in GROUPS.items()
    ),
)


def cells(suite: Suite) -> list[Cell]:
    """Return two cells per network: trained with L1, and without a penalty."""
    result: dict[Cell, None] = {}
    networks = shortened(suite).networks
    for kind in dict.fromkeys((network.model, network.dataset) for network in networks):
        own = [network for network in networks if (network.model, network.dataset) == kind]
        for penalised in (True, False):
            for network in own:
                l1 = (network.recipe.l1 or suite.settings(PenaltySettings).l1) if penalised else 0.0
                result[Cell(replace(network, recipe=replace(network.recipe, l1=l1, l2=0.0)))] = None
    return list(result)


def truth_of(row: Row, truth: str, level: str) -> float | None:
    """Return a network's true sparsity; None where no case of the row tells it."""
    return next((case["actual"] for case in row["cases"] if (case["truth"], case["level"]) == (truth, level)), None)


def constant(rows: Sequence[Row], row: Row, truth: str, level: str) -> float | None:
    """Return the sparsity at the geometric mean of what networks of the other kinds keep; None without any.

    Args:
        rows: All networks.
        row: The network that the constant is for; its model on its data is left out.
        truth: How the networks are pruned.
        level: What they must not lose.
    """
    others = [other for other in rows if (other["model"], other["dataset"]) != (row["model"], row["dataset"])]
    ends = [truth_of(other, truth, level) for other in others]
    kept = [max(1 - end, 1 / other["parameters"]) for end, other in zip(ends, others, strict=True) if end is not None]
    return 1 - math.exp(sum(map(math.log, kept)) / len(kept)) if kept else None


def distances(rows: Sequence[Row]) -> list[Row]:
    r"""Return how far every prediction is from every truth of every network.

    Args:
        rows: Rows of networks, see ``protocols.run``.

    Returns:
        A row for each pair that is known: both sparsities, and under ``distance`` the size of
        :math:`\ln\frac{1-s_1}{1-s_2}`, all removed counting as one weight kept.
    """
    result = []
    for row in rows:
        for truth, level in TRUTHS:
            known = row["predictions"][level] | {CONSTANT: constant(rows, row, truth, level)}
            actual = truth_of(row, truth, level)
            for key in PREDICTIONS:
                factor = kept_factor(known[key], actual, row["parameters"])
                if factor is not None:
                    group = "none" if row["penalty"] == "none" else "L1"
                    place: Row = {"truth": truth, "level": level, "group": group, "prediction": key}
                    sides = {"predicted": known[key], "actual": actual, "parameters": row["parameters"]}
                    result.append(place | sides | {"distance": abs(math.log(factor))})
    return result


def factors(pairs: Sequence[Row]) -> list[Row]:
    """Return a line for every prediction: geometric means of its factor for every truth, of each group and of all."""
    lines = []
    for key, name in PREDICTIONS.items():
        line: Row = {"key": key, "prediction": name}
        for truth, level in TRUTHS:
            every = [p for p in pairs if (key, truth, level) == (p["prediction"], p["truth"], p["level"])]
            for group in (*GROUPS, ALL):
                own = [p["distance"] for p in every if group in (p["group"], ALL)]
                line[f"{truth}, {level}, {group}"] = math.exp(sum(own) / len(own)) if own else None
        lines.append(line)
    return lines


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table, say which prediction is nearest to which truth, and draw one against the other."""
    pairs = distances(rows)
    table = factors(pairs)
    notes = [
        f"Made by `{command}`.",
        *limit_notes(shortened(suite)),
        *protocol_notes(suite)[:2],
        "Every network is trained twice with its recipe: with L1 and without a penalty. Of each prediction the table "
        "says by which factor it misses the kept fraction of each truth: the exponential of the mean of "
        "|ln(kept predicted / kept actual)|. Predictions are made by the same criterion and epsilon as the truth; the "
        "forecast is always by the loss. The naive row is one constant for all networks of a kind, with L1 and "
        "without: the geometric mean of what the suite's other kinds of network keep.",
        *_words(rows, table),
    ]
    title = f"Which prediction speaks of which truth, suite {suite.name}"
    networks = [{key: value for key, value in row.items() if key not in ("curves", "trials")} for row in rows]
    write_table(folder, Page(NAME, title, notes, COLUMNS), table, networks=networks)
    _figure(pairs, table, folder / f"{NAME}.png")


def nearest(table: Sequence[Row], column: str) -> Row | None:
    """Return the line of the prediction with the least factor in a column, the constant aside; None without any."""
    known = [line for line in table if line[column] is not None and line["key"] != CONSTANT]
    return min(known, key=lambda line: float(line[column]), default=None)


def finding(table: Sequence[Row]) -> str:
    """Say what tells best where re-training with the whole recipe ends, of all networks and of each group."""
    parts = []
    for group, words in {ALL: "one rule for all networks", **GROUPS}.items():
        column = f"{WHOLE}, {LOSS}, {group}"
        best, naive = nearest(table, column), table[-1][column]
        if best is not None:
            against = "" if naive is None else f" (a constant x{naive:.2f})"
            parts.append(f"{words}, {best['prediction']} x{best[column]:.2f}{against}")
    return f"Whole recipe, by loss, nearest: {'; '.join(parts) or 'not known'}"


def _words(rows: Sequence[Row], table: Sequence[Row]) -> list[str]:
    lines = [f"{finding(table)}."]
    for group, words in GROUPS.items():
        parts = []
        for truth, level in TRUTHS:
            column = f"{truth}, {level}, {group}"
            best, naive = nearest(table, column), table[-1][column]
            if best is not None:
                against = "" if naive is None else f", a constant {naive:.2f}"
                parts.append(f"{truth} by {level}: {best['prediction']} ({best[column]:.2f}{against})")
        count = sum((row["penalty"] == "none") == (group == "none") for row in rows)
        if parts:
            lines.append(f"Nearest, {count} network{'s' * (count != 1)} {words}: {'; '.join(parts)}.")
    return lines


def _figure(pairs: Sequence[Row], table: Sequence[Row], path: Path) -> None:
    figure, panels = new_figure(2, 2, size=(9.0, 8.6), sharex=True, sharey=True)
    kept = [max(1 - pair[key], 1 / pair["parameters"]) for pair in pairs for key in ("predicted", "actual")]
    least = 0.7 * min(kept, default=1.0)
    for panel, (truth, level) in zip(panels.flat, TRUTHS, strict=True):
        panel.plot([1, least], [1, least], color=GREY, linewidth=1)
        for (key, name), colour in zip(PREDICTIONS.items(), COLOURS, strict=True):
            for group, marker in (("L1", "o"), ("none", "x")):
                own = [p for p in pairs if (p["prediction"], p["truth"], p["level"]) == (key, truth, level)]
                own = [p for p in own if p["group"] == group]
                sides = [[max(1 - p[side], 1 / p["parameters"]) for p in own] for side in ("actual", "predicted")]
                label = f"{name}, {GROUPS[group]}"
                panel.plot(*sides, marker, color=colour, markersize=6, label=label)
        said = []
        for group, words in GROUPS.items():
            best = nearest(table, f"{truth}, {level}, {group}")
            if best is not None:
                said.append(f"{words}: {best['prediction']} x{best[f'{truth}, {level}, {group}']:.2f}")
        panel.set_title("\n".join([f"{truth}, by {level}; nearest", *said]), loc="left", fontsize=9)
        sparsity_axis(panel.xaxis, least)
        sparsity_axis(panel.yaxis, least)
        panel.tick_params(labelsize=8)
        panel.tick_params(axis="x", labelrotation=45)
        panel.grid(alpha=0.25)
    for panel in panels[1]:
        panel.set_xlabel("actual (sparsity)", fontsize=9)
    for panel in panels[:, 0]:
        panel.set_ylabel("predicted (sparsity)", fontsize=9)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=3)
    headline(figure, finding(table))
    save(figure, path)


TABLE = Table(
    NAME,
    settings,
    run,
    write,
    cells,
    sections=(*SECTIONS, PenaltySettings),
    prepare=predicted_limit,
    rows_of=theory_vs_actual.NAME,
)
