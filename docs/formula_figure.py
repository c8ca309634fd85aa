"""Draw where the formula holds and where not, from committed results: ``python docs/formula_figure.py``.

Accuracy against sparsity after one-shot and after re-trained pruning, with what was predicted, for a network where the
formula holds and for one where it does not.
"""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from thin import thin_figure

RESULTS = Path(__file__).parent / "results"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
PANELS = (
    (
        "cpu/objective",
        "fc5",
        "With L1 the formula finds the limit\n(FC5 on CIFAR-10, 3,883,000 weights)",
        (0, 0.5, 0.9, 0.97, 0.99),
        "5 epochs",
    ),
    (
        "quick/theory-vs-actual",
        "small-cnn",
        "Without L1 it promises too much\n(small-cnn on digits, 3,660 weights)",
        (0, 0.5, 0.7, 0.8, 0.9),
        "whole recipe",
    ),
)


def rows_of(table, model):
    """Return accuracies, trials and predictions of all seeds of one network."""
    plain = json.loads((RESULTS / f"{table}.json").read_text())
    rows = [row for row in plain.get("networks", plain["rows"]) if row["model"] == model]
    return [row if "accuracies" in row else by_loss(row) for row in rows]


def by_loss(row):
    """Return what the user's protocol says of a network: pruning alone, the whole recipe, formula and forecast."""
    dense, curves = row["dense"]["held_out"], row["curves"]
    alone = [(1 - point["kept"], dense - point["held_out_drop"]) for point in curves["alone"]]
    again = [
        {"sparsity": 1 - point["kept"], "accuracy": dense - point["held_out_drop"]}
        for name, points in curves.items()
        if name.startswith("again")
        for point in points
    ]
    known = row["predictions"]["loss"]
    drawn = {"accuracies": [(0.0, dense), *alone], "trials": again}
    return row | drawn | {"isotropic": known["hessian"], "retrained": known["forecast"]}


def draw(axes, rows, how):
    """Draw mean accuracies of one-shot and re-trained networks, and the predictions, over the kept fraction."""
    curves = [np.array(row["accuracies"]) for row in rows]
    shortest = min(curves, key=len)
    kept, length = 1 - shortest[:, 0], len(shortest)
    mean = np.mean([curve[:length, 1] for curve in curves], axis=0)
    axes.plot(kept, 100 * mean, color=BLUE, label="pruned, nothing else")
    trials = [trial for row in rows for trial in row["trials"]]
    points = [(1 - trial["sparsity"], 100 * trial["accuracy"]) for trial in trials]
    axes.plot(*zip(*points, strict=True), "s", color=GREEN, markersize=5, label=f"trained again, {how}")
    for key, colour, text in (("isotropic", ORANGE, "one-shot"), ("retrained", GREEN, "re-trained")):
        mean = np.mean([row[key] for row in rows])
        axes.axvline(1 - mean, color=colour, linestyle="--", label=f"predicted, {text}: {mean:.1%}")
    least = min([*kept, *(place for place, _ in points)])
    axes.set(xscale="log", xlim=(1, 0.8 * max(least, 0.006)), ylabel="test accuracy, %")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=10, loc="lower left")


def main():
    """Write ``docs/formula.png``."""
    figure = Figure(figsize=(6.6, 7.6), layout="constrained")
    for axes, (table, model, title, marks, how) in zip(figure.subplots(2), PANELS, strict=True):
        draw(axes, rows_of(table, model), how)
        axes.set_title(title, fontsize=12, loc="left")
        axes.xaxis.set_major_locator(FixedLocator([1 - mark for mark in marks]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda kept, _: f"{100 * (1 - kept):g} %"))
        axes.tick_params(labelsize=11)
        axes.yaxis.label.set_size(11)
    axes.set_xlabel("sparsity (removed fraction of the weights)", fontsize=11)
    path = Path(__file__).parent / "formula.png"
    figure.savefig(path, dpi=120)
    thin_figure(path)


if __name__ == "__main__":
    main()
