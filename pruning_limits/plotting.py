"""Figures of limits and spectra."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from estimators import SpectralMeasure, UserError
from estimators.files import path_of, refuse_unwritable, write_bytes
from pruning_limits.answers import Answer, Rung, points_of
from pruning_limits.isotropic import Negative, removable_fraction
from pruning_limits.ladder import NAMES, drop_text, metric_text, percent

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from pruning_limits.parts import Estimate
    from pruning_limits.result import PruningLimit
    from pruning_limits.sensitivity import LayerSensitivity

BLUE, ORANGE, GREEN, GREY, BLACK, PURPLE = "#0072b2", "#d55e00", "#009e73", "#666666", "#000000", "#a2467c"
SPARSITY = "sparsity (removed fraction)"
GGN_UNKNOWN = "the GGN says nothing, see the notes"
FALLS = 20  # allowed falls of the metric that the axis shows at most
MARKS: Mapping[Rung, tuple[str, str]] = {
    "one-shot": (BLUE, "^"),
    "re-tuned": (PURPLE, "s"),
    "re-trained": (GREEN, "D"),
    "bound": (BLACK, "|"),
    "formula": (ORANGE, "o"),
}


def figure_suffixes() -> list[str]:
    """Return the endings of the formats that figures can be written in."""
    return [f".{name}" for name in sorted(FigureCanvasAgg.get_supported_filetypes())]


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure to a file whose suffix names the format.

    Args:
        figure: The figure.
        path: The file; folders that are missing are created.

    Raises:
        UserError: The suffix names no format, or the file cannot be written.
    """
    place = path_of("plot", path)
    try:
        refuse_unwritable(place, figure_suffixes())
        content = BytesIO()
        figure.savefig(content, format=place.suffix[1:].lower(), dpi=150)
        write_bytes(place, content.getvalue())
    except (ValueError, OSError) as error:
        raise UserError(f"plot: {str(error).splitlines()[0]}") from None


def new_figure(
    rows: int, columns: int = 1, size: tuple[float, float] = (7.0, 6.0), **options: Any
) -> tuple[Figure, Any]:
    """Create a figure and its axes without touching the global state of pyplot."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **options)


def headline(figure: Figure, finding: str) -> None:
    """Write a finding above a figure, in letters that suit its width and as many lines as that takes.

    Args:
        figure: A figure of ``new_figure``.
        finding: One sentence.
    """
    width = figure.get_figwidth()
    size = max(11.0, 1.1 * width)
    letters = int(72 * width / (0.56 * size))
    even = math.ceil(len(finding) / math.ceil(len(finding) / letters)) + 6  # the last line is about as long as others
    whole = re.sub(r" to (?=[-+]?\d)", "\u00a0to\u00a0", finding)  # a range stays in one line
    lines = textwrap.wrap(whole, min(letters, even), break_on_hyphens=False)
    figure.suptitle("\n".join(lines), fontsize=size)


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
    """Draw ``plot_rungs`` above ``plot_crossing``.

    Args:
        limit: A predicted limit.

    Returns:
        A Matplotlib figure with two panels that share the sparsity axis.
    """
    figure, (top, bottom) = new_figure(2, sharex=True, size=(8.0, 9.5))
    plot_rungs(limit, top)
    plot_crossing(limit, bottom)
    top.set_xlabel("")
    top.xaxis.set_tick_params(labelbottom=True)
    return figure


def plot_rungs(limit: PruningLimit, ax: Axes | None = None) -> Axes:
    """Draw what pruning loses against sparsity, and the rungs with their intervals where it is what is allowed.

    It is the mean metric where it was measured, with two standard errors, or else the rise of the criterion.

    Args:
        limit: A predicted limit; without a measurement the quadratic model is drawn.
        ax: Where to draw; None draws on a figure of its own, ``.figure`` of the axes.

    Returns:
        The axes.
    """
    ax = _axes(ax, (8.0, 5.0))
    ax.grid(alpha=0.25)
    has_metric = limit.evidence.measured and limit.dense_metric is not None
    level = _draw_metric(limit, ax) if has_metric else _draw_rises(limit, ax)
    for answer in limit.answers:
        _draw_rung(limit, answer, ax, level)
    ax.set_xlabel(SPARSITY)
    ax.set_title(_in_words(limit), loc="left", fontsize=10)
    sparsity_axis(ax.xaxis, _least(limit))
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(-0.1, -0.11), ncols=2, frameon=False)
    return ax


def _draw_metric(limit: PruningLimit, ax: Axes) -> float:
    """Draw the metric of pruned networks; return the height of the rungs."""
    assert limit.dense_metric is not None
    scale = 100.0 if limit.metric == "accuracy" else 1.0
    rows = [(row.sparsity, row.drop, row.drop_error or 0.0) for row in limit.evidence.points if row.drop is not None]
    start = (limit.evidence.already_removed, 0.0, 0.0)
    sparsities, drops, errors = (np.array(column) for column in zip(start, *rows, strict=True))
    metrics = scale * (limit.dense_metric - drops)
    drawn = sparsities < 1
    label = "measured, bars of two standard errors"
    ax.errorbar(
        1 - sparsities[drawn],
        metrics[drawn],
        2 * scale * errors[drawn],
        fmt="o-",
        color=BLUE,
        markersize=4,
        label=label,
    )
    tuned = limit.evidence.retuned
    if tuned is not None:
        values = [(row, limit.dense_metric - row.drop, row.drop_error) for row in tuned.points if row.drop is not None]
        _draw_tuned(ax, [(1 - row.sparsity, scale * at, 2 * scale * (error or 0.0)) for row, at, error in values])
    ax.set_ylabel(f"{limit.metric}{' in %' if scale == 100 else ''} of the pruned network")
    if limit.max_drop is None:
        ax.axhline(metrics[0], color=GREY, linestyle=":", label=f"dense, {metric_text(limit, limit.dense_metric)}")
        return float(metrics[0])
    level = scale * (limit.dense_metric - limit.max_drop)
    ax.axhline(level, color=GREY, linestyle=":", label=f"allowed, {drop_text(limit, limit.max_drop)} lower")
    lowest = max(metrics.min(), metrics[0] - FALLS * scale * limit.max_drop)
    ax.set_ylim(bottom=lowest - 0.08 * (metrics[0] - lowest))
    return level


def _draw_rises(limit: PruningLimit, ax: Axes) -> float:
    """Draw the rise of the criterion; return the height of the rungs."""
    rows = [(1 - row.sparsity, row.rise) for row in points_of(limit.evidence) if row.sparsity < 1 and row.rise > 0]
    rows = [row for row in rows if math.isfinite(row[1])]
    if rows:
        label = "measured" if limit.evidence.measured else "quadratic model, not measured"
        if not limit.evidence.measured and limit.evidence.points:
            label = "measured rises, scaled as those of the quadratic model"
        ax.plot(
            *zip(*rows, strict=True), "o-" if limit.evidence.measured else "o--", color=BLUE, markersize=4, label=label
        )
        ax.set_ylim(min(limit.epsilon / 30, 1.0), None)
    if limit.evidence.retuned is not None:
        tuned = [row for row in limit.evidence.retuned.points if 0 < row.rise < math.inf]
        _draw_tuned(ax, [(1 - row.sparsity, row.rise, 2 * row.rise_error) for row in tuned])
    ax.axhline(limit.epsilon, color=GREY, linestyle=":", label=f"allowed, {limit.epsilon:.3g}")
    ax.set(ylabel=f"rise of the {limit.criterion}", yscale="log")
    return limit.epsilon


def _draw_tuned(ax: Axes, rows: Sequence[tuple[float, float, float]]) -> None:
    """Draw re-tuned networks: what is kept, how they do, and two standard errors."""
    if rows:
        kept, values, errors = zip(*rows, strict=True)
        ax.errorbar(kept, values, errors, fmt="s", color=PURPLE, markersize=4, alpha=0.6, label="re-tuned networks")


def _draw_rung(limit: PruningLimit, answer: Answer, ax: Axes, level: float) -> None:
    """Draw a rung at a height, its interval as a whisker whose meaning the legend tells."""
    name = NAMES[answer.rung]
    if answer.sparsity is None or answer.low is None or answer.high is None:
        ax.errorbar([], [], fmt=" ", label=f"{name}: unknown, see the notes")
        return
    colour, marker = MARKS[answer.rung]
    least = _least(limit) / 2
    low, kept, high = (max(1 - end, least) for end in (answer.low, answer.sparsity, answer.high))
    meaning = answer.basis if answer.basis in ("measured", "forecast") else "numerical error"
    interval = f"{percent(answer.low).removesuffix(' %')} to {percent(answer.high)}"
    label = f"{name} {percent(answer.sparsity)} ({meaning} {interval})"
    ax.errorbar(
        [kept],
        [level],
        xerr=[[kept - high], [low - kept]],
        fmt=marker,
        color=colour,
        markersize=11 if marker == "|" else 8,
        markeredgecolor=colour if marker == "|" else "white",
        markeredgewidth=2.5 if marker == "|" else 1,
        capsize=4,
        zorder=3,
        label=label,
    )


def _in_words(limit: PruningLimit) -> str:
    """Say the answer in a line."""
    how = "" if limit.achieved is not None else ", by the quadratic model"
    bound = limit.answer("bound").sparsity
    beyond = "no bound is established" if bound is None else f"no hope beyond {percent(bound)}"
    tuned = next((answer.sparsity for answer in limit.answers if answer.rung == "re-tuned"), None)
    further = "" if tuned is None else f", re-tuning {percent(tuned)}"
    return f"Pruning alone removes {percent(limit.lower)} of {limit.parameters:,} weights{how}{further}; {beyond}"


def plot_crossing(limit: PruningLimit, ax: Axes | None = None) -> Axes:
    """Draw the norm R of the removed weights against sparsity, for the network and for the prediction.

    Args:
        limit: A predicted limit.
        ax: Where to draw; None draws on a figure of its own, ``.figure`` of the axes.

    Returns:
        The axes.
    """
    ax = _axes(ax)
    ax.grid(alpha=0.25)
    kept = 1 - limit.evidence.curve.sparsity
    inner = (limit.evidence.curve.squared > 0) & (kept > 0)
    kept, norms = kept[inner], np.sqrt(limit.evidence.curve.squared[inner])
    scales = 2 * limit.epsilon / norms**2
    negative: Negative = limit.settings.negative
    curves: list[tuple[Estimate, Negative, str, str]] = [
        (limit.evidence.hessian, negative, ORANGE, f"largest R that {_name(limit)} allows (the paper's formula)"),
    ]
    if limit.evidence.ggn is not None:
        curves.append((limit.evidence.ggn, "clip", GREEN, "largest R that the GGN allows"))
    stride = slice(None, None, max(1, len(norms) // 400))
    lines: list[Artist] = [*ax.plot(kept, norms, color=BLUE, label="this network: norm R of the removed weights")]
    for estimate, mode, colour, label in curves:
        fractions = [estimate.limit(partial(_fraction, scale=scale, negative=mode)) for scale in scales[stride]]
        lines += ax.plot(1 - np.array(fractions), norms[stride], color=colour, label=label)
    low, high = limit.interval
    lines.append(ax.axvspan(1 - high, 1 - low, color=ORANGE, alpha=0.15, label="numerical error of the formula"))
    r_limit = np.sqrt(limit.evidence.curve.squared_norm(limit.sparsity))
    dots = ax.plot([1 - limit.sparsity], [r_limit], "o", color=ORANGE, markersize=8, label="limit, carried to all data")
    if limit.evidence.hessian.growth != 1:
        lines += dots
    if limit.evidence.ggn is None:
        lines += ax.plot([], [], " ", label=GGN_UNKNOWN)
    ax.set(xlabel=SPARSITY, ylabel="R, norm of the removed weights", yscale="log")
    drawn = norms[(kept >= _least(limit)) & (kept < 0.97)]
    if len(drawn):
        ax.set_ylim(max(drawn.min(), 1e-3 * norms.max()), 2 * norms.max())
    title = (
        f"The paper's formula: what is removed becomes longer than {_name(limit)} allows at {percent(limit.sparsity)}"
    )
    ax.set_title(title, loc="left", fontsize=10)
    sparsity_axis(ax.xaxis, _least(limit))
    ax.legend(handles=lines, fontsize=8)
    return ax


def plot_layers(limit: PruningLimit, ax: Axes | None = None) -> Axes:
    """Draw what global magnitude pruning at the limit keeps of every layer.

    Args:
        limit: A predicted limit with a per-layer table.
        ax: Where to draw; None draws on a figure of its own, ``.figure`` of the axes.

    Returns:
        The axes: one bar per layer in the model's order, the first one on top.

    Raises:
        UserError: The limit has no per-layer table, because it is that of scaled weights.
    """
    layers = limit.layers()
    if not layers:
        raise UserError("limit: has no per-layer table, as for scaled weights; plot the predicted limit")
    ax = _axes(ax, (7.0, 1.5 + 0.25 * len(layers)))
    ax.barh(range(len(layers)), [100 * (1 - layer.sparsity) for layer in layers], color=BLUE)
    ax.set_yticks(range(len(layers)), [f"{layer.name} ({layer.weights:,})" for layer in layers], fontsize=8)
    ax.invert_yaxis()
    ax.axvline(100 * (1 - limit.sparsity), color=ORANGE, linestyle="--", label=f"all layers, {1 - limit.sparsity:.2%}")
    ax.set(
        xlabel="share of the layer's weights that is kept, in %",
        title=f"What magnitude pruning keeps at {percent(limit.sparsity)}, the paper's formula",
    )
    ax.grid(axis="x", alpha=0.25)
    ax.legend(fontsize=8)
    return ax


def plot_patterns(limit: PruningLimit, ax: Axes | None = None) -> Axes:
    """Draw what one-shot pruning loses in every pattern that a limit was predicted for.

    It is the mean metric where it was measured, with two standard errors, or else the rise of the criterion. A pattern
    of one sparsity, such as 2:4, is one mark.

    Args:
        limit: A predicted limit.
        ax: Where to draw; None draws on a figure of its own, ``.figure`` of the axes.

    Returns:
        The axes.

    Raises:
        UserError: The limit was predicted for single weights alone, or nothing was measured.
    """
    rows = [own for own in limit.evidence.patterns if own.points]
    if not rows:
        raise UserError("limit: no pattern was measured; predict it with pattern=('unstructured', '2:4', ...)")
    ax = _axes(ax, (8.0, 5.0))
    ax.grid(alpha=0.25)
    has_metric = limit.evidence.measured and limit.dense_metric is not None
    scale = 100.0 if limit.metric == "accuracy" else 1.0
    kept = [1.0]
    for colour, own in zip((BLUE, ORANGE, GREEN, PURPLE, GREY, BLACK) * 3, rows, strict=False):
        points = [point for point in own.points if point.sparsity < 1 and math.isfinite(point.rise)]
        values, errors = [point.rise for point in points], [2 * point.rise_error for point in points]
        if has_metric:
            points = [point for point in points if point.drop is not None]
            values = [scale * ((limit.dense_metric or 0.0) - (point.drop or 0.0)) for point in points]
            errors = [2 * scale * (point.drop_error or 0.0) for point in points]
        across = [1 - point.sparsity for point in points]
        form = "D" if own.fixed else "o-"
        ax.errorbar(across, values, errors, fmt=form, color=colour, markersize=4, linewidth=1, label=own.name)
        kept += across
    if has_metric:
        ax.set_ylabel(f"{limit.metric}{' in %' if scale == 100 else ''} of the pruned network")
        level = scale * ((limit.dense_metric or 0.0) - (limit.max_drop or 0.0))
    else:
        ax.set(ylabel=f"rise of the {limit.criterion}", yscale="log")
        level = limit.epsilon
    ax.axhline(level, color=GREY, linestyle=":", label="allowed" if limit.max_drop or not has_metric else "dense")
    ax.set_xlabel(SPARSITY)
    ax.set_title("Pruned in one shot, nothing else", loc="left", fontsize=10)
    sparsity_axis(ax.xaxis, 0.9 * min(kept))
    ax.legend(fontsize=8)
    return ax


def plot_sensitivities(rows: Sequence[LayerSensitivity], ax: Axes | None = None) -> Axes:
    """Draw what every layer loses when it alone is pruned, with two paired standard errors.

    Args:
        rows: What ``limit.layers(measured=True)`` returned, at least one.
        ax: Where to draw; None draws on a figure of its own, ``.figure`` of the axes.

    Returns:
        The axes: one line per layer, the most sensitive on top, one mark per sparsity.

    Raises:
        UserError: There are no rows.
    """
    if not rows:
        raise UserError("rows: expected measured layers, as limit.layers(measured=True) returns them, got none")
    ax = _axes(ax, (7.0, 1.5 + 0.25 * len(rows)))
    most = max(len(row.points) for row in rows)
    for place, colour in zip(range(most), (GREEN, BLUE, ORANGE, PURPLE, GREY, BLACK), strict=False):
        measured = [(level, row.points[place]) for level, row in enumerate(rows) if len(row.points) > place]
        finite = [(level, point) for level, point in measured if math.isfinite(point.rise)]
        share = float(np.median([point.sparsity for _, point in measured]))  # small layers round up
        ax.errorbar(
            [point.rise for _, point in finite],
            [level for level, _ in finite],
            xerr=[2 * point.rise_error for _, point in finite],
            fmt="o",
            color=colour,
            markersize=4,
            label=f"{100 * share:.0f} % of the layer removed",
        )
    ax.set_yticks(range(len(rows)), [f"{row.name} ({row.weights:,})" for row in rows], fontsize=8)
    ax.invert_yaxis()
    ax.set(xlabel="rise of the loss", title="Every layer pruned alone, the others dense")
    near = _least_rise(rows)
    lowest = [point.rise - 2 * point.rise_error for row in rows for point in row.points if math.isfinite(point.rise)]
    ax.set_xscale("symlog", linthresh=near)
    ax.set_xlim(left=min([-near / 2, *(1.2 * low for low in lowest)]))
    ax.grid(axis="x", alpha=0.25)
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return ax


def _least_rise(rows: Sequence[LayerSensitivity]) -> float:
    """Return a rise below which the axis is linear: the median of all errors, or a hundredth of the largest rise."""
    points = [point for row in rows for point in row.points if math.isfinite(point.rise)]
    error = float(np.median([point.rise_error for point in points])) if points else 0.0
    largest = max((abs(point.rise) for point in points), default=0.0)
    return max(error, largest / 100, 1e-12)


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
    known = [answer.sparsity for answer in limit.answers if answer.sparsity is not None and answer.sparsity < 1]
    return max(0.2 / limit.parameters, 0.4 * min(0.25, 1 - max(known, default=0.75)))


def _name(limit: PruningLimit) -> str:
    return "the Hessian" if limit.settings.curvature == "hessian" else "the GGN"


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
    for panel in (axes[0, 0], axes[1, 0], axes[1, 1]):
        panel.grid(alpha=0.25)
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
