"""Table ``crossing``: the norm of the removed weights and the norm that curvature allows, against sparsity."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from estimators import SpectralMeasure
from pruning_limits import PruningLimit
from pruning_limits.isotropic import removable_fraction
from pruning_limits.plotting import BLUE, ORANGE, headline, new_figure, save, sparsity_axis
from validation.studies.limits.predicted import LimitSettings, limit_notes, predicted_limit
from validation.tables.kinds import kinds_of
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import Column, Page, Row, network_row, with_means, write_table

NAME = "crossing"
KEPT = tuple(float(kept) for kept in np.geomspace(0.99, 1e-3, 60))
SHOWN = (0.8, 0.9)
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("seed", "seed"),
    Column("limit", "limit: the curves cross", ".2%"),
    Column("norm", "R there, of the norm of all weights", ".2%"),
    Column("crossings", "crossings", ".0f"),
    *(Column(f"norm_{sparsity}", f"R at {sparsity:.0%}", ".2%") for sparsity in SHOWN),
    *(Column(f"allowed_{sparsity}", f"allowed at {sparsity:.0%}", ".2%") for sparsity in SHOWN),
    Column("measured", "one-shot, measured", ".2%"),
    Column("gap", "limit - measured, points", "+.2f"),
)


def norm(limit: PruningLimit, sparsity: float) -> float:
    """Return the norm R of the removed weights, as a share of that of all weights."""
    curve = limit.evidence.curve
    return float((curve.squared_norm(sparsity) / curve.squared_norm(1.0)) ** 0.5)


def allowed(limit: PruningLimit, sparsity: float) -> float | None:
    r"""Return the largest norm of removed weights at which a sparsity solves the equation of the formula.

    That is the R for which :math:`\frac1D \operatorname{tr} c/(c+|H|) = s` with :math:`c = 2\varepsilon/R^2`, carried
    to all data, as a share of the norm of all weights; None where flat directions alone are enough.
    """
    from scipy.optimize import brentq

    whole = limit.evidence.curve.squared_norm(1.0)

    def excess(logarithm: float) -> float:
        scale = 2 * limit.epsilon / (whole * float(np.exp(2 * logarithm)))
        return limit.evidence.hessian.limit(partial(_removable, scale=scale)) - sparsity

    low, high = -50.0, 50.0
    if excess(high) >= 0:
        return None
    if excess(low) <= 0:
        return 0.0
    return float(np.exp(brentq(excess, low, high, xtol=1e-12)))


def _removable(measure: SpectralMeasure, scale: float) -> float:
    return removable_fraction(measure, scale)[0]


def run(cell: Cell, bench: Bench) -> Row:
    """Take both curves of one network, and how often one passes the other."""
    limit = predicted_limit(cell.network, bench)
    norms = [norm(limit, 1 - kept) for kept in KEPT]
    bounds = [allowed(limit, 1 - kept) for kept in KEPT]
    above = np.array(norms) > np.array([np.inf if bound is None else bound for bound in bounds])
    row = network_row(cell.network) | {"limit": limit.sparsity, "norm": norm(limit, limit.sparsity)}
    row |= {"crossings": int((above[1:] != above[:-1]).sum()), "norms": norms, "allowed": bounds}
    row |= {f"norm_{sparsity}": norm(limit, sparsity) for sparsity in SHOWN}
    row |= {f"allowed_{sparsity}": allowed(limit, sparsity) for sparsity in SHOWN}
    return row | {"measured": limit.lower, "gap": 100 * (limit.sparsity - limit.lower)}


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table and draw both curves of every kind of network."""
    once = sum(row["crossings"] == 1 for row in rows)
    gaps = [abs(row["gap"]) for row in rows]
    finding = (
        f"The curves cross once in {once} of {len(rows)} networks, {min(gaps):.1f} to {max(gaps):.1f} points from "
        "measured one-shot pruning"
    )
    notes = [
        f"Made by `{command}`.",
        *limit_notes(suite),
        "R is the norm of the weights that one-shot pruning removes, as a share of the norm of all weights. Allowed is "
        "the largest R at which the formula gives that sparsity. One-shot, measured: the largest sparsity at which the "
        "objective of the pruned network has risen by at most epsilon.",
        f"{finding}.",
    ]
    table = with_means(rows, COLUMNS, ("model", "dataset", "penalty"))
    write_table(folder, Page(NAME, f"Both sides of the formula, suite {suite.name}", notes, COLUMNS), table)
    groups = kinds_of(rows)
    figure, axes = new_figure(1, len(groups), size=(4.6 * len(groups), 4.2), squeeze=False)
    headline(figure, finding)
    for panel, (which, own) in zip(axes[0], groups.items(), strict=True):
        for place, row in enumerate(own):
            for key, colour, label in (("norms", BLUE, "removed"), ("allowed", ORANGE, "allowed by the curvature")):
                panel.plot(
                    KEPT,
                    np.array(row[key], dtype=float),
                    color=colour,
                    linewidth=1,
                    label="_" if place else f"R, {label}",
                )
            marked = {"color": ORANGE, "label": "_" if place else "limit"}
            panel.plot(1 - row["limit"], row["norm"], "o", markersize=4, **marked)
            panel.axvline(1 - row["measured"], color=BLUE, linestyle=":", label="_" if place else "one-shot, measured")
        sparsity_axis(panel.xaxis, KEPT[-1])
        panel.set(yscale="log", ylim=(1e-4, 2), xlabel="sparsity", ylabel="R / norm of all weights")
        panel.set_title(f"{which[0]}, {which[1]}, penalty {which[2]}", loc="left", fontsize=9)
        panel.tick_params(axis="x", labelrotation=45, labelsize=8)
        panel.grid(alpha=0.25)
    axes[0, 0].legend(fontsize=7, loc="lower left")
    save(figure, folder / f"{NAME}.png")


TABLE = Table(
    NAME,
    lambda suite: suite.plain(LimitSettings),
    run,
    write,
    sections=(LimitSettings,),
    prepare=predicted_limit,
)
