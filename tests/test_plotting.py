"""Figures of limits and spectra: what is drawn, where, and in which format."""

import dataclasses

import numpy as np
import pytest
from helpers import small_limit, unknown_limit
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from estimators import UserError
from pruning_limits import Retuning
from pruning_limits.ladder import NAMES, percent, rows
from pruning_limits.plotting import headline, new_figure, plot_crossing, plot_layers, plot_rungs, plot_spectrum
from pruning_limits.tuned_points import TunedPoint, Tuning


@pytest.fixture(scope="module")
def limit():
    return small_limit()


@pytest.fixture(scope="module")
def unmeasured():
    return small_limit(measure=False, curvature="ggn", negative="clip")


def test_figures_of_all_limits(any_limit, tmp_path):
    path = tmp_path / "new" / "limit.png"
    assert isinstance(any_limit.plot(path), Figure)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 5000


@pytest.mark.parametrize(("suffix", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_figures_in_other_formats(limit, tmp_path, suffix, start):
    limit.plot(str(tmp_path / f"limit.{suffix}"))
    assert (tmp_path / f"limit.{suffix}").read_bytes().startswith(start)


def labels_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_legends_name_every_curve_mark_and_band(limit, unmeasured):
    for case, name in ((limit, "the Hessian"), (unmeasured, "the GGN")):
        top, bottom = case.plot().axes
        assert labels_of(bottom)[:4] == [
            "this network: norm R of the removed weights",
            f"largest R that {name} allows (the paper's formula)",
            "largest R that the GGN allows",
            "numerical error of the formula",
        ]
        measured = case.achieved is not None
        assert ("measured" if measured else "quadratic model, not measured") in labels_of(top)
        for answer in case.answers:
            (label,) = [label for label in labels_of(top) if label.startswith(NAMES[answer.rung])]
            meaning = answer.basis if answer.basis in ("measured", "forecast") else "numerical error"
            low, high = percent(answer.low).removesuffix(" %"), percent(answer.high)
            assert label == f"{NAMES[answer.rung]} {percent(answer.sparsity)} ({meaning} {low} to {high})"


def test_titles_say_the_answer(limit, unmeasured):
    wide = [dataclasses.replace(answer, high=0.99) if answer.rung == "bound" else answer for answer in limit.answers]
    limit = dataclasses.replace(limit, answers=tuple(wide))
    top, bottom = limit.plot().axes
    bound = next(row.sparsity for row in rows(limit) if row.name == "no hope beyond")
    alone = f"Pruning alone removes {percent(limit.lower)} of 108 weights"
    assert top.get_title(loc="left") == f"{alone}; no hope beyond {bound}"
    assert bottom.get_title(loc="left").endswith(f"longer than the Hessian allows at {percent(limit.sparsity)}")
    assert "weights, by the quadratic model; no hope" in plot_rungs(unmeasured).get_title(loc="left")
    unknown = plot_rungs(unknown_limit())
    assert unknown.get_title(loc="left").endswith("; no bound is established")
    assert "no hope beyond: unknown, see the notes" in labels_of(unknown)
    assert "the GGN says nothing, see the notes" in labels_of(plot_crossing(unknown_limit()))


@pytest.mark.parametrize("of_metric", [False, True])
def test_re_tuned_networks_stand_where_they_were_measured(of_metric):
    options = {"metric": "accuracy", "epsilon": "batch-std", "max_drop": 0.05} if of_metric else {}
    limit = small_limit(**options)
    values = (0.01, 0.06) if of_metric else (limit.epsilon / 2, 2 * limit.epsilon)
    drops = values if of_metric else (None, None)
    points = tuple(
        TunedPoint(0.6 + 0.2 * n, value, 0.1 * value, drop, None if drop is None else 0.1 * drop)
        for n, (value, drop) in enumerate(zip(values, drops, strict=True))
    )
    evidence = dataclasses.replace(limit.evidence, retuned=Tuning(points, 64, 100.0, 1.0))
    settings = dataclasses.replace(limit.settings, retune=Retuning())
    axes = plot_rungs(dataclasses.replace(limit, evidence=evidence, settings=settings).what_if())
    (tuned,) = [container for container in axes.containers if container.get_label() == "re-tuned networks"]
    heights = [100 * (limit.dense_metric - value) for value in values] if of_metric else values
    np.testing.assert_allclose(tuned.lines[0].get_xydata(), np.column_stack([[0.4, 0.2], heights]))
    bars = [abs(end - start) for (_, start), (_, end) in tuned.lines[2][0].get_segments()]
    np.testing.assert_allclose(bars, [(100 if of_metric else 1) * 4 * 0.1 * value for value in values])
    assert ", re-tuning 60.0 %" in axes.get_title(loc="left")


def whiskers(axes):
    """Return kept fractions and heights of marks and intervals, by the name in the legend."""
    places = {}
    for container in axes.containers:
        line, _, (bars, *_) = container.lines
        ((start, end),) = bars.get_segments() if len(bars.get_segments()) == 1 else [(None, None)]
        places[container.get_label().split(" (")[0]] = (line.get_xydata(), start, end)
    return places


def test_rungs_lie_where_the_allowed_loss_is(limit):
    dropping = small_limit(metric="accuracy", epsilon="batch-std", max_drop=0.05)
    for case, level in ((limit, limit.epsilon), (dropping, 100 * (dropping.dense_metric - 0.05))):
        axes = plot_rungs(case)
        places = whiskers(axes)
        for answer in case.answers:
            marks, start, end = places[f"{NAMES[answer.rung]} {percent(answer.sparsity)}"]
            np.testing.assert_allclose(marks, [[1 - answer.sparsity, level]], rtol=1e-12)
            np.testing.assert_allclose([start[0], end[0]], [1 - answer.high, 1 - answer.low], rtol=1e-12)
        assert any(label.startswith("allowed, ") for label in labels_of(axes))


def test_the_metric_is_drawn_with_two_standard_errors():
    dropping = small_limit(metric="accuracy", epsilon="batch-std", max_drop=0.05)
    axes = plot_rungs(dropping)
    (container,) = [
        candidate for candidate in axes.containers if candidate.get_label() == "measured, bars of two standard errors"
    ]
    line, _, (bars,) = container.lines
    points = dropping.evidence.points
    metrics = [dropping.dense_metric, *(dropping.dense_metric - point.drop for point in points)]
    np.testing.assert_allclose(line.get_ydata(), 100 * np.array(metrics), rtol=1e-12)
    np.testing.assert_allclose(line.get_xdata(), [1, *(1 - point.sparsity for point in points)], rtol=1e-12)
    lengths = [end[1] - start[1] for start, end in bars.get_segments()]
    np.testing.assert_allclose(lengths, [0, *(400 * point.drop_error for point in points)], atol=1e-9)
    assert axes.get_ylabel() == "accuracy in % of the pruned network"
    plain = plot_rungs(small_limit(metric="accuracy"))
    assert f"dense, {100 * dropping.dense_metric:.2f} %" in labels_of(plain)


@pytest.mark.parametrize("epsilon", [1e-7, 1e6])
def test_figures_of_extreme_limits(limit, tmp_path, epsilon):
    limit.what_if(epsilon=epsilon).plot(tmp_path / "limit.png")
    assert (tmp_path / "limit.png").exists()


@pytest.mark.parametrize("width", [4.0, 7.0, 18.0])
@pytest.mark.parametrize("words", [1, 12, 30])
def test_headlines_lie_within_the_figure_and_above_the_panels(width, words):
    figure, axes = new_figure(1, size=(width, 5.0))
    headline(figure, " ".join(["one-shot"] * words))
    figure.canvas.draw()
    (title,) = [text for text in figure.texts if text.get_text().startswith("one-shot")]
    box = title.get_window_extent()
    assert title.get_fontsize() >= 11
    assert 0 < box.x0 < box.x1 < figure.bbox.width
    assert axes.get_window_extent().y1 < box.y0 < box.y1 < figure.bbox.height
    assert title.get_text().split() == ["one-shot"] * words


def test_headlines_keep_a_range_in_one_line():
    figure, _ = new_figure(1, size=(2.0, 5.0))
    headline(figure, "off by -12.3 to +45.6 points")
    (title,) = figure.texts
    assert title.get_text().splitlines() == ["off by", "-12.3\u00a0to\u00a0+45.6", "points"]


def test_figures_that_cannot_be_written(limit, tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "limit.nonsense", tmp_path / "file" / "limit.png"):
        with pytest.raises(UserError, match=r"^plot: cannot write .*limit\.") as caught:
            limit.plot(path)
        assert "\n" not in str(caught.value)


def test_figures_without_a_format_in_their_name_are_refused(limit, tmp_path):
    for path in (tmp_path, tmp_path / "limit", tmp_path / "limit."):
        with pytest.raises(UserError, match=r"^plot: cannot write .*: expected a name that ends in .*\.png"):
            limit.plot(path)
    with pytest.raises(UserError, match=r"^plot: expected the path of a file, got ''$"):
        limit.plot("")
    assert not list(tmp_path.parent.glob(f"{tmp_path.name}.*"))
    assert not list(tmp_path.iterdir())
    limit.plot(tmp_path / "LIMIT.PNG")
    assert (tmp_path / "LIMIT.PNG").read_bytes().startswith(b"\x89PNG")


PLOTS = [
    plot_crossing,
    plot_rungs,
    plot_layers,
    lambda limit, ax=None: plot_spectrum(limit.evidence.hessian.measure, ax),
]


@pytest.mark.parametrize("plot", PLOTS, ids=["crossing", "rungs", "layers", "spectrum"])
def test_plots_take_and_return_axes(limit, tmp_path, plot):
    own = plot(limit)
    assert isinstance(own, Axes)
    own.figure.savefig(tmp_path / "own.png")
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plot(limit, right) is right
    assert not left.has_data()
    assert right.has_data()
    assert right.get_xlabel() == own.get_xlabel() != ""
    assert len(right.get_lines()) == len(own.get_lines())
    figure.savefig(tmp_path / "two.png")


def test_the_figure_is_made_of_the_two_plots(limit):
    top, bottom = limit.plot().axes
    for panel, plot in ((top, plot_rungs), (bottom, plot_crossing)):
        alone = plot(limit)
        assert [line.get_label() for line in panel.get_lines()] == [line.get_label() for line in alone.get_lines()]
        for mine, other in zip(panel.get_lines(), alone.get_lines(), strict=True):
            np.testing.assert_array_equal(mine.get_xydata(), other.get_xydata())
        assert panel.get_ylim() == alone.get_ylim()


@pytest.mark.parametrize("growth", [1.0, 0.8])
def test_the_legend_says_that_the_limit_is_carried_to_all_data(limit, growth):
    hessian = dataclasses.replace(limit.evidence.hessian, growth=growth)
    carried = dataclasses.replace(limit, evidence=dataclasses.replace(limit.evidence, hessian=hessian))
    assert ("limit, carried to all data" in labels_of(plot_crossing(carried))) == (growth != 1)


def test_bars_show_what_is_kept(limit):
    axes = plot_layers(limit)
    kept = [100 * (1 - layer.sparsity) for layer in limit.layers()]
    assert [bar.get_width() for bar in axes.patches] == kept
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == [f"{layer.name} ({layer.weights:,})" for layer in limit.layers()]
    assert axes.yaxis_inverted()
    with pytest.raises(UserError, match="no per-layer table"):
        plot_layers(limit.what_if(weight_scale=2.0))
