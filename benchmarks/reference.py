"""Work of one prediction against the work of the published pipeline, on FC5 and CIFAR-10.

Run by hand: ``python benchmarks/reference.py --out docs/results/benchmarks``. Takes about two minutes on top of the
prediction itself; the network is trained first where ``runs/`` does not hold it. ``--samples`` and ``--steps`` make the
prediction smaller, for trying out; ``--measured`` adds a row with the measured one-shot limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timing import environment, environment_note, options, seconds_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pruning_limits import predict_limit
from validation.data import ImageData, load_data
from validation.tables.reading import load_suite
from validation.tables.writing import Column, Page, Row, write_table
from validation.training import trained_network

MODEL, DATASET, SEED = "fc5", "cifar10", 0
STEPS, BINS, LEVELS, WIDTH = 128, 100_000, 1000, 1e-3
DATA_PART, VECTORS, LEVELS_TIMED = 10, 16, 10
BATCH = 1000


class Reference:
    """The work of the published pipeline, written straightforwardly and timed in parts.

    Full data in every product, full re-orthogonalisation in every Lanczos step, the density as a sum of Gaussian bumps
    on a grid, the statistical dimension summed over that grid at every sparsity level.
    """

    def __init__(self, model: nn.Module, data: ImageData) -> None:
        self.model = model
        self.weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        count = len(data.train_y) // DATA_PART
        self.samples = len(data.train_y)
        self.part = list(data.batches("train", BATCH, limit=count))
        self.share = self.samples / sum(len(y) for _, y in self.part)
        self.dimension = sum(weight.numel() for weight in self.weights)
        generator = torch.Generator().manual_seed(0)
        self.vector = torch.randn(self.dimension, generator=generator)
        self.basis = torch.nn.functional.normalize(torch.randn(VECTORS, self.dimension, generator=generator))
        self.flat = torch.cat([weight.detach().reshape(-1) for weight in self.weights]).abs()

    def product(self) -> Tensor:
        """Multiply the Hessian of a part of the data with a vector, double backward batch by batch."""
        parts = [
            part.view_as(weight)
            for part, weight in zip(
                self.vector.split([weight.numel() for weight in self.weights]), self.weights, strict=True
            )
        ]
        total = torch.zeros(self.dimension)
        for x, y in self.part:
            loss = cross_entropy(self.model(x), y, reduction="sum")
            slopes = torch.autograd.grad(loss, self.weights, create_graph=True)
            rows = torch.autograd.grad(slopes, self.weights, parts)
            total += torch.cat([row.reshape(-1) for row in rows])
        return total

    def reorthogonalise(self) -> Tensor:
        """Take the components along some basis vectors out of a vector, one after the other."""
        vector = self.vector.clone()
        for row in self.basis:
            vector -= torch.dot(row, vector) * row
        return vector

    def density(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Diagonalise T and add up one bump per node on the whole grid."""
        generator = np.random.default_rng(0)
        off = generator.uniform(0.1, 1.0, STEPS - 1)
        matrix = np.diag(generator.uniform(0, 1, STEPS)) + np.diag(off, 1) + np.diag(off, -1)
        nodes, vectors = np.linalg.eigh(matrix)
        grid = np.linspace(nodes[0] - 0.1, nodes[-1] + 0.1, BINS)
        density = np.zeros(BINS)
        for node, weight in zip(nodes, vectors[0] ** 2, strict=True):
            density += weight * np.exp(-((grid - node) ** 2) / (2 * WIDTH**2)) / math.sqrt(2 * math.pi * WIDTH**2)
        return grid, density

    def levels(self, grid: np.ndarray[Any, Any], density: np.ndarray[Any, Any]) -> list[float]:
        """Find the removed weights and sum over the grid at some sparsity levels; the weights are sorted already."""
        sums = []
        for sparsity in np.linspace(0.5, 0.99, LEVELS_TIMED):
            removed = self.flat[: int(sparsity * self.dimension)].square().sum()
            scale = 1e-3 / float(removed)
            sums.append(float((density * scale / (scale + np.abs(grid))).sum()))
        return sums

    def seconds(self) -> dict[str, float]:
        """Time every part once."""
        grid, density = self.density()
        return {
            "products": seconds_of(self.product),
            "orthogonalisation": seconds_of(self.reorthogonalise),
            "density": seconds_of(self.density),
            "sorting": seconds_of(lambda: setattr(self, "flat", self.flat.sort().values)),
            "levels": seconds_of(lambda: self.levels(grid, density)),
        }

    def factors(self) -> dict[str, float]:
        """How often each timed part is done in the whole pipeline."""
        against = STEPS * (STEPS + 1) / 2
        return {
            "products": STEPS * self.share,
            "orthogonalisation": against / VECTORS,
            "density": 1.0,
            "sorting": 1.0,
            "levels": LEVELS / LEVELS_TIMED,
        }


def taking_turns(reference: Reference, ours: Callable[[], Any], turns: int) -> tuple[dict[str, float], float]:
    """Shortest times of the reference's parts and of the prediction, which take turns."""
    reference.seconds()
    parts, whole = reference.seconds(), math.inf
    for _ in range(turns):
        whole = min(whole, seconds_of(ours))
        parts = {key: min(parts[key], again) for key, again in reference.seconds().items()}
    return parts, whole


def main() -> None:
    """Write the table."""
    parser = options(__doc__)
    parser.add_argument("--samples", type=int, help="default: the engine's own choice")
    parser.add_argument("--steps", type=int, help="default: the engine's own choice")
    parser.add_argument("--turns", type=int, default=1, help="predictions to time, the shortest counts")
    parser.add_argument("--measured", action="store_true", help="also time measure=True")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    networks = load_suite("cpu").networks
    network = next(
        network for network in networks if (network.model, network.dataset, network.seed) == (MODEL, DATASET, SEED)
    )
    data = load_data(DATASET)
    model = trained_network(network, data, arguments.runs)
    reference = Reference(model, data)
    factors = reference.factors()
    rows: list[Row] = []
    for measure in (False, True) if arguments.measured else (False,):
        limits = []

        def predict(measure: bool = measure, limits: list[Any] = limits) -> None:
            options = {"samples": arguments.samples, "steps": arguments.steps, "progress": False, "measure": measure}
            limits.append(predict_limit(model, data.batches("train", BATCH), penalty=network.recipe.penalty, **options))

        parts, ours = taking_turns(reference, predict, arguments.turns)
        whole = {key: parts[key] * factors[key] for key in parts}
        limit, full = limits[-1], STEPS * reference.samples
        row: Row = {
            "measure": str(measure),
            "ours": ours,
            "reference": sum(whole.values()),
            "ratio": sum(whole.values()) / ours,
            "samples": limit.cost.samples,
            "ratio_samples": full / limit.cost.samples,
            "sparsity": limit.sparsity,
            "half": (limit.interval[1] - limit.interval[0]) / 2,
            "status": limit.status.partition(":")[0],
        }
        rows.append(row | {f"reference_{key}": value for key, value in whole.items()})
        print(rows[-1], flush=True)
    columns = [
        Column("measure", "measure"),
        Column("ours", "ours, s", ",.0f"),
        Column("reference_products", "reference: products, s", ",.0f"),
        Column("reference_orthogonalisation", "re-orthogonalisation, s", ",.0f"),
        Column("reference_density", "density, s", ",.1f"),
        Column("reference_levels", "sparsity levels, s", ",.1f"),
        Column("reference", "reference in all, s", ",.0f"),
        Column("ratio", "times faster", ",.0f"),
        Column("samples", "ours: samples times products", ",d"),
        Column("ratio_samples", "times fewer", ",.0f"),
        Column("sparsity", "limit", ".2%"),
        Column("half", "half-width", ".2%"),
        Column("status", "status"),
    ]
    small = [f"{key} {value}" for key in ("samples", "steps") if (value := getattr(arguments, key)) is not None]
    flags = "".join(f" --{key} {getattr(arguments, key)}" for key in ("samples", "steps") if getattr(arguments, key))
    flags += f" --turns {arguments.turns}" if arguments.turns > 1 else ""
    flags += " --measured" if arguments.measured else ""
    notes = [
        f"Made by `python benchmarks/reference.py --out {arguments.out}{flags}`.",
        f"{MODEL} on {DATASET}, D = {reference.dimension:,}, {reference.samples:,} samples, seed {SEED}. Ours: "
        f"`predict_limit` from start to end, {', '.join(small) if small else 'default settings'}: spectra of Hessian "
        "and GGN, directions, errors and notes; with `measure=True` also one-shot pruning on all data. Reference: one "
        f"Hessian spectrum from {STEPS} Lanczos steps on all data, each with full re-orthogonalisation, a density of "
        f"{BINS:,} bins and {LEVELS:,} sparsity levels, for one random vector.",
        "**The reference is extrapolated, not run**: its work is written anew as a straightforward routine, of which "
        f"one product on 1/{DATA_PART} of the data in batches of {BATCH:,}, re-orthogonalisation against {VECTORS} "
        f"vectors, the density, one sorting of the weights and {LEVELS_TIMED} sparsity levels are timed, and "
        f"multiplied up ({factors['products']:,.0f}, {factors['orthogonalisation']:,.0f}, 1, 1 and "
        f"{factors['levels']:,.0f} times). Parts and prediction take turns, shortest processor times of "
        f"{arguments.turns} prediction(s).",
        environment_note(),
    ]
    title = "One prediction against the published pipeline"
    write_table(
        arguments.out, Page("reference", title, notes, columns), rows, environment=environment(), settings=small
    )


if __name__ == "__main__":
    main()
