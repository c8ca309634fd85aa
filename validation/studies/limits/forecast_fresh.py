"""Table ``fresh``: the forecast of this package on networks that its calibration has not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pruning_limits.forecast import Forecast
from pruning_limits.plotting import headline, new_figure, save, sparsity_axis
from validation.studies.limits import forecast
from validation.studies.limits.calibration import Case
from validation.studies.limits.forecast_skill import cases_of
from validation.tables.suite import Suite
from validation.tables.table import Table
from validation.tables.writing import COLOURS, Column, Page, Row, between, recipes, write_table

NAME = "fresh"
COLUMNS = (
    Column("network", "network"),
    Column("level", "level"),
    Column("one_shot", "one-shot", ".1%"),
    Column("low", "forecast from", ".1%"),
    Column("sparsity", "forecast", ".1%"),
    Column("high", "to", ".1%"),
    Column("true", "true", ".1%"),
    Column("within", "within"),
    Column("factor", "true kept / forecast", ".2f"),
    Column("outside", "outside the bench"),
)


def _name(case: Case) -> str:
    """Return model, data and seed; the recipe stands above the table."""
    first, *_, last = case.network.split(", ")
    return f"{first}, {last}"


def told(case: Case, calibration: Forecast) -> Row:
    """Return what a calibration tells of a network that was trained again, and where it ended."""
    ahead = calibration.of(case.features)
    assert ahead is not None
    return {
        "network": _name(case),
        "level": case.level,
        "one_shot": 1 - case.features["one-shot"],
        "sparsity": 1 - ahead.kept,
        "low": 1 - ahead.high,
        "high": 1 - ahead.low,
        "true": 1 - case.kept,
        "within": "yes" if ahead.low <= case.kept <= ahead.high else "no",
        "factor": case.kept / ahead.kept,
        "outside": "; ".join(ahead.outside) or "-",
    }


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write forecast and truth of every network and level, with the rules of the package."""
    calibration = Forecast.shipped()
    lines = [
        told(case, calibration)
        for case in cases_of(rows)
        if all(case.features.get(name, 0.0) > 0 for name in calibration.rules[0].features)
    ]
    notes = [
        f"Made by `{command}`, calibration {calibration.version} of {calibration.networks} networks.",
        f"The rule takes {' and '.join(calibration.rules[0].features)}, both measured; truth is the whole recipe once "
        "more on the magnitude mask, the geometric mean of two runs. Nominal: 9 of 10 within.",
        *_counts(lines),
        recipes(suite),
    ]
    write_table(folder, Page(NAME, f"Forecast and truth of fresh networks, suite {suite.name}", notes, COLUMNS), lines)
    _figure(lines, folder / f"{NAME}.png")


def _counts(lines: Sequence[Row]) -> list[str]:
    texts = []
    for model in dict.fromkeys(line["network"].split(",")[0] for line in lines):
        own = [line for line in lines if line["network"].split(",")[0] == model]
        errors = np.log([line["factor"] for line in own])
        within = sum(line["within"] == "yes" for line in own)
        texts.append(
            f"{model}: {within} of {len(own)} within, keeping {math.exp(float(errors.mean())):.2f} times the "
            f"forecast (geometric mean), rms error a factor {math.exp(float(np.mean(errors**2)) ** 0.5):.2f}."
        )
    return texts


def finding(lines: Sequence[Row]) -> str:
    """Say how many ends lie within the forecast, and how much is kept in units of it."""
    within = sum(line["within"] == "yes" for line in lines)
    factors = between((line["factor"] for line in lines), ".2f")
    return (
        f"Fresh networks: {within} of {len(lines)} ends lie within the forecast's interval; what is kept is {factors} "
        "times the forecast"
    )


def _figure(lines: Sequence[Row], path: Path) -> None:
    figure, panel = new_figure(1, size=(6.4, 5.4))
    headline(figure, finding(lines))
    least = 0.7 * min((1 - line[key] for line in lines for key in ("true", "high")), default=0.1)
    panel.plot([1, least], [1, least], color="#666666", linewidth=1)
    models = list(dict.fromkeys(line["network"].split(",")[0] for line in lines))
    for colour, marker, model in zip(COLOURS * 3, "osD^v<>" * 4, models, strict=False):
        own = [line for line in lines if line["network"].startswith(f"{model},")]
        true, kept = [1 - line["true"] for line in own], [1 - line["sparsity"] for line in own]
        ends = [[k - (1 - line["high"]), (1 - line["low"]) - k] for k, line in zip(kept, own, strict=True)]
        panel.errorbar(true, kept, np.array(ends).T, fmt=marker, color=colour, markersize=4, linewidth=0.8, label=model)
    sparsity_axis(panel.xaxis, least)
    sparsity_axis(panel.yaxis, least)
    panel.set(xlabel="true (sparsity after the whole recipe)", ylabel="forecast")
    panel.grid(alpha=0.25)
    panel.legend(fontsize=8)
    save(figure, path)


TABLE = Table(
    NAME,
    forecast.settings,
    forecast.run,
    write,
    forecast.cells,
    sections=(forecast.ForecastSettings,),
    rows_of=forecast.NAME,
)
