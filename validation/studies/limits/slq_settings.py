"""Table ``slq-settings``: how much the limit moves with samples, steps and probes; and the recipes of all suites."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pruning_limits import predict_limit
from pruning_limits.plotting import headline, new_figure, plain_ticks, save
from pruning_limits.result import established
from validation.studies.limits.predicted import LimitSettings
from validation.tables.reading import known_suites, load_suite
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import COLOURS, Column, Page, Row, network_row, recipe_text, write_table

NAME = "slq-settings"
VARIED = ("samples", "steps", "probes")
LEAST_SHOWN = 0.1  # points of half-width, in the figure
QUANTITIES = (("half_width", "formula with the Hessian"), ("ggn_half_width", "formula with the GGN"))
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
    """Write the table and draw half-widths against what they cost."""
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


def cost(row: Row) -> int:
    """Return what a setting costs: products times the samples that each of them passes."""
    return int(row["products"]) * int(row["samples"])


def shown(row: Row, name: str) -> float:
    """Return a half-width as the figure shows it."""
    return max(float(row[name]), LEAST_SHOWN)


def _figure(rows: Sequence[Row], varied: Sequence[str], path: Path) -> None:
    """Draw the half-width of both limits against the cost; ``varied`` names the setting of each row in turn."""
    networks = [rows[start : start + len(varied)] for start in range(0, len(rows), len(varied))]
    keys = list(dict.fromkeys(varied))
    figure, panels = new_figure(
        len(networks), len(QUANTITIES), size=(8.4, 3.2 * len(networks) + 0.4), sharey=True, squeeze=False
    )
    headline(figure, _finding(networks, varied))
    for line, network in zip(panels, networks, strict=True):
        for panel, (name, label) in zip(line, QUANTITIES, strict=True):
            for key, colour in zip(keys, COLOURS, strict=False):
                own = sorted((row for row, own in zip(network, varied, strict=True) if own == key), key=cost)
                across, values = [cost(row) for row in own], [shown(row, name) for row in own]
                panel.plot(across, values, "o-", markersize=4, color=colour, label=f"more {key}")
                for row, place, value in zip(own, across, values, strict=True):
                    shift = {"xytext": (3, 4), "textcoords": "offset points"}
                    panel.annotate(str(row[key]), (place, value), fontsize=7, color=colour, **shift)
            panel.set(
                xscale="log",
                yscale="log",
                xlabel="products times samples",
                ylabel=f"half-width, points (at least {LEAST_SHOWN:g})",
            )
            panel.set_title(f"{network[0]['model']}, penalty {network[0]['penalty']}: {label}", loc="left", fontsize=9)
            panel.grid(alpha=0.25, which="both")
            plain_ticks(panel)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(keys), fontsize=8)
    save(figure, path)


def _finding(networks: Sequence[Sequence[Row]], varied: Sequence[str]) -> str:
    """Say which setting narrows the limits most from its cheapest to its dearest value, on geometric average."""
    factors = {}
    for key in dict.fromkeys(varied):
        narrowed = []
        for network in networks:
            own = sorted((row for row, own in zip(network, varied, strict=True) if own == key), key=cost)
            narrowed += [math.log(shown(own[0], name) / shown(own[-1], name)) for name, _ in QUANTITIES]
        factors[key] = sum(narrowed) / len(narrowed)
    return f"More {max(factors, key=lambda key: factors[key])} narrow the limits most"


def _recipes() -> list[str]:
    recipes: dict[str, None] = {}
    for name in known_suites():
        for network in load_suite(name).networks:
            recipes[f"{name}: {network.model} on {network.dataset} ({recipe_text(network.recipe)})"] = None
    return list(recipes)


TABLE = Table(NAME, lambda suite: {}, run, write, cells, sections=(LimitSettings, SlqSettings))
