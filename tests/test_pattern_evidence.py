import numpy as np
import pytest

from pruning_limits.magnitude_curve import MagnitudeCurve
from pruning_limits.measured import Point
from pruning_limits.pattern_evidence import PatternEvidence


def test_scaled_weights_and_curvature():
    curve = MagnitudeCurve(np.array([0.0, 1.0]), np.array([0.0, 2.0]))
    row = PatternEvidence("2:4", curve, 0.5, 0.0, (Point(0.5, 0.1, 0.0, 0.2, 0.01),), 7)
    scaled = row.scaled(2.0, 3.0)
    assert scaled.curve.squared.tolist() == [0.0, 8.0]
    assert scaled.points[0].rise == pytest.approx(1.2)
    assert scaled.points[0].drop is None
    assert (scaled.name, scaled.most, scaled.groups) == ("2:4", 0.5, 7)
    assert row.fixed
    assert row.structured
    assert not PatternEvidence("unstructured", curve, 1.0, 0.0, (), 7).structured
