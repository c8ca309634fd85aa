"""Table ``row-norms``: l1 norms of the Hessian's rows against the magnitude of the weights they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from estimators import Hessian, Objective
from estimators.trace import row_norms
from pruning_limits import MagnitudeProfile
from pruning_limits.plotting import headline, new_figure, save
from validation.masks import prunable
from validation.tables.kinds import kinds_of
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import COLOURS, Column, Page, Row, between, network_row, write_table

NAME = "row-norms"
EXACT = 4096
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("seed", "seed"),
    Column("dimension", "D", ",d"),
    Column("method", "method"),
    Column("median", "median row norm", ".3g"),
    Column("low", "mean, smallest tenth of weights", ".3g"),
    Column("middle", "mean, fifth tenth", ".3g"),
    Column("high", "mean, largest tenth", ".3g"),
    Column("zero", "rows of norm zero", ".2%"),
    Column("small", "rows below 1 % of the largest", ".2%"),
    Column("correlation", "rank correlation with magnitude", ".2f"),
)


@dataclass(frozen=True)
class RowNormSettings:
    """How the row norms of a large Hessian are estimated.

    Args:
        samples: Data sub-sample.
        probes: Cauchy projections.
    """

    section: ClassVar[str] = "row_norms"

    samples: int = 1024
    probes: int = 16


def run(cell: Cell, bench: Bench) -> Row:
    """Take the row norms of one network's Hessian, exactly for a small network and by Cauchy projections otherwise."""
    from scipy.stats import spearmanr

    network, settings = cell.network, bench.suite.settings(RowNormSettings)
    model = bench.model(network)
    objective = Objective(model, bench.data.batches("train", 1000), penalty=network.recipe.penalty)
    dimension = objective.dimension
    exact = dimension <= EXACT
    operator = Hessian(objective.subset(objective.samples if exact else settings.samples, network.seed))
    if exact:
        eye = torch.eye(dimension, device=operator.device)
        norms = torch.cat([operator.matmat(part).abs().sum(0) for part in torch.split(eye, 64, dim=1)]).double()
    else:
        norms = row_norms(operator, settings.probes, network.seed)
    norms = norms.cpu()
    profile = MagnitudeProfile({name: weight.cpu() for name, weight in prunable(model).items()})
    sorted_norms = norms[profile.order].numpy()
    parts = np.array_split(sorted_norms, 100)
    tenths = [float(part.mean()) for part in np.array_split(sorted_norms, 10)]
    ranks = spearmanr(profile.vector.abs().numpy(), norms.numpy())
    method = f"all samples, {dimension} rows" if exact else f"{settings.samples} samples, {settings.probes} projections"
    return network_row(network) | {
        "dimension": dimension,
        "method": method,
        "median": float(np.median(sorted_norms)),
        "low": tenths[0],
        "middle": tenths[4],
        "high": tenths[-1],
        "zero": float((sorted_norms == 0).mean()),
        "small": float((sorted_norms < 0.01 * sorted_norms.max()).mean()),
        "correlation": float(ranks.statistic),
        "percentiles": [float(part.mean()) for part in parts],
    }


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table and draw the norm against the percentile of the magnitude."""
    notes = [
        f"Made by `{command}`.",
        f"Hessian of the training objective at the trained weights, rows in order of the magnitude of their weight. "
        f"All rows are computed up to D = {EXACT}; above, Cauchy projections estimate all of them at once, with a "
        f"relative standard deviation of {np.pi / 2 / suite.settings(RowNormSettings).probes ** 0.5:.0%} per row.",
    ]
    write_table(folder, Page(NAME, f"Row norms of the Hessian, suite {suite.name}", notes, COLUMNS), rows)
    figure, axes = new_figure(1, size=(7.0, 5.0))
    headline(figure, finding(rows))
    for number, (which, own) in enumerate(kinds_of(rows).items()):
        for place, row in enumerate(own):
            values, label = np.maximum(row["percentiles"], 1e-12), "_" if place else ", ".join(which)
            axes.plot(np.arange(100) + 0.5, values, color=COLOURS[number % len(COLOURS)], label=label)
    axes.set(yscale="log", xlabel="percentile of the weight's magnitude", ylabel="mean l1 norm of the Hessian row")
    axes.grid(alpha=0.25)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    save(figure, folder / f"{NAME}.png")


def finding(rows: Sequence[Row]) -> str:
    """Say how norms of rows go with the magnitude of their weights, and how many rows are small."""
    times = between((row["high"] / row["low"] if row["low"] else None for row in rows), ".1f")
    return (
        f"Rows of the largest tenth of the weights have {times} times the norm of those of the smallest tenth; "
        f"{between((row['small'] for row in rows), '.0%')} of all rows are below 1% of the largest"
    )


TABLE = Table(NAME, lambda suite: suite.plain(RowNormSettings), run, write, sections=(RowNormSettings,))
