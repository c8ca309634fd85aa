"""Draw what is told of a real network and what is true: ``python docs/accuracy_figure.py``, from committed results.

LeNet-300-100 on MNIST may lose one point of held-out accuracy. Above, accuracy against sparsity of magnitude pruning
alone and after the whole recipe once more; below, what ``predict_limit`` tells and the truth of each.
"""

import json
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from thin import thin_figure

HERE = Path(__file__).parent
TABLE, MODEL, SEED, DROP = "results/cpu/theory-vs-actual.json", "lenet-300-100", 0, 0.01
BLUE, ORANGE, GREEN, GREY, BLACK = "#0072b2", "#d55e00", "#009e73", "#777777", "#000000"
TRUE = "#7a0177"
RUNGS = (
    ("one-shot", "pruned, nothing else\n(measured)", BLUE),
    ("re-trained", "re-trained\n(forecast)", GREEN),
    ("bound", "no hope beyond\n(bound)", BLACK),
    ("formula", "the paper's formula", ORANGE),
)
MARKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998)


def curve(network, name):
    """Return sparsities and held-out accuracies in per cent of one curve of a network."""
    points = network["curves"][name]
    dense = network["dense"]["held_out"]
    return [point["kept"] for point in points], [100 * (dense - point["held_out_drop"]) for point in points]


def percent(sparsity, digits=0):
    """Return a sparsity in words."""
    return f"{100 * sparsity:.{digits}f} %"


def main():
    """Write ``docs/accuracy.png``."""
    networks = json.loads((HERE / TABLE).read_text())["networks"]
    network = next(row for row in networks if (row["model"], row["seed"]) == (MODEL, SEED))
    told = {case["rung"]: case for case in network["cases"] if (case["protocol"], case["by"]) == ("user", "accuracy")}
    figure = Figure(figsize=(7.4, 6.0), layout="constrained")
    above, below = figure.subplots(2, height_ratios=(3, 2), sharex=True)
    dense = 100 * network["dense"]["held_out"]
    kept, accuracy = curve(network, "alone")
    above.plot([1, *kept], [dense, *accuracy], ".-", color=BLUE, label="pruned, nothing else")
    for number, name in enumerate(name for name in network["curves"] if name.startswith("again")):
        above.plot(*curve(network, name), "s", color=GREEN, label="_" if number else "pruned, whole recipe once more")
    above.axhline(dense - 100 * DROP, color=GREY, linestyle="--", label="one point below the dense network")
    above.set(ylabel="held-out accuracy, %", xscale="log", xlim=(1, 0.002), ylim=(dense - 2.6, dense + 0.3))
    above.legend(loc="upper right", fontsize=10)
    for place, (rung, _, colour) in enumerate(RUNGS):
        case = told[rung]
        below.plot([1 - case["low"], 1 - case["high"]], [place, place], color=colour, linewidth=7, alpha=0.4)
        below.plot(1 - case["predicted"], place, "o", color=colour, label="_" if place else "told, with its interval")
        below.plot(
            1 - case["actual"],
            place,
            "|",
            color=TRUE,
            markersize=18,
            markeredgewidth=2,
            label="_" if place else "true",
        )
    below.set_yticks(range(len(RUNGS)), [words for _, words, _ in RUNGS], fontsize=10)
    below.set(xlabel="sparsity (removed fraction of the weights)", ylim=(len(RUNGS) - 0.4, -0.6))
    below.legend(loc="lower right", fontsize=10)
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.xaxis.set_major_locator(FixedLocator([1 - mark for mark in MARKS]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda kept, _: f"{100 * (1 - kept):g} %"))
    alone, again, bound = (told[rung] for rung in ("one-shot", "re-trained", "bound"))
    figure.suptitle(
        f"LeNet-300-100 on MNIST may lose one point: pruning alone removes {percent(alone['predicted'])}, training\n"
        f"again {percent(again['low'])} to {percent(again['high'])} (true: {percent(again['actual'])}); there is no "
        f"hope beyond {percent(bound['high'], 1)}",
        fontsize=11,
        x=0.02,
        ha="left",
    )
    path = HERE / "accuracy.png"
    figure.savefig(path, dpi=120)
    thin_figure(path)


if __name__ == "__main__":
    main()
