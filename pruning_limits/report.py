"""Write a limit as one self-contained web page: numbers, figures, and sliders that answer what-if questions."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from dataclasses import astuple, replace
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from estimators import SpectralMeasure
from estimators.files import path_of, refuse_unwritable, write_bytes
from estimators.measure import Rule
from pruning_limits import ladder, layer_report, pattern_table
from pruning_limits.parts import Estimate
from pruning_limits.pattern_names import UNSTRUCTURED
from pruning_limits.result import PruningLimit
from pruning_limits.settings import Retuning

LARGEST = 1_000_000
FEWEST_NODES = 16
SUFFIXES = (".html", ".htm")
SETTINGS = {
    "epsilon": "allowed rise of the criterion",
    "max_drop": "allowed fall of the metric",
    "held_out": "metric on held-out data",
    "measure": "one-shot pruning is measured",
    "negative": "negative eigenvalues",
    "parameters": "prunable parameters",
    "tolerance": "wanted half-width, in sparsity",
    "retune": "re-tuning",
    "max_batches": "batches read at most",
}
_FILES = ("template.html", "report.css", "text.js", "limit.js", "measured.js", "ladder.js", "charts.js", "report.js")


def write_report(limit: PruningLimit, path: str | Path) -> None:
    """Write the page of a limit to a file.

    Args:
        limit: A predicted limit, also one loaded from a file.
        path: File to write, ending in ``.html`` or ``.htm``.

    Raises:
        UserError: The file has another suffix or cannot be written.
    """
    place = path_of("path", path)
    refuse_unwritable(place, SUFFIXES)
    write_bytes(place, report_html(limit).encode("utf-8", "replace"))


def report_html(limit: PruningLimit) -> str:
    """Build the page of a limit: one HTML document without links to anything outside.

    The page is that of single weights, with a table of the patterns that the limit was predicted for. It holds the JSON
    form of the limit, and the formulas and words of ``PruningLimit.what_if``, ``check`` and ``summary`` in JavaScript.
    Quadrature nodes are merged only where the page would exceed ``LARGEST`` bytes, and the page then says by how much
    this moves the answers.

    Args:
        limit: A predicted limit, also one loaded from a file.

    Returns:
        The document.

    Example:
        >>> import torch
        >>> from pruning_limits import predict_limit
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> limit = predict_limit(model, [(torch.randn(64, 4), torch.randint(0, 2, (64,)))])
        >>> report_html(limit).startswith("<!doctype html>")
        True
    """
    sections = {"patterns": pattern_table.section(limit), "sensitivities": layer_report.section(limit)}
    limit = limit.for_pattern(UNSTRUCTURED)
    limit = replace(limit, evidence=replace(limit.evidence, patterns=()))  # the table holds what is shown of them
    page, count = _page(limit, "", sections), _most_nodes(limit)
    while len(page.encode("utf-8", "replace")) > LARGEST and count > FEWEST_NODES:
        count = max(FEWEST_NODES, count // 2)
        thin = thinned(limit, count)
        page = _page(thin, _thinning_note(limit, thin, count), sections)
    return page


def thinned(limit: PruningLimit, count: int) -> PruningLimit:
    """Merge neighbouring quadrature nodes, total weight and mean kept, until no rule holds more than ``count``.

    Args:
        limit: A limit.
        count: Largest number of nodes of a rule, at least 1.

    Returns:
        The limit with fewer nodes; its numbers are not computed anew.
    """
    ggn, directions = limit.evidence.ggn, limit.evidence.directions
    if ggn is not None and directions is not None:
        ggn = _thin_estimate(ggn, count)
        directions = replace(directions, rules=tuple(_merged(rule, count) for rule in directions.rules))
    hessian = _thin_estimate(limit.evidence.hessian, count)
    return replace(limit, evidence=replace(limit.evidence, hessian=hessian, ggn=ggn, directions=directions))


def _merged(rule: Rule, count: int) -> Rule:
    nodes, weights = rule
    if len(nodes) <= count:
        return rule
    order = np.argsort(nodes)
    starts = np.linspace(0, len(nodes), count, endpoint=False).astype(np.int64)
    mass = np.add.reduceat(weights[order], starts)
    moment = np.add.reduceat((nodes * weights)[order], starts)
    middle = np.divide(moment, mass, out=nodes[order][starts], where=mass > 0)
    return middle, mass


def _thin_measure(measure: SpectralMeasure, count: int) -> SpectralMeasure:
    return replace(measure, rules=tuple(_merged(rule, count) for rule in measure.rules))


def _thin_estimate(estimate: Estimate, count: int) -> Estimate:
    bracket = estimate.bracket
    return replace(
        estimate,
        measure=_thin_measure(estimate.measure, count),
        above=None if estimate.above is None else _thin_measure(estimate.above, count),
        bracket=None if bracket is None else (_thin_measure(bracket[0], count), _thin_measure(bracket[1], count)),
    )


def _most_nodes(limit: PruningLimit) -> int:
    rules = [*limit.evidence.hessian.measure.rules]
    if limit.evidence.ggn is not None and limit.evidence.directions is not None:
        rules += [*limit.evidence.ggn.measure.rules, *limit.evidence.directions.rules]
    return max(len(nodes) for nodes, _ in rules)


def _thinning_note(limit: PruningLimit, thin: PruningLimit, count: int) -> str:
    exact, merged = limit.what_if(), thin.what_if()
    names = ("sparsity",) if limit.evidence.unknown else ("sparsity", "retrained", "directional")
    change = max(abs(getattr(exact, name) - getattr(merged, name)) for name in names)
    return (
        f"To keep this page small, neighbouring nodes of the spectra were merged, {count} to a rule. Unchanged "
        f"conditions show the full answer; what the sliders give is off by about {change:.1g} in sparsity."
    )


def _page(limit: PruningLimit, thinning: str, sections: Mapping[str, str]) -> str:
    parts = {name: (files("pruning_limits") / "page" / name).read_text(encoding="utf-8") for name in _FILES}
    script = "\n".join(parts[name] for name in _FILES if name.endswith(".js"))
    return Template(parts["template.html"]).substitute(
        style=parts["report.css"],
        style_hash=_hash(parts["report.css"]),
        script=script,
        script_hash=_hash(script),
        name=html.escape(limit.evidence.origin.model),
        summary=html.escape(limit.summary()),
        **sections,
        data=_data(limit, thinning),
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data(limit: PruningLimit, thinning: str) -> str:
    """Return what the page shows as JSON that cannot end a script element; numbers that are not finite become null."""
    data = {
        "limit": json.loads(limit.to_json(), parse_constant=lambda _: None),
        "title": ladder.title(limit),
        "allowed": ladder.allowed(limit),
        "rows": [astuple(row) for row in ladder.rows(limit)],
        "behind": _behind(limit),
        "thinning": thinning,
    }
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _behind(limit: PruningLimit) -> dict[str, list[tuple[str, str]]]:
    """Return what is behind the answer: lists of names and texts under titles."""
    cost, origin, dense = limit.cost, limit.evidence.origin, limit.evidence.dense
    return {
        "How each rung is known": [(ladder.NAMES[answer.rung], answer.status) for answer in limit.answers],
        "Network and data": [
            ("network", origin.model),
            ("data", origin.data),
            ("prunable weights", f"{limit.parameters:,}"),
            ("removed already", ladder.percent(limit.evidence.already_removed)),
            (f"{limit.criterion} of the dense network", f"{limit.objective:.6g}"),
            *_metric(limit),
            ("spectrum behind the formula", _origin(limit.evidence.hessian)),
            ("spectrum behind re-training", "unknown" if limit.evidence.ggn is None else _origin(limit.evidence.ggn)),
            ("training samples", f"{dense.samples:,}"),
            ("predicted", f"{origin.date}, version {origin.version}"),
        ],
        "Settings": [(SETTINGS.get(name, name), _text(value)) for name, value in ladder.settings_of(limit).items()],
        "Cost": [
            ("curvature-vector products", f"{cost.products:,}"),
            ("samples seen by products", f"{cost.samples:,}"),
            ("samples seen by forward passes", f"{cost.forward_samples:,}"),
            ("wall time", f"{cost.seconds:,.1f} s"),
            ("largest memory of a process", f"{cost.peak_memory / 2**20:,.0f} MiB"),
        ],
    }


def _metric(limit: PruningLimit) -> list[tuple[str, str]]:
    dense = limit.evidence.dense
    if dense.metric is None:
        return []
    error = "" if dense.metric_error is None else f" +- {ladder.drop_text(limit, dense.metric_error)}"
    samples = f", {dense.metric_samples:,} samples"
    return [(f"{limit.metric} of the dense network", f"{ladder.metric_text(limit, dense.metric)}{error}{samples}")]


def _text(value: Any) -> str:
    if value is None:
        return "left open"
    if isinstance(value, Retuning):
        return str(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _origin(estimate: Estimate) -> str:
    measure = estimate.measure
    vectors = "1 random vector" if measure.probes == 1 else f"{measure.probes} random vectors"
    how = "all eigenvalues" if measure.exact else f"{estimate.steps} Lanczos steps from {vectors}"
    return f"{how}, {estimate.samples:,} samples"
