"""Table ``weight-scale``: the limit under scaled weights and curvature, and after training from larger weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from pruning_limits.plotting import headline, new_figure, save, sparsity_axis
from validation.studies.limits.predicted import LimitSettings, limit_notes, predicted_limit
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import (
    COLOURS,
    Column,
    Page,
    Row,
    mean_and_spread,
    network_row,
    with_means,
    write_table,
)
from validation.training import accuracy

NAME = "weight-scale"
FACTORS = (1, 2, 3, 4, 5)
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("gain", "initial weights x", ".3g"),
    Column("seed", "seed"),
    Column("accuracy", "test accuracy", ".2%"),
    Column("norm", "norm of the weights", ".2f"),
    Column("trace", "trace of H", ".4g"),
    Column("measured", "measured one-shot", ".2%"),
    *(Column(f"weights_{factor}", f"weights x{factor}", ".2%") for factor in FACTORS),
    *(Column(f"curvature_{factor}", f"curvature x{factor}", ".2%") for factor in FACTORS[1:]),
)


@dataclass(frozen=True)
class PenaltySettings:
    """Penalties that are compared side by side with no penalty; a network's own replaces the value here.

    Args:
        l1: Coefficient of the L1 penalty.
        l2: Coefficient of the L2 penalty.
        gain: Factor of the initial weights of a network that is trained without a penalty once more.
    """

    section: ClassVar[str] = "penalties"

    l1: float = 5e-5
    l2: float = 5e-4
    gain: float = 1.4


def cells(suite: Suite) -> list[Cell]:
    """Return four cells per network: trained with L1, with L2, without a penalty, and so from larger weights."""
    result = []
    penalties = suite.settings(PenaltySettings)
    for network in suite.networks:
        own, plain = network.recipe, replace(network.recipe, l1=0.0, l2=0.0)
        l1, l2 = own.l1 or penalties.l1, own.l2 or penalties.l2
        for recipe in (replace(plain, l1=l1), replace(plain, l2=l2), plain, replace(plain, gain=penalties.gain)):
            result.append(Cell(replace(network, recipe=recipe)))
    return sorted(dict.fromkeys(result), key=lambda cell: _place(cell, suite))


def _place(cell: Cell, suite: Suite) -> tuple[int, float, float, float]:
    """Order by kind of network, then penalty and gain; the sort is stable, so seeds stay in order."""
    kinds = [(network.model, network.dataset) for network in suite.networks]
    recipe = cell.network.recipe
    return kinds.index((cell.network.model, cell.network.dataset)), -recipe.l1, -recipe.l2, recipe.gain


def run(cell: Cell, bench: Bench) -> Row:
    """Ask one network's limit what scaled weights and scaled curvature would do, and what one-shot pruning does."""
    limit = predicted_limit(cell.network, bench)
    return (
        network_row(cell.network)
        | {"gain": cell.network.recipe.gain, "accuracy": accuracy(bench.model(cell.network), bench.data)}
        | {
            "measured": limit.lower,
            "norm": limit.evidence.curve.squared_norm(1.0) ** 0.5,
            "trace": limit.sharpness.trace,
        }
        | {f"weights_{factor}": limit.what_if(weight_scale=factor).sparsity for factor in FACTORS}
        | {f"curvature_{factor}": limit.what_if(curvature_scale=factor).sparsity for factor in FACTORS}
    )


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table and draw the limit against the factor."""
    penalties = suite.settings(PenaltySettings)
    falling = all(row[f"{what}_{a}"] > row[f"{what}_{a + 1}"] for row in rows for what in WHAT for a in FACTORS[:-1])
    notes = [
        f"Made by `{command}`.",
        *limit_notes(suite),
        f"Every network is trained four times with the same recipe: with L1, with L2 (coefficient {penalties.l2:g}), "
        f"without a penalty, and without a penalty from initial weights {penalties.gain:g} times as large.",
        "Weights x a: R becomes a R while the curvature stays; curvature x a: the spectrum is multiplied while the "
        "weights stay. Both are answered by the stored spectrum, because only epsilon / (a R^2 x curvature) matters.",
        f"The limit falls strictly with every step of either factor: {'yes' if falling else 'no'}. This is an identity "
        "of the formula. What trained networks with larger weights do is another question:",
        *_larger(rows),
    ]
    table = with_means(rows, COLUMNS, KINDS)
    write_table(
        folder, Page(NAME, f"Limit against weight scale and curvature, suite {suite.name}", notes, COLUMNS), table
    )
    figure, panels = new_figure(1, 2, size=(10.0, 5.4), sharey=True)
    always = "falls with every step of" if falling else "does not always fall with"
    headline(figure, f"The predicted limit {always} the size of the weights and of the curvature")
    groups = list(dict.fromkeys(_kind(row) for row in rows))
    for axes, what in zip(panels, WHAT, strict=True):
        for colour, group in zip(COLOURS * 3, groups, strict=False):
            for row in rows:
                if _kind(row) == group:
                    values = [1 - row[f"{what}_{factor}"] for factor in FACTORS]
                    label = ", ".join(group[:3]) + (f", initial weights x {group[3]:g}" if group[3] != 1 else "")
                    axes.plot(FACTORS, values, ".-", color=colour, linewidth=1, label=label)
                    label = "_"
        axes.set(xlabel=f"factor on the {what}", xticks=FACTORS)
        axes.grid(alpha=0.25)
    least = 0.7 * min(1 - row["weights_1"] for row in rows)
    sparsity_axis(panels[0].yaxis, least)
    panels[0].set_ylabel("predicted limit (sparsity)")
    handles, labels = panels[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), fontsize=8, loc="outside lower center", ncols=3)
    save(figure, folder / f"{NAME}.png")


def _kind(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in KINDS)


def _larger(rows: Sequence[Row]) -> list[str]:
    """Compare networks trained from larger weights with those from plain ones, seed by seed."""
    lines = []
    for model, dataset, penalty, gain in dict.fromkeys(_kind(row) for row in rows if row["gain"] != 1):
        larger = [row for row in rows if _kind(row) == (model, dataset, penalty, gain)]
        plain = {row["seed"]: row for row in rows if _kind(row) == (model, dataset, penalty, 1)}
        falls = {key: sum(row[key] < plain[row["seed"]][key] for row in larger) for key in ("weights_1", "measured")}
        ends = {
            key: (mean_and_spread(list(plain.values()), key)[0], mean_and_spread(larger, key)[0])
            for key in ("norm", "trace", "weights_1", "measured")
        }
        lines.append(
            f"* {model}, {dataset}, from weights {gain:g} times as large: the norm goes from {ends['norm'][0]:.1f} to "
            f"{ends['norm'][1]:.1f} and the trace from {ends['trace'][0]:.3g} to {ends['trace'][1]:.3g}; the predicted "
            f"limit goes from {ends['weights_1'][0]:.1%} to {ends['weights_1'][1]:.1%} and falls in "
            f"{falls['weights_1']} of {len(larger)} seeds, measured one-shot pruning from {ends['measured'][0]:.1%} to "
            f"{ends['measured'][1]:.1%}, and falls in {falls['measured']}."
        )
    return lines


WHAT = ("weights", "curvature")
KINDS = ("model", "dataset", "penalty", "gain")
TABLE = Table(
    NAME,
    lambda suite: suite.plain(LimitSettings),
    run,
    write,
    cells,
    sections=(LimitSettings, PenaltySettings),
    prepare=predicted_limit,
)
