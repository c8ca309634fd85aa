from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimators import UserError
from pruning_limits.cones import (
    Circular,
    Cone,
    EllipsoidCone,
    L1Descent,
    Orthant,
    Polar,
    Product,
    Ray,
    Rotated,
    SecondOrder,
    Subspace,
)
from pruning_limits.kinematics import (
    concentration_width,
    cone_crossing,
    crossing_window,
    subspace_crossing,
    transition_width,
)

CONES: dict[str, Cone] = {
    "orthant": Orthant(40),
    "circular": Circular(40, 0.6),
    "thin": Circular(40, 0.1),
    "product": Product(Orthant(20), Circular(20, 1.0)),
    "polar": Polar(Product(Orthant(30), Ray(np.ones(10)))),
    "l1 descent": L1Descent([1.0] * 6 + [0.0] * 34),
    "ellipsoid": EllipsoidCone(np.diag(np.geomspace(0.1, 10, 40)), np.ones(40), 1.0),
}
EVERY = np.arange(41)


def crossings(cone: Cone, trials: int, seed: int) -> np.ndarray:
    """Smallest k at which a random k-dimensional subspace meets a circular cone, in nested subspaces, exactly."""
    assert isinstance(cone, Circular)
    frames = np.random.default_rng(seed).standard_normal((trials, cone.dimension, cone.dimension))
    axis = np.linalg.qr(frames)[0][:, 0, :]  # components of the cone's axis along each frame
    inside = np.cumsum(axis**2, axis=1) >= math.cos(cone.angle) ** 2
    return 1 + inside.argmax(1)


@pytest.mark.parametrize("angle", [0.3, 0.8, 1.3])
def test_the_crofton_formula_agrees_with_random_subspaces(angle: float) -> None:
    cone, trials = Circular(20, angle), 4000
    dimensions = crossings(cone, trials, seed=0)
    curve = subspace_crossing(cone, np.arange(21))
    share = (dimensions[:, None] <= np.arange(21)).mean(0)
    error = np.sqrt(np.maximum(curve.probability * (1 - curve.probability), 1 / trials) / trials)
    assert (np.abs(share - curve.probability) <= 4 * error).all()
    assert curve.method == "intrinsic volumes"


def test_two_circular_cones_meet_when_their_axes_are_near_enough() -> None:
    for dimension, first, second in ((3, 0.5, 0.7), (12, 0.6, 0.8), (6, 1.2, 1.0)):
        crossing = cone_crossing(Circular(dimension, first), Circular(dimension, second))
        expected = Circular(dimension, min(first + second, math.pi / 2)).intrinsic_volumes()[-1]
        if first + second > math.pi / 2:
            expected = 1 - Circular(dimension, math.pi - first - second).intrinsic_volumes()[-1]
        assert float(crossing.probability) == pytest.approx(expected)
        assert crossing.lower <= crossing.probability <= crossing.upper


def test_a_cone_against_a_ray_or_a_subspace_agrees_with_the_special_cases() -> None:
    for cone in (Orthant(9), Circular(9, 0.5)):
        volumes = cone.intrinsic_volumes()
        assert float(cone_crossing(cone, Ray(np.ones(9))).probability) == pytest.approx(volumes[-1])
        for k in range(10):
            other = Subspace(np.eye(9)[:, :k]) if k else Polar(Subspace(np.eye(9)))
            expected = float(subspace_crossing(cone, k).probability)
            assert float(cone_crossing(cone, other).probability) == pytest.approx(expected, abs=1e-12)


def test_subspaces_meet_exactly_when_their_dimensions_exceed_the_space() -> None:
    plane = Rotated(Subspace(np.eye(7)[:, :3]), np.linalg.qr(np.random.default_rng(1).standard_normal((7, 7)))[0])
    curve = subspace_crossing(plane, np.arange(8))
    np.testing.assert_array_equal(curve.probability, [0, 0, 0, 0, 0, 1, 1, 1])
    assert float(cone_crossing(plane, Subspace(np.eye(7)[:, :4])).probability) == 0
    assert float(cone_crossing(plane, Subspace(np.eye(7)[:, :5])).probability) == 1


@pytest.mark.parametrize("cone", CONES.values(), ids=CONES.keys())
def test_curves_rise_from_zero_to_one_within_their_bounds(cone: Cone) -> None:
    curve = subspace_crossing(cone, EVERY)
    assert (np.diff(curve.probability) >= -1e-12).all()
    if curve.method == "intrinsic volumes":
        assert curve.probability[0] == 0
        assert curve.probability[-1] == pytest.approx(1)
        assert (curve.lower <= curve.probability + 1e-12).all()
        assert (curve.probability <= curve.upper + 1e-12).all()
    low, high = crossing_window(cone, eta=0.1)
    assert (curve.upper[low >= EVERY] <= 0.1 + 1e-9).all() or low == 0
    assert (curve.lower[high <= EVERY] >= 0.9 - 1e-9).all() or high == 40


@pytest.mark.parametrize("cone", [Orthant(200), Circular(200, 0.6), SecondOrder(200), Circular(200, 1.3)])
def test_the_normal_curve_is_near_the_exact_one(cone: Cone) -> None:
    class Anonymous:
        dimension = cone.dimension
        statistical_dimension = staticmethod(cone.statistical_dimension)
        variance = staticmethod(cone.variance)

        def intrinsic_volumes(self) -> None:
            return None

    every = np.arange(201)
    exact, normal = subspace_crossing(cone, every), subspace_crossing(Anonymous(), every)
    assert normal.method == "normal"
    assert np.abs(exact.probability - normal.probability).max() < 0.03
    both = cone_crossing(cone, Circular(200, 0.8)), cone_crossing(Anonymous(), Circular(200, 0.8))
    assert abs(float(both[0].probability) - float(both[1].probability)) < 0.03


@pytest.mark.parametrize("first", CONES.values(), ids=CONES.keys())
@pytest.mark.parametrize("second", CONES.values(), ids=CONES.keys())
def test_two_cones_meet_with_a_probability_between_its_bounds_in_either_order(first: Cone, second: Cone) -> None:
    crossing, swapped = cone_crossing(first, second), cone_crossing(second, first)
    assert float(crossing.probability) == pytest.approx(float(swapped.probability), abs=1e-12)
    if crossing.method == "intrinsic volumes":
        assert crossing.lower <= crossing.probability + 1e-12
        assert crossing.probability <= crossing.upper + 1e-12


@pytest.mark.parametrize("angle", [0.2, 0.7, 1.2])
def test_the_window_covers_the_monte_carlo_transition(angle: float) -> None:
    cone = Circular(60, angle)
    dimensions = crossings(cone, 1000, seed=2)
    low, high = crossing_window(cone, eta=0.05)
    assert (dimensions <= low).mean() <= 0.05
    assert (dimensions <= high).mean() >= 0.95
    threshold = cone.dimension - cone.statistical_dimension()
    assert abs(np.median(dimensions) - threshold) <= 1.5
    assert abs(dimensions.std() - math.sqrt(cone.variance())) <= 0.1 * dimensions.std() + 0.2


def test_the_window_of_theorem_one_by_hand() -> None:
    assert transition_width(100, 0.5) == pytest.approx(math.sqrt(8 * math.log(8)) * 10)


@given(st.integers(1, 10**7), st.floats(0, 1), st.floats(1e-6, 1, exclude_max=True))
def test_the_refined_window_is_never_wider_than_that_of_theorem_one(dimension: int, share: float, eta: float) -> None:
    width = concentration_width(share * dimension, dimension, eta)
    assert width > 0
    if width <= dimension:  # beyond that both say nothing
        assert width <= transition_width(dimension, eta)
    noise = min(share, 1 - share) * dimension
    assert math.exp(-(width**2) / 4 / (noise + width / 3)) == pytest.approx(eta, rel=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: transition_width(0), "dimension: expected at least 1"),
        (lambda: transition_width(10, 0.0), "eta: expected a probability"),
        (lambda: transition_width(10, 1.0), "eta: expected a probability"),
        (lambda: transition_width(10, -1.0), "eta: expected a probability"),
        (lambda: concentration_width(1, 10, math.nan), "eta: expected a probability"),
        (lambda: concentration_width(11, 10), "delta: expected a statistical dimension"),
        (lambda: concentration_width(1, 0), "dimension: expected at least 1"),
        (lambda: crossing_window(Orthant(5), 2.0), "eta: expected a probability"),
        (lambda: subspace_crossing(Orthant(5), 6), r"kept: expected integers in 0\.\.5, got 6"),
        (lambda: subspace_crossing(Orthant(5), [1.5]), "kept: expected integers"),
        (lambda: subspace_crossing(Orthant(5), -1), "kept: expected integers"),
        (lambda: cone_crossing(Orthant(5), Orthant(6)), "other: expected a cone of dimension 5"),
    ],
)
def test_bad_input_is_told_in_one_line(build: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
