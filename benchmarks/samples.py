"""How the limits move with the data sub-sample, and how well they are carried from it to all data.

``python benchmarks/samples.py --out docs/results/benchmarks``, with CIFAR-10 and MNIST in ``PRUNING_LIMITS_DATA``.
Networks are looked for in ``runs`` and trained where they are missing; then about 45 minutes of one core, most of them
for all data of FC5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from timing import environment, environment_note, options

from estimators import Objective
from pruning_limits import MagnitudeProfile
from pruning_limits.estimates import Estimates
from pruning_limits.isotropic import carried_limit
from pruning_limits.losses import all_losses
from pruning_limits.plotting import BLUE, GREY, ORANGE, new_figure, save
from pruning_limits.settings import Settings
from pruning_limits.subsamples import Subsamples
from validation.data import load_data
from validation.tables.reading import load_suite
from validation.tables.writing import Column, Page, Row, write_table
from validation.training import Network, trained_network

KINDS = {"hessian": "Hessian", "ggn": "GGN"}


@dataclass(frozen=True)
class Study:
    """A network of a suite and what its limits are read off: draws of every sub-sample size, steps and probes.

    On a sub-sample of a large network the steps are those of a prediction; all data take ``whole``, because the more
    samples there are, the later the limit settles.
    """

    suite: str
    model: str
    draws: dict[int, int]
    steps: int
    whole: int
    probes: int

    @property
    def network(self) -> Network:
        """The first of these networks."""
        return next(network for network in load_suite(self.suite).networks if network.model == self.model)


STUDIES = (
    Study("cpu", "fc5", {128: 4, 1024: 4, 8192: 1}, 16, 48, 1),
    Study("cpu", "lenet-300-100", {128: 4, 1024: 4, 8192: 1}, 16, 48, 1),
    Study("quick", "fc5-mini", {44: 4, 88: 4, 175: 4, 350: 4, 700: 4}, 64, 64, 4),
    Study("quick", "small-cnn", {44: 4, 88: 4, 175: 4, 350: 4, 700: 4}, 64, 64, 4),
)


def rows_of(study: Study, runs: Path) -> list[Row]:
    """Predict from every draw of every size, and from all data."""
    network = study.network
    data = load_data(network.dataset)
    objective = Objective(
        trained_network(network, data, runs), data.batches("train", 1000), penalty=network.recipe.penalty
    )
    losses, curve = all_losses(objective), MagnitudeProfile(objective.chosen).curve()
    allowed = losses.deviation()
    rows = []
    for samples, draws in (study.draws | {objective.samples: 1}).items():
        steps = study.steps if samples < objective.samples else study.whole
        for seed in range(draws):
            settings = Settings(epsilon=allowed, samples=samples, steps=steps, probes=study.probes, seed=seed)
            estimates = Estimates(Subsamples(losses, settings), curve, allowed, progress=False)
            row: Row = {"model": network.model, "dataset": network.dataset, "samples": samples, "draw": seed}
            row |= {"steps": steps, "probes": study.probes}
            for kind in KINDS:
                estimate = estimates.estimate(kind)
                carried = carried_limit(estimate, curve, allowed, "abs")
                row |= {
                    f"{kind}_raw": estimate.on_samples(carried),
                    kind: carried,
                    f"{kind}_error": estimate.sample_error,
                }
            rows.append(row)
            print(row, flush=True)
    return rows


def figure(rows: list[Row], path: Path) -> None:
    """Draw the kept fractions on the sub-sample and carried to all data, against the sub-sample."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = new_figure(len(models), 2, size=(10.0, 3.2 * len(models)), squeeze=False)
    for line, model in zip(axes, models, strict=True):
        own = [row for row in rows if row["model"] == model]
        total = max(row["samples"] for row in own)
        for panel, (kind, said) in zip(line, KINDS.items(), strict=True):
            part = [row for row in own if row["samples"] < total]
            for key, colour, style, label in (
                (f"{kind}_raw", BLUE, {"marker": "o", "fillstyle": "none"}, "on the sub-sample"),
                (kind, ORANGE, {"marker": "."}, "carried to all data"),
            ):
                across = [row["samples"] for row in part]
                panel.plot(across, [1 - row[key] for row in part], color=colour, linestyle="", label=label, **style)
            truth = 1 - next(row[kind] for row in own if row["samples"] == total)
            panel.axhline(truth, color=GREY, linestyle="--", linewidth=1, label="all data")
            ticks = sorted({row["samples"] for row in part})
            panel.set(xscale="log", yscale="log", xlabel="samples", ylabel="kept fraction at the limit")
            panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            values = [1 - row[key] for row in own for key in (kind, f"{kind}_raw")]
            fine = (1, 1.5, 2, 2.5, 3, 5, 7) if max(values) < 10 * min(values) else (1, 2, 5)
            marks = [10**n * m for n in range(-5, 1) for m in fine]
            marks = [mark for mark in marks if 0.8 * min(values) <= mark <= 1.25 * max(values)]
            panel.set_yticks(marks, [f"{100 * mark:.2g} %" for mark in marks])
            panel.minorticks_off()
            panel.set_title(f"{model}, {said}", loc="left", fontsize=9)
            panel.grid(alpha=0.25)
    axes[0, 0].legend(fontsize=7)
    save(figure, path)


def summary(rows: list[Row]) -> list[str]:
    """Say for every network and size by which factor of the kept weights the limits miss that of all data."""
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        whole = max(own, key=lambda row: row["samples"])
        for samples in sorted({row["samples"] for row in own} - {whole["samples"]}):
            part = [row for row in own if row["samples"] == samples]
            said = []
            for kind, name in KINDS.items():
                off = {
                    key: math.exp(sum(math.log((1 - row[key]) / (1 - whole[kind])) for row in part) / len(part))
                    for key in (f"{kind}_raw", kind)
                }
                held = sum(abs(row[kind] - whole[kind]) <= row[f"{kind}_error"] for row in part)
                said.append(
                    f"{name} {off[f'{kind}_raw']:.2f} times before and {off[kind]:.2f} times after, sample error holds "
                    f"in {held} of {len(part)}"
                )
            lines.append(f"{model}, {samples:,} samples, kept fraction against that of all data: {'; '.join(said)}.")
    return lines


def main() -> None:
    """Write the table and the figure."""
    arguments = options(__doc__).parse_args()
    torch.set_num_threads(1)
    rows = [row for study in STUDIES for row in rows_of(study, arguments.runs)]
    columns = [Column("model", "model"), Column("dataset", "data"), Column("samples", "samples", ",d")]
    columns += [Column("draw", "draw", "d"), Column("steps", "steps", "d"), Column("probes", "probes", "d")]
    for kind, said in KINDS.items():
        columns += [
            Column(f"{kind}_raw", f"{said}, on the sub-sample", ".2%"),
            Column(kind, f"{said}, carried to all data", ".2%"),
            Column(f"{kind}_error", "sample error", ".2%"),
        ]
    notes = [
        f"Made by `python benchmarks/samples.py --out {arguments.out}`. {environment_note()}",
        "First network of each kind. Isotropic limits, read off a sub-sample and parts of it, and carried to all "
        "data; the last row of a network is all data. The part is a quarter for the Hessian; for the GGN there are a "
        "sixteenth and a quarter. A draw is a seed of sub-sample and probes.",
        *summary(rows),
    ]
    title = "The limit against the data sub-sample"
    write_table(arguments.out, Page("samples", title, notes, columns), rows, environment=environment())
    figure(rows, arguments.out / "samples.png")


if __name__ == "__main__":
    main()
