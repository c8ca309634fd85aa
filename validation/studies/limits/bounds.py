"""Table ``bounds``: lower bound, isotropic limit, re-trained limit and upper bound of every network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pruning_limits import PruningLimit
from pruning_limits.plotting import BLUE, GREEN, GREY, ORANGE, headline, new_figure, save, sparsity_axis
from validation.studies.limits.predicted import LimitSettings, limit_notes, predicted_limit
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import Column, Page, Row, between, network_row, with_means, write_table

NAME = "bounds"
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("seed", "seed"),
    Column("parameters", "D", ",d"),
    Column("epsilon", "epsilon", ".4f"),
    Column("lower", "lower (measured one-shot)", ".2%"),
    Column("sparsity", "isotropic (Hessian)", ".2%"),
    Column("retrained", "isotropic (GGN)", ".2%"),
    Column("upper", "upper", ".2%"),
    Column("beyond", "upper, with its numerical error", ".3%"),
    Column("gap", "upper - lower, points", ".2f"),
    Column("kept_ratio", "kept, lower / upper", ".2f"),
    Column("inside", "lower <= isotropic <= upper"),
    Column("status", "status"),
)


def run(cell: Cell, bench: Bench) -> Row:
    """Read the bounds off one network's limit."""
    limit = predicted_limit(cell.network, bench)
    return network_row(cell.network) | {
        "parameters": limit.parameters,
        "epsilon": limit.epsilon,
        "lower": limit.lower,
        "sparsity": limit.sparsity,
        "low": limit.interval[0],
        "high": limit.interval[1],
        "retrained": limit.retrained,
        **_above(limit),
        "status": limit.answer("formula").status.partition(":")[0],
        "status_reason": limit.answer("formula").status,
    }


def _above(limit: PruningLimit) -> Row:
    """Return the upper bound and how far it lies above the lower one; None throughout where none is known."""
    bound = limit.answer("bound")
    upper = bound.sparsity
    if upper is None:
        return dict.fromkeys(("upper", "beyond", "gap", "kept_ratio", "inside"))
    return {
        "upper": upper,
        "beyond": bound.high,
        "gap": 100 * (upper - limit.lower),
        "kept_ratio": (1 - limit.lower) / max(1 - upper, 1 / limit.parameters),
        "inside": "yes" if limit.lower <= limit.sparsity <= upper else "no",
    }


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table and draw one line per network."""
    notes = [
        f"Made by `{command}`.",
        *limit_notes(suite),
        "Lower: measured one-shot global magnitude pruning. Upper: the directional limit with the GGN plus the window "
        "of the kinematic formula at 5 %, never below what was measured; beyond its numerical error `check` says "
        "infeasible. A dash where that error reaches 100 %, or where pruning alone passes it: no bound is known then.",
        f"{finding(rows)}.",
    ]
    table = with_means(rows, COLUMNS)
    write_table(folder, Page(NAME, f"Bounds on the pruning limit, suite {suite.name}", notes, COLUMNS), table)
    figure, axes = new_figure(1, size=(8.0, 1.8 + 0.32 * len(rows)))
    headline(figure, finding(rows))
    for height, row in enumerate(reversed(rows)):
        if row["upper"] is not None:
            ends = [max(1 - row[key], 1e-4) for key in ("lower", "upper", "beyond")]
            axes.plot(ends[:2], [height, height], color=GREY, linewidth=1)
            axes.plot(ends[1:], [height, height], ":", color=GREY, label="numerical error of the upper bound")
        axes.plot([max(1 - row["high"], 1e-4), 1 - row["low"]], [height, height], color=ORANGE, linewidth=5, alpha=0.3)
        for key, colour, marker, label in (
            ("lower", BLUE, "|", "measured one-shot (lower)"),
            ("sparsity", ORANGE, "o", "isotropic, Hessian"),
            ("retrained", GREEN, "s", "isotropic, GGN (re-trained)"),
            ("upper", GREY, "|", "upper"),
        ):
            kept = [] if row[key] is None else [max(1 - row[key], 1e-4)]
            axes.plot(kept, [height] * len(kept), marker, color=colour, label=label if kept else None)
    axes.set_yticks(range(len(rows)), [f"{r['model']}, {r['dataset']}, seed {r['seed']}" for r in reversed(rows)])
    shown = ("beyond", "retrained")
    sparsity_axis(axes.xaxis, 0.5 * min(max(1 - row[key], 2e-4) for row in rows for key in shown if row[key]))
    axes.tick_params(axis="x", labelrotation=45, labelsize=8)
    axes.set_xlabel("sparsity (removed fraction)")
    axes.grid(alpha=0.25)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), fontsize=7, loc="outside lower center", ncols=4)
    save(figure, folder / f"{NAME}.png")


def finding(rows: Sequence[Row]) -> str:
    """Say how far the bounds lie apart, and for how many networks no upper one is known."""
    gaps = [row["gap"] for row in rows if row["gap"] is not None]
    unknown = f"no upper bound is known for {len(rows) - len(gaps)} of {len(rows)} networks"
    if not gaps:
        return unknown.capitalize()
    wide = [100 * (row["beyond"] - row["lower"]) for row in rows if row["gap"] is not None]
    apart = f"Lower and upper bound lie {between(gaps, '.1f')} points apart"
    if between(wide, ".1f") != between(gaps, ".1f"):
        apart += f", with the numerical error of the upper one {between(wide, '.1f')}"
    return apart if len(gaps) == len(rows) else f"{apart}; {unknown}"


TABLE = Table(
    NAME,
    lambda suite: suite.plain(LimitSettings),
    run,
    write,
    sections=(LimitSettings,),
    prepare=predicted_limit,
)
