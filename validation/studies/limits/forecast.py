"""Table ``forecast``: the sparsity that re-training reaches on many networks, and candidate predictors of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from estimators import UserError
from pruning_limits import PruningLimit, predict_limit
from pruning_limits.forecast import FORMAT, RANGED, Rule
from validation.studies.limits.calibration import COVERAGE, Case, calibrated, fitted, left_out, usable
from validation.studies.limits.forecast_curves import Measured
from validation.studies.limits.forecast_page import LEVEL, SKILL, Skill, write_ladder, write_skill
from validation.studies.limits.forecast_predictors import levels_of, predicted, schur, spectral
from validation.studies.limits.forecast_skill import (
    AGAIN,
    RULES,
    cases_of,
    covered,
    family_of,
    ladder_rows,
    ratios,
    skill_rows,
    spread_of_runs,
)
from validation.studies.limits.forecast_truths import Truths
from validation.tables.storage import settings_hash, write_bytes
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import Column, Page, Row, network_row, recipe_text, write_table

NAME = "forecast"
SHOWN = "loss +0.03"
CALIBRATION = "calibration.json"
COLUMNS = (
    Column("family", "family"),
    Column("model", "model"),
    Column("dataset", "data"),
    Column("parameters", "weights", ",d"),
    Column("recipe", "recipe"),
    Column("loss", "loss", ".3g"),
    Column("held_out", "held-out accuracy", ".1%"),
    Column("alone", "kept at loss +0.03: one-shot", ".1%"),
    Column("retuned-2048", "re-tuned", ".1%"),
    Column("again", "whole recipe", ".1%"),
    Column("iterative", "iterative", ".1%"),
    Column("hessian", "formula, Hessian", ".1%"),
    Column("ggn", "formula, GGN", ".1%"),
)


@dataclass(frozen=True)
class ForecastSettings:
    """What is measured where re-training ends.

    Args:
        rises: Allowed rises of the mean training loss, besides the fluctuation of a batch.
        drops: Allowed falls of the accuracy, as fractions, on training and on held-out data.
        runs: Trainings with the whole recipe at every sparsity, each with an order of the data of its own; 0 leaves
            the table out.
        retuned: Samples of a stage of re-tuning, one curve for each.
        iterative: One of so many networks is also pruned iteratively; 0 for none.
        optimised: Networks of at most so many weights are also optimised on their masks by L-BFGS.
    """

    section: ClassVar[str] = "forecast"

    rises: tuple[float, ...] = (0.01, 0.03, 0.1)
    drops: tuple[float, ...] = (0.005, 0.01, 0.02)
    runs: int = 0
    retuned: tuple[int, ...] = (512, 2048)
    iterative: int = 3
    optimised: int = 2500


def cells(suite: Suite) -> list[Cell]:
    """Return a cell for every network, some of which are also pruned iteratively; none where nothing is trained."""
    often = suite.settings(ForecastSettings).iterative
    if not suite.settings(ForecastSettings).runs:
        return []
    return [
        Cell(network, {"iterative": bool(often) and number % often == 0})
        for number, network in enumerate(suite.networks)
    ]


def run(cell: Cell, bench: Bench) -> Row:
    """Measure what the pruned offspring of one network reach, and compute what might have told so."""
    network, data, settings = cell.network, bench.data, bench.suite.settings(ForecastSettings)
    model = bench.model(network)
    dense = Measured.of(model, data)
    limit = _limit(cell, bench)
    levels = levels_of(dense, limit.epsilon, settings.rises, settings.drops)
    truths = Truths(network, model, data, levels, dense, bench.folder)
    curves = {"alone": truths.alone()}
    curves |= {f"again-{run}": truths.again(run) for run in range(settings.runs)}
    if cell.part["iterative"]:
        curves["iterative"] = truths.iterative()
    if truths.dimension <= settings.optimised:
        curves["optimised"] = truths.optimised()
    curves |= {f"retuned-{samples}": truths.retuned(samples) for samples in settings.retuned}
    rows = [asdict(level) | predicted(curves, level) for level in levels]
    penalty = network.recipe.l2
    for row in rows:
        if row["epsilon"] is not None:
            row |= spectral(limit, row["epsilon"], dense.loss, penalty)
    if truths.dimension <= settings.optimised:
        known = [row for row in rows if row["epsilon"] is not None]
        for row, kept in zip(known, schur(truths.double(), [row["epsilon"] for row in known]), strict=True):
            row["schur"] = kept
    return network_row(network) | {
        "recipe": recipe_text(network.recipe),
        "parameters": truths.dimension,
        "dense": asdict(dense),
        "classes": data.classes,
        "levels": rows,
        "curves": curves,
    }


def _limit(cell: Cell, bench: Bench) -> PruningLimit:
    """Return the evidence of spectra, computed once for all levels."""
    file = bench.folder / "limit.json"
    if not file.exists():
        network = cell.network
        batches = bench.data.batches("train", 1000)
        limit = predict_limit(bench.model(network), batches, measure=False, seed=network.seed, progress=False)
        limit.to_json(file)
    return PruningLimit.from_json(file)


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the networks and where each ended, the skill of all predictors, the figure, and the calibration."""
    cases = cases_of(rows)
    plain = [{key: value for key, value in row.items() if key != "curves"} for row in rows]
    notes = [f"Made by `{command}`.", *_protocol(suite), *_truth_notes(rows, cases)]
    title = f"Where re-training ends, suite {suite.name}"
    name = _shown(rows[0])["name"]
    columns = [replace(column, heading=column.heading.replace(SHOWN, name)) for column in COLUMNS]
    write_table(folder, Page(NAME, title, notes, columns), _listed(rows), levels=plain)
    try:
        skill = skill_rows(cases)
        rules = [calibrated(cases, features) for features in RULES]
        coverage = [covered(cases, features) for features in RULES]
    except UserError as error:
        notes = [f"Made by `{command}`.", f"No calibration: {error}."]
        write_table(folder, Page(SKILL, "Skill of forecasts", notes, ()), [])
        return
    write_bytes(folder / CALIBRATION, _text(_calibration(cases, rules)).encode())
    write_skill(folder, command, Skill(cases, skill, rules, coverage))
    write_ladder(folder, command, ladder_rows(rows, LEVEL))


def _protocol(suite: Suite) -> list[str]:
    settings = suite.settings(ForecastSettings)
    return [
        "Every network is trained by its recipe, pruned by global magnitude to kept fractions that fall by a factor "
        "sqrt(2), and trained with the whole recipe once more from its full learning rate, the masks held; the bracket "
        f"of every level is halved once. Truth is the geometric mean of {settings.runs} such runs, which see the data "
        "in different orders. A level ends where two networks in a row lose more than it allows, on the straight line "
        "over the logarithm of the kept fraction.",
        "Levels: rises of the mean training loss by the fluctuation of a batch of 128 and by "
        f"{', '.join(f'{rise:g}' for rise in settings.rises)}; falls of the accuracy by "
        f"{', '.join(f'{100 * drop:g}' for drop in settings.drops)} points on the training data and on held-out data. "
        "With a fall of the accuracy epsilon is the rise of the loss at which one-shot pruned networks have lost it.",
    ]


def _truth_notes(rows: Sequence[Row], cases: Sequence[Case]) -> list[str]:
    count = sum(len(row["levels"]) for row in rows)
    lines = [
        f"{len(rows)} networks, {len({case.family for case in cases})} families, {len(cases)} of {count} levels end "
        "within the grid."
    ]
    spread = spread_of_runs(rows)
    if math.isfinite(spread):
        lines[0] += (
            f" One run's kept fraction spreads by a factor {spread:.3f} (one standard deviation of its logarithm)."
        )
    pairs = (
        ("iterative", "again", "Iterative pruning with the whole recipe per round keeps", "the one-step truth"),
        ("optimised", "again", "The loss minimised on the mask by L-BFGS keeps", "the one-step truth"),
        ("schur", "optimised", "The optimum of the GGN's quadratic model on the mask keeps", "what L-BFGS keeps"),
    )
    for first, second, words, other in pairs:
        ratio = ratios(cases, first, second)
        if ratio is not None:
            lines.append(f"{words} {ratio[0]:.2f} times {other}, spread x{ratio[1]:.2f}, {ratio[2]} levels.")
    return lines


def _listed(rows: Sequence[Row]) -> list[Row]:
    """Return a line for every network: what it keeps when the loss may rise by 0.03, or at its first level."""
    lines = []
    for row in rows:
        level = _shown(row)
        line = {key: row[key] for key in ("model", "dataset", "recipe", "parameters")}
        line |= {"family": family_of(row["model"]), "loss": row["dense"]["loss"], "held_out": row["dense"]["held_out"]}
        line |= {key: level.get(key) for key in ("alone", "retuned-2048", "hessian", "ggn", "iterative")}
        ends = [value for key, value in level.items() if key.startswith(AGAIN) and value is not None]
        line["again"] = math.prod(ends) ** (1 / len(ends)) if ends else None
        lines.append(line)
    return lines


def _text(calibration: Row) -> str:
    """Write a calibration as JSON, with a line for every case."""
    head = json.dumps({key: value for key, value in calibration.items() if key != "rows"}, indent=1)
    lines = ",\n  ".join(json.dumps(row) for row in calibration["rows"])
    return f'{head.removesuffix("}").rstrip()},\n "rows": [\n  {lines}\n ]\n}}\n'


def _shown(row: Row) -> Row:
    levels: list[Row] = row["levels"]
    return next((level for level in levels if level["name"] == SHOWN), levels[0])


def _calibration(cases: Sequence[Case], rules: Sequence[Rule]) -> Row:
    """Return what ``pruning_limits.forecast`` reads, with the cases and their residuals beside it."""
    known = usable(cases, RULES[0])
    residuals = left_out(known, lambda part: fitted(part, RULES[0]))
    names = [name for name in RANGED if all(name in case.features for case in known)]
    plain: Row = {
        "format": FORMAT,
        "networks": len({case.network for case in known}),
        "families": len({case.family for case in known}),
        "coverage": COVERAGE,
        "ranges": [
            [name, min(case.features[name] for case in known), max(case.features[name] for case in known)]
            for name in names
        ],
        "rules": [asdict(rule) for rule in rules],
        "rows": [
            {
                "network": case.network,
                "family": case.family,
                "level": case.level,
                "kept": _rounded(case.kept),
                "residual": _rounded(residual),
            }
            | {name: _rounded(case.features[name]) for name in names}
            for case, residual in zip(known, residuals, strict=True)
        ],
    }
    return {"version": settings_hash(plain)[:8]} | plain


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def settings(suite: Suite) -> dict[str, Any]:
    """Return the suite's settings that a row depends on."""
    return {"forecast": asdict(suite.settings(ForecastSettings))}


TABLE = Table(NAME, settings, run, write, cells, sections=(ForecastSettings,))
