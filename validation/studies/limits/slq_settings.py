"""Table ``slq-settings``: how much the limit moves with samples, steps and probes; and the recipes of all suites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pruning_limits import predict_limit
from pruning_limits.plotting import BLUE, GREEN, new_figure, save
from pruning_limits.result import established
from validation.studies.limits.predicted import LimitSettings
from validation.tables.reading import known_suites, load_suite
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import Column, Page, Row, network_row, recipe_text, write_table

NAME = "slq-settings"
VARIED = ("samples", "steps", "probes")
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("samples", "samples"),
    Column("steps", "steps"),
    Column("probes", "probes"),
    Column("sparsity", "isotropic (Hessian)", ".2%"),
    Column("half_width", "half-width, points", ".2f"),
    Column("retrained", "isotropic (GGN)", ".2%"),
    Column("ggn_half_width", "half-width of the GGN, points", ".2f"),
    Column("products", "products", ",d"),
    Column("seconds", "seconds", ".1f"),
)


@dataclass(frozen=True)
class SlqSettings:
    """Settings of the spectral estimate that are varied one at a time, each from the suite's own.

    Args:
        samples: Data sub-samples.
        steps: Lanczos steps.
        probes: Numbers of probe vectors.
    """

    section: ClassVar[str] = "slq"

    samples: tuple[int, ...] = ()
    steps: tuple[int, ...] = (8, 16, 32, 64)
    probes: tuple[int, ...] = (1, 2, 4)


def cells(suite: Suite) -> list[Cell]:
    """Return one cell per setting for the first seed of every kind of network."""
    first = {str(network.settings() | {"seed": None}): network for network in reversed(suite.networks)}
    limit, slq = suite.settings(LimitSettings), suite.settings(SlqSettings)
    base = {key: getattr(limit, key) for key in VARIED}
    result = []
    for network in reversed(first.values()):
        for key in VARIED:
            result += [Cell(network, {**base, key: value}) for value in getattr(slq, key)]
    return result


def run(cell: Cell, bench: Bench) -> Row:
    """Predict one network's limit with the cell's settings, without measuring."""
    limit = predict_limit(
        bench.model(cell.network),
        bench.data.batches("train", 1000),
        penalty=cell.network.recipe.penalty,
        criterion="objective",
        seed=cell.network.seed,
        measure=False,
        progress=None if bench.progress else False,
        **cell.part,
    )
    return network_row(cell.network) | {
        "samples": limit.evidence.hessian.samples,
        "steps": limit.evidence.hessian.steps,
        "probes": len(limit.evidence.hessian.measure.rules),
        "sparsity": limit.sparsity,
        "half_width": 50 * (limit.interval[1] - limit.interval[0]),
        "retrained": limit.retrained,
        "ggn_half_width": 100
        * (established(limit.evidence.ggn).step_error + established(limit.evidence.ggn).sample_error),
        "products": limit.cost.products,
        "seconds": limit.cost.seconds,
    }


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table and draw the limit against every setting."""
    slq = suite.settings(SlqSettings)
    varied = "; ".join(f"{key} {', '.join(map(str, getattr(slq, key)))}" for key in VARIED)
    notes = [
        f"Made by `{command}`.",
        f"One setting at a time is varied ({varied}), the others stay those of the suite; first seed of every kind of "
        "network. The half-width is the library's own statement of its numerical error.",
        "Recipes of all suites: " + "; ".join(_recipes()) + ".",
    ]
    write_table(
        folder, Page(NAME, f"The limit against the settings of the estimate, suite {suite.name}", notes, COLUMNS), rows
    )
    _figure(rows, [key for key in VARIED for _ in getattr(slq, key)], folder / f"{NAME}.png")


def _figure(rows: Sequence[Row], varied: Sequence[str], path: Path) -> None:
    """Draw one row of panels per kind of network; ``varied`` names the setting of each of its rows in turn."""
    networks = [rows[start : start + len(varied)] for start in range(0, len(rows), len(varied))]
    keys = list(dict.fromkeys(varied))
    figure, panels = new_figure(len(networks), len(keys), size=(4.0 * len(keys), 3.2 * len(networks)), squeeze=False)
    for line, network in zip(panels, networks, strict=True):
        for panel, key in zip(line, keys, strict=True):
            own = sorted(
                (row for row, one in zip(network, varied, strict=True) if one == key), key=lambda row: row[key]
            )
            _panel(panel, own, key)
        line[0].set_ylabel("predicted limit (sparsity), %")
        first = network[0]
        line[0].set_title(f"{first['model']}, {first['dataset']}, penalty {first['penalty']}", loc="left", fontsize=10)
    panels[0][-1].legend(fontsize=7, loc="lower right")
    save(figure, path)


def _panel(panel: Any, rows: Sequence[Row], key: str) -> None:
    across = [row[key] for row in rows]
    for name, error, colour, label in (
        ("sparsity", "half_width", BLUE, "one-shot (Hessian)"),
        ("retrained", "ggn_half_width", GREEN, "re-trained (GGN)"),
    ):
        values = np.array([100 * row[name] for row in rows])
        errors = np.array([row[error] for row in rows])
        inside = [np.minimum(errors, values), np.minimum(errors, 100 - values)]
        panel.errorbar(across, values, inside, fmt="o-", markersize=4, capsize=2, color=colour, label=label)
    panel.set(xscale="log", xlabel=key, xticks=across, xticklabels=across, ylim=(0, 102))
    panel.minorticks_off()
    panel.grid(alpha=0.25)


def _recipes() -> list[str]:
    found: dict[str, None] = {}
    for name in known_suites():
        for network in load_suite(name).networks:
            found[f"{name}: {network.model} on {network.dataset} ({recipe_text(network.recipe)})"] = None
    return list(found)


TABLE = Table(NAME, lambda suite: {}, run, write, cells, sections=(LimitSettings, SlqSettings))
