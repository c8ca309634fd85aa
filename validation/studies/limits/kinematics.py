"""Table ``kinematics``: how often random subspaces through the pruned point meet the set, and the prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from estimators import SpectralMeasure
from pruning_limits.directional import Direction, DirectionalDimension, directional_dimension
from pruning_limits.isotropic import removable_fraction
from pruning_limits.kinematics import subspace_crossing
from pruning_limits.kinematics_monte_carlo import half_point, sublevel_crossings
from pruning_limits.plotting import BLUE, GREEN, GREY, ORANGE, headline, new_figure, save
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import Column, Page, Row, write_table

Floats = NDArray[np.float64]

NAME = "kinematics"
EPSILON = 0.05
TOLERANCE = 0.02
TRIALS = {200: 1000, 1000: 200}
SPECTRA: dict[str, Callable[[int], Floats]] = {
    "power law": lambda size: 10 / np.arange(1.0, size + 1) ** 1.5,
    "spiked": lambda size: np.where(np.arange(size) < size // 20, 50.0, 0.02),
    "log-uniform": lambda size: np.geomspace(1e-4, 10, size),
    "uniform": lambda size: np.linspace(0.5, 1.5, size),
}
DISTANCES = {"power law": (3.0, 10.0)}
STYLES = {
    "random": (BLUE, "o", "along all eigenvectors"),
    "sharp": (ORANGE, "s", "along the sharpest tenth"),
    "flat": (GREEN, "^", "along the flattest half"),
}
COLUMNS = (
    Column("spectrum", "spectrum"),
    Column("dimension", "D", "d"),
    Column("distance", "R", "g"),
    Column("direction", "direction of d"),
    Column("isotropic", "isotropic k*", ".1f"),
    Column("directional", "directional k*", ".1f"),
    Column("measured", "Monte Carlo k at 50 %", ".1f"),
    Column("error", "its standard error", ".1f"),
    Column("isotropic_excess", "isotropic - Monte Carlo, % of D", "+.2f"),
    Column("directional_excess", "directional - Monte Carlo, % of D", "+.2f"),
    Column("within", f"directional within {TOLERANCE:.0%} of D"),
)


def removed_weights(eigenvalues: Floats, direction: str, distance: float, seed: int = 0) -> Floats:
    """Draw removed weights d of a norm in the eigenbasis of the curvature.

    Args:
        eigenvalues: Eigenvalues ``[D]``.
        direction: ``"random"``: Gaussian along all eigenvectors; ``"sharp"``: along the sharpest tenth of them;
            ``"flat"``: along the flattest half.
        distance: Norm R of d.
        seed: Seed; the global random state is not used.

    Returns:
        Components of d ``[D]``.

    Example:
        >>> removed_weights(np.array([3.0, 1.0, 2.0, 0.0]), "flat", distance=2.0).nonzero()[0]
        array([1, 3])
    """
    order = np.argsort(-eigenvalues)
    taken = {"random": order, "sharp": order[: len(order) // 10], "flat": order[len(order) // 2 :]}[direction]
    vector = np.zeros(len(eigenvalues))
    vector[taken] = np.random.default_rng(seed).standard_normal(len(taken))
    scaled: Floats = distance * vector / np.linalg.norm(vector)
    return scaled


def cells(suite: Suite) -> list[Cell]:
    """Return one cell per dimension, spectrum, distance and direction; no suite's networks are asked for."""
    parts: list[dict[str, Any]] = [
        {"spectrum": spectrum, "dimension": size, "distance": distance, "direction": direction, "trials": trials}
        for spectrum, (size, trials) in product(SPECTRA, TRIALS.items())
        for distance, direction in product(DISTANCES.get(spectrum, (1.0, 3.0)), STYLES)
    ]
    return [Cell(None, part | {"seed": seed}) for seed, part in enumerate(parts)]


def predicted(case: Row) -> DirectionalDimension:
    """Return the directional prediction of a cell or row."""
    eigenvalues = SPECTRA[case["spectrum"]](case["dimension"])
    removed = removed_weights(eigenvalues, case["direction"], case["distance"])
    measure = SpectralMeasure.from_eigenvalues(eigenvalues)
    return directional_dimension(measure, Direction.dense(eigenvalues, removed), EPSILON)


def run(cell: Cell, bench: Bench) -> Row:
    """Draw random subspaces and compare where they start to meet the set with both predictions."""
    size, distance = cell.part["dimension"], cell.part["distance"]
    eigenvalues = SPECTRA[cell.part["spectrum"]](size)
    removed = removed_weights(eigenvalues, cell.part["direction"], distance)
    counts = sublevel_crossings(eigenvalues, removed, EPSILON, cell.part["trials"], seed=cell.part["seed"])
    measured, error = half_point(counts)
    share, _ = removable_fraction(SpectralMeasure.from_eigenvalues(eigenvalues), 2 * EPSILON / distance**2)
    isotropic, directional = size * (1 - share), predicted(cell.part).kept
    return cell.part | {
        "isotropic": isotropic,
        "directional": directional,
        "measured": measured,
        "error": error,
        "isotropic_excess": 100 * (isotropic - measured) / size,
        "directional_excess": 100 * (directional - measured) / size,
        "within": "yes" if abs(directional - measured) <= TOLERANCE * size else "no",
        "counts": sorted(counts.tolist()),
    }


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table and draw the measured and predicted probabilities."""
    trials = ", ".join(f"{count} at D = {size}" for size, count in TRIALS.items())
    notes = [
        f"Made by `{command}`.",
        f"No network: the set is {{1/2 x^T H x <= {EPSILON}}} with the eigenvalues of a named spectrum, and the pruned "
        "point is -d with norm R. d points at random, along the sharpest tenth of the eigenvectors, or along the "
        "flattest half. A random k-dimensional subspace through -d meets the set or not; the Monte Carlo column is the "
        f"k at which half of them do. A trial is one nested sequence of subspaces; {trials}, drawn anew for every row.",
        "Isotropic k*: tr H/(H + 2 epsilon/R^2), blind to the direction. Directional k*: tr H/(H + c), c from the "
        "direction. The curves of the figure are normal, with mean k* and the predicted deviation.",
        *(_verdict(rows, key) for key in ("directional", "isotropic")),
    ]
    write_table(folder, Page(NAME, "Random subspaces against the sublevel set", notes, COLUMNS), rows)
    _draw(rows, folder / f"{NAME}.png")


def finding(rows: Sequence[Row]) -> str:
    """Say how often either prediction tells where half of the random subspaces meet the set."""
    good = {key: sum(_near(row, key) for row in rows) for key in ("directional", "isotropic")}
    return (
        f"Half of the random subspaces meet the set within {TOLERANCE:.0%} of D of the directional k* in "
        f"{good['directional']} of {len(rows)} rows, of the isotropic k* in {good['isotropic']}"
    )


def _near(row: Row, key: str) -> bool:
    return bool(abs(row[f"{key}_excess"]) <= 100 * TOLERANCE)


def _verdict(rows: Sequence[Row], key: str) -> str:
    distances = [abs(row[f"{key}_excess"]) for row in rows]
    good = sum(_near(row, key) for row in rows)
    return (
        f"{key.capitalize()} k* within {TOLERANCE:.0%} of D of the Monte Carlo 50 % point: {good} of {len(rows)} rows; "
        f"mean distance {np.mean(distances):.2f} %, largest {max(distances):.2f} %."
    )


def _draw(rows: Sequence[Row], path: Path) -> None:
    """Draw one panel per spectrum, dimension and distance, a colour per direction."""
    by_panel = groupby(rows, key=lambda row: (row["spectrum"], row["dimension"], row["distance"]))
    panels = [list(part) for _, part in by_panel]
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure, grid = new_figure(lines, columns, size=(3.6 * columns, 2.6 * lines + 1.2), squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        for row in panel:
            _curve(axes, row)
        first = panel[0]
        axes.axvline(first["isotropic"], color=GREY, linestyle="--", linewidth=1.5)
        axes.axhline(0.5, color=GREY, linewidth=0.5)
        title = f"{first['spectrum']}, D = {first['dimension']}, R = {first['distance']:g}"
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        inside = [row["direction"] for row in panel if not row["directional"]]
        if inside:
            note = f"d {' or '.join(inside)}: -d in the set"
            axes.text(0.09, 0.5, note, transform=axes.transAxes, fontsize=8, rotation=90, ha="center", va="center")
        axes.grid(alpha=0.25)
    for axes in grid[:, 0]:
        axes.set_ylabel("probability to meet the set")
    for axes in grid[-1]:
        axes.set_xlabel("kept dimensions k")
    headline(figure, finding(rows))
    handles = [
        *(
            Line2D([], [], color=colour, marker=marker, markersize=5, label=f"d {name}: {meaning}")
            for name, (colour, marker, meaning) in STYLES.items()
        ),
        Line2D([], [], color="black", marker="o", linestyle="", label="Monte Carlo, bars one standard error"),
        Line2D([], [], color="black", label="predicted curve"),
        Line2D([], [], color="black", linestyle=":", label="directional k*, in the colour of d"),
        Line2D([], [], color=GREY, linestyle="--", label="isotropic k*, the same for every d"),
        Line2D([], [], color=GREY, linewidth=0.5, label="probability one half"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)
    save(figure, path)


def _curve(axes: Any, row: Row) -> None:
    """Draw the Monte Carlo points with their errors, the predicted curve and its 50 % point."""
    colour, marker, _ = STYLES[row["direction"]]
    counts, trials = np.array(row["counts"]), len(row["counts"])
    kept = np.unique(np.linspace(max(counts[0] - 1, 0), counts[-1], 9).round().astype(int))
    shares = (counts[:, None] <= kept).mean(0)
    axes.errorbar(kept, shares, np.sqrt(shares * (1 - shares) / trials), fmt=marker, color=colour, markersize=4)
    every = np.arange(row["dimension"] + 1)
    near = (every >= counts[0] - 3) & (every <= counts[-1] + 3)
    axes.plot(every[near], subspace_crossing(predicted(row), every[near]).probability, color=colour, linewidth=1)
    axes.axvline(row["directional"], color=colour, linestyle=":", linewidth=1.5)


TABLE = Table(NAME, lambda suite: {"epsilon": EPSILON}, run, write, cells)
