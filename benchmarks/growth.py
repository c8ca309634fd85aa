"""Growth of the time and memory of a product and of a short Lanczos run with the numbers of weights and samples.

Run by hand: ``python benchmarks/growth.py --out docs/results/benchmarks``. It takes about six minutes. Every point is
measured in a process of its own. It needs Linux, because it reads the peak of the resident size from ``/proc``.
"""

from __future__ import annotations

import gc
import itertools
import json
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from timing import FREEING, environment, environment_note, in_own_process, options
from torch import nn

from estimators import Hessian, Lanczos, Objective, sphere_probes
from pruning_limits.plotting import BLUE, GREEN, ORANGE, new_figure, save
from validation.tables.writing import Column, Page, Row, write_table

INPUTS, CLASSES, BATCH, STEPS = 64, 10, 256, 8
WIDTHS = (70, 280, 960, 2200, 4960)
SAMPLES = (256, 512, 1024, 2048, 4096, 8192)
MIDDLE = 960
RESNET = ("resnet50", 8, 32)
TASKS = {
    "product": ("one product, graphs rebuilt", GREEN, "o"),
    "none": (f"{STEPS} Lanczos steps, 'none'", BLUE, "s"),
    "full": (f"{STEPS} Lanczos steps, 'full'", ORANGE, "^"),
}
LARGE = 900_000
HEADINGS = {"seconds": "seconds", "mib": "peak above the start, MiB"}


def resident(key: str) -> int:
    """Bytes of the resident size now (VmRSS) or at most since it was last cleared (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


def objective(width: int, samples: int) -> Objective:
    """Build a fully connected network of random weights and its random data; width 0 is ResNet-50."""
    torch.manual_seed(0)
    if not width:
        name, count, side = RESNET
        model: nn.Module = getattr(torchvision.models, name)(num_classes=CLASSES)
        return Objective(model, [(torch.randn(count, 3, side, side), torch.arange(count) % CLASSES)])
    sizes = [INPUTS, width, width, CLASSES]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    x, y = torch.randn(samples, INPUTS), torch.arange(samples) % CLASSES
    batches = [(x[start : start + BATCH], y[start : start + BATCH]) for start in range(0, samples, BATCH)]
    return Objective(nn.Sequential(*layers[:-1]), batches)


def shortest(work: Callable[[], object], budget: float = 1.0) -> float:
    """Shortest processor time of a call, repeated until the budget is spent."""
    best, spent = float("inf"), 0.0
    while spent < budget:
        started = time.process_time()
        work()
        last = time.process_time() - started
        best, spent = min(best, last), spent + last
    return best


def child(width: int, samples: int) -> None:
    """Measure all tasks of one point."""
    torch.set_num_threads(1)
    before = resident("VmRSS")
    part = objective(width, samples)
    row: Row = {"dimension": part.dimension, "samples": part.samples}
    works: dict[str, Callable[[], object]] = {
        "product": lambda: Hessian(part, memory=0).matmat(sphere_probes(probe, 1)),
        "none": lambda: Lanczos(Hessian(part), sphere_probes(probe, 1), "none").advance(STEPS),
        "full": lambda: Lanczos(Hessian(part), sphere_probes(probe, 1), "full").advance(STEPS),
    }
    probe = Hessian(part)
    for task, work in works.items():
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        row[f"{task}_seconds"] = shortest(work)
        row[f"{task}_mib"] = (resident("VmHWM") - before) / (1 << 20)
    print(json.dumps(row))


def point(width: int, samples: int) -> Row:
    """Measure one point in a new process that gives freed vectors back to the system at once."""
    row = in_own_process(__file__, str(width), str(samples), **FREEING)
    print(row, flush=True)
    return row


def exponent(rows: list[Row], across: str, key: str, fixed: float = 0.0) -> float:
    """Fit y - fixed = a x^p by least squares of the logarithms."""
    x, y = np.log([row[across] for row in rows]), np.log([row[key] - fixed for row in rows])
    return float(np.polyfit(x, y, 1)[0])


def exponents(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Exponents in D, of large networks and without the memory of the smallest one, and in the samples."""
    smallest, *others = [row for row in rows if row["series"] == "weights"]
    large = [row for row in others if row["dimension"] >= LARGE]
    more = [row for row in rows if row["series"] == "samples"]
    fitted: dict[str, dict[str, float]] = {"dimension": {}, "samples": {}}
    for key in (f"{task}_{what}" for task in TASKS for what in HEADINGS):
        fixed = smallest[key] if key.endswith("mib") else 0.0
        fitted["dimension"][key] = exponent(large, "dimension", key, fixed)
        fitted["samples"][key] = exponent(more, "samples", key)
    return fitted


def figure(rows: list[Row], fitted: dict[str, dict[str, float]], path: Path) -> None:
    """Draw time and memory, against the weights above and against the samples below."""
    drawing, panels = new_figure(2, 2, size=(10.0, 7.6), sharey="col")
    for line, (across, series) in zip(panels, (("dimension", "weights"), ("samples", "samples")), strict=True):
        own = [row for row in rows if row["series"] == series]
        resnet = [row for row in rows if row["series"] == "resnet"] if series == "weights" else []
        for panel, (what, heading) in zip(line, HEADINGS.items(), strict=True):
            for task, (words, colour, marker) in TASKS.items():
                key = f"{task}_{what}"
                power = fitted[across][key]
                label = f"{words}: exponent {power:.2f}"
                panel.plot(
                    [row[across] for row in own],
                    [row[key] for row in own],
                    marker + "-",
                    color=colour,
                    label=label,
                    markersize=5,
                )
                panel.plot([r[across] for r in resnet], [r[key] for r in resnet], "*", color=colour, markersize=10)
            panel.set(
                xscale="log", yscale="log", xlabel="weights D" if series == "weights" else "samples", ylabel=heading
            )
            if series == "samples":
                panel.set_xticks(SAMPLES, [f"{count:,}" for count in SAMPLES])
                panel.minorticks_off()
            panel.grid(alpha=0.25)
            low = series == "samples" and what == "seconds"
            panel.legend(fontsize=8, loc="lower right" if low else "upper left")
            fixed = f"{own[0]['samples']} samples" if series == "weights" else f"D = {own[0]['dimension']:,}"
            panel.set_title(f"{'time' if what == 'seconds' else 'memory'}, {fixed}", loc="left", fontsize=10)
    drawing.supxlabel(textwrap.fill(caption(rows), 150), fontsize=8)
    save(drawing, path)


def caption(rows: list[Row]) -> str:
    """Say what is drawn."""
    name, count, side = RESNET
    star = next(row for row in rows if row["series"] == "resnet")
    return (
        f"Fully connected networks of {INPUTS} inputs and two hidden layers, batches of {BATCH}, float32, one thread. "
        f"Exponents: least squares of the logarithms, in D of networks with at least {LARGE:,} weights, the memory "
        f"of the smallest network taken off. Stars: {name}, "
        f"D = {star['dimension']:,}, {count} images of {side} x {side}. Peaks are above the process without a model."
    )


def report(rows: list[Row], out: Path) -> None:
    """Write table and figure."""
    fitted = exponents(rows)
    columns = [Column("series", "growing"), Column("dimension", "D", ",d"), Column("samples", "samples", ",d")]
    for task, (words, *_) in TASKS.items():
        columns.append(Column(f"{task}_seconds", f"{words}, s", ".3f"))
        columns.append(Column(f"{task}_mib", "MiB", ",.0f"))
    said = {
        across: ", ".join(
            f"{words} {fitted[across][f'{task}_seconds']:.2f} (time) and {fitted[across][f'{task}_mib']:.2f} (memory)"
            for task, (words, *_) in TASKS.items()
        )
        for across in fitted
    }
    notes = [
        f"Made by `python benchmarks/growth.py --out {out}`.",
        caption(rows),
        "Shortest processor time (user and system) of the calls that fit into a second, at least one. The runs of "
        "Lanczos build their graphs in the first step and keep them (up to 2 GiB); the single product rebuilds them "
        "batch by batch.",
        f"Exponents in D: {said['dimension']}. In the samples: {said['samples']}.",
        environment_note(),
        "![time and memory](growth.png)",
    ]
    extra: dict[str, Any] = {"environment": environment(), "exponents": fitted}
    write_table(out, Page("growth", "Growth of time and memory", notes, columns), rows, **extra)
    figure(rows, fitted, out / "growth.png")


def main() -> None:
    """Write table and figure, or measure one point."""
    parser = options(__doc__, runs=False)
    parser.add_argument("--child", type=int, nargs=2)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    torch.set_num_threads(1)
    rows = [point(width, BATCH) | {"series": "weights"} for width in WIDTHS]
    rows += [point(0, 0) | {"series": "resnet"}]
    rows += [point(MIDDLE, samples) | {"series": "samples"} for samples in SAMPLES]
    report(rows, arguments.out)


if __name__ == "__main__":
    main()
