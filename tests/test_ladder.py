"""The answer in words: the table of rungs, the verdict on a target, the notebook view."""

import dataclasses
import re
from xml.etree import ElementTree

import pytest
from helpers import small_limit, unknown_limit, with_bounds

from pruning_limits.ladder import details, html, judged, ladder, metric_text, percent, rows, target_line


@pytest.fixture(scope="module")
def limit():
    return small_limit(metric="accuracy", max_drop=0.05, epsilon="batch-std", tolerance=0.02)


@pytest.fixture(scope="module")
def by_loss():
    return small_limit()


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0 %"),
        (0.004, "0.4 %"),
        (0.671, "67.1 %"),
        (0.9, "90.0 %"),
        (0.9871, "98.7 %"),
        (0.99, "99.0 %"),
        (0.9949, "99.49 %"),
        (0.99934, "99.934 %"),
        (0.999999, "99.99990 %"),
        (1.0, "100 %"),
    ],
)
def test_a_sparsity_has_as_many_decimals_as_what_is_kept_needs(share, text):
    assert percent(share) == text
    assert abs(float(text.removesuffix(" %")) / 100 - share) <= 0.051 * (1 - share) + 1e-3 * (share < 0.9)


def test_the_first_screen(limit):
    lines = limit.summary(0.9).splitlines()
    dense = limit.evidence.dense
    assert lines[0].startswith("Sequential on 60 samples, 108 prunable weights, version ")
    assert lines[1].startswith(f"allowed: accuracy -5 points of {100 * dense.metric:.2f} % (60 training samples, ")
    assert f"a rise of the loss by {limit.epsilon:.3g}" in lines[1]
    assert lines[2] == ""
    header, *table = lines[3:9]
    assert header.split() == ["sparsity", "interval", "accuracy", "how", "it", "is", "known"]
    names = ["dense", "pruned, nothing else", "re-trained", "no hope beyond", "the paper's formula"]
    assert [row.name for row in rows(limit)] == names
    for name, line in zip(names, table, strict=True):
        assert line.startswith(name)
    assert percent(limit.lower) in table[1]
    assert f"{100 * limit.answer('one-shot').metric:.2f} %" in table[1]
    assert lines[10].startswith("your target 90.0 %: open. 90.0 % is out of reach by pruning alone")
    assert limit.status in lines
    assert lines[-1].startswith("took ")
    assert max(map(len, lines[3:9])) <= 160
    assert "your target" not in limit.summary()


def test_columns_stand_beneath_their_headers(limit):
    header, *table = limit.summary().splitlines()[3:9]
    start = header.index("how it is known")
    for line in table:
        assert line[start - 2 : start] == "  "
        assert line[start] != " "


def test_without_a_metric_the_column_is_left_out(by_loss):
    text = by_loss.summary()
    assert "accuracy" not in text
    assert "allowed: a rise of the loss by 0.02 from" in text


def test_a_formula_is_held_against_what_was_measured(by_loss):
    last = rows(by_loss)[-1]
    points = 100 * (by_loss.sparsity - by_loss.achieved)
    assert last.how == f"{abs(points):.1f} points {'above' if points > 0 else 'below'} what was measured"
    assert rows(small_limit(measure=False))[-1].how == "formula"


def test_notes_and_unknown_rungs_are_told():
    limit = unknown_limit()
    text = limit.summary()
    assert re.search(r"^re-trained .* forecast, 9 of 10 networks, outside the bench", text, re.MULTILINE)
    assert re.search(r"^no hope beyond +unknown +the GGN is zero", text, re.MULTILINE)
    assert all(f"note: {note}" in text for note in limit.notes)


def test_the_verdict_says_what_is_lost(limit):
    bounded = with_bounds(limit, 0.4, 0.9, 0.02)
    within, between, beyond = (judged(bounded, sparsity) for sparsity in (0.3, 0.6, 0.95))
    assert (within.status, between.status, beyond.status) == ("achievable", "open", "infeasible")
    assert within.reason.startswith("30.0 % is in reach by pruning alone, which gets to 40.0 % (measured)")
    assert f"accuracy at 30.0 %: {100 * within.metric:.2f} %" in within.reason
    assert re.search(
        r"; training (may|will probably( not)?) reach it: the forecast is .* %; the bound .* is at 92.0 %",
        between.reason,
    )
    assert beyond.reason == "95.0 % is beyond 92.0 %, the bound of the quadratic model and its numerical error"
    assert (within.margin, between.margin, beyond.margin) == pytest.approx((0.1, 0.2, 0.03))
    assert target_line(bounded, 0.95) == f"your target 95.0 %: infeasible. {beyond.reason}."


def test_the_metric_of_a_verdict_is_read_off_the_points(limit):
    points = limit.evidence.points
    for point in points:
        verdict = judged(limit, point.sparsity)
        assert verdict.metric == pytest.approx(limit.dense_metric - point.drop)
        assert "interpolation" not in verdict.reason
    between = (points[0].sparsity + points[1].sparsity) / 2
    assert f"{metric_text(limit, judged(limit, between).metric)}, by interpolation" in judged(limit, between).reason
    assert judged(limit, min(1 - 1e-9, points[-1].sparsity + 1e-6)).metric is None


def test_a_network_at_chance_is_never_in_reach(limit):
    dense = dataclasses.replace(limit.evidence.dense, constant_gain=0.001, constant_error=0.01, constant_metric=1.0)
    chance = dataclasses.replace(limit, evidence=dataclasses.replace(limit.evidence, dense=dense))
    for sparsity in (0.0, 0.2, 0.99):
        assert judged(chance, sparsity).status == "open"
        assert "no better than constant outputs" in judged(chance, sparsity).reason


def test_the_notebook_shows_the_same_and_escapes_it(limit):
    origin = dataclasses.replace(limit.evidence.origin, model="<script>alert('&')</script>")
    evidence = dataclasses.replace(limit.evidence, origin=origin)
    hostile = dataclasses.replace(limit, evidence=evidence, notes=('<img src="x">',))
    page = ElementTree.fromstring(f"<div>{html(hostile).replace('<br>', '<br/>')}</div>")
    assert not list(page.iter("script")) + list(page.iter("img"))
    table = [["".join(cell.itertext()) for cell in row] for row in page.iter("tr")]
    assert table[1:] == [[row.name, row.sparsity, row.interval, row.metric, row.how] for row in rows(limit)]
    text = "".join(page.itertext())
    assert '<img src="x">' in text
    assert "<script>" in text
    styles = {element.get("style") for element in page.iter() if element.get("style")}
    assert not any("#" in style or "rgb" in style for style in styles)  # the page's own colours, dark or light
    assert limit._repr_html_() == html(limit)


@pytest.mark.parametrize(("epochs", "text"), [(0.0123, "0.012"), (1.25, "1.2"), (361.7, "362"), (12345.6, "12,346")])
def test_epochs_are_written_in_digits(limit, epochs, text):
    evidence = dataclasses.replace(limit.evidence, cost=dataclasses.replace(limit.cost, epochs=epochs))
    costly = dataclasses.replace(limit, evidence=evidence)
    assert f" s, {text} epochs of training; " in ladder(costly)
    assert f" {text}, counted in passes" in details(costly)


def test_details_name_every_setting_and_rung(limit):
    text = details(limit)
    for answer in limit.answers:
        assert re.search(rf"rung {answer.rung} +{re.escape(answer.status)}", text)
    for name in dataclasses.asdict(limit.settings):
        assert f"setting {name} " in text
    assert f"{limit.sharpness.trace:.4g}" in text
    assert f"{limit.cost.products:,} on" in text
    assert limit.details() == text


def test_the_ladder_is_the_summary(limit):
    assert ladder(limit, 0.5) == limit.summary(0.5)
