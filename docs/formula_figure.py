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
        "large/one-shot",
        "fc5",
        "With L1 and 40 epochs the formula finds the limit\n(FC5 on CIFAR-10, 3,883,000 weights)",
        (0, 0.5, 0.9, 0.97, 0.99),
    ),
    (
        "quick/theory-vs-actual",
        "small-cnn",
        "Without L1 it promises too much\n(small-cnn on digits, 3,660 weights)",
        (0, 0.5, 0.7, 0.8, 0.9),
    ),
)


def rows_of(table, model):
    """Return all seeds of one network."""
    networks = json.loads((RESULTS / f"{table}.json").read_text())["networks"]
    return [row for row in networks if row["model"] == model]


def accuracies(row, points):
    """Return sparsities and held-out accuracies of points of a curve."""
    return [(1 - point["kept"], row["dense"]["held_out"] - point["held_out_drop"]) for point in points]


def predictions(row):
    """Return what is predicted: by the loss where re-training is followed, else by the paper's objective."""
    if "predictions" in row:
        known = row["predictions"]["loss"]
        return {"one-shot": known["hessian"], "re-trained": known["forecast"]}
    return {"one-shot": next(case["predicted"] for case in row["cases"] if case["protocol"] == "paper")}


def draw(axes, rows):
    """Draw mean accuracies of one-shot and re-trained networks, and the predictions, over the kept fraction."""
    curves = [np.array([(0.0, row["dense"]["held_out"]), *accuracies(row, row["curves"]["alone"])]) for row in rows]
    shortest = min(curves, key=len)
    kept, length = 1 - shortest[:, 0], len(shortest)
    mean = np.mean([curve[:length, 1] for curve in curves], axis=0)
    axes.plot(kept, 100 * mean, color=BLUE, label="pruned, nothing else")
    again = [(row, points) for row in rows for name, points in row["curves"].items() if name.startswith("again")]
    trials = [(1 - sparsity, 100 * share) for row, points in again for sparsity, share in accuracies(row, points)]
    if trials:
        axes.plot(*zip(*trials, strict=True), "s", color=GREEN, markersize=5, label="trained again, whole recipe")
    for key, colour in (("one-shot", ORANGE), ("re-trained", GREEN)):
        known = [predictions(row)[key] for row in rows if key in predictions(row)]
        if known:
            mean = np.mean(known)
            axes.axvline(1 - mean, color=colour, linestyle="--", label=f"predicted, {key}: {mean:.1%}")
    least = min([*kept, *(place for place, _ in trials)])
    axes.set(xscale="log", xlim=(1, 0.8 * max(least, 0.006)), ylabel="test accuracy, %")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=10, loc="lower left")


def main():
    """Write ``docs/formula.png``."""
    figure = Figure(figsize=(6.6, 7.6), layout="constrained")
    for axes, (table, model, title, marks) in zip(figure.subplots(2), PANELS, strict=True):
        draw(axes, rows_of(table, model))
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
