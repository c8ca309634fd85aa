"""Table ``oracle``: small networks whose exact Hessian, best re-tuned weights and re-trained optimum are all known."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from estimators import Objective
from pruning_limits.plotting import BLUE, GREEN, GREY, ORANGE, headline, new_figure, save, sparsity_axis
from validation.studies.limits import truths
from validation.tables.kinds import kinds_of
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import (
    COLOURS,
    Column,
    Page,
    Row,
    between,
    network_row,
    recipe_text,
    with_means,
    write_table,
)
from validation.training import Network, Recipe, accuracy

Floats = NDArray[np.float64]

NAME = "oracle"
MODELS = ("fc3-tiny", "cnn-tiny")
PENALTIES = (1e-3, 0.0)
SEEDS = (0, 1, 2)
EPOCHS = 60
PREDICTIONS = {
    "isotropic_hessian": "isotropic, |Hessian|",
    "isotropic_ggn": "isotropic, GGN",
    "directional": "directional, GGN",
}
TRUTHS = {
    "one_shot": "one-shot, measured",
    "quadratic": "one-shot, quadratic model",
    "schur": "Schur optimum, GGN",
    "schur_hessian": "Schur optimum, Hessian",
    "retrained": "re-trained, F* + epsilon",
    "retrained_control": "re-trained, control + epsilon",
}
SUBSPACES = {"random_subspace": "random subspace", "random_coordinates": "random coordinates"}
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("seed", "seed"),
    Column("parameters", "D", ",d"),
    Column("accuracy", "dense test accuracy", ".2%"),
    Column("epsilon", "epsilon", ".5f"),
    *(Column(key, f"predicted: {name}", ".2%") for key, name in PREDICTIONS.items()),
    *(Column(key, name, ".2%") for key, name in (TRUTHS | SUBSPACES).items()),
    Column("control_fall", "control: fall of F, epsilons", ".1f"),
    Column("converged", "L-BFGS runs converged", ".0%"),
    Column("definite_from", "Hessian of kept weights semidefinite from", ".2%"),
)


def cells(suite: Suite) -> list[Cell]:
    """Return one cell per small network of the table's own; no suite's networks are asked for."""
    return [
        Cell(Network(model, "digits", Recipe(EPOCHS, 0.05, l1=l1, warmup=1), seed))
        for model, l1, seed in product(MODELS, PENALTIES, SEEDS)
    ]


def run(cell: Cell, bench: Bench) -> Row:
    """Hold the three predictions of one network against its truths."""
    started = time.perf_counter()
    network, data = cell.network, bench.data
    model = bench.model(network)
    row = network_row(network) | {"accuracy": accuracy(model, data)}
    batches = [(x.double(), y) for x, y in data.batches("train", 1000)]
    row |= truths.limits_and_truths(Objective(model.double(), batches, penalty=network.recipe.penalty))
    return row | {"seconds": time.perf_counter() - started}


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table, say which prediction is closest to which truth, and draw the rises."""
    first = cells(suite)[0].network.recipe
    notes = [
        f"Made by `{command}`. The networks are the table's own and the same for every suite: {', '.join(MODELS)} on "
        f"digits ({recipe_text(first)}; and without the penalty). Everything is exact, in float64 and on all training "
        "samples: Hessian and GGN with all their eigenvalues; nothing is estimated by Lanczos.",
        "Sparsity is the removed fraction of convolution and linear weights. Epsilon is the standard deviation of the "
        "mean loss of 128 training samples. All masks are global magnitude masks of the trained weights; d is the "
        "removed part. The gradient counts in the quadratic model as in `predict_limit`: without a penalty it does, "
        "with L1 it is taken as zero; one-shot in the quadratic model takes the full gradient.",
        "Truths: the last sparsity with a rise of at most epsilon. *One-shot*: measured by forward passes. *Schur "
        "optimum*: lowest point of the quadratic model when exactly the kept weights move. With the Hessian that model "
        "may fall without end, and then counts as reached; one column says from which sparsity on it does not. "
        f"*Re-trained*: L-BFGS ({truths.ITERATIONS} iterations at most, an L1 penalty split into u - v with u, v >= 0) "
        "on the objective itself; only the kept weights move, biases and removed weights stay. F* is the objective of "
        "the trained network; the control is L-BFGS with nothing removed, because mere further optimisation lowers F, "
        f"too. The grid has {len(truths.KEPT)} kept fractions from {max(truths.KEPT):.2g} to {min(truths.KEPT):.2g}; "
        f"the bracket of a re-trained limit is halved {truths.REFINEMENTS} times, and within it the rise is a straight "
        "line in log(1 - s). A run that the budget ended lies above the optimum: the limit at F* + epsilon may "
        "in truth be higher, that at the control's level is uncertain both ways, most of all where the rise is flat.",
        "Subspaces: each starts at the same pruned point w* - d and has as many dimensions as weights are kept; "
        "compared is the lowest rise of the GGN's quadratic model on it. *Schur optimum*: the kept coordinates. "
        "*Random subspace*: Gaussian directions. *Random coordinates*: coordinates drawn at random, removed ones "
        f"among them, move instead of the kept ones. Means of {truths.TRIALS} draws.",
        "*Closest*: the kept fractions of prediction and truth differ by the smallest factor, geometric mean over the "
        "networks.",
        *_words(rows),
    ]
    title = "Predicted limits against exact optima of small networks"
    table = with_means(rows, COLUMNS, ("model", "dataset", "penalty"))
    write_table(folder, Page(NAME, title, notes, COLUMNS), table)
    _draw(rows, folder / f"{NAME}.png")


def _ratios(rows: Sequence[Row], key: str, truth: str) -> Floats:
    """Log ratios of the kept fractions of two limits."""
    kept = np.array([[max(1 - row[name], 1 / row["parameters"]) for name in (key, truth)] for row in rows])
    ratios: Floats = np.log(kept[:, 0] / kept[:, 1])
    return ratios


def _words(rows: Sequence[Row]) -> list[str]:
    """Say for every penalty what the numbers say."""
    lines = []
    for penalty in dict.fromkeys(row["penalty"] for row in rows):
        own = [row for row in rows if row["penalty"] == penalty]
        title = "**Without penalty.**" if penalty == "none" else f"**With {penalty}.**"
        parts = {
            model: [row for row in own if row["model"] == model] for model in dict.fromkeys(r["model"] for r in own)
        }
        lines += [
            f"{title} {_control(own)}",
            "\n".join(f"* {model}: {_subspaces(part)}" for model, part in parts.items()),
            "\n".join(_closest(own, truth) for truth in TRUTHS),
        ]
    return lines


def finding(rows: Sequence[Row]) -> str:
    """Say which prediction is nearest to the re-trained optimum, and by which factors it misses what is kept there."""
    factors = {key: np.exp(np.abs(_ratios(rows, key, "retrained"))) for key in PREDICTIONS}
    nearest = min(factors, key=lambda key: float(np.log(factors[key]).mean()))
    return (
        f'Optima after re-training lie nearest to the prediction "{PREDICTIONS[nearest]}": what it keeps is off by a '
        f"factor of {between(factors[nearest], '.2f')}"
    )


def _closest(rows: Sequence[Row], truth: str) -> str:
    """Rank the predictions by their distance to one truth."""
    logs = {key: _ratios(rows, key, truth) for key in PREDICTIONS}
    ranked = sorted(logs, key=lambda key: float(np.abs(logs[key]).mean()))
    said = [
        f"{PREDICTIONS[key]} (off by a factor of {np.exp(np.abs(logs[key]).mean()):.2f}, "
        f"keeps {np.exp(logs[key].mean()):.2f} times the true number)"
        for key in ranked
    ]
    return f"* {TRUTHS[truth]}: closest is {said[0]}; then {'; '.join(said[1:])}."


def _control(rows: Sequence[Row]) -> str:
    falls = [row["control_fall"] for row in rows]
    return (
        f"With nothing removed, L-BFGS lowers the objective by {min(falls):.1f} to {max(falls):.1f} epsilons, and "
        f"{np.mean([row['converged'] for row in rows]):.0%} of all its runs ended within the budget."
    )


def _subspaces(rows: Sequence[Row]) -> str:
    """Compare the kept coordinates with random subspaces and random coordinates, and those with the prediction."""
    subspace, coordinates = (np.exp(_ratios(rows, key, "schur")) for key in SUBSPACES)
    check = np.exp(np.abs(_ratios(rows, "directional", "random_subspace")))
    typical = float(np.exp(np.log(subspace).mean()))
    same = 0.95 <= typical <= 1.05
    verdict = "are as good as" if same else "reach further than" if typical > 1 else "fall short of"
    return (
        f"the kept coordinates of the mask {verdict} a random subspace of the same dimension: the latter needs "
        f"{typical:.2f} times as many dimensions ({subspace.min():.2f} to {subspace.max():.2f}), and coordinates drawn "
        f"at random need {np.exp(np.log(coordinates).mean()):.2f} times as many ({coordinates.min():.2f} to "
        f"{coordinates.max():.2f}). As a check, random subspaces and the directional prediction, which speaks of them, "
        f"differ by a factor of {np.exp(np.log(check).mean()):.3f} in kept fraction, {check.max():.3f} at most."
    )


CURVES = {
    "one_shot": (BLUE, "one-shot, measured"),
    "schur": (GREEN, "Schur optimum, GGN: kept coordinates move"),
    "random_subspace": (COLOURS[3], "random subspace of the same dimension, GGN"),
    "random_coordinates": (COLOURS[4], "random coordinates of the same number, GGN"),
}
LINES = {"isotropic_hessian": BLUE, "isotropic_ggn": ORANGE, "directional": COLOURS[3]}


def _draw(rows: Sequence[Row], path: Path) -> None:
    """Draw one panel per kind of network: rises in epsilons against sparsity, one thin line per seed."""
    kinds = kinds_of(rows)
    columns = min(2, len(kinds))
    lines = -(-len(kinds) // columns)
    figure, grid = new_figure(lines, columns, size=(6.2 * columns, 3.6 * lines + 1.6), squeeze=False)
    for axes in grid.flat[len(kinds) :]:
        axes.set_visible(False)
    for axes, (which, own) in zip(grid.flat, kinds.items(), strict=False):
        _panel(axes, own)
        axes.set_title(f"{which[0]}, penalty {which[2]}", loc="left", fontsize=10, fontweight="bold")
    headline(figure, finding(rows))
    handles = [Line2D([], [], color=colour, label=label) for colour, label in CURVES.values()]
    handles.append(Line2D([], [], color="black", marker=".", label="re-trained by L-BFGS, a dot per run"))
    handles += [
        Line2D([], [], color=colour, linestyle="--", linewidth=1.8, label=f"predicted: {PREDICTIONS[key]}")
        for key, colour in LINES.items()
    ]
    handles.append(Line2D([], [], color=GREY, linewidth=1.5, label="allowed rise: a limit is where a curve passes it"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8)
    save(figure, path)


def _panel(axes: Any, rows: Sequence[Row]) -> None:
    for row in rows:
        kept = [1 - point["sparsity"] for point in row["points"]]
        for key, (colour, _) in CURVES.items():
            axes.plot(kept, [p[key] / row["epsilon"] for p in row["points"]], color=colour, linewidth=0.9)
        runs = [(1 - retrained["sparsity"], retrained["rise"] / row["epsilon"]) for retrained in row["runs"]]
        axes.plot(*zip(*runs, strict=True), ".-", color="black", linewidth=0.9, markersize=4)
    for key, colour in LINES.items():
        middle = np.exp(np.mean([np.log(max(1 - row[key], 1 / row["parameters"])) for row in rows]))
        axes.axvline(middle, color=colour, linestyle="--", linewidth=1.8)
    axes.axhline(1.0, color=GREY, linewidth=1.5)
    axes.set_yscale("symlog", linthresh=2.0)
    lowest = min(retrained["rise"] / row["epsilon"] for row in rows for retrained in row["runs"])
    axes.set_ylim(min(-1.0, 1.5 * lowest), 1e3)
    sparsity_axis(axes.xaxis, 0.01)
    axes.set(xlabel="sparsity (removed fraction)", ylabel="rise of the objective, in epsilons")
    axes.tick_params(axis="x", labelrotation=45, labelsize=8)
    axes.grid(alpha=0.25)


def settings(suite: Suite) -> dict[str, Any]:
    """Return what every cell depends on besides its network; nothing of the suite."""
    return {
        "kept": list(truths.KEPT),
        "fine": truths.FINE,
        "trials": truths.TRIALS,
        "iterations": truths.ITERATIONS,
        "refinements": truths.REFINEMENTS,
    }


TABLE = Table(NAME, settings, run, write, cells)
