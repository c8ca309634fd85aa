"""Figures of limits and spectra."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from estimators import SpectralMeasure, UserError
from pruning_limits.bounds import Negative, removable_fraction

if TYPE_CHECKING:
    from pruning_limits.parts import Estimate
    from pruning_limits.result import PruningLimit

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#666666"


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure to a file whose suffix names the format."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except (ValueError, OSError) as error:
        raise UserError(f"plot: cannot write {path}: {str(error).splitlines()[0]}") from None


def new_figure(
    rows: int, columns: int = 1, size: tuple[float, float] = (7.0, 6.0), **options: Any
) -> tuple[Figure, Any]:
    """Create a figure and its axes without touching the global state of pyplot."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **options)


def sparsity_axis(axis: Any, least_kept: float) -> None:
    """Turn an axis of kept fractions into one of sparsities: logarithmic in what is kept, rising sparsity."""
    axis.axes.set_xscale("log") if axis.axis_name == "x" else axis.axes.set_yscale("log")
    limits = (1.0, max(least_kept, 1e-9))
    axis.axes.set_xlim(*limits) if axis.axis_name == "x" else axis.axes.set_ylim(*limits)
    ticks = [m * 10.0**-e for e in range(9) for m in (1.0, 0.5, 0.2)]
    crowded = least_kept < 1e-3
    ticks = [tick for tick in ticks if tick >= limits[1] and not (crowded and f"{tick:e}"[0] in "52")]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda kept, _: f"{100 * (1 - kept):.6g} %"))


def plain_ticks(axes: Any) -> None:
    """Write plain numbers at 1, 2 and 5 times the powers of ten of logarithmic axes."""
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())


def _fraction(measure: SpectralMeasure, scale: float, negative: Negative) -> float:
    return removable_fraction(measure, scale, negative)[0]


def limit_figure(limit: PruningLimit) -> Figure:
    """Draw R against sparsity for the network and for the prediction, and the measured rise beneath.

    Args:
        limit: A predicted limit.

    Returns:
        A Matplotlib figure with two panels that share the sparsity axis.
    """
    figure, (top, bottom) = new_figure(2, sharex=True, size=(7.0, 7.0))
    kept = 1 - limit.curve.sparsity
    inner = (limit.curve.squared > 0) & (kept > 0)
    kept, norms = kept[inner], np.sqrt(limit.curve.squared[inner])
    scales = 2 * limit.epsilon / norms**2
    negative: Negative = limit.settings["negative"]
    curves: list[tuple[Estimate, Negative, str, str]] = [
        (limit.hessian, negative, ORANGE, f"largest R that {_name(limit)} allows (isotropic)"),
        (limit.ggn, "clip", GREEN, "largest R that the GGN allows (re-trained)"),
    ]
    stride = slice(None, None, max(1, len(norms) // 400))
    top.plot(kept, norms, color=BLUE, label="this network: norm R of the removed weights")
    for estimate, mode, colour, label in curves:
        fractions = [estimate.limit(partial(_fraction, scale=scale, negative=mode)) for scale in scales[stride]]
        top.plot(1 - np.array(fractions), norms[stride], color=colour, label=label)
    least = max(0.2 / limit.parameters, 0.2 * (1 - max(limit.retrained, limit.sparsity, limit.lower)))
    for axes in (top, bottom):
        _lines(axes, limit)
        axes.grid(alpha=0.25)
    r_limit = np.sqrt(limit.curve.squared_norm(limit.sparsity))
    top.plot([1 - limit.sparsity], [r_limit], "o", color=ORANGE, markersize=8)
    top.set(ylabel="R, norm of the removed weights", yscale="log")
    seen = norms[(kept >= least) & (kept < 0.97)]
    if len(seen):
        top.set_ylim(max(seen.min(), 1e-3 * norms.max()), 2 * norms.max())
    top.set_title(f"Pruning limit {limit.sparsity:.2%} of {limit.parameters:,} weights", loc="left")
    points = [(1 - s, rise) for s, rise in limit.rises if s < 1 and rise > 0]
    if points:
        bottom.plot(*zip(*points, strict=True), "o-", color=BLUE, label="measured, one-shot magnitude pruning")
        bottom.set_ylim(min(limit.epsilon / 30, 1.0), None)
    bottom.axhline(limit.epsilon, color=GREY, linestyle=":", label=f"allowed rise {limit.epsilon:.3g}")
    bottom.set(xlabel="sparsity (removed fraction)", ylabel="rise of the training objective", yscale="log")
    sparsity_axis(bottom.xaxis, least)
    for axes, lines in ((top, top.get_lines()[:3]), (bottom, bottom.get_lines())):
        axes.legend(handles=[line for line in lines if not line.get_label().startswith("_")], fontsize=8)
    return figure


def _name(limit: PruningLimit) -> str:
    return "the Hessian" if limit.settings["curvature"] == "hessian" else "the GGN"


def _lines(axes: Any, limit: PruningLimit) -> None:
    low, high = limit.interval
    axes.axvspan(1 - high, 1 - low, color=ORANGE, alpha=0.15, linewidth=0)
    marks = [
        (limit.sparsity, ORANGE, "--", "predicted one-shot"),
        (limit.retrained, GREEN, "--", "predicted re-trained"),
    ]
    if limit.achieved is not None:
        marks.append((limit.achieved, BLUE, "-.", "measured one-shot"))
    for sparsity, colour, style, label in marks:
        axes.axvline(1 - sparsity, color=colour, linewidth=1, linestyle=style, label=f"{label} {sparsity:.2%}")


def spectrum_figure(measure: SpectralMeasure, title: str) -> Figure:
    """Draw the density on a linear and on a logarithmic axis, the cumulative spectrum, and the tails.

    The logarithmic axis is linear within the median absolute eigenvalue around zero and shows both signs.

    Args:
        measure: Spectral measure of a curvature matrix.
        title: Title of the figure.

    Returns:
        A Matplotlib figure of four panels.
    """
    figure, axes = new_figure(2, 2, size=(12.0, 8.0))
    figure.suptitle(title)
    nodes = measure.nodes
    spread = float(nodes.max() - nodes.min()) or 1.0
    _linear_density(axes[0, 0], measure, spread)
    largest = float(np.abs(nodes).max()) or 1.0
    unit = float(np.clip(_median_size(measure), 1e-6 * largest, 1e-1 * largest))
    ends = [np.arcsinh(float(end) / unit) for end in (nodes.min(), nodes.max())]
    grid = np.linspace(ends[0] - 1, ends[1] + 1, 800)
    _logarithmic_density(axes[0, 1], measure, unit, grid)
    _cumulative(axes[1, 1], measure, unit, grid)
    _tails(axes[1, 0], measure)
    for one in axes.flat:
        one.grid(alpha=0.25)
    return figure


def _median_size(measure: SpectralMeasure) -> float:
    order = np.argsort(np.abs(measure.nodes))
    middle = int(np.searchsorted(np.cumsum(measure.weights[order]), 0.5))
    return float(np.abs(measure.nodes[order[min(middle, len(order) - 1)]]))


def _linear_density(axes: Any, measure: SpectralMeasure, spread: float) -> None:
    low, high = float(measure.nodes.min()), float(measure.nodes.max())
    grid = np.linspace(low - 0.05 * spread, high + 0.05 * spread, 1200)
    axes.semilogy(grid, np.maximum(measure.density(grid, 0.01 * spread), 1e-12), color=BLUE)
    axes.set(xlabel="eigenvalue", ylabel="density per unit", title="Density, linear axis (smoothed by 1 %)")
    axes.set_ylim(bottom=0.1 / measure.dimension / spread)


def _logarithmic_density(axes: Any, measure: SpectralMeasure, unit: float, grid: NDArray[np.float64]) -> None:
    bent = SpectralMeasure(tuple((np.arcsinh(n / unit), w) for n, w in measure.rules), measure.dimension)
    density = np.log(10) * bent.density(grid, 0.15)
    axes.semilogy(unit * np.sinh(grid), np.maximum(density, 1e-12), color=BLUE)
    axes.set_ylim(bottom=0.1 / measure.dimension, top=3 * density.max())
    axes.set(
        ylabel="share of eigenvalues per decade", title="Density, logarithmic axis (a hump may be one quadrature node)"
    )
    _bent_axis(axes, unit, grid)


def _cumulative(axes: Any, measure: SpectralMeasure, unit: float, grid: NDArray[np.float64]) -> None:
    points = unit * np.sinh(grid)
    fractions, errors = measure.cumulative(points)
    axes.step(points, fractions, where="post", color=BLUE)
    low, high = (np.clip(fractions + sign * 2 * errors, 0, 1) for sign in (-1, 1))
    axes.fill_between(points, low, high, step="post", color=BLUE, alpha=0.2, label="2 standard errors (probes)")
    axes.set(ylabel="share of eigenvalues up to x", title="Cumulative spectrum", ylim=(-0.02, 1.02))
    axes.legend(loc="lower right", fontsize=8)
    _bent_axis(axes, unit, grid)


def _bent_axis(axes: Any, unit: float, grid: NDArray[np.float64]) -> None:
    """Make the x axis linear within ``unit`` of zero and logarithmic beyond."""
    axes.set_xscale("asinh", linear_width=unit)
    low, high = unit * np.sinh(grid[[0, -1]])
    axes.set_xlim(low, high)
    powers = range(int(np.ceil(np.log10(unit))), int(np.floor(np.log10(max(-low, high)))) + 1)
    ticks = [sign * 10.0**power for power in powers[:: 1 + len(powers) // 8] for sign in (-1, 1)]
    axes.xaxis.set_major_locator(FixedLocator([0.0, *(tick for tick in ticks if low <= tick <= high)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel(f"eigenvalue x (linear within {unit:.1g} of zero, logarithmic beyond)")


def _tails(axes: Any, measure: SpectralMeasure) -> None:
    nodes, weights = measure.nodes, measure.weights
    for sign, colour, label in ((1, BLUE, "positive"), (-1, ORANGE, "negative")):
        side = np.flatnonzero(sign * nodes > 0)
        if len(side):
            order = side[np.argsort(np.abs(nodes[side]))[::-1]]
            count = measure.dimension * np.cumsum(weights[order])
            axes.step(np.abs(nodes[order]), count, where="post", color=colour, label=label)
    axes.set(xscale="log", yscale="log", xlabel="absolute value", ylabel="eigenvalues at least as large", title="Tails")
    axes.set_ylim(bottom=0.1)
    if axes.get_lines():
        axes.legend(fontsize=8)
