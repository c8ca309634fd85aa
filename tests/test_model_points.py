"""The quadratic model read off a few points: exact at them, and for a model that does not depend on the direction."""

import numpy as np
import pytest

from pruning_limits.magnitude_curve import MagnitudeCurve
from pruning_limits.model_points import ModelPoint, model_point

SHARES = np.linspace(0, 1, 201)
CURVE = MagnitudeCurve(SHARES, 8 * SHARES**3)


def exact(sparsity, quotient=3.0, slope=-0.5, pull=0.25):
    """A model whose quadratic part goes with R^2 and whose linear parts go with R."""
    squared = CURVE.squared_norm(sparsity)
    return ModelPoint(sparsity, slope * squared**0.5, quotient * squared, pull * squared**0.5)


@pytest.mark.parametrize("knots", [[0.5], [0.25, 0.75], [0.1, 0.5, 0.9, 0.99]])
@pytest.mark.parametrize("sparsity", [0.0, 0.05, 0.3, 0.75, 0.9, 0.999, 1.0])
def test_a_model_without_a_direction_is_exact_everywhere(knots, sparsity):
    read, expected = model_point([exact(knot) for knot in knots], sparsity, CURVE), exact(sparsity)
    for name in ("linear", "quadratic", "pull", "rise"):
        assert getattr(read, name) == pytest.approx(getattr(expected, name), abs=1e-12)


def test_between_points_the_quotient_is_linear_in_the_logarithm_of_what_is_kept():
    ends = [exact(0.5, quotient=2.0), exact(0.875, quotient=6.0)]  # kept 1/2 and 1/8
    middle = model_point(ends, 0.75, CURVE)
    assert middle.quadratic == pytest.approx(4.0 * CURVE.squared_norm(0.75))


def test_points_themselves_are_exact_in_any_order():
    points = [exact(0.9, quotient=1.0), exact(0.2, quotient=7.0)]
    assert [model_point(points, point.sparsity, CURVE) for point in points] == points


def test_no_point_and_points_without_removed_weights_say_nothing():
    nothing = ModelPoint(0.4, 0.0, 0.0)
    assert model_point([], 0.4, CURVE) == nothing
    assert model_point([ModelPoint(0.0, 0.0, 0.0)], 0.4, CURVE) == nothing


def test_scaling_scales_every_part():
    assert exact(0.5).scaled(3.0).rise == pytest.approx(3 * exact(0.5).rise)
