"""Products and time to a trace of the GGN within 1 % of the dense truth, against curvlinops, on the same operator.

Run by hand: ``python benchmarks/traces.py --out docs/results/benchmarks``. It takes about five minutes of a core.
Networks and dense spectra are kept in ``runs/``.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from curvlinops import CGInverseLinearOperator, hutchinson_trace, hutchpp_trace, xtrace
from curvlinops._torch_base import PyTorchLinearOperator
from curvlinops.papyan2020traces.spectrum import LanczosApproximateLogSpectrumCached, LanczosApproximateSpectrumCached
from spectral_rules import NETWORKS
from timing import environment, environment_note, interleaved, options
from torch import Tensor

from estimators import GGN, Objective, SpectralMeasure, spectral_measure
from estimators import trace as ours
from pruning_limits.isotropic import isotropic_limit
from pruning_limits.losses import all_losses
from pruning_limits.magnitude import MagnitudeProfile
from validation.data import load_data
from validation.tables.storage import load_tensors, run_folder, save_tensors
from validation.tables.writing import Column, Page, Row, write_table
from validation.training import Recipe, train

BEDS = ("relu",)
SEEDS, FRESH, TOLERANCE, REPEATS = 5, 20, 0.01, 2
PROBES = (1, 2, 4, 8)
STEPS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
BUDGETS = (6, 12, 24, 48, 96, 192, 384)
INVERSE_BUDGETS = (6, 12, 24, 48)
RESIDUALS = (1e-1, 1e-2)
MOST_ITERATIONS = 500
KAPPAS = (3.0, 1e9)
POINTS = 10_000
Function = Callable[[Any], Any]
Estimator = Callable[[tuple[Any, ...], int], float]


class Counted:
    """Count the columns that an operator is multiplied with.

    While budgets are searched, several columns at once are multiplied with the matrix itself, which is faster.
    """

    def __init__(self, operator: GGN) -> None:
        self.operator, self.columns, self.searching = operator, 0, False
        self.matrix = operator.matmat(torch.eye(operator.shape[0]))
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, operator.device

    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply."""
        self.columns += vectors.shape[1]
        searching = self.searching and vectors.shape[1] > 3
        return self.matrix @ vectors if searching else self.operator.matmat(vectors)


class Theirs(PyTorchLinearOperator):
    """The same operator, plus a multiple of the identity, as curvlinops takes it."""

    SELF_ADJOINT = True

    def __init__(self, operator: Counted, shift: float = 0.0) -> None:
        super().__init__([(operator.shape[0],)], [(operator.shape[0],)])
        self.operator, self.shift = operator, shift

    @property
    def dtype(self) -> torch.dtype:
        return self.operator.dtype

    @property
    def device(self) -> torch.device:
        return self.operator.device

    def _matmat(self, X: list[Tensor]) -> list[Tensor]:
        (vectors,) = X
        product = self.operator.matmat(vectors)
        return [product + self.shift * vectors if self.shift else product]

    def _adjoint(self) -> Theirs:
        return self


class Bed:
    """A trained network, its GGN on all training data, and the scale of its limit.

    Attributes:
        operator: The GGN in float32, graphs kept.
        eigenvalues: Its eigenvalues in float64.
        scale: The number c of the pruning limit.
        limit: The isotropic limit of the exact spectrum.
        floor: Lower bound of the eigenvalues.
    """

    def __init__(self, name: str, runs: Path) -> None:
        build, penalty = NETWORKS[name]
        recipe = Recipe(epochs=60, lr=0.05, warmup=1, **penalty)  # type: ignore[arg-type]
        file = run_folder(runs, "trace", {"name": name, "recipe": str(recipe)}) / "bed.pt"
        data = load_data("digits")
        model = build()
        if not file.exists():
            torch.manual_seed(0)
            model = build()
            train(model, data, recipe, seed=0)
            exact = Objective(model.double().eval(), [(x.double(), y) for x, y in data.batches("train", 1000)])
            matrix = GGN(exact).matmat(torch.eye(exact.dimension, dtype=torch.float64))
            shift = recipe.penalty.curvature if recipe.penalty else 0.0
            values = torch.linalg.eigvalsh((matrix + matrix.T) / 2) + shift
            save_tensors(file, {"eigenvalues": values, "model": model.float().state_dict()})
        stored = load_tensors(file)
        model.load_state_dict(stored["model"])
        batches = [(x, y) for x, y in data.batches("train", 1000)]
        objective = Objective(model.eval(), batches, penalty=recipe.penalty)
        epsilon = all_losses(objective).deviation()
        curve = MagnitudeProfile(objective.chosen).curve()
        self.eigenvalues = stored["eigenvalues"].numpy()
        limit = isotropic_limit(SpectralMeasure.from_eigenvalues(self.eigenvalues), curve, epsilon)
        self.limit, self.scale = limit.sparsity, limit.scale
        self.operator = Counted(GGN(objective))
        self.floor = recipe.penalty.curvature if recipe.penalty else 0.0

    def functions(self) -> dict[str, Function]:
        """The two functions of the matrix whose traces are estimated."""
        return {"c/(c+|x|)": lambda x: self.scale / (self.scale + np.abs(x)), "x": lambda x: x}

    def truth(self, function: Function) -> float:
        """Trace from the dense spectrum."""
        return float(function(self.eigenvalues).sum())


def density_trace(kind: type, bed: Bed, function: Function, budget: tuple[Any, ...]) -> float:
    """Integrate curvlinops' density of the spectrum, or of its logarithm."""
    repeats, steps, kappa = budget
    cached = kind(Theirs(bed.operator), steps, boundaries=(bed.floor, None))
    options = {"num_repeats": repeats, "num_points": POINTS, "kappa": kappa}
    if kind is LanczosApproximateLogSpectrumCached:
        grid, density = cached.approximate_log_spectrum(**options)
    else:
        grid, density = cached.approximate_spectrum(**options)
    grid, density = grid.double().numpy(), density.double().numpy()
    return bed.operator.shape[0] * float(np.trapezoid(function(grid) * density, grid))


def inverse_trace(estimate: Callable[..., Tensor], bed: Bed, budget: tuple[Any, ...]) -> float:
    """Estimate the trace of c (G + c I)^-1, the inverse by conjugate gradients."""
    products, residual = budget
    inverse = CGInverseLinearOperator(Theirs(bed.operator, bed.scale), tolerance=residual, max_iter=MOST_ITERATIONS)
    return bed.scale * float(estimate(inverse, products))


def methods(bed: Bed, name: str, function: Function) -> Iterator[tuple[str, Estimator, list[tuple[Any, ...]]]]:
    """All methods for one function, each with its ladder of budgets."""
    lanczos = list(itertools.product(PROBES, STEPS))
    dense = list(itertools.product(PROBES, STEPS, KAPPAS))
    plain = [(budget,) for budget in BUDGETS]

    def quadrature(budget: tuple[Any, ...], seed: int, reorthogonalise: Any = "full") -> float:
        measure = spectral_measure(bed.operator, *budget, seed=seed, reorthogonalise=reorthogonalise)
        return bed.operator.shape[0] * measure.integrate(function)[0]

    yield "ours: spectral_measure", quadrature, lanczos
    if name == "x":
        for trace in (ours.hutchinson, ours.hutch_plus_plus, ours.xtrace):
            yield f"ours: {trace.__name__}", lambda b, seed, trace=trace: trace(bed.operator, *b, seed).value, plain
    else:
        yield "ours: spectral_measure, 'none'", lambda b, seed: quadrature(b, seed, "none"), lanczos
    for kind in (LanczosApproximateSpectrumCached, LanczosApproximateLogSpectrumCached):
        yield f"curvlinops: {kind.__name__}", lambda b, _, kind=kind: density_trace(kind, bed, function, b), dense
    for trace in (hutchinson_trace, hutchpp_trace, xtrace):
        if name == "x":
            yield (
                f"curvlinops: {trace.__name__}",
                lambda b, _, trace=trace: float(trace(Theirs(bed.operator), *b)),
                plain,
            )
        else:
            budgets = list(itertools.product(INVERSE_BUDGETS, RESIDUALS))
            words = f"curvlinops: {trace.__name__} of CGInverseLinearOperator"
            yield words, lambda b, _, trace=trace: inverse_trace(trace, bed, b), budgets


def seeded(estimate: Estimator, budget: tuple[Any, ...], seed: int) -> float:
    """Run with all random states set."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    return estimate(budget, seed)


def smallest(bed: Bed, estimate: Estimator, ladder: list[tuple[Any, ...]], truth: float) -> Row | None:
    """Find the budget of fewest products at which the error of every seed is small enough."""
    best: Row | None = None
    for budget in sorted(ladder, key=lambda rung: np.prod([part for part in rung if isinstance(part, int)])):
        least = np.prod([part for part in budget if isinstance(part, int)])
        if best is not None and least >= best["products"]:
            break
        bed.operator.columns, errors = 0, []
        for seed in range(SEEDS):
            errors.append(abs(seeded(estimate, budget, seed) / truth - 1))
            if not errors[-1] <= TOLERANCE:
                break
        else:
            products = bed.operator.columns / SEEDS
            if best is None or products < best["products"]:
                best = {"budget": budget, "products": products, "error": max(errors)}
    return best


def fresh_share(estimate: Estimator, budget: tuple[Any, ...], truth: float) -> float:
    """Share of seeds not used in the search that are within the tolerance: a budget may have passed by luck."""
    seeds = range(SEEDS, SEEDS + FRESH)
    return float(np.mean([abs(seeded(estimate, budget, seed) / truth - 1) <= TOLERANCE for seed in seeds]))


def rows_of(name: str, runs: Path) -> list[Row]:
    """Compare all methods on one network."""
    bed, rows = Bed(name, runs), []
    for label, function in bed.functions().items():
        truth, calls = bed.truth(function), {}
        bed.operator.searching = True
        for method, estimate, ladder in methods(bed, label, function):
            best = smallest(bed, estimate, ladder, truth)
            row: Row = {"network": name, "dimension": len(bed.eigenvalues), "function": label, "method": method}
            rows.append(row)
            if best is None:
                row["budget"] = "none of the ladder"
                print(row, flush=True)
                continue
            row |= best | {"fresh": fresh_share(estimate, best["budget"], truth)}
            row |= {"budget": " x ".join(f"{part:g}" for part in best["budget"])}
            calls[method] = lambda e=estimate, b=best["budget"]: seeded(e, b, 0)
            print(row, flush=True)
        bed.operator.searching = False
        seconds = interleaved(calls, REPEATS)
        own = [row for row in rows if row["network"] == name and row["function"] == label and row["method"] in seconds]
        mine = min((row for row in own if row["method"].startswith("ours")), key=lambda row: seconds[row["method"]])
        for row in own:
            row["seconds"] = seconds[row["method"]]
            row["ratio"] = row["seconds"] / seconds[mine["method"]]
            row["ratio_products"] = row["products"] / mine["products"]
        for row in rows:
            row |= {"limit": bed.limit, "scale": bed.scale} if row["network"] == name else {}
    return rows


def main() -> None:
    """Write the table."""
    arguments = options(__doc__).parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = [row for name in BEDS for row in rows_of(name, arguments.runs)]
    columns = [
        Column("network", "network"),
        Column("dimension", "D", ",d"),
        Column("function", "f"),
        Column("method", "method"),
        Column("budget", "budget"),
        Column("products", "products", ",.0f"),
        Column("error", "largest error", ".2%"),
        Column("fresh", f"{FRESH} fresh seeds within {TOLERANCE:.0%}", ".0%"),
        Column("seconds", "seconds", ".3f"),
        Column("ratio", "time against our best", ".2f"),
        Column("ratio_products", "products against our best", ".2f"),
    ]
    limits = dict.fromkeys(f"{row['network']}: limit {row['limit']:.2%}, c = {row['scale']:.3g}" for row in rows)
    notes = [
        f"Made by `python benchmarks/traces.py --out {arguments.out}`.",
        "Trace of f(G) for the GGN of networks trained on the digits (all 1,437 training samples in two batches, "
        "float32, graphs kept), against the dense spectrum in float64. All methods get the same operator, so that the "
        "differences are those of the methods. The GGN has no negative eigenvalue, but curvlinops' bumps reach "
        f"below 0, hence the absolute value. c is that of the pruning limit ({'; '.join(limits)}).",
        f"Per method the budget of fewest products, out of a fixed ladder, at which {SEEDS} of {SEEDS} seeds are "
        f"within {TOLERANCE:.0%}. Ladders: {PROBES} random vectors times {STEPS} Lanczos steps; for curvlinops' "
        f"densities also kappa out of {KAPPAS} (3 is its default) on {POINTS:,} points; {BUDGETS} products of the "
        f"trace estimators, for the inverse {INVERSE_BUDGETS} times {RESIDUALS} as the tolerance of conjugate "
        f"gradients, at most {MOST_ITERATIONS} iterations. A budget of two dimensions is given as their product. "
        "Products are those with G, each column counted, those that find the spectrum's upper end included; "
        "curvlinops is told that the lower end is 0 (or the curvature of the L2 penalty), because its own search "
        "does not settle within thousands of products where many eigenvalues are zero.",
        f"A budget may pass by luck: the share of {FRESH} seeds outside the search that are within {TOLERANCE:.0%} "
        "tells.",
        f"Seconds of processor time: the shortest of {REPEATS} runs with seed 0 at that budget; the methods take "
        "turns in one process.",
        environment_note(),
    ]
    write_table(
        arguments.out, Page("traces", "Time to a trace within 1 %", notes, columns), rows, environment=environment()
    )


if __name__ == "__main__":
    main()
