from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import nn

from estimators import GGN, Hessian, Objective, SpectralMeasure, UserError
from pruning_limits.isotropic import carried_limit, isotropic_limit, removable_fraction
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.parts import Estimate

positive = st.floats(1e-4, 1e4)


def random_problem(seed: int, dimension: int = 120) -> tuple[SpectralMeasure, MagnitudeProfile]:
    generator = torch.Generator().manual_seed(seed)
    eigenvalues = torch.randn(dimension, generator=generator, dtype=torch.float64) ** 3
    weights = torch.randn(dimension, generator=generator, dtype=torch.float64) ** 3
    return SpectralMeasure.from_eigenvalues(eigenvalues.numpy()), MagnitudeProfile({"w": weights})


def test_identity_curvature_and_equal_weights_have_the_solution_by_hand() -> None:
    a, w, d, epsilon = 3.0, 0.5, 400, 7.0
    profile = MagnitudeProfile({"w": torch.full((d,), w, dtype=torch.float64)})
    measure = SpectralMeasure.from_eigenvalues(np.full(d, a))
    # s = c / (c + a) with c = 2 epsilon / (s d w^2), so q s^2 + s - 1 ... with q = a d w^2 / (2 epsilon): q s^2 + s = 1
    q = a * d * w**2 / (2 * epsilon)
    expected = (-1 + math.sqrt(1 + 4 * q)) / (2 * q)
    assert isotropic_limit(measure, profile.curve(), epsilon).sparsity == pytest.approx(expected, abs=1e-9)


def test_without_curvature_everything_can_go() -> None:
    profile = MagnitudeProfile({"w": torch.ones(10)})
    assert isotropic_limit(SpectralMeasure.from_eigenvalues(np.zeros(10)), profile.curve(), 1.0).sparsity == 1.0


def test_weights_that_are_zero_already_cost_nothing() -> None:
    weights = torch.zeros(100, dtype=torch.float64)
    weights[:10] = 1e6
    profile = MagnitudeProfile({"w": weights})
    measure = SpectralMeasure.from_eigenvalues(np.ones(100))
    assert isotropic_limit(measure, profile.curve(), 1e-3).sparsity == pytest.approx(0.9, abs=1e-6)


@given(st.integers(0, 50), positive)
def test_the_root_solves_its_equation(seed: int, epsilon: float) -> None:
    measure, profile = random_problem(seed)
    curve = profile.curve()
    root = isotropic_limit(measure, curve, epsilon)
    value, _ = removable_fraction(measure, root.scale)
    assert 0 < root.sparsity <= 1
    assert root.sparsity == 1.0 or value == pytest.approx(root.sparsity, abs=1e-9)


@given(st.integers(0, 50), positive, st.floats(1.01, 100))
def test_the_limit_rises_with_epsilon_and_falls_with_weights_and_curvature(
    seed: int, epsilon: float, factor: float
) -> None:
    measure, profile = random_problem(seed)
    curve = profile.curve()
    limit = isotropic_limit(measure, curve, epsilon).sparsity
    assert isotropic_limit(measure, curve, epsilon * factor).sparsity >= limit
    assert isotropic_limit(measure, curve.scaled(factor), epsilon).sparsity <= limit
    assert isotropic_limit(measure.scaled(factor), curve, epsilon).sparsity <= limit


@given(st.integers(0, 50), positive, st.floats(0.01, 100))
def test_only_epsilon_over_curvature_times_squared_weights_matters(seed: int, epsilon: float, a: float) -> None:
    measure, profile = random_problem(seed)
    curve = profile.curve()
    limit = isotropic_limit(measure, curve, epsilon).sparsity
    assert isotropic_limit(measure.scaled(a), curve, a * epsilon).sparsity == pytest.approx(limit, abs=1e-9)
    same = isotropic_limit(measure.scaled(a**-2), curve.scaled(a), epsilon).sparsity
    assert same == pytest.approx(limit, abs=1e-9)


def test_magnitude_masks_allow_more_than_random_ones() -> None:
    measure, profile = random_problem(7)
    total = profile.squares[-1]
    linear = profile.curve()
    random_curve = type(linear)(linear.sparsity, linear.sparsity * total)
    assert isotropic_limit(measure, linear, 1.0).sparsity > isotropic_limit(measure, random_curve, 1.0).sparsity


def test_clipping_negative_eigenvalues_allows_more() -> None:
    measure, profile = random_problem(3)
    curve = profile.curve()
    clipped = isotropic_limit(measure, curve, 1.0, "clip").sparsity
    assert clipped > isotropic_limit(measure, curve, 1.0, "abs").sparsity


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_epsilon_must_be_positive(epsilon: float) -> None:
    measure, profile = random_problem(0)
    with pytest.raises(UserError, match="epsilon"):
        isotropic_limit(measure, profile.curve(), epsilon)


def test_negative_must_be_known() -> None:
    measure, profile = random_problem(0)
    with pytest.raises(UserError, match="negative"):
        isotropic_limit(measure, profile.curve(), 1.0, "drop")  # type: ignore[arg-type]


@given(st.integers(0, 50), positive, st.sampled_from(["abs", "clip"]))
def test_the_removable_fraction_is_a_sum_over_eigenvalues(seed: int, scale: float, negative: str) -> None:
    generator = np.random.default_rng(seed)
    eigenvalues = generator.normal(0, 1, 50) ** 3
    curvature = np.abs(eigenvalues) if negative == "abs" else np.maximum(eigenvalues, 0)
    value, error = removable_fraction(SpectralMeasure.from_eigenvalues(eigenvalues), scale, negative)  # type: ignore[arg-type]
    assert value == pytest.approx(np.mean(scale / (scale + curvature)), rel=1e-12)
    assert error == 0.0


def test_the_removable_fraction_at_the_ends_of_the_scale() -> None:
    measure = SpectralMeasure.from_eigenvalues(np.array([0.0, 0.0, 1.0, -2.0]))
    assert removable_fraction(measure, np.inf) == (1.0, 0.0)
    assert removable_fraction(measure, 0.0)[0] == pytest.approx(0.5)  # flat directions count whole
    assert removable_fraction(measure, 0.0, "clip")[0] == pytest.approx(0.75)


@given(st.integers(0, 20), st.floats(1e-2, 1e2))
def test_the_limit_is_the_least_distance_of_both_sides_by_a_search(seed: int, epsilon: float) -> None:
    measure, profile = random_problem(seed)
    curve = profile.curve()

    def gap(sparsity: float) -> float:
        c = 2 * epsilon / curve.squared_norm(sparsity)
        return abs(float(measure.weights @ (c / (c + np.abs(measure.nodes)))) - sparsity)

    root = isotropic_limit(measure, curve, epsilon).sparsity
    search = minimize_scalar(gap, bounds=(max(1e-9, root - 0.05), min(1.0, root + 0.05)), method="bounded")
    assert gap(root) <= search.fun + 1e-9


def test_the_error_of_the_limit_is_that_of_the_fraction_over_the_slopes_of_both_sides() -> None:
    """Two probes that disagree; the limits of the one and of the other lie one standard error to either side."""
    generator = np.random.default_rng(0)
    nodes, uneven = np.abs(generator.normal(0, 1, 40)), generator.uniform(-0.1, 0.1, 40)
    uneven -= uneven.mean()
    rules = [(nodes, (1 + sign * uneven) / 40) for sign in (1, -1)]
    curve = MagnitudeProfile({"w": torch.linspace(0.5, 1.5, 400, dtype=torch.float64)}).curve()
    limit = isotropic_limit(SpectralMeasure(tuple(rules), 10**9), curve, 30.0)
    low, high = sorted(isotropic_limit(SpectralMeasure((rule,), 10**9), curve, 30.0).sparsity for rule in rules)
    assert high - low > 1e-4
    assert limit.standard_error == pytest.approx((high - low) / 2, rel=0.02)
    assert limit.sparsity == pytest.approx((low + high) / 2, abs=0.02 * (high - low))


def test_a_carried_limit_is_the_geometric_mean_of_kept_fractions_times_the_growth() -> None:
    measure, profile = random_problem(4)
    above, curve = measure.scaled(0.5), profile.curve()
    ends = [1 - isotropic_limit(each, curve, 1.0).sparsity for each in (measure, above)]
    estimate = Estimate(measure, 100, 10, 0.0, 0.0, growth=1.1, above=above)
    assert carried_limit(estimate, curve, 1.0) == pytest.approx(1 - 1.1 * math.sqrt(ends[0] * ends[1]), abs=1e-12)
    assert carried_limit(Estimate(measure, 100, 10, 0.0, 0.0), curve, 1.0) == pytest.approx(1 - ends[0], abs=1e-12)
    assert carried_limit(Estimate(measure, 100, 10, 0.0, 0.0, growth=50.0), curve, 1.0) == 0.0
    clipped = carried_limit(Estimate(measure, 100, 10, 0.0, 0.0), curve, 1.0, "clip")
    assert clipped == isotropic_limit(measure, curve, 1.0, "clip").sparsity


def test_dense_eigenvalues_of_hessian_and_ggn_give_the_same_limit_as_the_estimate(
    tiny: tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]],
) -> None:
    from helpers import ggn_limit

    from pruning_limits import predict_limit

    objective = Objective(*tiny)
    identity = torch.eye(objective.dimension, dtype=torch.float64)
    curve = MagnitudeProfile(objective.chosen).curve()
    limit = predict_limit(*tiny, epsilon=0.01, steps=objective.dimension)
    for operator, negative, sparsity in (
        (Hessian(objective), "abs", limit.sparsity),
        (GGN(objective), "clip", ggn_limit(limit)),
    ):
        eigenvalues = torch.linalg.eigvalsh(operator @ identity)
        exact = isotropic_limit(SpectralMeasure.from_eigenvalues(eigenvalues.numpy()), curve, 0.01, negative)
        assert sparsity == pytest.approx(exact.sparsity, abs=1e-6)
