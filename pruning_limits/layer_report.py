"""Measured sensitivities of the layers of a limit, and their section in its report page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from estimators.errors import UserError

if TYPE_CHECKING:
    from pruning_limits.measured import Point
    from pruning_limits.result import PruningLimit
    from pruning_limits.sensitivity import LayerSensitivity


def measured_layers(limit: PruningLimit, sparsities: Sequence[float], samples: int | None) -> list[LayerSensitivity]:
    """Prune every layer of a limit's network alone and measure what is lost, see ``PruningLimit.layers``.

    Args:
        limit: The limit; its pattern is that of the layers.
        sparsities: Removed shares of a layer in (0, 1].
        samples: Size of the random draw; None takes all data.

    Raises:
        UserError: Network and data are not at hand.
    """
    from pruning_limits.sensitivity import layer_sensitivities
    from pruning_limits.source import MISSING

    profile = limit.profile
    if profile is None or profile.structure.source is None:
        raise UserError(MISSING)
    structure = profile.structure
    source = profile.structure.source
    objective, metric = source.objectives(limit.settings, profile)
    groups = structure.groups.get(limit.pattern)
    rows = layer_sensitivities(objective, metric, sparsities, samples, groups, structure.uses, limit.settings.seed)
    source.sensitivities[limit.pattern] = rows
    return list(rows)


def section(limit: PruningLimit) -> str:
    """Return the measured layers as a folded, searchable section of the page; an empty text where there are none.

    Args:
        limit: A limit.
    """
    source = None if limit.profile is None else limit.profile.structure.source
    tables = {} if source is None else source.sensitivities
    return "\n".join(_table(limit, pattern, rows) for pattern, rows in tables.items() if rows)


def _table(limit: PruningLimit, pattern: str, rows: Sequence[LayerSensitivity]) -> str:
    of = "" if pattern == "unstructured" else f" in {pattern}"
    title = f"Every layer pruned alone{of}, measured on {rows[0].samples:,} samples"
    most = max(rows, key=lambda row: len(row.points)).points
    heads = ["parameter", "weights", "MACs", *(f"{100 * point.sparsity:.0f} % removed" for point in most)]
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    lines = []
    for row in rows:
        macs = "-" if row.macs is None else f"{row.macs:,.0f}"
        cells = [f"{row.weights:,}", macs, *(_cell(limit, point) for point in row.points)]
        cells += [""] * (len(heads) - 1 - len(cells))
        body = "".join(f"<td>{escape(text)}</td>" for text in cells)
        lines.append(f'<tr><th scope="row">{escape(row.name)}</th>{body}</tr>')
    identity = f"alone-{len(lines)}-{''.join(letter if letter.isalnum() else '-' for letter in pattern)}"
    return (
        f"<details>\n<summary>{escape(title)}</summary>\n"
        f'<p class="hint">The most sensitive layers come first. Cells: by how much the {escape(limit.criterion)} rises'
        f"{escape(_metric_words(limit))}, and two paired standard errors.</p>\n"
        f'<label for="{identity}">Search layers</label> '
        f'<input id="{identity}" type="search" data-rows="{identity}-rows" autocomplete="off">\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}">\n'
        f'<table class="patterns"><thead><tr>{head}</tr></thead>\n'
        f'<tbody id="{identity}-rows">{"".join(lines)}</tbody></table>\n</div>\n</details>'
    )


def _metric_words(limit: PruningLimit) -> str:
    return "" if limit.metric is None else f", by how much {limit.metric} falls"


def _cell(limit: PruningLimit, point: Point) -> str:
    from pruning_limits.ladder import drop_text

    text = f"{point.rise:.2g} ± {2 * point.rise_error:.1g}"
    if point.drop is None:
        return text
    scale = 100 if limit.metric == "accuracy" else 1
    return f"{text}; {drop_text(limit, point.drop)} ± {2 * scale * (point.drop_error or 0.0):.1g}"
