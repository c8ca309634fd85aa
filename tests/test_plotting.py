"""Figures of limits and spectra: what is drawn, where, and in which format."""

import dataclasses

import numpy as np
import pytest
from helpers import small_limit
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from estimators import UserError
from pruning_limits.plotting import plot_crossing, plot_layers, plot_objective, plot_spectrum


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


def test_a_figure_without_file_names_its_curves(limit, unmeasured):
    for one, name in ((limit, "the Hessian"), (unmeasured, "the GGN")):
        top, bottom = one.plot().axes
        labels = [text.get_text() for text in top.get_legend().get_texts()]
        assert labels[0].startswith("this network")
        assert labels[1] == f"largest R that {name} allows (isotropic)"
        assert len(labels) == 3
        labels = [text.get_text() for text in bottom.get_legend().get_texts()]
        assert f"predicted one-shot {one.sparsity:.2%}" in labels
        measured = [f"measured one-shot {one.achieved:.2%}"] if one.achieved is not None else []
        assert [label for label in labels if label.startswith("measured one-shot ")] == measured


@pytest.mark.parametrize("epsilon", [1e-7, 1e6])
def test_figures_of_extreme_limits(limit, tmp_path, epsilon):
    limit.what_if(epsilon=epsilon).plot(tmp_path / "limit.png")
    assert (tmp_path / "limit.png").exists()


def test_figures_that_cannot_be_written(limit, tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "limit.nonsense", tmp_path / "file" / "limit.png"):
        with pytest.raises(UserError, match=r"^plot: cannot write .*limit\.") as caught:
            limit.plot(path)
        assert "\n" not in str(caught.value)


PLOTS = [plot_crossing, plot_objective, plot_layers, lambda limit, ax=None: plot_spectrum(limit.hessian.measure, ax)]


@pytest.mark.parametrize("plot", PLOTS, ids=["crossing", "objective", "layers", "spectrum"])
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
    for panel, plot in ((top, plot_crossing), (bottom, plot_objective)):
        alone = plot(limit)
        assert [line.get_label() for line in panel.get_lines()] == [line.get_label() for line in alone.get_lines()]
        for mine, other in zip(panel.get_lines(), alone.get_lines(), strict=True):
            np.testing.assert_array_equal(mine.get_xydata(), other.get_xydata())
        assert panel.get_ylim() == alone.get_ylim()


@pytest.mark.parametrize("growth", [1.0, 0.8])
def test_the_legend_says_that_the_limit_is_carried_to_all_data(limit, growth):
    carried = dataclasses.replace(limit, hessian=dataclasses.replace(limit.hessian, growth=growth))
    labels = [text.get_text() for text in plot_crossing(carried).get_legend().get_texts()]
    assert ("limit, carried to all data" in labels) == (growth != 1)


def test_bars_show_what_is_kept(limit):
    axes = plot_layers(limit)
    kept = [100 * (1 - layer.sparsity) for layer in limit.layers()]
    assert [bar.get_width() for bar in axes.patches] == kept
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == [f"{layer.name} ({layer.weights:,})" for layer in limit.layers()]
    assert axes.yaxis_inverted()
    with pytest.raises(UserError, match="no per-layer table"):
        plot_layers(limit.what_if(epsilon=1.0))
