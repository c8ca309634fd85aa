"""The report: one file that holds everything, small, and safe whatever the limit says."""

import base64
import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import small_limit

from estimators import SpectralMeasure, UserError
from pruning_limits import PruningLimit
from pruning_limits.measured import Point
from pruning_limits.parts import Layer, Origin
from pruning_limits.report import LARGEST, report_html, thinned, write_report
from validation.cli import main

HOSTILE = """</script><img src=x onerror="document.title='run'"><!--<script>$data ${data} & \u2028 \ud800"""


@pytest.fixture(scope="module")
def limit():
    return small_limit()


def hostile(limit):
    layer = dataclasses.replace(limit.layer_table[0], name=HOSTILE)
    settings = dataclasses.replace(limit.settings, penalty=HOSTILE, parameters=(HOSTILE,))
    evidence = dataclasses.replace(limit.evidence, origin=Origin(HOSTILE, HOSTILE, HOSTILE, HOSTILE))
    changes = {"status": HOSTILE, "notes": (HOSTILE,), "layer_table": (layer,), "settings": settings}
    return dataclasses.replace(limit, evidence=evidence, **changes)


def embedded(page):
    (text,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def test_the_page_holds_the_limit(limit):
    data = embedded(report_html(limit))
    assert data["limit"] == json.loads(limit.to_json())
    assert data["thinning"] == ""
    names = dict(data["behind"]["Settings"])
    assert names["allowed rise of the criterion"] == "0.02"
    assert names["prunable parameters"] == "0.weight, 2.weight"
    assert names["metric on held-out data"] == "no"
    network = dict(data["behind"]["Network and data"])
    assert network["spectrum behind the formula"] == "all eigenvalues, 60 samples"
    assert (network["network"], network["data"], network["prunable weights"]) == ("Sequential", "60 samples", "108")
    assert network["predicted"] == f"{limit.evidence.origin.date}, version {limit.evidence.origin.version}"


def test_the_page_opens_with_the_ladder_in_the_words_of_the_summary(limit):
    data = embedded(report_html(limit))
    lines = limit.summary().splitlines()
    assert [data["title"], data["allowed"]] == lines[:2]
    for row, line in zip(data["rows"], lines[4:], strict=False):
        assert " ".join(" ".join(cell for cell in row if cell != "-").split()) == " ".join(line.split())
    assert len(data["rows"]) == 1 + len(limit.answers)
    statuses = dict(data["behind"]["How each rung is known"])
    assert list(statuses.values()) == [answer.status for answer in limit.answers]


def test_the_page_tells_the_metric():
    data = embedded(report_html(small_limit(metric="accuracy", epsilon="batch-std", max_drop=0.05)))
    network = dict(data["behind"]["Network and data"])
    assert re.fullmatch(r"91\.67 % \+- 3\.\d+ points, 60 samples", network["accuracy of the dense network"])
    assert data["rows"][0] == ["dense", "0 %", "", "91.67 %", "measured"]


def test_the_page_refers_to_nothing_outside(limit):
    page = report_html(limit)
    markup = page[: page.index("<style>")] + page[page.index("</style>") : page.index('<script id="data"')]
    assert re.findall(r'(?:src|href)="([^"]*)"', markup) == ["data:,"]
    assert not re.findall(r"https?:(?!//www\.w3\.org/2000/svg)|@import|url\((?!#)|\bimport\b|fetch\(", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none';")
    for kind, name in (("style", "style"), ("script", 'script type="module"')):
        (text,) = re.findall(rf"<{name}>(.*?)</{kind}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_hostile_text_stays_text(limit, tmp_path):
    plain, other = report_html(limit), report_html(hostile(limit))
    for mark in ("<script", "</script", "<img", "<!--"):
        assert other.lower().count(mark) == plain.lower().count(mark), mark
    data = embedded(other)
    assert data["limit"]["status"] == data["limit"]["notes"][0] == HOSTILE
    assert data["limit"]["layer_table"][0]["name"] == HOSTILE
    write_report(hostile(limit), tmp_path / "page.html")
    assert "run" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_numbers_that_are_not_finite_leave_valid_json(limit):
    points = (*limit.evidence.points, Point(0.99, float("nan")), Point(1.0, float("inf")))
    dense = dataclasses.replace(limit.evidence.dense, objective=float("inf"))
    layer = Layer("w", 3, 0.5, float("nan"), float("inf"), 1.0)
    evidence = dataclasses.replace(limit.evidence, points=points, dense=dense)
    odd = dataclasses.replace(limit, evidence=evidence, layer_table=(layer,))
    data = embedded(report_html(odd))["limit"]
    assert [point["rise"] for point in data["evidence"]["points"][-2:]] == [None, None]
    assert data["evidence"]["dense"]["objective"] is None
    assert (data["layer_table"][0]["trace"], data["layer_table"][0]["trace_error"]) == (None, None)


def with_nodes(limit, count):
    generator = np.random.default_rng(0)

    def measure(_):
        rules = [
            (np.sort(10 ** generator.uniform(-6, 1, count)), generator.dirichlet(np.ones(count))) for _ in range(4)
        ]
        return SpectralMeasure(tuple(rules), limit.parameters)

    parts = {}
    for name in ("hessian", "ggn"):
        estimate = getattr(limit.evidence, name)
        bracket = None if estimate.bracket is None else (measure(0), measure(0))
        parts[name] = dataclasses.replace(estimate, measure=measure(0), above=measure(0), bracket=bracket)
    return dataclasses.replace(limit, evidence=dataclasses.replace(limit.evidence, **parts))


def test_a_page_that_would_be_too_large_is_thinned_and_says_by_how_much(limit):
    large = with_nodes(limit, 2000)
    assert len(large.to_json()) > LARGEST
    page = report_html(large)
    assert len(page.encode()) <= LARGEST
    data = embedded(page)
    stated = float(re.search(r"off by about (\S+) in sparsity", data["thinning"])[1])
    count = int(re.search(r"(\d+) to a rule", data["thinning"])[1])
    assert max(len(rule["nodes"]) for rule in data["limit"]["evidence"]["ggn"]["above"]["rules"]) == count
    merged = thinned(large, count).what_if()
    for name in ("sparsity", "retrained", "directional"):
        assert getattr(merged, name) == pytest.approx(getattr(large.what_if(), name), abs=1.1 * stated + 1e-12)
    assert stated < 1e-3
    assert data["limit"]["sparsity"] == large.sparsity


def test_thinning_keeps_the_mass_and_the_mean_of_a_rule(limit):
    large = with_nodes(limit, 100)
    few = thinned(large, 7)
    for (nodes, weights), (kept, mass) in zip(
        large.evidence.hessian.measure.rules, few.evidence.hessian.measure.rules, strict=True
    ):
        assert len(kept) == 7
        assert mass.sum() == pytest.approx(weights.sum(), rel=1e-12)
        assert kept @ mass == pytest.approx(nodes @ weights, rel=1e-12)
    assert thinned(large, 100) == large


def test_other_suffixes_are_refused(limit, tmp_path):
    for name in ("report", "report.png", ".html"):
        with pytest.raises(UserError, match=r"expected a name that ends in \.html, \.htm$"):
            write_report(limit, tmp_path / name)
    write_report(limit, tmp_path / "new" / "REPORT.HTM")
    assert (tmp_path / "new" / "REPORT.HTM").read_text(encoding="utf-8") == report_html(limit)


# ---------------------------------------------------------------------------------------------- command line


def run(*arguments, code):
    result = CliRunner().invoke(main, ["report", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == code, result.output
    return result


def test_the_command_writes_the_page(limit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    limit.to_json("limit.json")
    assert run("limit.json", "-o", "new/page.html", code=0).output == "wrote new/page.html\n"
    assert run("limit.json", code=0).output == "wrote report.html\n"
    written = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert written == (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert written == report_html(PruningLimit.from_json("limit.json"))


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["none.json"], 1, "limit: cannot read none.json: No such file or directory"),
        (["text.json"], 1, "limit: text.json is not valid JSON"),
        (["other.json"], 1, "limit: other.json is not a pruning limit of format pruning-limit/7; predict it again"),
        (["limit.json", "-o", "page.pdf"], 1, "cannot write page.pdf: expected a name that ends in .html, .htm"),
        (
            ["limit.json", "-o", "text.json/page.html"],
            1,
            "cannot write text.json/page.html: text.json is no folder; choose another place",
        ),
        ([], 2, "Missing argument 'LIMIT'."),
        (
            ["limit.json", "-o", "folder.html"],
            2,
            "Invalid value for '-o' / '--out': File 'folder.html' is",
        ),
    ],
)
def test_what_goes_wrong_is_told_in_one_line(limit, tmp_path, monkeypatch, arguments, code, error):
    monkeypatch.chdir(tmp_path)
    limit.to_json("limit.json")
    (tmp_path / "text.json").write_text("no\njson")
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "folder.html").mkdir()
    lines = [line for line in run(*arguments, code=code).stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"Error: {error}")
    assert not list(tmp_path.glob("*.pdf"))
