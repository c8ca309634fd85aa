import math
import re

import pytest
from helpers import small_limit

from pruning_limits import UserError
from pruning_limits.layer_report import measured_layers, section
from pruning_limits.plotting import plot_patterns, plot_sensitivities
from pruning_limits.report import report_html


@pytest.fixture
def limit():
    return small_limit(metric="accuracy", pattern=("unstructured", "1:2"))


def test_the_page_shows_layers_once_they_were_measured(limit):
    assert section(limit) == ""
    assert "data-rows" not in report_html(limit).partition("<script")[0]
    rows = measured_layers(limit, (0.5, 0.9), None)
    page = report_html(limit)
    part = section(limit)
    assert part in page
    assert part.count("<details>") == 1
    names = re.findall(r'<th scope="row">([^<]*)</th>', part)
    assert names == [row.name for row in rows]
    for row in rows:
        for point in row.points:
            text = f"{point.rise:.2g} ± {2 * point.rise_error:.1g}; {100 * point.drop:.3g} points"
            assert text in part
    assert "Every layer pruned alone, measured on 60 samples" in part
    limit.for_pattern("1:2").layers(measured=True)
    assert "Every layer pruned alone in 1:2, measured on 60 samples" in report_html(limit)


def test_layers_are_drawn_the_most_sensitive_on_top(limit):
    rows = limit.layers(measured=True)
    axes = plot_sensitivities(rows)
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"{row.name} ({row.weights:,})" for row in rows]
    assert axes.yaxis_inverted()
    drawn = sorted(x for line in axes.containers for x in line[0].get_xdata())
    assert drawn == pytest.approx(sorted(point.rise for row in rows for point in row.points))
    infinite = type(rows[0])("w", 3, None, (type(rows[0].points[0])(0.5, math.inf),), 60)
    assert len(plot_sensitivities([infinite]).containers[0][0].get_xdata()) == 0
    with pytest.raises(UserError, match=r"^rows: expected measured layers"):
        plot_sensitivities([])


@pytest.mark.parametrize("options", [{}, {"metric": "accuracy"}, {"metric": "accuracy", "max_drop": 0.1}])
def test_every_pattern_is_drawn_from_its_own_points(options):
    epsilon = {"epsilon": "batch-std"} if "max_drop" in options else {}
    limit = small_limit(pattern=("unstructured", "1:2", "channels"), **options, **epsilon)
    axes = plot_patterns(limit)
    for container, own in zip(axes.containers, limit.evidence.patterns, strict=True):
        assert container.get_label() == own.name
        points = [point for point in own.points if point.sparsity < 1]
        assert container[0].get_xdata() == pytest.approx([1 - point.sparsity for point in points])
        values = [100 * (limit.dense_metric - p.drop) if options else p.rise for p in points]
        assert container[0].get_ydata() == pytest.approx(values)
    with pytest.raises(UserError, match=r"^limit: no pattern was measured"):
        plot_patterns(small_limit())
