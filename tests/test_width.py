from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimators import SpectralMeasure, UserError
from pruning_limits.cones import Circular, Cone, EllipsoidCone, L1Descent, Orthant, Product, Ray, SecondOrder
from pruning_limits.width import (
    circular_width,
    ellipsoid_width,
    ellipsoid_width_estimate,
    monte_carlo_width,
    projected_width_squared,
)

positive = st.floats(1e-4, 1e4)
SPECTRA = {
    "power law": np.arange(1, 61) ** -1.5,
    "spiked": np.concatenate([np.full(3, 50.0), np.full(57, 0.02)]),
    "log-uniform": np.geomspace(1e-4, 10, 60),
    "two": np.array([1.0, 1e-6]),
}


def exact(eigenvalues: np.ndarray) -> SpectralMeasure:
    return SpectralMeasure.from_eigenvalues(eigenvalues)


@pytest.mark.parametrize("eigenvalues", SPECTRA.values(), ids=SPECTRA.keys())
def test_ellipsoid_width_agrees_with_monte_carlo_and_lies_in_its_bracket(eigenvalues: np.ndarray) -> None:
    width, error = ellipsoid_width(exact(eigenvalues), epsilon=0.3)
    assert error == 0
    gaussians = np.random.default_rng(0).standard_normal((20_000, len(eigenvalues)))
    samples = np.sqrt((0.6 / eigenvalues * gaussians**2).sum(1))
    assert abs(width - samples.mean()) <= 4 * samples.std() / math.sqrt(len(samples))
    estimate, most = ellipsoid_width_estimate(exact(eigenvalues), epsilon=0.3)
    assert 0 <= estimate - width <= most


@pytest.mark.parametrize("dimension", [1, 2, 7, 1000])
def test_the_width_of_a_ball_is_the_mean_norm(dimension: int) -> None:
    expected = math.sqrt(2) * math.exp(math.lgamma((dimension + 1) / 2) - math.lgamma(dimension / 2))
    width, _ = ellipsoid_width(exact(np.full(dimension, 3.0)), epsilon=1.5)
    assert width == pytest.approx(expected, rel=1e-11)


@given(positive, positive)
def test_the_width_scales_as_the_square_root_of_epsilon_over_curvature(factor: float, epsilon: float) -> None:
    measure = exact(SPECTRA["power law"])
    reference, _ = ellipsoid_width(measure, 1.0)
    width, _ = ellipsoid_width(measure.scaled(factor), epsilon)
    assert width == pytest.approx(reference * math.sqrt(epsilon / factor), rel=1e-10)


def test_flat_directions_make_the_width_infinite_but_not_that_of_the_projection() -> None:
    measure = exact(np.array([0.0, 1.0]))
    assert ellipsoid_width(measure, 0.5) == (math.inf, 0.0)
    assert ellipsoid_width_estimate(measure, 0.5) == (math.inf, math.inf)
    assert projected_width_squared(measure, 0.5, distance=1.0) == (1.5, 0.0)


def test_standard_errors_cover_the_spread_over_probes() -> None:
    eigenvalues = np.geomspace(0.1, 10, 400)
    truth = ellipsoid_width(exact(eigenvalues), 0.3)[0]
    projected = projected_width_squared(exact(eigenvalues), 0.3, 1.0)[0]
    scores = []
    for seed in range(40):
        probe = np.random.default_rng(seed).standard_normal(400) ** 2
        measure = SpectralMeasure(((eigenvalues, probe / probe.sum()),), 400)
        width, error = ellipsoid_width(measure, 0.3)
        squared, squared_error = projected_width_squared(measure, 0.3, 1.0)
        scores.append([(width - truth) / error, (squared - projected) / squared_error])
    assert np.abs(scores).max() <= 4
    assert 0.6 <= np.square(scores).mean() ** 0.5 <= 1.4


CONES: dict[str, Cone] = {
    "circular": Circular(20, 0.6),
    "thin": Circular(20, 0.02),
    "second order": SecondOrder(7),
    "orthant": Orthant(15),
    "ray": Ray(np.ones(5)),
    "l1 descent": L1Descent([1.0] * 4 + [0.0] * 26),
    "ellipsoid": EllipsoidCone(np.diag(np.geomspace(0.1, 10, 20)), np.ones(20), 1.0),
    "product": Product(Orthant(4), Circular(6, 0.3)),
}


@pytest.mark.parametrize("cone", CONES.values(), ids=CONES.keys())
def test_squared_width_and_statistical_dimension_differ_by_at_most_one(cone: Cone) -> None:
    width, error = monte_carlo_width(cone, samples=4000, seed=1)
    delta, slack = cone.statistical_dimension(), 8 * width * error
    assert width**2 - slack <= delta <= width**2 + 1 + slack


@settings(max_examples=100)
@given(st.integers(2, 3000), st.floats(0, math.pi / 2))
def test_the_width_of_circular_cones_obeys_the_inequalities_exactly(dimension: int, angle: float) -> None:
    cone = Circular(dimension, angle)
    squared = circular_width(cone) * abs(circular_width(cone))
    slack = 1e-9 * dimension
    assert squared - slack <= cone.statistical_dimension() <= squared + 1 + slack


def test_circular_width_agrees_with_monte_carlo_where_the_polar_has_no_mass() -> None:
    value, error = monte_carlo_width(Circular(40, 0.8), samples=4000, seed=2)
    assert abs(value - circular_width(Circular(40, 0.8))) <= 4 * error
    assert circular_width(Circular(9, 0.0)) == pytest.approx(0, abs=1e-12)


def test_the_projected_width_of_a_ball_is_below_that_of_its_circular_cone() -> None:
    measure, radius, distance = exact(np.ones(200)), 1.0, 2.0
    approximate, _ = projected_width_squared(measure, radius**2 / 2, distance)
    assert approximate == pytest.approx(200 * radius**2 / (distance**2 + radius**2))
    assert approximate < circular_width(Circular(200, math.asin(radius / distance))) ** 2


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ellipsoid_width(exact(np.array([-1.0, 1.0])), 1.0), "measure: expected nodes >= 0"),
        (lambda: ellipsoid_width_estimate(exact(np.array([-1.0, 1.0])), 1.0), "measure: expected nodes >= 0"),
        (lambda: ellipsoid_width(exact(np.ones(2)), 0.0), "epsilon: expected a positive"),
        (lambda: ellipsoid_width_estimate(exact(np.ones(2)), math.nan), "epsilon: expected a positive"),
        (lambda: projected_width_squared(exact(np.ones(2)), 1.0, 0.0), "distance: expected a positive"),
        (lambda: projected_width_squared(exact(np.ones(2)), math.inf, 1.0), "epsilon: expected a positive"),
        (lambda: monte_carlo_width(Orthant(3), samples=1), "samples: expected at least 2"),
        (lambda: exact(np.array([1.0, math.nan])), "rules: nodes and weights must be finite"),
        (lambda: SpectralMeasure(((np.ones(2), np.array([0.5, 0.4])),), 2), "sum to 1"),
        (lambda: SpectralMeasure(((np.ones(2), np.array([1.5, -0.5])),), 2), "weights must be >= 0"),
    ],
)
def test_bad_input_is_told_in_one_line(build: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
