"""Output files of the gate: JUnit for pipelines, Markdown for pull requests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from pruning_limits.gate import ORDER, Case, Comparison
from pruning_limits.ladder import allowed, rows, title
from pruning_limits.pattern_table import cells

if TYPE_CHECKING:
    from pruning_limits.answers import Verdict
    from pruning_limits.result import PruningLimit


def cases_of(answer: Verdict | Comparison) -> tuple[Case, ...]:
    """Return the questions behind an answer; a verdict is that on a sparsity."""
    return answer.cases if isinstance(answer, Comparison) else (Case("sparsity", answer.status, answer.reason),)


def junit(cases: Sequence[Case], seconds: float = 0.0) -> str:
    """Return cases as a JUnit report of one test suite.

    An infeasible case is a failure, an open one is skipped, and the exit code of the command tells the two apart from
    success as well.

    Args:
        cases: Questions and answers.
        seconds: Wall time of the whole, >= 0.

    Returns:
        XML text.

    Example:
        >>> print(junit([Case("sparsity", "achievable", "50.00% is at most 60.00%")]).splitlines()[2].strip())
        <testcase classname="pruning-limits" name="sparsity">
    """
    counts = {status: str(sum(case.status == status for case in cases)) for status in ORDER}
    suite = ElementTree.Element(
        "testsuite",
        name="pruning-limits",
        tests=str(len(cases)),
        failures=counts["infeasible"],
        errors="0",
        skipped=counts["open"],
        time=f"{seconds:.3f}",
    )
    for case in cases:
        entry = ElementTree.SubElement(suite, "testcase", classname="pruning-limits", name=_legal(case.name))
        kind = {"achievable": None, "open": "skipped", "infeasible": "failure"}[case.status]
        if kind is not None:
            ElementTree.SubElement(entry, kind, message=_legal(case.reason))
        else:
            ElementTree.SubElement(entry, "system-out").text = _legal(case.reason)
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _legal(text: str) -> str:
    """Replace what XML cannot hold."""
    return re.sub("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)


def markdown(answer: Verdict | Comparison, limit: PruningLimit) -> str:
    """Return an answer as a summary for a pull request.

    Args:
        answer: What ``compare`` or ``PruningLimit.check`` returned.
        limit: The limit that it comes from.

    Returns:
        GitHub's Markdown: the answer, the cases as a table, the rungs of the limit as another, its settings in a line.

    Example:
        >>> import torch
        >>> from pruning_limits import predict_limit
        >>> model = torch.nn.Linear(4, 2)
        >>> limit = predict_limit(model, [(torch.randn(64, 4), torch.randint(0, 2, (64,)))], progress=False)
        >>> markdown(limit.check(0.0), limit).splitlines()[2]
        '| question | answer | reason |'
    """
    cases = [(case.name, case.status, case.reason) for case in cases_of(answer)]
    columns = {
        "": [row.name for row in rows(limit)],
        "sparsity": [row.sparsity for row in rows(limit)],
        "interval": [row.interval for row in rows(limit)],
        **({} if limit.metric is None else {limit.metric: [row.metric for row in rows(limit)]}),
        "how it is known": [row.how for row in rows(limit)],
    }
    names, lines = cells(limit)
    parts = [
        f"### Pruning limit: {answer.status}",
        _table(("question", "answer", "reason"), cases),
        f"{_plain(title(limit))}<br>{_plain(allowed(limit))}",
        _table(tuple(columns), zip(*columns.values(), strict=True)),
        *([_table(names, lines)] if lines else []),
        f"Settings: {_plain(_settings(limit))}",
    ]
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    cells = [[_plain(cell) for cell in line] for line in (header, *lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (cells[0], ["---"] * len(header), *cells[1:]))


def _settings(limit: PruningLimit) -> str:
    given = asdict(limit.settings) | {
        "parameters": f"{len(limit.settings.parameters)} tensors",
        "pattern": " ".join(limit.settings.pattern),
    }
    return ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)


def _plain(text: str) -> str:
    """Write a text in one line of Markdown that shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>|~&$#@!])", r"\\\1", " ".join(text.split()))
