import html
import re

import pytest
from click.testing import CliRunner
from helpers import ggn_limit, small_limit

from pruning_limits.gate_files import markdown
from pruning_limits.pattern_table import cells, pattern_rows, section, text_table
from pruning_limits.report import report_html
from validation.cli import main

ASKED = ("unstructured", "1:2", "blocks:5x1", "channels")


@pytest.fixture(scope="module")
def limit():
    return small_limit(metric="accuracy", pattern=ASKED)


def test_every_pattern_has_a_row_of_its_own_answers(limit):
    rows = {row.pattern: row for row in pattern_rows(limit)}
    assert tuple(rows) == ASKED
    for name, row in rows.items():
        own = limit.for_pattern(name)
        if name == "1:2":
            assert row.most == "50.0 %"
            assert row.alone.split(",")[0] == ("holds" if own.lower == 0.5 else "fails")
            points = 100 * (own.sparsity - 0.5)
            assert row.formula == f"{abs(points):.1f} points {'to spare' if points >= 0 else 'short'}"
            metric = limit.dense_metric - own.evidence.points[-1].drop
        else:
            assert row.alone.startswith(f"{100 * own.lower:.1f} % (" if own.lower else "0 % (")
            assert row.formula == f"{100 * own.sparsity:.1f} %"
            assert row.retrained == f"{100 * ggn_limit(own):.1f} %"
            metric = own.answer("one-shot").metric
        assert row.metric == f"{100 * metric:.2f} %"


def test_the_table_stands_in_the_summary_the_page_and_the_gates_markdown(limit):
    columns, lines = cells(limit)
    table = text_table(columns, lines)
    assert "\n".join(table) in limit.summary()
    assert "\n".join(table) in limit.for_pattern("1:2").summary()
    page = report_html(limit.for_pattern("channels"))
    assert section(limit) in page
    shown = [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", section(limit))]
    assert shown == [*columns, *(cell for line in lines for cell in line)]
    written = markdown(limit.check(0.2), limit)
    for line in lines:
        assert " | ".join(line) in written


def test_without_patterns_there_is_no_table():
    plain = small_limit()
    assert cells(plain) == (["pattern", "removes at most", "pruned, nothing else", *cells(plain)[0][3:]], [])
    assert section(plain) == ""
    assert "patterns-title" not in report_html(plain)
    assert "removes at most" not in plain.summary()


def test_what_is_left_dense_or_ragged_is_told_in_the_notes(limit):
    assert "24 weights are in smaller blocks at the edges of layers" not in limit.notes
    notes = limit.for_pattern("blocks:5x1").notes
    assert "48 weights are in smaller blocks at the edges of layers" in notes
    assert limit.for_pattern("1:4").notes[0].startswith("1:4 leaves 1 layer dense (0.weight: 6 inputs are no multiple")
    assert "pruned in blocks:5x1" in limit.for_pattern("blocks:5x1").summary()


def test_the_command_judges_a_pattern(limit, tmp_path):
    path = str(tmp_path / "limit.json")
    limit.to_json(path)
    runner = CliRunner()
    result = runner.invoke(main, ["check", "--limit", path, "--pattern", "1:2"])
    verdict = limit.for_pattern("1:2").check()
    assert result.output == f"{verdict.status}: {verdict.reason}\n"
    assert result.exit_code == {"achievable": 0, "open": 3}[verdict.status]
    result = runner.invoke(main, ["check", "--limit", path, "--pattern", "channels", "--sparsity", "0.95"])
    assert (result.exit_code, result.output) == (
        4,
        "infeasible: channels removes at most 91.67% of the weights of this network\n",
    )
    for arguments, code, text in (
        (["--pattern", "channels"], 2, "give either --sparsity, or --dense and --pruned"),
        (["--pattern", "heads", "--sparsity", "0.5"], 1, "pattern: nothing is known of heads here"),
        (["--pattern", "rows", "--sparsity", "0.5"], 1, "pattern: expected unstructured, N:M such as 2:4"),
    ):
        result = runner.invoke(main, ["check", "--limit", path, *arguments])
        assert result.exit_code == code
        assert text in result.output
