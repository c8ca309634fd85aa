"""What the gate writes: JUnit, and Markdown that shows every text as it is."""

import dataclasses
from xml.etree import ElementTree

import pytest
from helpers import small_limit, with_bounds
from markdown_it import MarkdownIt

from pruning_limits import PruningLimit
from pruning_limits.gate import Case, Comparison, compare
from pruning_limits.gate_files import cases_of, junit, markdown
from pruning_limits.ladder import allowed, rows, title
from pruning_limits.metric_drop import MetricDrop

TABLE = {"table", "thead", "tbody", "tr", "th", "td"}
HARD = r"a|b *c* _d_ `e` <b>f</b> &amp; [g](h) \ ~~i~~ $j$ #1 @k ![l](m)"


@pytest.fixture(scope="module")
def limit():
    return small_limit()


def comparison_of(limit, sparsity, rise, drop=None):
    masks = limit.mask(sparsity)
    dense = limit.profile.weights
    pruned = {name: weight * masks[name] for name, weight in dense.items()}
    return compare(limit, dense, pruned, limit.objective, limit.objective + rise, drop)


# ------------------------------------------------------------------------------------------------------ JUnit


def test_junit_holds_any_text():
    text = 'a<b> & "c" \x00\x1b\ud800 é 😀 ]]> \n'
    suite = ElementTree.fromstring(
        junit([Case(text, "infeasible", text), Case(text, "achievable", text)], 1.5).encode()
    )
    assert suite.get("time") == "1.500"
    assert suite[0].get("name").startswith('a<b> & "c" ??? é 😀 ]]>')
    assert suite[1][0].text == 'a<b> & "c" ??? é 😀 ]]> \n'


def test_junit_counts_the_cases(limit):
    comparison = comparison_of(limit, 0.5, 9.0, MetricDrop(0.9, 0.8, 0.1))
    suite = ElementTree.fromstring(junit(comparison.cases))
    assert int(suite.get("tests")) == len(comparison.cases) == len(suite)
    assert [case.get("name") for case in suite][:3] == ["sparsity", "loss", "metric"]
    assert int(suite.get("failures")) == sum(case.status == "infeasible" for case in comparison.cases)


# --------------------------------------------------------------------------------------------------- Markdown


def rendered(text):
    """The tables of a text as rows of cells, its heading and its other paragraphs, by a parser of its own."""
    html = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    tree = ElementTree.fromstring(f"<body>{html.replace('<br>', '<br/>')}</body>")
    tables = [[["".join(cell.itertext()) for cell in row] for row in table.iter("tr")] for table in tree.iter("table")]
    assert {element.tag for element in tree.iter()} <= {"body", "h3", "p", "br", *TABLE}
    return tables, tree.find("h3").text, ["".join(part.itertext()) for part in tree.findall("p")]


def squeezed(text):
    return " ".join(text.split())


@pytest.mark.parametrize("kind", ["verdict", "comparison", "with a metric"])
def test_every_case_and_every_rung_are_shown(limit, kind):
    answer = limit.check(0.99)
    if kind != "verdict":
        answer = comparison_of(limit, 0.5, 9.0, MetricDrop(0.9, 0.8, 0.1, 0.05) if kind != "comparison" else None)
        assert isinstance(answer, Comparison)
    (cases, rungs), heading, paragraphs = rendered(markdown(answer, limit))
    assert heading == f"Pruning limit: {answer.status}"
    assert cases[0] == ["question", "answer", "reason"]
    assert cases[1:] == [[case.name, case.status, case.reason] for case in cases_of(answer)]
    assert len(cases) == {"verdict": 2, "comparison": 3, "with a metric": 4}[kind]
    assert rungs[0] == ["", "sparsity", "interval", "how it is known"]
    assert rungs[1:] == [[row.name, row.sparsity, row.interval, row.how] for row in rows(limit)]
    assert paragraphs[0] == title(limit) + allowed(limit)
    assert paragraphs[1].startswith("Settings: criterion loss, epsilon 0.02, ")
    assert "parameters 2 tensors" in paragraphs[1]
    assert "None" not in paragraphs[1]


def test_the_metric_has_a_column():
    limit = small_limit(metric="accuracy")
    (_, rungs), *_ = rendered(markdown(limit.check(0.5), limit))
    assert rungs[0] == ["", "sparsity", "interval", "accuracy", "how it is known"]
    assert rungs[1:] == [[row.name, row.sparsity, row.interval, row.metric, row.how] for row in rows(limit)]


@pytest.mark.parametrize("text", [HARD, f"two\nlines\r\n| {HARD} |\t"])
def test_texts_are_shown_as_they_are(limit, text):
    origin = dataclasses.replace(limit.evidence.origin, model=text)
    settings = dataclasses.replace(limit.settings, metric=text)
    changed = dataclasses.replace(limit, evidence=dataclasses.replace(limit.evidence, origin=origin), settings=settings)
    comparison = comparison_of(limit, 0.1, 0.0)
    comparison = dataclasses.replace(comparison, cases=(Case(f"layer {text}", "open", text),))
    (cases, rungs), _, paragraphs = rendered(markdown(comparison, changed))
    assert cases[1:] == [[squeezed(f"layer {text}"), "open", squeezed(text)]]
    assert paragraphs[0].startswith(squeezed(text))
    assert rungs[0][3] == squeezed(text)
    assert f"metric {squeezed(text)}" in paragraphs[1]


def test_a_limit_from_a_file_gives_the_same(limit, tmp_path):
    limit = with_bounds(limit, 0.3, None)
    limit.to_json(tmp_path / "limit.json")
    loaded = PruningLimit.from_json(tmp_path / "limit.json")
    assert markdown(loaded.check(0.5), loaded) == markdown(limit.check(0.5), limit)
