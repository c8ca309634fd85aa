"""Figures of limits and spectra."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

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
    """Draw the spectral density on a linear axis and the cumulative weight over the absolute value beneath.

    Args:
        measure: Spectral measure of a curvature matrix.
        title: Title of the figure.
    """
    figure, (top, bottom) = new_figure(2, size=(7.0, 6.5))
    nodes, weights = measure.nodes, measure.weights
    spread = float(nodes.max() - nodes.min()) or 1.0
    grid = np.linspace(nodes.min() - 0.05 * spread, nodes.max() + 0.05 * spread, 1200)
    top.semilogy(grid, np.maximum(measure.density(grid, 0.01 * spread), 1e-12), color=BLUE)
    top.set(xlabel="eigenvalue", ylabel="density (Gaussian, 1 % of the range)", title=title)
    top.set_ylim(bottom=0.1 / measure.dimension / spread)
    for sign, colour, label in ((1, BLUE, "positive"), (-1, ORANGE, "negative")):
        side = np.flatnonzero(sign * nodes > 0)
        if len(side):
            order = side[np.argsort(np.abs(nodes[side]))[::-1]]
            count = measure.dimension * np.cumsum(weights[order])
            bottom.step(np.abs(nodes[order]), count, where="post", color=colour, label=label)
    bottom.set(xscale="log", yscale="log", xlabel="absolute value", ylabel="eigenvalues at least as large")
    bottom.set_ylim(bottom=0.1)
    bottom.legend()
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
    return figure
