from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from estimators import UserError
from pruning_limits.cones import (
    Circular,
    Cone,
    CvxpyCone,
    DescentCone,
    EllipsoidCone,
    GroupDescent,
    L1Descent,
    L2Descent,
    NuclearDescent,
    Orthant,
    Polar,
    Product,
    Ray,
    Rotated,
    SecondOrder,
    Subspace,
    monte_carlo_dimension,
)

SEEDED = np.random.default_rng(0)
ROTATION = np.linalg.qr(SEEDED.standard_normal((24, 24)))[0]
SLANTED = ROTATION * np.geomspace(0.05, 5, 24) @ ROTATION.T
FLAT = ROTATION * np.concatenate([np.zeros(8), np.geomspace(0.2, 5, 16)]) @ ROTATION.T
CENTRE = SEEDED.standard_normal(24)
SPARSE = np.concatenate([SEEDED.standard_normal(6), np.zeros(34)])
GROUPS = np.concatenate([np.repeat(np.arange(8), 3), np.repeat(np.arange(8, 12), 4)])
LOW_RANK = SEEDED.standard_normal((8, 2)) @ SEEDED.standard_normal((2, 11))

EXACT: dict[str, Cone] = {
    "subspace": Subspace(SEEDED.standard_normal((20, 7))),
    "ray": Ray(SEEDED.standard_normal(9)),
    "orthant": Orthant(30),
    "circular, thin": Circular(30, 0.1),
    "circular": Circular(30, 0.7),
    "circular, wide": Circular(30, 1.3),
    "circular, plane": Circular(2, 0.4),
    "half-space": Circular(12, math.pi / 2),
    "second order": SecondOrder(12),
    "l2 descent": L2Descent(SEEDED.standard_normal(10)),
    "l1 descent, no zeros": L1Descent(SEEDED.standard_normal(10)),
    "nuclear descent, full rank": NuclearDescent(SEEDED.standard_normal((4, 5))),
    "ellipsoid, small": EllipsoidCone(SLANTED, CENTRE, 0.02 * CENTRE @ SLANTED @ CENTRE),
    "ellipsoid, large": EllipsoidCone(SLANTED, CENTRE, 0.4 * CENTRE @ SLANTED @ CENTRE),
    "ellipsoid, unbounded": EllipsoidCone(FLAT, CENTRE, 0.1 * CENTRE @ FLAT @ CENTRE),
    "slab": EllipsoidCone(np.diag([1.0, 0.0, 0.0]), np.ones(3), 0.1),
    "polar": Polar(Circular(10, 0.4)),
    "product": Product(Orthant(5), Circular(10, 0.4), Ray([1.0, 1.0])),
    "rotated": Rotated(Circular(24, 0.5), ROTATION),
}
DESCENT: dict[str, DescentCone] = {
    "l1": L1Descent(SPARSE),
    "l1, one entry": L1Descent(np.eye(40)[3]),
    "l1, dense": L1Descent(np.concatenate([np.ones(30), np.zeros(10)])),
    "groups": GroupDescent(SPARSE, GROUPS),
    "groups, in any order": GroupDescent(SPARSE[::-1], GROUPS[::-1]),
    "nuclear": NuclearDescent(LOW_RANK),
    "nuclear, transposed": NuclearDescent(LOW_RANK.T),
}
ALL = EXACT | {f"descent of {name}": cone for name, cone in DESCENT.items()}


def by_name(cones: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("cone", cones.values(), ids=cones.keys())


@by_name(EXACT)
def test_closed_forms_agree_with_monte_carlo(cone: Cone) -> None:
    value, error = monte_carlo_dimension(cone, samples=4000, seed=1)
    assert abs(cone.statistical_dimension() - value) <= 4 * error


@by_name(DESCENT)
def test_the_recipe_bounds_monte_carlo_from_above_within_its_error(cone: DescentCone) -> None:
    value, error = monte_carlo_dimension(cone, samples=4000, seed=2)
    excess = cone.statistical_dimension() - value
    assert -4 * error <= excess <= min(1.3, cone.error_bound) + 4 * error


@by_name(ALL)
def test_projection_is_characterised_by_moreau(cone: Cone) -> None:
    points = np.random.default_rng(3).standard_normal((200, cone.dimension)) * 10
    nearest = cone.project(points)
    rest = points - nearest
    assert nearest.shape == points.shape
    np.testing.assert_allclose(cone.project(nearest), nearest, atol=1e-10)
    np.testing.assert_allclose((nearest * rest).sum(-1), 0, atol=1e-9)
    assert (nearest @ rest.T).max() <= 1e-9
    assert cone.contains(nearest)
    assert not cone.contains(rest) or np.abs(rest).max() < 1e-12
    np.testing.assert_allclose(cone.project(points[0]), nearest[0], atol=1e-12)
    np.testing.assert_allclose(cone.project(7 * points), 7 * nearest, atol=1e-9)


@by_name(ALL)
def test_polar_and_product_identities(cone: Cone) -> None:
    polar = Polar(cone)
    assert polar.statistical_dimension() + cone.statistical_dimension() == pytest.approx(cone.dimension)
    both = Product(cone, polar)
    assert both.statistical_dimension() == pytest.approx(cone.dimension)
    assert both.variance() == pytest.approx(2 * cone.variance())
    assert 0 <= cone.statistical_dimension() <= cone.dimension


@by_name(ALL)
def test_intrinsic_volumes_are_a_distribution_with_the_right_mean_and_variance(cone: Cone) -> None:
    volumes = cone.intrinsic_volumes()
    if volumes is None:
        assert isinstance(cone, DescentCone | EllipsoidCone)
        return
    counts = np.arange(cone.dimension + 1)
    assert (volumes >= 0).all()
    assert volumes.sum() == pytest.approx(1)
    assert volumes @ counts == pytest.approx(cone.statistical_dimension())
    assert volumes @ counts**2 - (volumes @ counts) ** 2 == pytest.approx(cone.variance(), abs=1e-9)
    if not isinstance(cone, Subspace):
        assert volumes[::2].sum() == pytest.approx(0.5)  # Gauss-Bonnet
    assert Polar(cone).intrinsic_volumes() == pytest.approx(volumes[::-1])


@by_name({name: ALL[name] for name in ("circular", "ellipsoid, small", "ellipsoid, large", "descent of l1")})
def test_variance_agrees_with_that_of_squared_projections(cone: Cone) -> None:
    points = np.random.default_rng(4).standard_normal((20_000, cone.dimension))
    squares = (cone.project(points) ** 2).sum(-1)
    variance = squares.var() - 2 * squares.mean()
    error = np.sqrt(((squares - squares.mean()) ** 2).var() / len(points))
    assert abs(variance - cone.variance()) <= 4 * error + 0.15 * cone.variance()


def test_variance_of_the_nuclear_descent_cone_agrees_with_that_of_squared_projections() -> None:
    cone = DESCENT["nuclear"]
    points = np.random.default_rng(4).standard_normal((8000, cone.dimension))
    squares = (cone.project(points) ** 2).sum(-1)
    error = np.sqrt(((squares - squares.mean()) ** 2).var() / len(points))
    assert abs(squares.var() - 2 * squares.mean() - cone.variance()) <= 4 * error + 0.15 * cone.variance()


def test_circular_cones_reach_ray_and_half_space_and_follow_the_squared_sine() -> None:
    np.testing.assert_allclose(Circular(9, 0.0).intrinsic_volumes(), Ray(np.ones(9)).intrinsic_volumes(), atol=1e-12)
    assert Circular(9, math.pi / 2).statistical_dimension() == pytest.approx(8.5)
    assert SecondOrder(30).statistical_dimension() == pytest.approx(15)
    for angle in (0.3, 0.8, 1.2):
        expected = 5000 * math.sin(angle) ** 2 + math.cos(2 * angle)
        assert Circular(5000, angle).statistical_dimension() == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize("undersampling", [0.1, 0.3, 0.5, 0.8])
def test_the_l1_descent_cone_lies_on_the_published_curve(undersampling: float) -> None:
    # Donoho, Maleki and Montanari, PNAS 106, 2009, equation 5: where l1 minimisation starts to recover k of D entries
    z = np.linspace(0.01, 5, 20_000)
    tail = (1 + z**2) * ndtr(-z) - z * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    share = ((1 - 2 / undersampling * tail) / (1 + z**2 - 2 * tail)).max()
    cone = L1Descent(np.arange(10_000) < share * undersampling * 10_000)
    assert cone.statistical_dimension() / 10_000 == pytest.approx(undersampling, abs=3e-4)


def test_the_l1_descent_cone_depends_on_the_pattern_only_and_groups_of_one_are_l1() -> None:
    flipped = L1Descent(-3 * SPARSE)
    assert flipped.statistical_dimension() == pytest.approx(L1Descent(SPARSE).statistical_dimension())
    grouped = GroupDescent(SPARSE, np.arange(40)[::-1])
    assert grouped.statistical_dimension() == pytest.approx(L1Descent(SPARSE).statistical_dimension())
    assert grouped.error_bound == pytest.approx(2 * math.sqrt(40 / 6))


def test_a_ball_generates_a_circular_cone() -> None:
    for angle in (0.1, 0.8, 1.5):
        ball = EllipsoidCone(np.eye(40), 3 * np.eye(40)[0], 4.5 * math.sin(angle) ** 2)
        circular = Circular(40, angle)
        assert ball.statistical_dimension() == pytest.approx(circular.statistical_dimension(), abs=5e-3)
        points = np.random.default_rng(5).standard_normal((50, 40))
        np.testing.assert_allclose(ball.project(points), circular.project(points), atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 40), st.floats(0.001, 0.98))
def test_bounds_of_the_ellipsoid_cone_hold_its_dimension(seed: int, dimension: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    curvature, centre = np.exp(3 * rng.standard_normal(dimension)), rng.standard_normal(dimension)
    cone = EllipsoidCone(np.diag(curvature), centre, share / 2 * float(curvature @ centre**2))
    value, error = monte_carlo_dimension(cone, samples=400, seed=seed)
    low, high = cone.statistical_dimension_bounds()
    assert low - 4.5 * error <= value <= high + 4.5 * error
    assert low <= cone.statistical_dimension() <= high
    assert abs(cone.statistical_dimension() - value) <= 0.15 + 4.5 * error


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_the_ellipsoid_cone_is_invariant_under_scaling(curvature: float, size: float) -> None:
    epsilon = 0.1 * CENTRE @ SLANTED @ CENTRE
    expected = EllipsoidCone(SLANTED, CENTRE, epsilon).statistical_dimension()
    scaled = EllipsoidCone(curvature * SLANTED, size * CENTRE, curvature * size**2 * epsilon)
    assert scaled.statistical_dimension() == pytest.approx(expected, rel=1e-6)


def l1_constraints(x: Any) -> list[Any]:
    import cvxpy

    active = SPARSE != 0
    return [np.sign(SPARSE[active]) @ x[active] + cvxpy.norm1(x[~active]) <= 0]


def group_constraints(x: Any) -> list[Any]:
    import cvxpy

    parts = [np.flatnonzero(group == GROUPS) for group in range(12)]
    active = sum(SPARSE[part] @ x[part] / np.linalg.norm(SPARSE[part]) for part in parts[:2])
    return [active + sum(cvxpy.norm2(x[part]) for part in parts[2:]) <= 0]


def nuclear_constraints(x: Any) -> list[Any]:
    import cvxpy

    left, _, right = np.linalg.svd(LOW_RANK)
    matrix = cvxpy.reshape(x, LOW_RANK.shape, order="C")
    rotated = left.T @ matrix @ right.T
    return [cvxpy.trace(rotated[:2, :2]) + cvxpy.normNuc(rotated[2:, 2:]) <= 0]


def ellipsoid_constraints(x: Any) -> list[Any]:
    import cvxpy

    squared = 0.02 * CENTRE @ SLANTED @ CENTRE
    root = np.linalg.cholesky(SLANTED).T
    offset = CENTRE @ SLANTED @ CENTRE - 2 * squared
    return [math.sqrt(offset) * cvxpy.norm2(root @ x) <= CENTRE @ SLANTED @ x]


def circular_constraints(x: Any) -> list[Any]:
    import cvxpy

    return [cvxpy.norm2(x[1:]) <= math.tan(0.7) * x[0]]


@pytest.mark.parametrize(
    ("name", "constraints"),
    [
        ("descent of l1", l1_constraints),
        ("descent of groups", group_constraints),
        ("descent of nuclear", nuclear_constraints),
        ("ellipsoid, small", ellipsoid_constraints),
        ("circular", circular_constraints),
    ],
)
def test_projections_agree_with_a_convex_solver(name: str, constraints: Callable[[Any], list[Any]]) -> None:
    cone = ALL[name]
    oracle = CvxpyCone(cone.dimension, constraints)
    points = np.random.default_rng(6).standard_normal((3, cone.dimension))
    np.testing.assert_allclose(cone.project(points), oracle.project(points), atol=2e-3)


def test_monte_carlo_accepts_a_cone_given_as_constraints() -> None:
    import cvxpy

    ordered = CvxpyCone(5, lambda x: [cvxpy.diff(x) >= 0])
    value, error = monte_carlo_dimension(ordered, samples=300, seed=7)
    assert abs(value - sum(1 / k for k in range(1, 6))) <= 4 * error  # the monotone cone has the harmonic number


def unit_ball(x: Any) -> list[Any]:
    import cvxpy

    return [cvxpy.norm2(x) <= 1]


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        (lambda x: [x >= 1, x <= -1], "status 'infeasible'"),
        (lambda x: [x**2 >= 1], "DCP"),
        (unit_ball, "expected a cone"),
    ],
)
def test_constraints_that_are_no_cone_are_refused(constraints: Callable[[Any], list[Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CvxpyCone(3, constraints)


def test_a_solver_that_gives_up_is_named() -> None:
    cone = CvxpyCone(3, lambda x: [x[0] >= 0])
    with pytest.raises(UserError, match=r"^constraints: expected the solver to finish, got status 'solver_error'$"):
        cone.project([1e300, -1e300, 1e300])


def test_an_inaccurate_solution_is_refused_without_a_warning() -> None:
    import cvxpy

    with pytest.raises(UserError, match="got status 'optimal_inaccurate'"):
        CvxpyCone(3, lambda x: [cvxpy.ExpCone(x[0], x[1] * 1e-12, x[2] * 1e12)])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Orthant(0), "dimension: expected at least 1"),
        (lambda: Circular(1, 0.1), "dimension: expected at least 2"),
        (lambda: Circular(5, 2.0), "angle: expected radians"),
        (lambda: Circular(5, math.nan), "angle: expected radians"),
        (lambda: Ray(np.zeros(3)), "direction: expected a non-zero"),
        (lambda: Ray([1.0, math.nan]), "direction: expected finite"),
        (lambda: Subspace(np.ones((4, 2))), "basis: expected linearly independent"),
        (lambda: Subspace(np.ones((2, 3))), "basis: expected linearly independent"),
        (lambda: Subspace(np.ones(3)), "basis: expected a non-empty array with 2 axes"),
        (lambda: L1Descent(np.zeros(3)), "point: expected a non-zero"),
        (lambda: L1Descent(np.ones((2, 2))), "point: expected a non-empty array with 1 axes"),
        (lambda: GroupDescent(np.ones(3), [0, 1]), "groups: expected 3 labels"),
        (lambda: NuclearDescent(np.ones(3)), "point: expected a non-empty array with 2 axes"),
        (lambda: Product(), "cones: expected at least one"),
        (lambda: Rotated(Orthant(3), np.eye(4)), "rotation: expected shape"),
        (lambda: Rotated(Orthant(3), 2 * np.eye(3)), "rotation: expected an orthogonal"),
        (lambda: EllipsoidCone(np.eye(3), np.ones(2), 0.1), "curvature: expected shape"),
        (lambda: EllipsoidCone(np.diag([1.0, -1.0]), np.ones(2), 0.1), "curvature: expected a symmetric positive"),
        (lambda: EllipsoidCone(np.triu(np.ones((2, 2))), np.ones(2), 0.1), "curvature: expected a symmetric positive"),
        (lambda: EllipsoidCone(np.eye(2), np.ones(2), 1.0), "epsilon: expected 0 < epsilon"),
        (lambda: EllipsoidCone(np.eye(2), np.ones(2), 0.0), "epsilon: expected 0 < epsilon"),
        (lambda: Orthant(3).project(np.ones(4)), "x: expected points of dimension 3"),
        (lambda: Orthant(3).project([1.0, math.inf, 0.0]), "x: expected finite"),
        (lambda: Orthant(3).contains(1.0), "x: expected points of dimension 3"),
        (lambda: monte_carlo_dimension(Orthant(3), samples=1), "samples: expected at least 2"),
    ],
)
def test_bad_input_is_told_in_one_line(build: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_a_cone_of_ones_own_gets_the_general_variance_bound() -> None:
    class Nonnegative(Cone):
        dimension = 6

        def statistical_dimension(self) -> float:
            return 3.0

        def _project(self, x: np.ndarray) -> np.ndarray:
            return np.maximum(x, 0)

    assert Nonnegative().variance() == 6 >= Orthant(6).variance()
    assert Product(Nonnegative(), Orthant(2)).intrinsic_volumes() is None
