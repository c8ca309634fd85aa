"""Table ``lottery-spectrum``: curvature and limit of pruned networks, of their kept weights, beside the dense ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from pruning_limits import PruningLimit, predict_limit
from pruning_limits.plotting import BLUE, GREEN, GREY, ORANGE, headline, new_figure, save, sparsity_axis
from pruning_limits.result import established
from validation.pruners import Problem
from validation.pruners.magnitude import magnitude_masks
from validation.studies.limits.algorithms import CompareSettings
from validation.studies.limits.predicted import LimitSettings, limit_notes
from validation.studies.lottery.kept_weights import KeptWeights
from validation.tables.claims import RULE, judged
from validation.tables.kinds import averaged, kinds_of
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import Column, Page, Row, between, network_row, write_table
from validation.training import accuracy

NAME = "lottery-spectrum"
SPARSITIES = (0.0, 0.5, 0.8, 0.9)
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("sparsity", "removed", ".0%"),
    Column("seeds", "seeds", "d"),
    Column("accuracy", "test accuracy", ".2%"),
    Column("objective", "objective", ".4f"),
    Column("kept", "kept weights", ",.0f"),
    Column("top", "top eigenvalue", ".3g"),
    Column("trace", "trace", ".3g"),
    Column("mean", "trace / kept weights", ".2e"),
    Column("smallest", "smallest eigenvalue", ".2g"),
    Column("negative", "share of mass below zero", ".1%"),
    Column("effective", "effective dimension", ",.0f"),
    Column("left", "limit, of the kept weights", ".2%"),
    Column("limit", "limit, of all", ".2%"),
    Column("limit_spread", "deviation", ".2%"),
    Column("retrained", "with re-training, of all", ".2%"),
    Column("measured", "measured one-shot, of all", ".2%"),
)


def run(cell: Cell, bench: Bench) -> Row:
    """Prune one trained network by magnitude, re-train it, and predict the limit of what is left."""
    network, epsilon = cell.network, None
    recipe, epochs = network.recipe, bench.suite.settings(CompareSettings).epochs
    problem = Problem(network.model, bench.data, recipe, network.seed, bench.model(network), recipe.epochs + epochs)
    points = []
    for sparsity in SPARSITIES:
        masks = magnitude_masks(problem.dense, sparsity)
        model = problem.retrained(masks)
        file = bench.folder / f"limit-{sparsity:g}.json"
        if not file.exists():
            kept = KeptWeights(model, masks)
            predict_limit(
                kept,
                bench.data.batches("train", 1000),
                penalty=recipe.penalty,
                criterion="objective",
                epsilon="batch-std" if epsilon is None else epsilon,
                parameters=kept.chosen,
                seed=network.seed,
                progress=None if bench.progress else False,
                **asdict(bench.suite.settings(LimitSettings)),
            ).to_json(file)
        limit = PruningLimit.from_json(file)
        epsilon = limit.epsilon
        points.append(_point(sparsity, limit) | {"accuracy": accuracy(model, bench.data)})
    return network_row(network) | {"points": points}


def _point(sparsity: float, limit: PruningLimit) -> Row:
    """Read off a limit of kept weights what the table says; ``limit``, ``retrained``, ``measured`` count from all."""
    share, kept, sharpness = 1 - sparsity, limit.parameters, limit.sharpness
    return {
        "sparsity": sparsity,
        "objective": limit.objective,
        "epsilon": limit.epsilon,
        "kept": kept,
        "top": sharpness.top_eigenvalue,
        "trace": sharpness.trace,
        "mean": sharpness.trace / kept,
        "smallest": float(limit.evidence.hessian.measure.nodes.min()),
        "negative": sharpness.negative_share,
        "effective": sharpness.effective_dimension,
        "left": limit.sparsity,
        "limit": 1 - share * (1 - limit.sparsity),
        "retrained": 1 - share * (1 - established(limit.retrained)),
        "measured": 1 - share * (1 - limit.lower),
    }


def words(table: Sequence[Row]) -> list[str]:
    """Judge for every kind of network whether pruning makes the landscape steeper and more convex, and what is left."""
    return [_judged(", ".join(which), own) for which, own in kinds_of(table).items()]


def _judged(said: str, rows: Sequence[Row]) -> str:
    dense, pruned = rows[0], rows[1:]

    def listed(key: str, form: str) -> str:
        return ", ".join(f"{row['sparsity']:.0%} {row[key]:{form}}" for row in rows)

    conditions = [
        (
            f"the smallest eigenvalue rises with what is removed: {listed('smallest', '.2g')}",
            all(b["smallest"] > a["smallest"] for a, b in zip(rows, pruned, strict=False)),
        ),
        (
            f"the mean eigenvalue rises with what is removed: {listed('mean', '.1e')}",
            all(b["mean"] > a["mean"] for a, b in zip(rows, pruned, strict=False)),
        ),
        (
            f"the share of the spectrum's mass below zero falls: {listed('negative', '.1%')}",
            all(b["negative"] < a["negative"] for a, b in zip(rows, pruned, strict=False)),
        ),
    ]
    claim = f"Part 4, {said}, the landscape of pruned networks is steeper and more convex"
    beyond = ", ".join(f"{row['sparsity']:.0%}" for row in pruned if row["limit"] > dense["limit"]) or "none"
    return (
        judged(claim, conditions) + f" Top eigenvalue: {listed('top', '.3g')}; trace: {listed('trace', '.3g')}. "
        f"Effective dimension: {listed('effective', ',.0f')}. The limit counted from all weights: "
        f"{listed('limit', '.1%')}; beyond that of the dense network at {beyond} removed. Of the "
        f"kept weights there could still go: {listed('left', '.1%')}."
    )


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the averages and what they say, and draw eigenvalues and limits against what was removed."""
    table = averaged(rows, ("sparsity",))
    epochs = suite.settings(CompareSettings).epochs
    notes = [
        f"Made by `{command}`.",
        *limit_notes(suite),
        f"The trained network is pruned once by global magnitude and trained on for {epochs} epochs, the "
        "dense one too. A pruned network is taken as a function of its kept weights alone: its Hessian is the block of "
        "the kept weights, and its limit the share of them that could still go. Counted from all weights of the dense "
        "network that is 1 - (1 - removed)(1 - limit). All rows of a seed share the epsilon of its dense network. The "
        "smallest eigenvalue is the smallest Ritz value.",
        RULE,
        *words(table),
    ]
    write_table(
        folder,
        Page(NAME, f"Curvature and limit of pruned networks, suite {suite.name}", notes, COLUMNS),
        table,
        cells=list(rows),
    )
    _figure(table, folder / f"{NAME}.png")


def finding(table: Sequence[Row]) -> str:
    """Say whether the mean eigenvalue rises with what is removed, and what that changes of the limit."""
    groups = list(kinds_of(table).values())
    rising = sum(all(b["mean"] > a["mean"] for a, b in pairwise(own)) for own in groups)
    moved = between((100 * (own[-1]["limit"] - own[0]["limit"]) for own in groups), "+.1f")
    return (
        f"The mean eigenvalue rises at every step in {rising} of {len(groups)} kinds of network; with "
        f"{between((own[-1]['sparsity'] for own in groups), '.0%')} removed, the predicted one-shot limit of all "
        f"weights is {moved} points from the dense network's"
    )


def _figure(table: Sequence[Row], path: Path) -> None:
    groups = kinds_of(table)
    figure, axes = new_figure(len(groups), 3, size=(14.0, 3.7 * len(groups)), squeeze=False)
    headline(figure, finding(table))
    for line, (which, rows) in zip(axes, groups.items(), strict=True):
        places = [row["sparsity"] for row in rows]
        ticks = [f"{place:.0%}" for place in places]
        for panel, keys in zip(line, (("top", "mean"), ("smallest",)), strict=False):
            for key, colour in zip(keys, (BLUE, ORANGE), strict=False):
                spreads = [row[f"{key}_spread"] or 0 for row in rows]
                values = [row[key] for row in rows]
                panel.errorbar(range(len(rows)), values, spreads, marker="o", color=colour, capsize=2, label=NAMES[key])
            panel.legend(fontsize=9)
        line[0].set_yscale("log")
        line[1].axhline(0, color=GREY, linewidth=0.8)
        for key, colour in (("limit", BLUE), ("retrained", GREEN), ("measured", ORANGE)):
            line[2].plot(range(len(rows)), [1 - row[key] for row in rows], "o-", color=colour, label=NAMES[key])
        line[2].plot(range(len(rows)), [1 - place for place in places], ":", color=GREY, label="removed already")
        sparsity_axis(line[2].yaxis, 0.3 * min(1 - row[key] for row in rows for key in ("limit", "retrained")))
        line[2].legend(fontsize=8, loc="upper left", ncols=2)
        for panel, label in zip(line, ("eigenvalue", "eigenvalue", "sparsity, of all weights"), strict=True):
            panel.set_xticks(range(len(rows)), ticks)
            panel.set(xlabel="removed before re-training", ylabel=label)
            panel.set_title(f"{which[0]} on {which[1]}, penalty {which[2]}", loc="left", fontsize=9)
            panel.grid(alpha=0.25)
    save(figure, path)


NAMES = {
    "top": "top eigenvalue",
    "mean": "mean eigenvalue (trace / kept weights)",
    "smallest": "smallest eigenvalue",
    "limit": "predicted one-shot limit",
    "retrained": "predicted with re-training",
    "measured": "measured one-shot",
}


def settings(suite: Suite) -> dict[str, Any]:
    """Return the suite's settings and the constants that a row depends on."""
    return {
        **suite.plain(LimitSettings),
        "epochs": suite.settings(CompareSettings).epochs,
        "sparsities": list(SPARSITIES),
    }


TABLE = Table(NAME, settings, run, write, sections=(LimitSettings, CompareSettings))
