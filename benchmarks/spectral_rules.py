"""Which quadrature rule reads the limit off an indefinite spectrum best, and do the stated intervals hold?

The true spectra come from dense eigenvalue solvers: spectra of networks trained on digits and on 60 synthetic classes,
and synthetic spectra. Run by hand: ``python benchmarks/spectral_rules.py --out docs/results/benchmarks``. It takes
about half an hour of one core. Dense spectra are kept in ``runs/``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from timing import options
from torch import Tensor, nn
from tqdm import tqdm

from estimators import (
    Hessian,
    Lanczos,
    Objective,
    SpectralMeasure,
    Tridiagonal,
    averaged_gauss,
    even_bracket,
    gauss,
    sphere_probes,
    steady_gauss,
)
from pruning_limits.estimates import Estimates
from pruning_limits.isotropic import isotropic_limit
from pruning_limits.losses import all_losses
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.magnitude_curve import MagnitudeCurve
from pruning_limits.parts import CERTAIN_SHARE
from pruning_limits.plotting import BLUE, GREEN, GREY, ORANGE, new_figure, save
from pruning_limits.settings import Settings
from pruning_limits.stopping import STOPPING
from pruning_limits.subsamples import Subsamples
from validation.data import ImageData, load_data
from validation.tables.storage import load_tensors, run_folder, save_tensors
from validation.tables.writing import Column, Page, Row, write_table
from validation.training import Recipe, train

Floats = NDArray[np.float64]
STEPS = (16, 32, 64, 128)
SEEDS_OF_RULES = 10
DEFLATED = 16
SEEDS_OF_CHANGES, STEPS_OF_CHANGES, FACTORS = 16, (16, 24, 32, 48, 64, 96, 128), (1.0, 0.25, 4.0)
FIRST_HALF = ("spiked", "power law", "narrow two-sided bulk", "tanh", "relu", "relu, L1")
RULES = {
    "gauss": "Gauss",
    "averaged": "averaged Gauss",
    "steady": "steady Gauss",
    "below": "even moments, from below",
    "above": "even moments, from above",
    "geometric": "geometric mean of both",
    "zeros": "steady Gauss, exact zeros taken out",
    "deflated": f"steady Gauss, {DEFLATED} outliers deflated",
}


@dataclasses.dataclass(frozen=True)
class Bed:
    """A known spectrum with the magnitudes and the epsilon of its limit."""

    eigenvalues: Floats
    curve: MagnitudeCurve
    epsilon: float

    def limit(self, measure: SpectralMeasure) -> float:
        """Return the isotropic limit."""
        return isotropic_limit(measure, self.curve, self.epsilon).sparsity

    @property
    def truth(self) -> float:
        """The limit of the dense spectrum."""
        return self.limit(SpectralMeasure.from_eigenvalues(self.eigenvalues))


def mlp(hidden: tuple[int, ...], activation: type[nn.Module], classes: int = 10, norm: bool = False) -> nn.Module:
    """Build a small fully connected network on 8 x 8 images."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = 64
    for size in hidden:
        layers += [nn.Linear(width, size), *([nn.BatchNorm1d(size)] if norm else []), activation()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, classes))


def many_classes() -> ImageData:
    """Sixty classes, each a random 8 x 8 prototype plus noise."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(60, 64, generator=generator)
    labels = torch.arange(3000) % 60
    pixels = (prototypes[labels] + 1.2 * torch.randn(3000, 64, generator=generator)) * 30 + 128
    images = pixels.clamp(0, 255).to(torch.uint8).view(-1, 1, 8, 8)
    return ImageData("sixty prototypes", images[:2400], labels[:2400], images[2400:], labels[2400:], 60)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, float]]] = {
    "tanh": (lambda: mlp((20, 20), nn.Tanh), {}),
    "relu": (lambda: mlp((24, 24), nn.ReLU), {}),
    "relu, L1": (lambda: mlp((24, 24), nn.ReLU), {"l1": 1e-3}),
    "relu, strong L1": (lambda: mlp((50, 30), nn.ReLU), {"l1": 4e-3}),
    "batch norm, L2": (lambda: mlp((40, 30), nn.ReLU, norm=True), {"l2": 1e-3}),
    "60 classes, L1": (lambda: mlp((40, 20), nn.ReLU, 60), {"l1": 3e-4}),
}


def network_bed(name: str, runs: Path) -> Bed:
    """Train a network and compute the eigenvalues of its whole Hessian, once."""
    build, penalty = NETWORKS[name]
    recipe = Recipe(epochs=60, lr=0.05, warmup=1, **penalty)  # type: ignore[arg-type]
    file = run_folder(runs, "bed", {"name": name, "recipe": str(recipe)}) / "bed.pt"
    if not file.exists():
        torch.manual_seed(0)
        data = many_classes() if "classes" in name else load_data("digits")
        model = build()
        train(model, data, recipe, seed=0)
        model = model.double().eval()
        batches = [(x.double(), y) for x, y in data.batches("train", 1000)]
        objective = Objective(model, batches, penalty=recipe.penalty)
        hessian = Hessian(objective).matmat(torch.eye(objective.dimension, dtype=torch.float64))
        weights = torch.cat([weight.reshape(-1) for weight in objective.chosen.values()])
        epsilon = all_losses(objective).deviation()
        eigenvalues = torch.linalg.eigvalsh((hessian + hessian.T) / 2)
        save_tensors(file, {"eigenvalues": eigenvalues, "weights": weights, "epsilon": epsilon})
    stored = load_tensors(file)
    curve = MagnitudeProfile({"weights": stored["weights"]}).curve()
    return Bed(stored["eigenvalues"].numpy(), curve, stored["epsilon"])


def synthetic_beds(size: int = 2000) -> dict[str, Bed]:
    """Spectra that are hard in one way each."""
    generator = np.random.default_rng(1)
    normal, uniform = generator.standard_normal, generator.uniform
    outliers = 10 / np.arange(1, 51)
    spectra = {
        "spiked": np.concatenate([50 * uniform(0.5, 1.5, 40), 0.02 * uniform(0.5, 1.5, size - 40)]),
        "power law": 10 / np.arange(1, size + 1) ** 1.5,
        "narrow two-sided bulk": np.concatenate([outliers, 0.003 * normal(size - 50)]),
        "exact zeros": np.concatenate([outliers, 0.01 * normal(300), np.zeros(size - 350)]),
        "two scales": np.concatenate([outliers[:30] / 2, 0.03 * normal(450), 0.0005 * normal(size - 480)]),
        "log-uniform, both signs": 10 ** uniform(-6, 0.5, size) * generator.choice([1, 1, -1], size),
    }
    curve = MagnitudeProfile({"weights": torch.from_numpy(0.05 * generator.laplace(size=size))}).curve()
    return {name: Bed(eigenvalues, curve, 0.01) for name, eigenvalues in spectra.items()}


class Diagonal:
    """A matrix known by its eigenvalues: in its eigenbasis a random probe stays random."""

    def __init__(self, eigenvalues: Floats) -> None:
        self.values = torch.from_numpy(eigenvalues)
        self.shape, self.dtype, self.device = (len(eigenvalues),) * 2, torch.float64, torch.device("cpu")

    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply."""
        return self.values[:, None] * vectors


def tridiagonal(eigenvalues: Floats, steps: int, seed: int) -> Tridiagonal:
    """Run Lanczos from a random probe."""
    operator = Diagonal(eigenvalues)
    run = Lanczos(operator, sphere_probes(operator, 1, seed))
    run.advance(min(steps, len(eigenvalues)))
    return run.tridiagonals()[0]


def readings(bed: Bed, steps: int, seed: int) -> dict[str, float]:
    """Read the limit off one Lanczos run by every rule, all at the same number of products."""
    size = len(bed.eigenvalues)
    matrix = tridiagonal(bed.eigenvalues, steps, seed)
    rules = {"gauss": gauss(matrix), "averaged": averaged_gauss(matrix), "steady": steady_gauss(matrix)}
    rules["below"], rules["above"] = even_bracket(matrix)
    limits = {name: bed.limit(SpectralMeasure((rule,), size)) for name, rule in rules.items()}
    limits["geometric"] = 1 - math.sqrt((1 - limits["below"]) * (1 - limits["above"]))
    order = np.argsort(-np.abs(bed.eigenvalues))
    outliers, rest = bed.eigenvalues[order[:DEFLATED]], bed.eigenvalues[order[DEFLATED:]]
    zeros = np.abs(bed.eigenvalues) < 1e-12 * np.abs(outliers[0])
    for name, known, left, spent in (
        ("zeros", bed.eigenvalues[zeros], bed.eigenvalues[~zeros], 0),
        ("deflated", outliers, rest, 2 * DEFLATED),
    ):
        if steps > spent:
            nodes, weights = steady_gauss(tridiagonal(left, steps - spent, seed))
            both = np.append(nodes, known), np.append(weights * len(left) / size, np.full(len(known), 1 / size))
            limits[name] = bed.limit(SpectralMeasure((both,), size))
    return limits


def rule_rows(name: str, bed: Bed) -> list[Row]:
    """Compare the rules on one bed."""
    rows = []
    for steps in STEPS:
        runs = [readings(bed, steps, seed) for seed in range(SEEDS_OF_RULES)]
        row: Row = {"bed": name, "dimension": len(bed.eigenvalues), "truth": bed.truth, "steps": steps}
        for rule in RULES:
            values = [run[rule] for run in runs if rule in run]
            if values:
                row[rule] = 100 * (float(np.mean(values)) - bed.truth)
        rows.append(row)
    return rows


def coverage_row(name: str, bed: Bed, seeds: int) -> Row:
    """Let the engine predict the limit of a quadratic objective with the bed's eigenvalues, once per seed."""
    values = torch.from_numpy(bed.eigenvalues)
    model = nn.Linear(len(values), 1, bias=False).double()
    objective = Objective(model, [torch.zeros(1)], lambda model, batch: 0.5 * (values * model.weight[0] ** 2).sum())
    losses, halves, hits, steps = all_losses(objective), [], [], []
    for seed in tqdm(range(seeds), desc=name, leave=False, disable=None):
        settings = Settings(epsilon=bed.epsilon, probes=1, seed=seed)
        estimates = Estimates(Subsamples(losses, settings), bed.curve, bed.epsilon, progress=False)
        estimate = estimates.estimate("hessian")
        error = isotropic_limit(estimate.measure, bed.curve, bed.epsilon).standard_error
        halves.append(estimate.half_width(error))
        hits.append(abs(estimate.limit(bed.limit) - bed.truth) <= halves[-1])
        steps.append(estimate.steps)
    return {
        "bed": name,
        "dimension": len(values),
        "truth": bed.truth,
        "holds": float(np.mean(hits)),
        "width": 100 * 2 * float(np.median(halves)),
        "narrow": float(np.mean(2 * np.array(halves) < 0.02)),
        "steps": int(np.median(steps)),
    }


def change_rows(name: str, bed: Bed) -> list[Row]:
    """Hold the share of the bracket and the change of the limit against the limit of the probe drawn, at each epsilon.

    The share is read at the bed's epsilon and serves the others, as in ``what_if``.
    """
    size, errors = len(bed.eigenvalues), dict[int, list[list[tuple[float, float, float]]]]()
    for seed in range(SEEDS_OF_CHANGES):
        operator = Diagonal(bed.eigenvalues)
        probe = sphere_probes(operator, 1, seed)[:, 0].double()
        exact = SpectralMeasure(((bed.eigenvalues, (probe**2 / probe.square().sum()).numpy()),), size)
        matrix = tridiagonal(bed.eigenvalues, max(STEPS_OF_CHANGES), seed)
        for steps in STEPS_OF_CHANGES:
            heads = [*STOPPING.earlier(steps), steps]
            limits = [SpectralMeasure((steady_gauss(matrix.head(count)),), size) for count in heads]
            ends = [SpectralMeasure((rule,), size) for rule in even_bracket(matrix.head(steps))]
            readings = []
            for factor in FACTORS:
                at = dataclasses.replace(bed, epsilon=factor * bed.epsilon)
                values, (low, high) = [at.limit(measure) for measure in limits], (at.limit(end) for end in ends)
                change = STOPPING.change([abs(value - values[-1]) for value in values[:-1]], steps)
                readings.append((abs(values[-1] - at.limit(exact)), abs(high - low), change))
            errors.setdefault(steps, []).append(readings)
    rows = []
    for steps, runs in errors.items():
        shares = [min(CERTAIN_SHARE, run[0][2] / max(run[0][1], 1e-12)) for run in runs]
        row: Row = {"bed": name, "half": "first" if name in FIRST_HALF else "second", "steps": steps}
        row["bracket"] = 100 * CERTAIN_SHARE * float(np.median([run[0][1] for run in runs]))
        row["stated"] = 100 * float(np.median([share * run[0][1] for share, run in zip(shares, runs, strict=True)]))
        for place, factor in enumerate(FACTORS):
            hits = [run[place][0] <= share * run[place][1] + 1e-4 for share, run in zip(shares, runs, strict=True)]
            row[f"holds_{factor:g}"] = float(np.mean(hits))
        rows.append(row)
    return rows


def by_halves(rows: list[Row]) -> list[Row]:
    """Average the rows of change over each half of the beds."""
    means = []
    for half in ("first", "second"):
        for steps in STEPS_OF_CHANGES:
            own = [row for row in rows if (row["half"], row["steps"]) == (half, steps)]
            keys = [key for key in own[0] if key not in ("bed", "half", "steps")]
            means.append(
                {"bed": "all", "half": half, "steps": steps} | {k: float(np.mean([r[k] for r in own])) for k in keys}
            )
    return means


def figure(rows: list[Row], path: Path) -> None:
    """Draw the errors of the rules against the number of steps."""
    beds = list(dict.fromkeys(row["bed"] for row in rows))
    figure, panels = new_figure(3, 4, size=(13.0, 8.0), sharex=True)
    for panel, bed in zip(panels.flat, beds, strict=True):
        own = [row for row in rows if row["bed"] == bed]
        across = [row["steps"] for row in own]
        panel.fill_between(
            across,
            [row["below"] for row in own],
            [row["above"] for row in own],
            color=GREY,
            alpha=0.2,
            label="bracket from even moments",
        )
        for rule, colour in (("gauss", BLUE), ("averaged", GREEN), ("steady", ORANGE)):
            panel.plot(across, [row[rule] for row in own], ".-", color=colour, label=RULES[rule])
        panel.axhline(0, color=GREY, linewidth=0.8)
        panel.set(xscale="log", xticks=across, xticklabels=across)
        panel.minorticks_off()
        panel.set_title(f"{bed}, D = {own[0]['dimension']:,}", loc="left", fontsize=9)
        panel.grid(alpha=0.25)
    for panel in panels[-1]:
        panel.set_xlabel("products")
    for line in panels:
        line[0].set_ylabel("limit - truth, points")
    panels[0][0].legend(fontsize=7)
    save(figure, path)


def main() -> None:
    """Write the two tables and the figure."""
    parser = options(__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    arguments = parser.parse_args()
    beds = {name: network_bed(name, arguments.runs) for name in NETWORKS} | synthetic_beds()
    command = f"Made by `python benchmarks/spectral_rules.py --out {arguments.out} --seeds {arguments.seeds}`."
    rows = [row for name, bed in beds.items() for row in rule_rows(name, bed)]
    columns = [Column("bed", "spectrum"), Column("dimension", "D", ",d"), Column("truth", "true limit", ".2%")]
    columns += [Column("steps", "products", "d"), *(Column(key, heading, "+.2f") for key, heading in RULES.items())]
    notes = [
        command,
        "Isotropic limit with the absolute Hessian, read off one random probe by different rules: mean difference from "
        f"the limit of the dense spectrum over {SEEDS_OF_RULES} probes, in points of sparsity. Deflation pays two "
        "products per outlier. Networks: 60 epochs of SGD on digits or on 60 synthetic classes, Hessian in float64.",
    ]
    write_table(arguments.out, Page("spectral-rules", "Quadrature rules for the Hessian", notes, columns), rows)
    figure(rows, arguments.out / "spectral-rules.png")
    changes = [row for name, bed in beds.items() for row in change_rows(name, bed)]
    columns = [Column("bed", "spectrum"), Column("half", "half of the spectra"), Column("steps", "steps", "d")]
    columns += [
        Column("bracket", "share of the bracket, points", ".2f"),
        Column("stated", "stated error, points", ".2f"),
    ]
    columns += [Column(f"holds_{factor:g}", f"holds at {factor:g} epsilon", ".1%") for factor in FACTORS]
    notes = [
        command,
        f"Error of the Hessian's limit from the number of steps, {SEEDS_OF_CHANGES} probes per spectrum: "
        f"{CERTAIN_SHARE} times the width of the bracket, or {STOPPING.changed:g} times the largest change of the "
        f"limit since a third of the steps where that is less, {STOPPING.settled:g} times from {STOPPING.settled_from} "
        f"steps on (the engine states it from {STOPPING.changes_from} steps on). It holds where the limit of the probe "
        "drawn, with all eigenvalues, lies within. The share is read at epsilon and serves the others, as in what_if.",
    ]
    rows = by_halves(changes) + changes
    write_table(arguments.out, Page("changes", "Is the change of the limit its error?", notes, columns), rows)
    covered = [coverage_row(name, bed, arguments.seeds) for name, bed in beds.items()]
    total = sum(row["holds"] for row in covered) / len(covered)
    columns = [Column("bed", "spectrum"), Column("dimension", "D", ",d"), Column("truth", "true limit", ".2%")]
    columns += [Column("holds", "intervals that hold", ".0%"), Column("width", "median width, points", ".2f")]
    columns += [Column("narrow", "narrower than 2 points", ".0%"), Column("steps", "median steps", "d")]
    notes = [
        command,
        "The engine predicts the limit with one probe, tolerance 0.005, and as many steps as it wants; "
        f"{arguments.seeds} seeds per spectrum.",
        f"{total:.1%} of all intervals contain the limit of the dense spectrum.",
    ]
    write_table(arguments.out, Page("coverage", "Do the stated intervals hold?", notes, columns), covered)


if __name__ == "__main__":
    main()
