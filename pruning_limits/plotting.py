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
    from matplotlib.axes import Axes

    from pruning_limits.parts import Estimate
    from pruning_limits.result import PruningLimit

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#666666"
SPARSITY = "sparsity (removed fraction)"
RETRAINED_UNKNOWN = "re-trained: unknown, see the notes"


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
    """Draw ``plot_crossing`` above ``plot_objective``.

    Args:
        limit: A predicted limit.

    Returns:
        A Matplotlib figure with two panels that share the sparsity axis.
    """
    figure, (top, bottom) = new_figure(2, sharex=True, size=(7.0, 7.0))
    plot_crossing(limit, top)
    plot_objective(limit, bottom)
    top.set_xlabel("")
    return figure


def plot_crossing(limit: PruningLimit, ax: Axes | None = None) -> Axes:
    """Draw the norm R of the removed weights against sparsity, for the network and for the prediction.

    Args:
        limit: A predicted limit.
        ax: Where to draw; None draws on a figure of its own, ``.figure`` of the axes.

    Returns:
        The axes.
    """
    ax = _axes(ax)
    kept = 1 - limit.curve.sparsity
    inner = (limit.curve.squared > 0) & (kept > 0)
    kept, norms = kept[inner], np.sqrt(limit.curve.squared[inner])
    scales = 2 * limit.epsilon / norms**2
    negative: Negative = limit.settings.negative
    curves: list[tuple[Estimate, Negative, str, str]] = [
        (limit.hessian, negative, ORANGE, f"largest R that {_name(limit)} allows (isotropic)"),
    ]
    if limit.ggn is not None:
        curves.append((limit.ggn, "clip", GREEN, "largest R that the GGN allows (re-trained)"))
    stride = slice(None, None, max(1, len(norms) // 400))
    lines = ax.plot(kept, norms, color=BLUE, label="this network: norm R of the removed weights")
    for estimate, mode, colour, label in curves:
        fractions = [estimate.limit(partial(_fraction, scale=scale, negative=mode)) for scale in scales[stride]]
        lines += ax.plot(1 - np.array(fractions), norms[stride], color=colour, label=label)
    _lines(ax, limit)
    r_limit = np.sqrt(limit.curve.squared_norm(limit.sparsity))
    dots = ax.plot([1 - limit.sparsity], [r_limit], "o", color=ORANGE, markersize=8, label="limit, carried to all data")
    if limit.hessian.growth != 1:
        lines += dots
    if limit.retrained is None:
        lines += ax.plot([], [], " ", label=RETRAINED_UNKNOWN)
    ax.set(xlabel=SPARSITY, ylabel="R, norm of the removed weights", yscale="log")
    seen = norms[(kept >= _least(limit)) & (kept < 0.97)]
    if len(seen):
        ax.set_ylim(max(seen.min(), 1e-3 * norms.max()), 2 * norms.max())
    ax.set_title(f"Pruning limit {limit.sparsity:.2%} of {limit.parameters:,} weights", loc="left")
    sparsity_axis(ax.xaxis, _least(limit))
    ax.legend(handles=lines, fontsize=8)
    return ax


def plot_objective(limit: PruningLimit, ax: Axes | None = None) -> Axes:
    """Draw the measured rise of the objective under one-shot pruning against sparsity.

    Args:
        limit: A predicted limit; without a measurement only epsilon and the predictions are drawn.
        ax: Where to draw; None draws on a figure of its own, ``.figure`` of the axes.

    Returns:
        The axes.
    """
    ax = _axes(ax)
    before = len(ax.get_lines())
    _lines(ax, limit)
    points = [(1 - s, rise) for s, rise in limit.rises if s < 1 and rise > 0]
    if points:
        kept, rises = zip(*points, strict=True)
        ax.plot(kept, rises, "o-", color=BLUE, label="measured, one-shot magnitude pruning")
        ax.set_ylim(min(limit.epsilon / 30, 1.0), None)
    if limit.retrained is None:
        ax.plot([], [], " ", label=RETRAINED_UNKNOWN)
    ax.axhline(limit.epsilon, color=GREY, linestyle=":", label=f"allowed rise {limit.epsilon:.3g}")
    ax.set(xlabel=SPARSITY, ylabel="rise of the training objective", yscale="log")
    sparsity_axis(ax.xaxis, _least(limit))
    ax.legend(handles=ax.get_lines()[before:], fontsize=8)
    return ax


def plot_layers(limit: PruningLimit, ax: Axes | None = None) -> Axes:
    """Draw what global magnitude pruning at the limit keeps of every layer.

    Args:
        limit: A predicted limit with a per-layer table.
        ax: Where to draw; None draws on a figure of its own, ``.figure`` of the axes.

    Returns:
        The axes: one bar per layer in the model's order, the first one on top.

    Raises:
        UserError: The limit has no per-layer table, because it answers a what-if question.
    """
    layers = limit.layers()
    if not layers:
        raise UserError("limit: has no per-layer table, as after what_if; plot the predicted limit")
    ax = _axes(ax, (7.0, 1.5 + 0.25 * len(layers)))
    ax.barh(range(len(layers)), [100 * (1 - layer.sparsity) for layer in layers], color=BLUE)
    ax.set_yticks(range(len(layers)), [f"{layer.name} ({layer.weights:,})" for layer in layers], fontsize=8)
    ax.invert_yaxis()
    ax.axvline(100 * (1 - limit.sparsity), color=ORANGE, linestyle="--", label=f"all layers, {1 - limit.sparsity:.2%}")
    ax.set(xlabel="share of the layer's weights that is kept, in %", title="What is kept at the predicted limit")
    ax.grid(axis="x", alpha=0.25)
    ax.legend(fontsize=8)
    return ax


def plot_spectrum(measure: SpectralMeasure, ax: Axes | None = None) -> Axes:
    """Draw the density of a spectrum on an axis that is linear near zero, logarithmic beyond, and shows both signs.

    Args:
        measure: Spectral measure of a curvature matrix.
        ax: Where to draw; None draws on a figure of its own, ``.figure`` of the axes.

    Returns:
        The axes.
    """
    ax = _axes(ax)
    unit, grid = _bent_grid(measure)
    bent = SpectralMeasure(tuple((np.arcsinh(n / unit), w) for n, w in measure.rules), measure.dimension)
    density = np.log(10) * bent.density(grid, 0.15)
    ax.semilogy(unit * np.sinh(grid), np.maximum(density, 1e-12), color=BLUE)
    ax.set_ylim(bottom=0.1 / measure.dimension, top=3 * density.max())
    ax.set(
        ylabel="share of eigenvalues per decade", title="Density, logarithmic axis (a hump may be one quadrature node)"
    )
    _bent_axis(ax, unit, grid)
    ax.grid(alpha=0.25)
    return ax


def _axes(ax: Axes | None, size: tuple[float, float] = (7.0, 4.5)) -> Axes:
    if ax is None:
        _, ax = new_figure(1, size=size)
    return ax


def _least(limit: PruningLimit) -> float:
    """Smallest kept fraction that is drawn."""
    return max(0.2 / limit.parameters, 0.2 * (1 - max(limit.retrained or 0.0, limit.sparsity, limit.lower)))


def _name(limit: PruningLimit) -> str:
    return "the Hessian" if limit.settings.curvature == "hessian" else "the GGN"


def _lines(axes: Any, limit: PruningLimit) -> None:
    axes.grid(alpha=0.25)
    low, high = limit.interval
    axes.axvspan(1 - high, 1 - low, color=ORANGE, alpha=0.15, linewidth=0)
    marks = [(limit.sparsity, ORANGE, "--", "predicted one-shot")]
    if limit.retrained is not None:
        marks.append((limit.retrained, GREEN, "--", "predicted re-trained"))
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
    plot_spectrum(measure, axes[0, 1])
    _cumulative(axes[1, 1], measure)
    _tails(axes[1, 0], measure)
    for one in (axes[0, 0], axes[1, 0], axes[1, 1]):
        one.grid(alpha=0.25)
    return figure


def _bent_grid(measure: SpectralMeasure) -> tuple[float, NDArray[np.float64]]:
    """Return the median absolute eigenvalue, and points even on an axis that is linear within it."""
    nodes = measure.nodes
    largest = float(np.abs(nodes).max()) or 1.0
    unit = float(np.clip(_median_size(measure), 1e-6 * largest, 1e-1 * largest))
    low, high = (np.arcsinh(float(end) / unit) for end in (nodes.min(), nodes.max()))
    return unit, np.linspace(low - 1, high + 1, 800)


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


def _cumulative(axes: Any, measure: SpectralMeasure) -> None:
    unit, grid = _bent_grid(measure)
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
