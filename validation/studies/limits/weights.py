"""Table ``weights``: how alike the weight distributions of independently trained networks are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estimators.vectors import flatten
from pruning_limits.plotting import headline, new_figure, save
from validation.masks import prunable
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import COLOURS, Column, Page, Row, between, network_row, write_table

NAME = "weights"
BINS = 200
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("seeds", "networks"),
    Column("weights", "D", ",d"),
    Column("deviation", "standard deviation", ".4f"),
    Column("kurtosis", "excess kurtosis", ".1f"),
    Column("distance", "TV distance, mean of pairs", ".4f"),
    Column("largest", "TV distance, largest", ".4f"),
    Column("noise", "of two samples of one distribution", ".4f"),
)


def total_variation(first: NDArray[Any], second: NDArray[Any]) -> float:
    r"""Total-variation distance of two histograms, :math:`\frac12 \sum_i |p_i - q_i|`.

    Args:
        first: Counts ``[bins]``.
        second: Counts over the same bins.

    Example:
        >>> total_variation(np.array([1, 1]), np.array([2, 0]))
        0.5
    """
    return float(0.5 * np.abs(first / first.sum() - second / second.sum()).sum())


def cells(suite: Suite) -> list[Cell]:
    """Return one cell per kind of network; its seeds are compared with one another."""
    kinds = groupby(suite.networks, key=lambda network: network.settings() | {"seed": None})
    groups = [list(networks) for _, networks in kinds]
    return [Cell(group[0], {"seeds": [network.seed for network in group]}) for group in groups]


def run(cell: Cell, bench: Bench) -> Row:
    """Compare the weights of independently trained networks on shared bins."""
    vectors = []
    for seed in cell.part["seeds"]:
        model = bench.model(replace(cell.network, seed=seed))
        vectors.append(flatten(list(prunable(model).values())).double().cpu().numpy())
    pooled = np.concatenate(vectors)
    reach = float(np.quantile(np.abs(pooled), 0.9999))
    edges = np.linspace(-reach, reach, BINS + 1)
    counts = [np.histogram(np.clip(vector, -reach, reach), edges)[0] for vector in vectors]
    distances = [total_variation(a, b) for a, b in combinations(counts, 2)]
    mean = np.sum(counts, axis=0)
    share = mean / mean.sum()
    noise = float(np.sqrt(share / (np.pi * len(vectors[0]))).sum())
    centred = pooled - pooled.mean()
    return network_row(cell.network) | {
        "seeds": len(vectors),
        "weights": len(vectors[0]),
        "deviation": float(pooled.std()),
        "kurtosis": float((centred**4).mean() / (centred**2).mean() ** 2 - 3),
        "distance": float(np.mean(distances)) if distances else None,
        "largest": max(distances, default=None),
        "noise": noise,
        "edges": edges.tolist(),
        "counts": [count.tolist() for count in counts],
    }


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table and draw the histograms."""
    notes = [
        f"Made by `{command}`.",
        f"Histograms of the weights of convolution and linear layers over {BINS} bins shared by the seeds of a row, "
        "from -q to q with q the 99.99 % quantile of the magnitude; the few weights beyond count in the outer bins. "
        "Total variation is half the sum of the absolute differences of the shares. The last column is what two "
        "independent samples of the pooled distribution would give, the floor of the comparison.",
        "Independent runs: " + "; ".join(f"{row['model']} on {row['dataset']}, {row['seeds']}" for row in rows) + ".",
    ]
    write_table(folder, Page(NAME, f"Weight distributions across seeds, suite {suite.name}", notes, COLUMNS), rows)
    figure, axes = new_figure(len(rows), 1, size=(7.0, 2.6 * len(rows)), squeeze=False)
    headline(figure, finding(rows))
    for panel, row in zip(axes[:, 0], rows, strict=True):
        edges = np.array(row["edges"])
        for number, counts in enumerate(row["counts"]):
            shares = np.array(counts) / sum(counts) / np.diff(edges)
            panel.stairs(shares, edges, color=COLOURS[number % len(COLOURS)], label=f"network {number + 1}")
        panel.set(yscale="log", ylabel="density", xlabel="weight")
        panel.set_title(f"{row['model']}, {row['dataset']}, {row['penalty']}", loc="left", fontsize=10)
        panel.grid(alpha=0.25)
        panel.legend(fontsize=7)
    save(figure, folder / f"{NAME}.png")


def finding(rows: Sequence[Row]) -> str:
    """Say how much histograms of independent trainings differ, beside what chance alone makes of it."""
    pairs = [row for row in rows if row["largest"] is not None]
    if not pairs:
        return "One network of each kind: there is nothing to compare"
    times = between((row["distance"] / row["noise"] for row in pairs), ".1f")
    return (
        f"Histograms of independent trainings differ by at most {max(row['largest'] for row in pairs):.3f} (total "
        f"variation), on average {times} times as much as two samples of one distribution"
    )


TABLE = Table(NAME, lambda suite: {}, run, write, cells)
