"""One prediction against the published pipeline, both run from start to end on FC5 and a tenth of CIFAR-10.

Run by hand: ``python benchmarks/reference.py --out docs/results/benchmarks``, with the data in ``PRUNING_LIMITS_DATA``.
It takes half an hour of one core. The trained network is read from ``runs``; if it is missing, it is trained first.
``--steps``, ``--samples`` and ``--budgets`` make a smaller run for a trial.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from networks import BATCH, CASES, Images
from timing import environment, environment_note, options
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from pruning_limits import predict_limit
from validation.data import load_data
from validation.tables.writing import Column, Page, Row, write_table

CASE = "FC5, CIFAR-10"
STEPS, BINS, LEVELS, WIDTH = 128, 100_000, 1000, 1e-3
VECTORS = 2
LAST = 0.75  # share of the steps from which on the truth is averaged: the Gauss rule alternates from step to step
Array = np.ndarray[Any, np.dtype[np.float64]]
Trace = Callable[[float], float]


@dataclass(frozen=True)
class Recurrence:
    """Diagonal and off-diagonal of T after all steps from one random vector."""

    diagonal: Array
    off: Array

    def nodes(self, steps: int) -> tuple[Array, Array]:
        """Ritz values and their weights after so many steps."""
        off = self.off[: steps - 1]
        matrix = np.diag(self.diagonal[:steps]) + np.diag(off, 1) + np.diag(off, -1)
        values, vectors = np.linalg.eigh(matrix)
        return values, vectors[0] ** 2


class Pipeline:
    """The published pipeline, written straightforwardly.

    All data in every product, full re-orthogonalisation in every Lanczos step, the density as a sum of Gaussian bumps
    on a grid, the statistical dimension summed over that grid at every sparsity level.

    Args:
        model: The network; the curvature is that of its convolution and linear weights.
        batches: All the data.
        epsilon: Allowed rise of the mean loss.
        steps: Lanczos steps.
    """

    def __init__(self, model: nn.Module, batches: list[tuple[Tensor, Tensor]], epsilon: float, steps: int) -> None:
        self._model, self._batches, self._epsilon, self._steps = model, batches, epsilon, steps
        self._weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        self._samples = sum(len(y) for _, y in batches)
        flat = torch.cat([weight.detach().reshape(-1) for weight in self._weights])
        self._squares = flat.abs().sort().values.double().square().cumsum(0).numpy()
        self.dimension = len(flat)

    def product(self, vector: Tensor) -> Tensor:
        """Multiply the Hessian of the mean loss with a vector, double backward batch by batch."""
        sizes = [weight.numel() for weight in self._weights]
        parts = [part.view_as(w) for part, w in zip(vector.split(sizes), self._weights, strict=True)]
        total = torch.zeros(self.dimension)
        for x, y in self._batches:
            loss = cross_entropy(self._model(x), y, reduction="sum")
            slopes = torch.autograd.grad(loss, self._weights, create_graph=True)
            rows = torch.autograd.grad(slopes, self._weights, parts)
            total += torch.cat([row.reshape(-1) for row in rows])
        return total / self._samples

    def recurrence(self, seed: int) -> Recurrence:
        """Run Lanczos steps from a random vector, each made orthogonal to all earlier ones."""
        basis = torch.empty(self._steps, self.dimension)
        vector = normalize(torch.randn(self.dimension, generator=torch.Generator().manual_seed(seed)), dim=0)
        diagonal, off = np.zeros(self._steps), np.zeros(self._steps - 1)
        for step in range(self._steps):
            basis[step] = vector
            vector = self.product(vector)
            diagonal[step] = float(vector @ basis[step])
            for row in basis[: step + 1]:
                vector -= torch.dot(row, vector) * row
            if step + 1 < self._steps:
                off[step] = float(vector.norm())
                vector = vector / off[step]
        return Recurrence(diagonal, off)

    def published(self, recurrence: Recurrence) -> float:
        """Return the limit from the density on a grid, the last of a thousand sparsity levels that is allowed."""
        nodes, weights = recurrence.nodes(self._steps)
        grid = np.linspace(nodes[0] - 0.1, nodes[-1] + 0.1, BINS)
        density = np.zeros(BINS)
        for node, weight in zip(nodes, weights, strict=True):
            density += weight * np.exp(-((grid - node) ** 2) / (2 * WIDTH**2))
        density, magnitudes = density / density.sum(), np.abs(grid)
        allowed = 0.0
        for sparsity in np.linspace(0, 1, LEVELS, endpoint=False):
            scale = self._scale(int(sparsity * self.dimension))
            if sparsity <= float((density * scale / (scale + magnitudes)).sum()):
                allowed = float(sparsity)
        return allowed

    def quadrature(self, recurrences: list[Recurrence], steps: range) -> float:
        """Return the limit from the mean of Gauss rules after so many steps of some recurrences."""
        rules = [recurrence.nodes(count) for recurrence in recurrences for count in steps]

        def holds(removed: int) -> bool:
            scale = self._scale(removed)
            dimensions = [float((weights * scale / (scale + np.abs(nodes))).sum()) for nodes, weights in rules]
            return bool(removed / self.dimension <= np.mean(dimensions))

        low, high = 0, self.dimension
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return low / self.dimension

    def _scale(self, removed: int) -> float:
        return 2 * self._epsilon / float(self._squares[removed - 1]) if removed else 1e300


def equal_error(rows: list[Row], doubt: float) -> str:
    """Say what a prediction costs that is no farther off than the pipeline, as far as the truth is known.

    Args:
        rows: Rows of the table; those of the pipeline state no error.
        doubt: Error of the truth.
    """
    published = [row for row in rows if row["half"] is None]
    error, seconds = max(row["off"] for row in published), max(row["seconds"] for row in published)
    level = max(error, doubt)
    good = [row for row in rows if row["half"] is not None and max(row["off"], row["half"]) <= level]
    if not good:
        return (
            f"No prediction states an error as small as that of the pipeline, {100 * error:.2f} points, or of the "
            f"truth, {100 * doubt:.2f}."
        )
    row = min(good, key=lambda row: row["seconds"])
    return (
        f"**At equal error**, as far as the truth is known, the prediction is {seconds / row['seconds']:.0f} times "
        f"faster: {row['code']} states {100 * row['half']:.2f} points and is {100 * row['off']:.2f} off, the pipeline "
        f"states nothing and is {100 * error:.2f} off."
    )


def main() -> None:
    """Write the table."""
    parser = options(__doc__)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--budgets", type=float, nargs="+", default=[1, 4, 16, 64])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    case = CASES[CASE]
    assert isinstance(case, Images)
    trained = case.trained(arguments.runs)
    batches = list(load_data("cifar10").batches("train", BATCH, limit=arguments.samples))
    rows: list[Row] = []
    for budget in arguments.budgets:
        started = time.process_time()
        limit = predict_limit(
            trained.model, batches, penalty=trained.penalty, budget=budget, measure=False, progress=False
        )
        spent = time.process_time() - started
        half = (limit.interval[1] - limit.interval[0]) / 2
        row: Row = {"code": f"ours, budget {budget:g}", "seconds": spent, "limit": limit.sparsity, "half": half}
        rows.append(row | {"passes": limit.cost.samples / arguments.samples})
        print(rows[-1], flush=True)
    pipeline = Pipeline(trained.model, batches, limit.epsilon, arguments.steps)
    recurrences = []
    for seed in range(VECTORS):
        started = time.process_time()
        recurrences.append(pipeline.recurrence(seed))
        published = pipeline.published(recurrences[-1])
        spent = time.process_time() - started
        row = {"code": f"the pipeline, vector {seed + 1}", "seconds": spent, "limit": published, "half": None}
        rows.append(row | {"passes": arguments.steps})
        print(rows[-1], flush=True)
    first = int(LAST * arguments.steps)
    last, before = range(first + 1, arguments.steps + 1), range(2 * first - arguments.steps + 1, first + 1)
    truth = pipeline.quadrature(recurrences, last)
    others = [pipeline.quadrature(recurrences, before), *(pipeline.quadrature([own], last) for own in recurrences)]
    doubt = max(abs(truth - other) for other in others)
    for row in rows:
        row["off"] = abs(row["limit"] - truth)
    columns = [
        Column("code", "prediction"),
        Column("seconds", "time, s", ",.0f"),
        Column("passes", "samples times products, in passes over the data", ",.1f"),
        Column("limit", "limit", ".2%"),
        Column("half", "stated half-width", ".2%"),
        Column("off", "off the truth by", ".2%"),
    ]
    notes = [
        f"Made by `{shlex.join(['python', *sys.argv])}`.",
        f"{CASE}, D = {pipeline.dimension:,}, {arguments.samples:,} samples, epsilon {limit.epsilon:.4g}, isotropic "
        "limit with the absolute Hessian. Ours: `predict_limit(..., measure=False, budget=...)` from start to end: "
        "spectra of Hessian and GGN, directions, errors and notes. The pipeline is written anew as a straightforward "
        f"routine and run as a whole: one spectrum from {arguments.steps} Lanczos steps on all data, each with full "
        f"re-orthogonalisation, a density of {BINS:,} bins and {LEVELS:,} sparsity levels, for one random vector.",
        f"Truth: {truth:.2%}, by the mean of the Gauss rules of the pipeline's own {VECTORS} recurrences after "
        f"{last.start} to {last.stop - 1} steps, without bumps and grid. It is known to {100 * doubt:.2f} points: each "
        f"vector alone, and the rules after {before.start} to {before.stop - 1} steps, stay within it.",
        equal_error(rows, doubt),
        environment_note(),
    ]
    write_table(
        arguments.out,
        Page("reference", "One prediction against the published pipeline", notes, columns),
        rows,
        environment=environment(),
    )


if __name__ == "__main__":
    main()
