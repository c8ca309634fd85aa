"""Table ``theory-vs-actual``: predictions and what pruning reaches, by the paper's protocol and by the user's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pruning_limits.plotting import BLUE, GREY, ORANGE, headline, new_figure, save, sparsity_axis
from validation.studies.limits.actual import RetrainSettings
from validation.studies.limits.forecast_curves import Level, crossing
from validation.studies.limits.forecast_skill import AGAIN, spread_of_runs
from validation.studies.limits.predicted import limit_notes, predicted_limit
from validation.studies.limits.protocols import (
    ACCURACY,
    LOSS,
    SECTIONS,
    TruthSettings,
    run,
    settings,
    shortened,
)
from validation.tables.kinds import kinds_of
from validation.tables.suite import Suite
from validation.tables.table import Cell, Table
from validation.tables.writing import Column, Page, Row, mean_and_spread, write_table

NAME = "theory-vs-actual"
KIND = ("model", "dataset", "penalty")
QUESTION = ("protocol", "by", "rung", "truth", "level")
PREDICTED = {
    "one-shot": "measured one-shot",
    "formula": "formula, Hessian",
    "re-trained": "forecast",
    "bound": "bound",
}
USERS = {
    "one-shot": "by the user's criteria measurements do",
    "re-trained": "forecasts",
    "bound": "bounds",
    "formula": "the formula",
}
NOWHERE = "no known case"
HOLDS = (
    "A prediction holds where its interval contains the truth, to 0.01 points; a bound where the truth stays below "
    "its upper end. The interval of a formula or a bound is numerical error only; that of the forecast is meant to "
    "contain nine of ten networks; that of measured one-shot pruning ends at the networks that pass and fail, by "
    "accuracy two standard errors wider. Ends and sparsities are means over seeds, factors geometric means."
)
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("seeds", "seeds", "d"),
    Column("protocol", "protocol"),
    Column("prediction", "prediction"),
    Column("target", "truth"),
    Column("predicted", "predicted", ".2%"),
    Column("low", "interval from", ".2%"),
    Column("high", "to", ".2%"),
    Column("actual", "actual", ".2%"),
    Column("spread", "sd over seeds, points", ".2f"),
    Column("held", "holds"),
    Column("factor", "kept, predicted / actual", ".2f"),
)


def cells(suite: Suite) -> list[Cell]:
    """Return a cell for every network, with the recipe that the suite's settings allow."""
    return [Cell(network) for network in shortened(suite).networks]


def prediction(case: Row) -> str:
    """Return the name of what predicts in a case, and by what.

    Example:
        >>> prediction({"protocol": "user", "rung": "re-trained", "by": "loss"})
        'forecast, by loss'
    """
    name = PREDICTED[case["rung"]]
    if case["protocol"] == "paper" and case["rung"] == "re-trained":
        name = "formula, GGN"
    return f"{name}, by {case['by']}"


def kept_factor(predicted: float | None, actual: float | None, dimension: int) -> float | None:
    """Ratio of predicted to actual kept fraction, one weight being kept at least; None where one is unknown.

    Example:
        >>> kept_factor(0.5, 0.75, 100), kept_factor(0.5, 1.0, 100), kept_factor(None, 0.5, 100)
        (2.0, 50.0, None)
    """
    if predicted is None or actual is None:
        return None
    return max(1 - predicted, 1 / dimension) / max(1 - actual, 1 / dimension)


def lines(rows: Sequence[Row]) -> list[Row]:
    """Return a line for every kind of network and case: means over seeds, and in how many of them it holds."""
    result = []
    for kind, group in kinds_of(rows).items():
        for cases in zip(*(row["cases"] for row in group), strict=True):
            line: Row = dict(zip(KIND, kind, strict=True)) | {key: cases[0][key] for key in QUESTION}
            line |= {"seeds": len(group), "prediction": prediction(cases[0])}
            line["target"] = f"{cases[0]['truth']}, {cases[0]['level']}"
            line |= {key: mean_and_spread(cases, key)[0] for key in ("predicted", "low", "high", "actual")}
            spread = mean_and_spread(cases, "actual")[1]
            line["spread"] = None if spread is None else 100 * spread
            line["held"] = held(cases)
            pairs = zip(cases, group, strict=True)
            factors = [kept_factor(case["predicted"], case["actual"], row["parameters"]) for case, row in pairs]
            logarithms = [math.log(factor) for factor in factors if factor is not None]
            line["factor"] = math.exp(sum(logarithms) / len(logarithms)) if logarithms else None
            result.append(line)
    return result


def held(cases: Iterable[Row]) -> str | None:
    """Say in how many of the cases that tell the prediction holds; None where none tells.

    Example:
        >>> held([{"holds": True}, {"holds": False}, {"holds": None}])
        '1 of 2'
    """
    known = [case["holds"] for case in cases if case["holds"] is not None]
    return f"{sum(known)} of {len(known)}" if known else None


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table as JSON and Markdown and draw its figure.

    Args:
        rows: One row per network.
        suite: The suite behind them.
        folder: Where to.
        command: The command that made the table.
    """
    notes = [f"Made by `{command}`.", *limit_notes(shortened(suite)), *protocol_notes(suite), networks_note(rows)]
    notes += [f"{verdict(rows)}.", noise(rows, suite.settings(TruthSettings).drop)]
    title = f"Predicted and actual pruning limits, suite {suite.name}"
    write_table(folder, Page(NAME, title, notes, COLUMNS), lines(rows), networks=list(rows))
    _figure(rows, folder / f"{NAME}.png")


def protocol_notes(suite: Suite) -> list[str]:
    """Return the paragraphs that say what the two protocols predict and what they hold it against."""
    truths, retrain = suite.settings(TruthSettings), suite.settings(RetrainSettings)
    cut = f" Recipes are cut to {truths.epochs} epochs at most." if truths.epochs else ""
    return [
        "Paper's protocol: what must not rise by more than epsilon is the objective, loss plus penalty. The formula "
        "with the Hessian is held against one-shot global magnitude pruning, by the objective and at the knee of the "
        f"accuracy; the formula with the GGN against {retrain.epochs} epochs of re-training the kept weights with the "
        f"network's own optimiser (cosine from {retrain.lr_factor} times the training rate), interpolated between "
        f"{retrain.evaluations} trials.",
        "User's protocol: `predict_limit` by its defaults, with the loss alone as criterion and epsilon as above "
        f"(*loss*), or with a fall of the held-out accuracy by {points(truths.drop)} (*accuracy*). Truths: "
        "one-shot pruning measured on all data; and the magnitude mask with the whole recipe once more from its full "
        f"learning rate, the geometric mean of what {truths.runs} orders of the data keep, on a grid of factors of "
        f"sqrt(2) whose brackets are halved once.{cut}",
        HOLDS,
    ]


def points(share: float) -> str:
    """Write a share in points.

    Example:
        >>> points(0.01), points(0.005)
        ('1 point', '0.5 points')
    """
    return "1 point" if share == 0.01 else f"{100 * share:g} points"


def networks_note(rows: Sequence[Row]) -> str:
    """Return the paragraph that describes the networks: size, accuracy and epsilon."""
    networks = []
    for kind, group in kinds_of(rows).items():
        accuracy = sum(row["dense"]["held_out"] for row in group) / len(group)
        epsilon = sum(row["epsilon"][LOSS] for row in group) / len(group)
        networks.append(
            f"{kind[0]} on {kind[1]} (penalty {kind[2]}): {group[0]['parameters']:,} weights, held-out accuracy "
            f"{accuracy:.2%}, epsilon {epsilon:.2g}"
        )
    return f"Networks: {'; '.join(networks)}."


def noise(rows: Sequence[Row], drop: float) -> str:
    """Say by how much one run of the whole recipe spreads about the mean of all.

    Args:
        rows: Rows of networks, see ``protocols.run``.
        drop: Allowed fall of the accuracy.
    """
    parts = []
    for name, key in ((LOSS, "rise"), (ACCURACY, "held_out_drop")):
        runs = []
        for row in rows:
            level = Level(name, key, row["epsilon"][LOSS] if name == LOSS else drop)
            curves = {run: points for run, points in row["curves"].items() if run.startswith(AGAIN)}
            runs.append({"levels": [{run: crossing(points, level) for run, points in curves.items()}]})
        factor = spread_of_runs(runs)
        parts.append(f"{factor:.2f} by {name}" if math.isfinite(factor) else f"an unknown one by {name}")
    return (
        f"What one run of the whole recipe keeps spreads by a factor {' and '.join(parts)} (one standard deviation of "
        "its logarithm, between orders of the data)."
    )


def verdict(rows: Sequence[Row]) -> str:
    """Say in how many cases the predictions of either protocol hold."""
    cases = [case for row in rows for case in row["cases"]]
    paper = [case for case in cases if case["protocol"] == "paper"]
    parts = [f"The paper's formulas hold the truth in {held(paper) or NOWHERE}"]
    for rung, words in USERS.items():
        own = [case for case in cases if (case["protocol"], case["rung"]) == ("user", rung)]
        parts.append(f"{words} in {held(own) or NOWHERE}")
    return ", ".join(parts)


def _figure(rows: Sequence[Row], path: Path) -> None:
    groups = list(kinds_of(rows).values())
    count = len(rows[0]["cases"])
    figure, panels = new_figure(len(groups), 1, size=(9.0, 1.2 + 0.33 * count * len(groups)), squeeze=False)
    for panel, group in zip(panels[:, 0], groups, strict=True):
        _draw(panel, group)
    panels[-1, 0].set_xlabel("sparsity (removed fraction)", fontsize=9)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), fontsize=8, loc="outside lower center", ncols=3)
    headline(figure, verdict(rows))
    save(figure, path)


def _draw(panel: Any, group: Sequence[Row]) -> None:
    """Draw what is predicted of one kind of network, a line for each case, and what its seeds bear."""
    table, dimension = lines(group), group[0]["parameters"]

    def kept(sparsity: float) -> float:
        return float(max(1 - sparsity, 1 / dimension))

    values = [line["predicted"] for line in table] + [case["actual"] for row in group for case in row["cases"]]
    least = 0.5 * min(kept(value) for value in values if value is not None)
    for place, line in enumerate(table):
        colour = ORANGE if line["protocol"] == "paper" else BLUE
        if line["low"] is not None and line["high"] is not None:
            ends = [max(kept(line[key]), least) for key in ("low", "high")]
            label = f"interval, {line['protocol']}'s protocol"
            panel.plot(ends, [place, place], color=colour, linewidth=7, alpha=0.35, solid_capstyle="butt", label=label)
        if line["predicted"] is not None:
            label = f"predicted, {line['protocol']}'s protocol"
            panel.plot(kept(line["predicted"]), place, "o", color=colour, markersize=6, label=label)
        for row in group:
            actual = row["cases"][place]["actual"]
            if actual is not None:
                panel.plot(kept(actual), place, "|", color="black", markersize=13, label="actual, one seed each")
    panel.set_yticks(range(len(table)), [f"{line['prediction']} → {line['target']}" for line in table], fontsize=8)
    panel.invert_yaxis()
    panel.axhline(sum(line["protocol"] == "paper" for line in table) - 0.5, color=GREY, linewidth=0.6)
    sparsity_axis(panel.xaxis, least)
    panel.tick_params(axis="x", labelsize=8)
    panel.grid(alpha=0.25, axis="x")
    seeds = f"{len(group)} seeds" if len(group) > 1 else "one seed"
    title = f"{group[0]['model']} on {group[0]['dataset']}, penalty {group[0]['penalty']}, {seeds}"
    panel.set_title(title, loc="left", fontsize=9)


TABLE = Table(NAME, settings, run, write, cells, sections=SECTIONS, prepare=predicted_limit)
