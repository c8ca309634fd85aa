"""The answers of all patterns of pruning side by side, in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from pruning_limits.answers import Answer, ggn_formula
from pruning_limits.evidence import solve
from pruning_limits.pattern_answers import spare, spare_re_tuned

if TYPE_CHECKING:
    from pruning_limits.pattern_evidence import PatternEvidence
    from pruning_limits.result import PruningLimit

COLUMNS = ("pattern", "removes at most", "pruned, nothing else")
FORMULAS = ("the GGN's formula", "the paper's formula")
NOTHING = "-"


@dataclass(frozen=True)
class PatternRow:
    """One pattern in words.

    Attributes:
        pattern: Its name.
        most: Largest sparsity.
        alone: What pruning in it reaches alone, with its interval; of one sparsity, whether it holds, and the margin.
        tuned: The same of re-tuning; None where nothing was re-tuned.
        retrained: What the formula with the GGN says at its R.
        formula: What the paper's formula says at its R.
        metric: Mean metric of the network that is pruned alone, of one sparsity of that one; None without a metric.
        macs: Share of the multiply-accumulates that it keeps.
        bytes: Share of the bytes, in the format of the pattern.
    """

    pattern: str
    most: str
    alone: str
    tuned: str | None
    retrained: str
    formula: str
    metric: str | None
    macs: str
    bytes: str


def pattern_rows(limit: PruningLimit) -> list[PatternRow]:
    """Return a row for every pattern that a limit was predicted for; none where that is single weights alone.

    Args:
        limit: A limit.
    """
    return [_row(limit, own) for own in limit.evidence.patterns]


def _row(limit: PruningLimit, own: PatternEvidence) -> PatternRow:
    from pruning_limits.ladder import metric_text, percent

    answer = solve(limit.evidence.of(own.name), limit.settings, limit.allowed)
    alone = answer.answer("one-shot")
    metric = alone.metric
    if own.fixed and answer.evidence.points:
        drop = answer.evidence.points[-1].drop
        metric = None if drop is None or limit.dense_metric is None else limit.dense_metric - drop
    return PatternRow(
        pattern=own.name,
        most=percent(own.most),
        alone=_reached(answer, alone, own, spare),
        tuned=_tuned(answer, own),
        retrained=_formula(ggn_formula(answer.evidence, answer.allowed), own),
        formula=_formula(answer.answer("formula"), own),
        metric=None if limit.metric is None else metric_text(limit, metric),
        macs=_left(answer, own, "macs"),
        bytes=_left(answer, own, "bytes"),
    )


def _left(limit: PruningLimit, own: PatternEvidence, quantity: str) -> str:
    """Say which share of the dense network's stays where pruning alone reaches, or at the one sparsity."""
    reached = own.most if own.fixed else limit.answer("one-shot").sparsity
    if reached is None or not limit.evidence.savings:
        return NOTHING
    dense, there = limit.saving(0.0), limit.saving(reached)
    whole = dense.dense_bytes if quantity == "bytes" else getattr(dense, quantity)
    left = getattr(there, quantity)
    if left is None or not whole:
        return NOTHING
    return f"{100 * left / whole:.0f} %"


def _tuned(limit: PruningLimit, own: PatternEvidence) -> str | None:
    """Say what re-tuning reaches; None where nothing was to be re-tuned."""
    if limit.settings.retune is None:
        return None
    answer = limit.answer("re-tuned")
    margin = spare if limit.evidence.retuned is None else spare_re_tuned
    return _reached(limit, answer, own, margin)


def _reached(
    limit: PruningLimit, answer: Answer, own: PatternEvidence, margin: Callable[[PruningLimit], tuple[str, float]]
) -> str:
    from pruning_limits.ladder import percent

    if answer.sparsity is None or answer.low is None or answer.high is None:
        return "not measured"
    if own.fixed:
        text, _ = margin(limit)
        holds = "holds" if answer.sparsity >= own.most else "fails"
        return f"{holds}, {text.rpartition(', ')[2]}" if text else holds
    interval = f"{percent(answer.low).removesuffix(' %')} to {percent(answer.high)}"
    return f"{percent(answer.sparsity)} ({interval})"


def _formula(answer: Answer, own: PatternEvidence) -> str:
    from pruning_limits.ladder import percent

    if answer.sparsity is None:
        return "unknown"
    if not own.fixed:
        return percent(answer.sparsity)
    points = 100 * (answer.sparsity - own.most)
    return f"{abs(points):.1f} points {'to spare' if points >= 0 else 'short'}"


def cells(limit: PruningLimit) -> tuple[list[str], list[list[str]]]:
    """Return the table as texts: names of columns, and a line per pattern; no line where there are no patterns.

    Args:
        limit: A limit.
    """
    rows = pattern_rows(limit)
    metric = [] if limit.metric is None else [f"{limit.metric} there"]
    tuned = [] if limit.settings.retune is None else ["re-tuned"]
    columns = [*COLUMNS, *metric, "MACs", "bytes", *tuned, *FORMULAS]
    lines = [
        [
            *(row.pattern, row.most, row.alone),
            *([] if row.metric is None else [row.metric]),
            *(row.macs, row.bytes),
            *([] if row.tuned is None else [row.tuned]),
            *(row.retrained, row.formula),
        ]
        for row in rows
    ]
    return columns, lines


def text_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as lines of plain text, all columns left aligned.

    Example:
        >>> text_table(["a", "b"], [["1.0", "2"]])
        ['a    b', '1.0  2']
    """
    widths = [max(len(line[place]) for line in (columns, *lines)) for place in range(len(columns))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (columns, *lines)
    ]


def section(limit: PruningLimit) -> str:
    """Return the table as a section of the page; an empty text where there are no patterns.

    Args:
        limit: A limit.
    """
    columns, lines = cells(limit)
    if not lines:
        return ""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(line[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in line[1:])
        + "</tr>"
        for line in lines
    )
    return (
        '<section aria-labelledby="patterns-title">\n<h2 id="patterns-title">Patterns of pruning</h2>\n'
        '<div class="scroll" tabindex="0" role="region" aria-labelledby="patterns-title">\n'
        f'<table class="patterns"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>\n</div>\n'
        f'<p class="hint">{escape(EXPLANATION)}</p>\n</section>'
    )


EXPLANATION = (
    "The formulas take the norm of what a pattern removes and the same spectrum. A pattern of one sparsity, such as "
    "2:4, is compared there: points to spare are those that more could go at its norm. What pruning alone spares is "
    "counted in single weights. Multiply-accumulates and bytes are what stays there of the dense network's; bytes can "
    "be more, as compressed rows of single weights hold their places. This table does not follow the sliders."
)
