"""The answer as text: the ladder from the dense network to the bound, a verdict on a target, and the details."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from html import escape
from typing import TYPE_CHECKING, Any

from pruning_limits.answers import OUTSIDE_BENCH, Answer, Verdict, ggn_formula, metric_at, tuned_to
from pruning_limits.pattern_answers import pattern_verdict
from pruning_limits.pattern_table import cells, text_table

if TYPE_CHECKING:
    from pruning_limits.result import PruningLimit

NAMES = {
    "one-shot": "pruned, nothing else",
    "re-tuned": "re-tuned",
    "re-trained": "re-trained",
    "bound": "no hope beyond",
    "formula": "the paper's formula",
}
NONE = "-"


@dataclass(frozen=True)
class Row:
    """One line of the ladder, in words."""

    name: str
    sparsity: str
    interval: str
    metric: str
    how: str


def percent(share: float) -> str:
    """Write a sparsity with one decimal, or as many as two digits of what is kept take.

    Example:
        >>> percent(0.671), percent(0.99934), percent(1.0)
        ('67.1 %', '99.934 %', '100 %')
    """
    kept = 100 * (1 - share)
    if kept <= 0:
        return "100 %"
    return f"{100 * share:.{max(1, 1 - math.floor(math.log10(kept) + 1e-9))}f} %" if share > 0 else "0 %"


def metric_text(limit: PruningLimit, value: float | None) -> str:
    """Write a mean metric: an accuracy in per cent, any other as a number."""
    if value is None:
        return NONE
    return f"{100 * value:.2f} %" if limit.metric == "accuracy" else f"{value:.4g}"


def drop_text(limit: PruningLimit, drop: float) -> str:
    """Write a fall of the metric: of an accuracy in points."""
    return f"{100 * drop:.3g} points" if limit.metric == "accuracy" else f"{drop:.3g}"


def title(limit: PruningLimit) -> str:
    """Say of what, by what and when the limit is."""
    origin = limit.evidence.origin
    removed = limit.evidence.already_removed
    gone = f", {percent(removed)} of them removed already" if removed else ""
    gone += f", pruned in {limit.pattern}" if limit.evidence.own is not None else ""
    return (
        f"{origin.model} on {origin.data}, {limit.parameters:,} prunable weights{gone}, version {origin.version}, "
        f"{origin.date}"
    )


def allowed(limit: PruningLimit) -> str:
    """Say what may be lost."""
    dense, rise = limit.evidence.dense, limit.allowed
    noise = "" if rise.low == rise.high else f" ({rise.low:.3g} to {rise.high:.3g})"
    loss = f"a rise of the {limit.criterion} by {rise.epsilon:.3g}{noise} from {dense.objective:.3g}"
    if rise.origin == "batch-std":
        loss += ", the fluctuation of a batch of 128"
    if limit.max_drop is None:
        return f"allowed: {loss}"
    where = "held-out" if limit.settings.held_out else "training"
    resolution = "" if dense.resolution is None else f", resolution {drop_text(limit, dense.resolution)}"
    return (
        f"allowed: {limit.metric} -{drop_text(limit, limit.max_drop)} of {metric_text(limit, dense.metric)} "
        f"({dense.metric_samples:,} {where} samples{resolution}), {loss}"
    )


def rows(limit: PruningLimit) -> list[Row]:
    """Return the ladder: the dense network, then every rung."""
    dense = metric_text(limit, limit.dense_metric)
    return [Row("dense", "0 %", "", dense, "measured"), *(_row(limit, answer) for answer in limit.answers)]


def _row(limit: PruningLimit, answer: Answer) -> Row:
    if answer.sparsity is None or answer.low is None or answer.high is None:
        return Row(NAMES[answer.rung], "unknown", "", NONE, answer.status)
    tuning = limit.evidence.retuned
    samples = f", {tuning.samples:,} samples" if answer.rung == "re-tuned" and tuning is not None else ""
    interval = f"{percent(answer.low).removesuffix(' %')} to {percent(answer.high)}"
    metric = metric_text(limit, answer.metric)
    return Row(NAMES[answer.rung] + samples, percent(answer.sparsity), interval, metric, _how(limit, answer))


def _how(limit: PruningLimit, answer: Answer) -> str:
    if answer.rung == "one-shot":
        return "measured" if answer.basis == "measured" else "quadratic model, not measured"
    if answer.rung == "re-tuned":
        tuning = limit.evidence.retuned
        return "measured" if tuning is None else f"measured, {tuning.seconds:.0f} s"
    if answer.rung == "re-trained":
        return _forecast_text(limit, answer) if answer.basis == "forecast" else "formula, no claim of coverage"
    if answer.rung == "bound":
        return "bound of the quadratic model"
    own = limit.evidence.own
    if own is not None and own.fixed:
        return "formula, allowed at the R of the pattern"
    if limit.achieved is None or answer.sparsity is None:
        return "formula"
    points = 100 * (answer.sparsity - limit.achieved)
    return f"{abs(points):.1f} points {'above' if points > 0 else 'below'} what was measured"


def _forecast_text(limit: PruningLimit, answer: Answer) -> str:
    forecast = limit.evidence.forecast
    share = "" if forecast is None else f", {10 * forecast.coverage:.3g} of 10 networks"
    return f"forecast{share}{', outside the bench' if OUTSIDE_BENCH in answer.status else ''}"


def _training(limit: PruningLimit, sparsity: float) -> str:
    """Say what the forecast says of training to a sparsity; nothing where there is none."""
    again = limit.answer("re-trained")
    if again.basis != "forecast" or again.low is None or again.high is None:
        return ""
    may = "will probably" if sparsity <= again.low else "may" if sparsity <= again.high else "will probably not"
    ends = f"{percent(again.low).removesuffix(' %')} to {percent(again.high)}"
    return f"; training {may} reach it: the forecast is {ends}"


def judged(limit: PruningLimit, sparsity: float) -> Verdict:
    """Judge whether a sparsity can be reached, see ``PruningLimit.check``."""
    of_groups = None if limit.evidence.own is None else pattern_verdict(limit, sparsity)
    if of_groups is not None:
        return of_groups
    metric = metric_at(limit.evidence, sparsity)
    target, reached = percent(sparsity), percent(limit.lower)
    how = "measured" if limit.achieved is not None else "by the quadratic model, not measured"
    keeps = "" if metric is None else f"; {limit.metric} at {target}: {metric_text(limit, metric)}"
    if metric is not None and sparsity > 0 and all(point.sparsity != sparsity for point in limit.evidence.points):
        keeps += ", by interpolation"
    if limit.evidence.dense.at_chance:
        reason = (
            f"{target}: the network is no better than constant outputs, so that pruning can lose nothing and no "
            "sparsity means anything; train it first"
        )
        return Verdict("open", reason, 0.0, metric)
    if sparsity <= limit.lower:
        reason = f"{target} is in reach by pruning alone, which gets to {reached} ({how}){keeps}"
        return Verdict("achievable", reason, limit.lower - sparsity, metric)
    alone = f"{target} is out of reach by pruning alone, which gets to {reached} ({how}){keeps}"
    tuned = tuned_to(limit.answers, sparsity)
    if tuned is not None and tuned.sparsity is not None:
        at = "" if tuned.metric is None else f", {limit.metric} there: {metric_text(limit, tuned.metric)}"
        reason = f"{alone}; re-tuning reaches it: it gets to {percent(tuned.sparsity)} (measured{at})"
        return Verdict("open", reason, min(sparsity - limit.lower, tuned.sparsity - sparsity), metric)
    bound, training = limit.answer("bound"), _training(limit, sparsity)
    if bound.high is None:
        reason = f"{alone}{training}; no bound is established beyond {reached}: {bound.status}"
        return Verdict("open", reason, sparsity - limit.lower, metric)
    if sparsity > bound.high:
        reason = f"{target} is beyond {percent(bound.high)}, the bound of the quadratic model and its numerical error"
        return Verdict("infeasible", reason, sparsity - bound.high, metric)
    reason = (
        f"{alone}{training or '; training may reach it'}; the bound of the quadratic model is at {percent(bound.high)}"
    )
    return Verdict("open", reason, min(sparsity - limit.lower, bound.high - sparsity), metric)


def target_line(limit: PruningLimit, sparsity: float) -> str:
    """Say in one line whether a target can be reached."""
    verdict = limit.check(sparsity)
    return f"your target {percent(sparsity)}: {verdict.status}. {verdict.reason}."


def ladder(limit: PruningLimit, target: float | None = None) -> str:
    """Write the answer as a table of plain text.

    Args:
        limit: A predicted limit.
        target: A sparsity to be judged, in [0, 1), or None.
    """
    lines = [title(limit), allowed(limit), "", *_table(limit), ""]
    columns, rows = cells(limit)
    lines += [*text_table(columns, rows), ""] if rows else []
    if target is not None:
        lines += [target_line(limit, target), ""]
    lines += [f"note: {note}" for note in limit.notes]
    lines.append(f"{limit.status}")
    seconds, epochs = limit.cost.seconds, _count(limit.cost.epochs)
    lines.append(f"took {seconds:.1f} s, {epochs} epochs of training; more: limit.details(), limit.report(path)")
    return "\n".join(lines)


def _columns(limit: PruningLimit) -> list[tuple[str, list[str]]]:
    lines = rows(limit)
    columns = [
        ("", [row.name for row in lines]),
        ("sparsity", [row.sparsity for row in lines]),
        ("interval", [row.interval for row in lines]),
    ]
    if limit.metric is not None:
        columns.append((limit.metric, [row.metric for row in lines]))
    return [*columns, ("how it is known", [row.how for row in lines])]


def _table(limit: PruningLimit) -> list[str]:
    columns = _columns(limit)
    lines = zip(*([header, *cells] for header, cells in columns), strict=True)
    widths = [max(map(len, [header, *cells])) for header, cells in columns]
    right = {"sparsity", limit.metric}
    return [
        "  ".join(
            cell.rjust(width) if header in right else cell.ljust(width)
            for cell, width, (header, _) in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in lines
    ]


def html(limit: PruningLimit) -> str:
    """Write the answer as a table for notebooks."""
    columns = _columns(limit)
    cell = 'style="text-align: left; color: inherit; background: transparent"'
    head = "".join(f'<th scope="col" {cell}>{escape(header)}</th>' for header, _ in columns)
    body = "".join(
        '<tr style="background: transparent">'
        + f'<th scope="row" {cell}>{escape(line[0])}</th>'
        + "".join(f"<td {cell}>{escape(text)}</td>" for text in line[1:])
        + "</tr>"
        for line in zip(*(cells for _, cells in columns), strict=True)
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in limit.notes)
    listed = f"<ul>{notes}</ul>" if notes else ""
    return (
        f"<p>{escape(title(limit))}<br>{escape(allowed(limit))}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{listed}<p>{escape(limit.status)}</p>"
    )


def settings_of(limit: PruningLimit) -> dict[str, Any]:
    """Return the settings by name."""
    return {column.name: getattr(limit.settings, column.name) for column in fields(limit.settings)}


def details(limit: PruningLimit) -> str:
    """Write what is behind the answer."""
    sharpness, cost, evidence = limit.sharpness, limit.cost, limit.evidence
    along = ggn_formula(evidence, limit.allowed)
    error = f" +- {sharpness.trace_error:.2g}" if sharpness.trace_error else ""
    lines = [
        *((f"rung {answer.rung}", answer.status) for answer in limit.answers),
        ("headroom", NONE if limit.headroom is None else f"{100 * limit.headroom:.2f} points to the bound"),
        ("effective dimension", f"{sharpness.effective_dimension:,.0f}"),
        ("trace", f"{sharpness.trace:.4g}{error}"),
        ("top eigenvalue", f"{sharpness.top_eigenvalue:.4g}"),
        ("formula with the GGN", "unknown" if along.sparsity is None else percent(along.sparsity)),
        ("calibration", NONE if evidence.forecast is None else evidence.forecast.version),
        ("products", f"{cost.products:,} on {cost.samples:,} samples together"),
        ("epochs of training", f"{_count(cost.epochs)}, counted in passes"),
        ("forward passes", f"{cost.forward_samples:,} samples"),
        *((f"setting {name}", "-" if value is None else str(value)) for name, value in settings_of(limit).items()),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)


def _count(epochs: float) -> str:
    """Write a number of epochs with two digits, or whole where it has more."""
    return f"{epochs:,.0f}" if epochs >= 10 else f"{epochs:.2g}"
