"""Table ``theory-vs-actual``: the predicted limit beside what pruning really reaches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

from pruning_limits import MagnitudeProfile, PruningLimit
from pruning_limits.plotting import BLUE, GREEN, GREY, ORANGE, new_figure, save, sparsity_axis
from pruning_limits.result import established
from validation.data import ImageData
from validation.masks import prunable
from validation.studies.limits.actual import (
    RetrainSettings,
    one_shot_accuracies,
    retrained_limit,
    stored_trial,
    sustained,
)
from validation.studies.limits.predicted import LimitSettings, limit_notes, predicted_limit
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import Column, Page, Row, with_means, write_table
from validation.training import Network, accuracy

NAME = "theory-vs-actual"
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("seed", "seed"),
    Column("parameters", "D", ",d"),
    Column("accuracy", "dense test accuracy", ".2%"),
    Column("epsilon", "epsilon", ".4f"),
    Column("isotropic", "predicted one-shot (Hessian)", ".2%"),
    Column("interval", "numerical interval"),
    Column("actual_a", "(a) one-shot, objective", ".2%"),
    Column("actual_b0", "(b) one-shot, accuracy kept", ".2%"),
    Column("actual_b05", "(b) accuracy - 0.5 points", ".2%"),
    Column("difference_a", "predicted - (a), points", "+.2f"),
    Column("factor_a", "kept, predicted / (a)", ".2f"),
    Column("retrained", "predicted re-trained (GGN)", ".2%"),
    Column("actual_c", "(c) re-trained", ".2%"),
    Column("difference_c", "predicted - (c), points", "+.2f"),
    Column("factor_c", "kept, predicted / (c)", ".2f"),
    Column("status", "status"),
    Column("seconds", "seconds", ".0f"),
)


def run(cell: Cell, bench: Bench) -> Row:
    """Measure what one network bears beside its predicted limit.

    Args:
        cell: The network.
        bench: Its data and the suite's settings.

    Returns:
        One row of the table, with the curves behind it.
    """
    network, data = cell.network, bench.data
    model = bench.model(network)
    limit = predicted_limit(network, bench)
    evaluations = bench.suite.settings(RetrainSettings).evaluations
    started = time.perf_counter()
    profile = MagnitudeProfile(prunable(model))
    dense = accuracy(model, data)
    curve = one_shot_accuracies(model, data, profile)
    level, start = limit.objective + limit.epsilon, min(limit.lower, 1 - 1 / limit.parameters)
    actual_c, trials = retrained_limit(partial(stored_trial, network, bench), level, start, evaluations)
    return _row(network, data, limit, dense, curve, actual_c) | {
        "trials": trials,
        "rises": [[0.0, 0.0], *([point.sparsity, point.rise] for point in limit.evidence.points)],
        "accuracies": [list(point) for point in curve],
        "predict_seconds": limit.cost.seconds,
        "seconds": limit.cost.seconds + time.perf_counter() - started,
    }


def _row(
    network: Network,
    data: ImageData,
    limit: PruningLimit,
    dense: float,
    curve: Sequence[tuple[float, float]],
    actual_c: float,
) -> Row:
    low, high = limit.interval
    actual_a = limit.lower
    return {
        "model": network.model,
        "dataset": data.name,
        "seed": network.seed,
        "parameters": limit.parameters,
        "accuracy": dense,
        "epsilon": limit.epsilon,
        "objective": limit.objective,
        "isotropic": limit.sparsity,
        "interval": f"{low:.2%} to {high:.2%}",
        "low": low,
        "high": high,
        "retrained": limit.retrained,
        "upper": limit.upper,
        "actual_a": actual_a,
        "actual_b0": sustained(curve, dense),
        "actual_b05": sustained(curve, dense - 0.005),
        "actual_c": actual_c,
        "difference_a": 100 * (limit.sparsity - actual_a),
        "factor_a": kept_factor(limit.sparsity, actual_a),
        "difference_c": 100 * (established(limit.retrained) - actual_c),
        "factor_c": kept_factor(established(limit.retrained), actual_c),
        "status": limit.answer("formula").status.partition(":")[0],
        "status_reason": limit.answer("formula").status,
        "step_error": limit.evidence.hessian.step_error,
        "sample_error": limit.evidence.hessian.sample_error,
        "ggn_step_error": established(limit.evidence.ggn).step_error,
        "ggn_sample_error": established(limit.evidence.ggn).sample_error,
    }


def kept_factor(predicted: float, actual: float) -> float | None:
    """Ratio of predicted to actual kept fraction; None where everything could be removed.

    Example:
        >>> kept_factor(0.5, 0.75), kept_factor(0.5, 1.0)
        (2.0, None)
    """
    return (1 - predicted) / (1 - actual) if actual < 1 else None


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table as JSON and Markdown and draw its figure.

    Args:
        rows: One row per network.
        suite: The suite behind them.
        folder: Where to.
        command: The command that made the table.
    """
    retrain = suite.settings(RetrainSettings)
    notes = [
        f"Made by `{command}`.",
        *limit_notes(suite),
        "Actual: (a) largest sparsity at which one-shot global magnitude pruning keeps F <= F* + epsilon; (b) last "
        "sparsity of the sustained region with test accuracy at least the dense one, or 0.5 points below it, on a grid "
        "of 48 kept fractions from 1 to 0.004 (neighbours differ by 12 %); (c) sparsity at which "
        f"{retrain.epochs} epochs of re-training the kept weights (SGD, cosine from {retrain.lr_factor} times the "
        f"training rate, same penalty) reach F* + epsilon, interpolated between {retrain.evaluations} trials.",
    ]
    title = f"Predicted and actual pruning limits, suite {suite.name}"
    write_table(folder, Page(NAME, title, notes, COLUMNS), with_means(rows, COLUMNS))
    _figure(rows, folder / f"{NAME}.png")


def _figure(rows: Sequence[Row], path: Path) -> None:
    groups = [list(part) for _, part in groupby(rows, key=lambda row: (row["model"], row["dataset"]))]
    figure, axes = new_figure(len(groups), 2, size=(11.0, 3.4 * len(groups)), squeeze=False)
    for (left, right), group in zip(axes, groups, strict=True):
        least = min(0.25 * (1 - max(row["actual_c"], row["retrained"])) for row in group)
        for number, row in enumerate(group):
            first = number == 0
            rises = [(1 - s, rise) for s, rise in row["rises"] if rise > 0 and s < 1]
            label = "one-shot magnitude pruning" if first else None
            left.plot(*zip(*rises, strict=True), ".-", color=BLUE, linewidth=1, label=label)
            trials = sorted((1 - t["sparsity"], t["objective"] - row["objective"]) for t in row["trials"])
            above = [(kept, max(rise, row["epsilon"] / 10)) for kept, rise in trials]
            left.plot(*zip(*above, strict=True), "s", color=GREEN, markersize=4, label="re-trained" if first else None)
            kept, values = zip(*[(1 - s, 100 * a) for s, a in row["accuracies"]], strict=True)
            right.plot(kept, values, ".-", color=BLUE, linewidth=1, label=label)
            retrained = [(1 - t["sparsity"], 100 * t["accuracy"]) for t in row["trials"]]
            right.plot(*zip(*retrained, strict=True), "s", color=GREEN, markersize=4)
            right.axhline(100 * row["accuracy"], color=GREY, linewidth=0.8, linestyle=":")
        isotropic = sum(row["isotropic"] for row in group) / len(group)
        again = sum(row["retrained"] for row in group) / len(group)
        for one in (left, right):
            low, high = min(row["low"] for row in group), max(row["high"] for row in group)
            one.axvspan(max(1 - high, least), 1 - low, color=ORANGE, alpha=0.15, linewidth=0)
            one.axvline(1 - isotropic, color=ORANGE, linestyle="--", label=f"predicted one-shot {isotropic:.2%}")
            one.axvline(1 - again, color=GREEN, linestyle="--", label=f"predicted re-trained {again:.2%}")
            one.grid(alpha=0.25)
            sparsity_axis(one.xaxis, least)
            one.tick_params(axis="x", labelrotation=45, labelsize=8)
        epsilon = sum(row["epsilon"] for row in group) / len(group)
        left.axhline(epsilon, color=GREY, linestyle=":", label="allowed rise")
        left.set(yscale="log", ylabel="rise of the objective", ylim=(epsilon / 20, None))
        left.set_title(f"{group[0]['model']}, {group[0]['dataset']}, {len(group)} seeds", loc="left", fontsize=10)
        right.set(ylabel="test accuracy, %")
        left.legend(fontsize=7)
    for one in axes[-1]:
        one.set_xlabel("sparsity (removed fraction)")
    save(figure, path)


SECTIONS = (LimitSettings, RetrainSettings)
TABLE = Table(NAME, lambda suite: suite.plain(*SECTIONS), run, write, sections=SECTIONS, prepare=predicted_limit)
