"""Table ``slq-settings``: how much the limit moves with samples, steps and probes; and the recipes of all suites."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pruning_limits import predict_limit
from pruning_limits.plotting import BLUE, GREEN, new_figure, save
from validation.experiments.table import Bench, Cell, Table
from validation.suite import Suite, known_suites, load_suite
from validation.tables import Column, Row, network_row, recipe_text, write_table

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


def cells(suite: Suite) -> list[Cell]:
    """Return one cell per setting for the first seed of every kind of network."""
    first = {str(network.settings() | {"seed": None}): network for network in reversed(suite.networks)}
    base = {key: getattr(suite.limit, key) for key in VARIED}
    result = []
    for network in reversed(first.values()):
        for key in VARIED:
            result += [Cell(network, {**base, key: value}) for value in getattr(suite.slq, key)]
    return result


def run(cell: Cell, bench: Bench) -> Row:
    """Predict one network's limit with the cell's settings, without measuring."""
    limit = predict_limit(
        bench.model(cell.network),
        bench.data.batches("train", 1000),
        penalty=cell.network.recipe.penalty,
        seed=cell.network.seed,
        measure=False,
        progress=None if bench.progress else False,
        **cell.part,
    )
    return network_row(cell.network) | {
        "samples": limit.hessian.samples,
        "steps": limit.hessian.steps,
        "probes": len(limit.hessian.measure.rules),
        "sparsity": limit.sparsity,
        "half_width": 50 * (limit.interval[1] - limit.interval[0]),
        "retrained": limit.retrained,
        "ggn_half_width": 100 * (limit.ggn.step_error + limit.ggn.sample_error),
        "products": limit.cost.products,
        "seconds": limit.cost.seconds,
    }


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table and draw the limit against the number of steps."""
    varied = "; ".join(f"{key} {', '.join(map(str, getattr(suite.slq, key)))}" for key in VARIED)
    notes = [
        f"Made by `{command}`.",
        f"One setting at a time is varied ({varied}), the others stay those of the suite; first seed of every kind of "
        "network. The half-width is the library's own statement of its numerical error.",
        "Recipes of all suites: " + "; ".join(_recipes()) + ".",
    ]
    write_table(
        folder, NAME, f"The limit against the settings of the estimate, suite {suite.name}", notes, COLUMNS, rows
    )
    kinds = list(dict.fromkeys((row["model"], row["dataset"], row["penalty"]) for row in rows))
    figure, axes = new_figure(1, len(kinds), size=(5.0 * len(kinds), 3.8), squeeze=False)
    for panel, kind in zip(axes[0], kinds, strict=True):
        own = [row for row in rows if (row["model"], row["dataset"], row["penalty"]) == kind]
        for key, error, colour, label in (
            ("sparsity", "half_width", BLUE, "Hessian"),
            ("retrained", "ggn_half_width", GREEN, "GGN"),
        ):
            ordered: list[dict[str, Any]] = sorted(own, key=lambda row: row["products"])
            panel.errorbar(
                [row["products"] for row in ordered],
                [100 * row[key] for row in ordered],
                [row[error] for row in ordered],
                fmt="o",
                markersize=4,
                capsize=2,
                color=colour,
                label=label,
            )
        panel.set(xscale="log", xlabel="products", ylabel="predicted limit, %")
        panel.set_title(f"{kind[0]}, {kind[1]}, penalty {kind[2]}", loc="left", fontsize=10)
        panel.grid(alpha=0.25)
        panel.legend(fontsize=7)
    save(figure, folder / f"{NAME}.png")


def _recipes() -> list[str]:
    found: dict[str, None] = {}
    for name in known_suites():
        for network in load_suite(name).networks:
            found[f"{name}: {network.model} on {network.dataset} ({recipe_text(network.recipe)})"] = None
    return list(found)


TABLE = Table(NAME, lambda suite: {}, run, write, cells, limits=False)
