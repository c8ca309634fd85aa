from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import Dense
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar

from estimators import SpectralMeasure, UserError, gauss, gauss_radau, lanczos, measure_of, sphere_probes
from pruning_limits.cones import EllipsoidCone, monte_carlo_dimension
from pruning_limits.directional import Direction, directional_dimension, directional_limit, polarised
from pruning_limits.isotropic import isotropic_limit, removable_fraction
from pruning_limits.kinematics import crossing_window, subspace_crossing
from pruning_limits.kinematics_monte_carlo import half_point, sublevel_crossings
from pruning_limits.magnitude import MagnitudeProfile
from validation.studies.limits import kinematics
from validation.studies.limits.kinematics import removed_weights

D, EPSILON = 200, 0.05
SPECTRA = {name: build(D) for name, build in kinematics.SPECTRA.items()}
positive = st.floats(1e-3, 1e3)


def exact(eigenvalues: np.ndarray) -> SpectralMeasure:
    return SpectralMeasure.from_eigenvalues(eigenvalues)


TABLE = [
    (spectrum, distance, kind)
    for spectrum, distance in (("power law", 3), ("spiked", 3), ("spiked", 1), ("log-uniform", 1), ("uniform", 3))
    for kind in ("random", "sharp", "flat")
]


@pytest.mark.parametrize(("spectrum", "distance", "kind"), TABLE)
def test_directional_dimension_is_the_monte_carlo_crossing_where_isotropic_is_loose(
    spectrum: str, distance: float, kind: str
) -> None:
    eigenvalues = SPECTRA[spectrum]
    d = removed_weights(eigenvalues, kind, distance)
    crossing = directional_dimension(exact(eigenvalues), Direction.dense(eigenvalues, d), EPSILON)
    dimensions = sublevel_crossings(eigenvalues, d, EPSILON, trials=100)
    isotropic = D * (1 - removable_fraction(exact(eigenvalues), 2 * EPSILON / distance**2)[0])
    assert abs(crossing.kept - half_point(dimensions)[0]) <= 0.02 * D
    assert abs(crossing.kept - dimensions.mean()) <= 1 + 4 * dimensions.std() / 10
    assert crossing.kept <= isotropic + 1e-9
    assert crossing.bounds[0] <= crossing.kept <= crossing.bounds[1]
    if crossing.kept:
        assert dimensions.std() == pytest.approx(crossing.deviation, rel=0.3, abs=0.3)
        low, high = crossing_window(crossing, eta=0.05)
        assert ((dimensions > low) & (dimensions <= high)).mean() >= 0.95
        curve = subspace_crossing(crossing, np.arange(D + 1))
        share = (dimensions[:, None] <= np.arange(D + 1)).mean(0)
        assert np.abs(curve.probability - share).max() <= 0.25


def test_the_window_covers_the_monte_carlo_transition_of_random_problems() -> None:
    generator, covered = np.random.default_rng(4), []
    for seed in range(60):
        dimension = int(generator.integers(20, 80))
        eigenvalues = 10 ** generator.uniform(-4, 2, dimension)
        d = generator.standard_normal(dimension) * eigenvalues ** -generator.uniform(0, 0.5)
        rise = 0.5 * float(eigenvalues @ d**2)
        epsilon = rise * float(generator.uniform(0.001, 0.9))
        crossing = directional_dimension(exact(eigenvalues), Direction.dense(eigenvalues, d), epsilon)
        low, high = crossing_window(crossing, eta=0.05)
        dimensions = sublevel_crossings(eigenvalues, d, epsilon, trials=60, seed=seed)
        covered.append(((dimensions > low) & (dimensions <= high)).mean() >= 0.95)
    assert np.mean(covered) >= 0.95


def dimension_by_two_loops(eigenvalues: np.ndarray, d: np.ndarray, epsilon: float) -> float:
    """D - delta as min over t of the distance at multiplier mu(t): the form of the theory, before duality."""

    def squared_distance(log_t: float) -> float:
        weight = 1 + math.exp(2 * log_t) * d**2

        def excess(log_mu: float) -> float:
            return float(weight @ (eigenvalues / (1 + math.exp(log_mu) * eigenvalues) ** 2)) - level

        level = 2 * epsilon * math.exp(2 * log_t)
        if float(weight @ eigenvalues) <= level:
            return 0.0
        mu = math.exp(brentq(excess, -60, 200, xtol=1e-13))
        return float(weight @ (mu * eigenvalues / (1 + mu * eigenvalues)) ** 2)

    return float(minimize_scalar(squared_distance, bounds=(-3, 6), method="bounded", options={"xatol": 1e-7}).fun)


@pytest.mark.parametrize("spectrum", ["power law", "spiked", "log-uniform"])
def test_one_root_replaces_the_minimum_over_two_multipliers(spectrum: str) -> None:
    eigenvalues = SPECTRA[spectrum]
    d = removed_weights(eigenvalues, "random", 3)
    crossing = directional_dimension(exact(eigenvalues), Direction.dense(eigenvalues, d), EPSILON)
    assert crossing.kept == pytest.approx(dimension_by_two_loops(eigenvalues, d, EPSILON), rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.002, 0.95), st.booleans())
def test_bounds_hold_at_every_dimension_and_agree_with_those_of_the_cone(seed: int, share: float, tilted: bool) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(4, 60))
    eigenvalues, d = np.exp(2 * rng.standard_normal(size)), rng.standard_normal(size)
    g = tilted * 0.3 * rng.standard_normal(size) * eigenvalues
    centre = d - g / eigenvalues  # of the ellipsoid {Q <= epsilon}, seen from the pruned point
    lowest = -float((g**2 / eigenvalues).sum()) / 2
    top = float(eigenvalues @ centre**2) / 2 + lowest  # Q at the pruned point
    epsilon = share * (top - lowest) + lowest
    if epsilon <= 0:
        return
    cone = EllipsoidCone(np.diag(eigenvalues), centre, epsilon - lowest)
    crossing = directional_dimension(exact(eigenvalues), Direction.dense(eigenvalues, d, g), epsilon)
    low, high = cone.statistical_dimension_bounds()
    assert size - high == pytest.approx(crossing.bounds[0], abs=0.02)
    assert size - low == pytest.approx(crossing.bounds[1], abs=0.02)
    assert abs(crossing.kept - (size - cone.statistical_dimension())) <= 1.2
    value, error = monte_carlo_dimension(cone, samples=300, seed=seed)
    assert crossing.bounds[0] - 4.5 * error <= size - value <= crossing.bounds[1] + 4.5 * error


@pytest.mark.parametrize("size", [0.3, 1.0, -0.5])
def test_the_gradient_of_a_non_stationary_point_enters(size: float) -> None:
    eigenvalues = SPECTRA["log-uniform"][40:]
    d = removed_weights(eigenvalues, "random", 2)
    g = (
        size * np.sqrt(eigenvalues) * np.random.default_rng(5).standard_normal(len(d)) / 10
        + 0.1 * size * eigenvalues * d
    )
    crossing = directional_dimension(exact(eigenvalues), Direction.dense(eigenvalues, d, g), EPSILON)
    without = directional_dimension(exact(eigenvalues), Direction.dense(eigenvalues, d), EPSILON)
    dimensions = sublevel_crossings(eigenvalues, d, EPSILON, trials=100, gradient=g)
    assert abs(crossing.kept - dimensions.mean()) <= 1 + 4 * dimensions.std() / 10
    assert abs(without.kept - dimensions.mean()) > abs(crossing.kept - dimensions.mean())


def test_a_gradient_along_flat_directions_enters() -> None:
    rng = np.random.default_rng(6)
    eigenvalues = np.concatenate([np.zeros(20), np.geomspace(0.1, 10, 60)])
    d, g = removed_weights(eigenvalues, "random", 2), 0.02 * rng.standard_normal(80)
    crossing = directional_dimension(exact(eigenvalues), Direction.dense(eigenvalues, d, g), EPSILON)
    dimensions = []
    for _ in range(100):
        frame = rng.standard_normal((80, 80))
        q = eigenvalues * d - g
        lowest = [
            eigenvalues @ d**2 / 2 - g @ d - b @ np.linalg.solve(frame[:, :k].T * eigenvalues @ frame[:, :k], b) / 2
            for k in range(1, 60)
            for b in [frame[:, :k].T @ q]
        ]
        dimensions.append(1 + int(np.append(np.array(lowest) <= EPSILON, True).argmax()))  # unbounded below beyond 60
    assert abs(crossing.kept - np.mean(dimensions)) <= 1 + 4 * np.std(dimensions) / 10


def test_equal_curvature_has_the_solution_by_hand_for_every_direction() -> None:
    a, distance = 3.0, 2.0
    for kind in ("random", "sharp"):
        d = removed_weights(np.linspace(1, 2, D), kind, distance)
        crossing = directional_dimension(exact(np.full(D, a)), Direction.dense(np.full(D, a), d), epsilon=1.5)
        assert crossing.kept == pytest.approx(D * (1 - 2 * 1.5 / (a * distance**2)))


def test_a_direction_along_one_eigenvector_has_the_solution_by_hand() -> None:
    eigenvalues, distance = SPECTRA["power law"], 3.0
    for k in (0, 10, 60):
        x = eigenvalues[k]
        scale = 2 * EPSILON * x / (distance**2 * x - 2 * EPSILON)
        crossing = directional_dimension(
            exact(eigenvalues), Direction.dense(eigenvalues, distance * np.eye(D)[k]), EPSILON
        )
        assert crossing.scale == pytest.approx(scale, rel=1e-9)
        assert crossing.kept == pytest.approx((eigenvalues / (eigenvalues + scale)).sum())


def test_directions_far_sharper_than_the_scale_give_the_isotropic_value() -> None:
    eigenvalues = np.concatenate([np.full(5, 1e8), np.geomspace(1e-3, 1, D - 5)])
    d = 2.0 * np.eye(D)[2]
    crossing = directional_dimension(exact(eigenvalues), Direction.dense(eigenvalues, d), EPSILON)
    isotropic = D * (1 - removable_fraction(exact(eigenvalues), 2 * EPSILON / 4)[0])
    assert crossing.kept == pytest.approx(isotropic, rel=1e-6)


def test_nothing_needs_to_be_kept_inside_the_sublevel_set() -> None:
    eigenvalues = SPECTRA["log-uniform"]
    flat = directional_dimension(
        exact(eigenvalues), Direction.dense(eigenvalues, removed_weights(eigenvalues, "flat", 0.1)), 1
    )
    assert (flat.kept, flat.scale, flat.deviation, flat.bounds) == (0.0, math.inf, 0.0, (0.0, 0.0))
    np.testing.assert_array_equal(subspace_crossing(flat, [0, 1, 2]).probability, [0, 1, 1])
    assert directional_dimension(exact(np.zeros(3)), Direction.dense(np.zeros(3), np.ones(3)), 1.0).kept == 0
    assert Direction().rise() == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 0.9), positive, positive, st.booleans())
def test_only_ratios_of_epsilon_curvature_and_weights_matter(
    seed: int, share: float, a: float, b: float, tilted: bool
) -> None:
    rng = np.random.default_rng(seed)
    eigenvalues, d = rng.exponential(size=50) ** 3, rng.standard_normal(50)
    g = tilted * 0.1 * eigenvalues * rng.standard_normal(50)
    epsilon = share * Direction.dense(eigenvalues, d, g).rise()
    if epsilon <= 0:
        return
    crossing = directional_dimension(exact(eigenvalues), Direction.dense(eigenvalues, d, g), epsilon)
    steep = directional_dimension(exact(a * eigenvalues), Direction.dense(a * eigenvalues, d, a * g), a * epsilon)
    heavy = eigenvalues / b**2
    large = directional_dimension(exact(heavy), Direction.dense(heavy, b * d, g / b), epsilon)
    for rescaled in (steep, large):
        assert rescaled.kept == pytest.approx(crossing.kept, rel=1e-7)
        assert rescaled.deviation == pytest.approx(crossing.deviation, rel=1e-7)
    assert steep.scale == pytest.approx(a * crossing.scale, rel=1e-7)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), positive, st.floats(1.01, 100), st.booleans())
def test_more_epsilon_needs_less_and_the_isotropic_value_is_never_below(
    seed: int, epsilon: float, factor: float, tilted: bool
) -> None:
    rng = np.random.default_rng(seed)
    eigenvalues, d = rng.exponential(size=50) ** 3 * (rng.random(50) < 0.8), rng.standard_normal(50)
    g = tilted * eigenvalues * rng.standard_normal(50)
    measure, removed = exact(eigenvalues), Direction.dense(eigenvalues, d, g)
    crossing = directional_dimension(measure, removed, epsilon)
    assert directional_dimension(measure, removed, factor * epsilon).kept <= crossing.kept
    isotropic = 50 * (1 - removable_fraction(measure, 2 * epsilon / float(d @ d))[0])
    assert 0 <= crossing.kept <= isotropic + 1e-9
    assert crossing.kept < np.count_nonzero(eigenvalues)


def test_the_envelope_is_the_minimum_of_ridge_retuning() -> None:
    rng = np.random.default_rng(7)
    eigenvalues, d, g = rng.exponential(size=30), rng.standard_normal(30), rng.standard_normal(30)
    removed = Direction.dense(eigenvalues, d, g)
    for scale in (0.01, 1.0, 100.0):
        b = (eigenvalues * d - g) / (eigenvalues + scale)
        value = g @ (b - d) + eigenvalues @ (b - d) ** 2 / 2 + scale / 2 * b @ b
        assert removed.envelope(scale) == pytest.approx(value)
        assert removed.slope(scale) == pytest.approx(b @ b / 2)
    assert removed.rise() == pytest.approx(eigenvalues @ d**2 / 2 - g @ d)
    assert removed.squared_slope() == pytest.approx(((eigenvalues * d - g) ** 2).sum())
    assert removed.squared_norm == pytest.approx(d @ d)


def test_cross_measure_by_polarisation_and_the_slope_at_the_pruned_point_are_the_same_as_dense_components() -> None:
    rng = np.random.default_rng(8)
    eigenvalues, d = SPECTRA["log-uniform"], removed_weights(SPECTRA["log-uniform"], "random", 2)
    g = 0.02 * np.sqrt(eigenvalues) * rng.standard_normal(D)
    measure, dense = exact(eigenvalues), Direction.dense(eigenvalues, d, g)
    expected = directional_dimension(measure, dense, EPSILON)
    cross = polarised((eigenvalues, (d + g) ** 2), (eigenvalues, (d - g) ** 2))
    by_parts = Direction((eigenvalues, d**2), (eigenvalues, g**2), cross)
    q = g - eigenvalues * d
    at_pruned = Direction.from_slope((eigenvalues, q**2 / (q @ q)), float(q @ q), rise=dense.rise())
    for direction in (by_parts, at_pruned):
        crossing = directional_dimension(measure, direction, EPSILON)
        assert crossing.kept == pytest.approx(expected.kept, rel=1e-8)
        assert crossing.bounds == pytest.approx(expected.bounds, rel=1e-4)


def test_lanczos_rules_bracket_the_dense_answer() -> None:
    eigenvalues = SPECTRA["log-uniform"]
    d = removed_weights(eigenvalues, "random", 2)
    operator = Dense(torch.from_numpy(eigenvalues))
    expected = directional_dimension(exact(eigenvalues), Direction.dense(eigenvalues, d), EPSILON).kept
    for steps in (5, 20, 60):
        run = lanczos(operator, torch.from_numpy(d), steps)
        below, above = (
            directional_dimension(exact(eigenvalues), Direction.from_rule(rule, 4.0), EPSILON).kept
            for rule in (gauss_radau(run, 0.0), gauss(run))
        )
        assert below <= expected + 1e-9
        assert expected <= above + 1e-9
    assert above - below < 0.02


def test_the_standard_error_covers_the_spread_over_probes() -> None:
    eigenvalues = SPECTRA["power law"]
    d = removed_weights(eigenvalues, "random", 3)
    operator, removed = Dense(torch.from_numpy(eigenvalues)), Direction.dense(eigenvalues, d)
    truth = directional_dimension(exact(eigenvalues), removed, EPSILON).kept
    scores = []
    for seed in range(20):
        probe = sphere_probes(operator, 1, seed)[:, 0]
        measure = measure_of([lanczos(operator, probe, 50)], D)
        crossing = directional_dimension(measure, removed, EPSILON)
        scores.append((crossing.kept - truth) / crossing.standard_error)
    assert np.abs(scores).max() <= 4
    assert 0.5 <= np.square(scores).mean() ** 0.5 <= 1.5


def network(seed: int, dimension: int = 150, alignment: float = 0.5) -> tuple[np.ndarray, np.ndarray, MagnitudeProfile]:
    """Eigenvalues, eigenvectors and weights, large weights in sharp directions."""
    rng = np.random.default_rng(seed)
    eigenvalues = np.geomspace(1e-4, 10, dimension)
    noise = rng.standard_normal((dimension, dimension))
    vectors = np.linalg.qr(np.eye(dimension) + alignment * noise / math.sqrt(dimension))[0]
    weights = rng.standard_normal(dimension) * np.linspace(0.2, 2, dimension)
    return eigenvalues, vectors, MagnitudeProfile({"w": torch.from_numpy(weights)})


@pytest.mark.parametrize("seed", range(3))
def test_the_limit_solves_its_equation_in_few_directions_and_is_not_below_the_isotropic_one(seed: int) -> None:
    eigenvalues, vectors, profile = network(seed)
    measure, dimension = exact(eigenvalues), profile.dimension

    def direction_at(sparsity: float) -> Direction:
        return Direction.dense(eigenvalues, vectors.T @ profile.removed(sparsity).numpy())

    limit = directional_limit(measure, direction_at, profile.curve(), EPSILON, resolution=1e-3)
    assert limit.evaluations <= 10
    assert isotropic_limit(measure, profile.curve(), EPSILON, "clip").sparsity <= limit.sparsity < 1

    def excess(count: int) -> float:
        crossing = directional_dimension(measure, direction_at(count / dimension), EPSILON)
        return 1 - crossing.kept / dimension - count / dimension

    count = round(limit.sparsity * dimension)
    assert excess(count - 2) > 0 > excess(count + 2)


def test_equal_curvature_and_equal_weights_have_the_limit_by_hand() -> None:
    # 1 - s = 1 - 2 epsilon / (a s D w^2)
    a, w, dimension, epsilon = 3.0, 0.5, 400, 20.0
    profile = MagnitudeProfile({"w": torch.full((dimension,), w, dtype=torch.float64)})
    eigenvalues = np.full(dimension, a)
    limit = directional_limit(
        exact(eigenvalues),
        lambda s: Direction.dense(eigenvalues, profile.removed(s).numpy()),
        profile.curve(),
        epsilon,
    )
    assert limit.sparsity == pytest.approx(math.sqrt(2 * epsilon / (a * dimension * w**2)), abs=1 / dimension)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 20), st.floats(1e-3, 3), positive)
def test_the_limit_depends_on_ratios_only_and_reaches_one_for_large_epsilon(
    seed: int, epsilon: float, a: float
) -> None:
    eigenvalues, vectors, profile = network(seed, 60)
    parts = {}

    def removed(sparsity: float) -> np.ndarray:
        return parts.setdefault(sparsity, vectors.T @ profile.removed(sparsity).numpy())

    def limit(values: np.ndarray, size: float, allowed: float) -> float:
        return directional_limit(
            exact(values),
            lambda s: Direction.dense(values, size * removed(s)),
            profile.curve().scaled(size),
            allowed,
            resolution=1e-9,
        ).sparsity

    reference = limit(eigenvalues, 1.0, epsilon)
    assert limit(a * eigenvalues, 1.0, a * epsilon) == pytest.approx(reference, abs=1e-6)
    assert limit(eigenvalues / a**2, a, epsilon) == pytest.approx(reference, abs=1e-6)
    assert limit(eigenvalues, 1.0, 1e6) == 1.0


def test_the_search_survives_a_direction_slightly_longer_than_the_curve_says() -> None:
    sharp = np.concatenate([np.full(100, 1e9), np.full(100, 1.0)])
    profile = MagnitudeProfile({"w": torch.linspace(0.1, 10, 200, dtype=torch.float64)})
    isotropic = isotropic_limit(exact(sharp), profile.curve(), 10.0).sparsity
    limit = directional_limit(
        exact(sharp),
        lambda s: Direction.dense(sharp, 1.02 * profile.removed(s).numpy()),
        profile.curve(),
        10.0,
    )
    assert isotropic - 0.01 < limit.sparsity < isotropic < 0.5


def test_bounds_stay_two_deviations_apart_at_any_size() -> None:
    nodes = np.geomspace(1e-9, 100, 400)
    weights, along = nodes**-0.7 / (nodes**-0.7).sum(), 4 * nodes**-0.8 / (nodes**-0.8).sum()
    for dimension in (10**10, 10**12):
        measure = SpectralMeasure(((nodes, weights),), dimension)
        crossing = directional_dimension(measure, Direction(along=(nodes, along)), 1e-6)
        low, high = ((bound - crossing.kept) / crossing.deviation for bound in crossing.bounds)
        assert low == pytest.approx(-1, abs=0.1)
        assert high == pytest.approx(1, abs=0.1)


def test_negative_curvature_is_clipped_or_counted_by_size() -> None:
    eigenvalues, d = np.array([-0.5, 1.0, 2.0]), np.array([1.0, 1.0, 1.0])
    for negative, mapped in (("clip", np.maximum(eigenvalues, 0)), ("abs", np.abs(eigenvalues))):
        crossing = directional_dimension(exact(eigenvalues), Direction.dense(eigenvalues, d), 0.1, negative)  # type: ignore[arg-type]
        expected = directional_dimension(exact(mapped), Direction.dense(mapped, d), 0.1)
        assert crossing.kept == pytest.approx(expected.kept)


ONES = np.ones(3)
RULE = (ONES, ONES / 3)
CROSS = (np.array([100.0, 0.01]), np.array([1.0, -1.0]))
LONG = MagnitudeProfile({"w": 9 * torch.ones(3)}).curve()
CURVE = MagnitudeProfile({"w": torch.ones(3)}).curve()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Direction(along=(ONES, np.ones(2))), "along: expected as many nodes as weights"),
        (lambda: Direction(along=(ONES, np.array([1, np.nan, 1]))), "along: expected finite"),
        (lambda: Direction(gradient=(np.array([1, np.inf, 1]), ONES)), "gradient: expected finite"),
        (lambda: Direction(along=(ONES, np.array([1, -0.1, 1]))), "along: expected weights >= 0, got -0.1"),
        (lambda: Direction(offset=math.nan), "offset: expected a finite"),
        (lambda: Direction.from_rule((ONES, ONES), 1.0), "rule: expected weights that sum to 1, got a sum of 3"),
        (lambda: Direction.from_slope((ONES, ONES), 1.0, 1.0), "rule: expected weights that sum to 1"),
        (lambda: Direction.from_rule(RULE, -1.0), "squared_norm: expected a finite number >= 0"),
        (lambda: Direction.dense(ONES, np.ones(2)), "removed: expected 3 components"),
        (lambda: Direction.dense(ONES, ONES, np.ones(2)), "removed: expected 3 components"),
        (lambda: directional_dimension(exact(ONES), Direction.dense(ONES, ONES), 0.0), "epsilon: expected a positive"),
        (lambda: directional_dimension(exact(ONES), Direction.dense(ONES, ONES), 0.1, "drop"), "negative: expected"),
        (
            lambda: directional_dimension(exact(ONES), Direction((ONES, ONES), cross=CROSS), 0.1),
            "direction: expected measures of one d and one g",
        ),
        (lambda: directional_limit(exact(ONES), lambda s: Direction(RULE), LONG, 5.0), "sum to R\\^2"),
        (
            lambda: directional_limit(exact(ONES), lambda s: Direction(RULE), CURVE, -0.1),
            "epsilon: expected a positive",
        ),
        (
            lambda: directional_limit(exact(ONES), lambda s: Direction(RULE), CURVE, 0.1, resolution=0.0),
            "resolution: expected a positive",
        ),
        (lambda: exact(np.array([1.0, math.nan])), "rules: nodes and weights must be finite"),
    ],
)
def test_bad_input_is_told_in_one_line(build: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
