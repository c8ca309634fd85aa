from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from estimators import GGN, L1, Hessian, Objective, SpectralMeasure, UserError
from pruning_limits.bounds import (
    QuadraticRise,
    isotropic_limit,
    largest_passing,
    measured_limit,
    quadratic_limit,
    removable_fraction,
)
from pruning_limits.kinematics import transition_width
from pruning_limits.magnitude import MagnitudeProfile

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


RISES: dict[str, Callable[[float, float], float]] = {
    "step": lambda count, last: 3.0 * (count > last) - 1,
    "power": lambda count, last: ((count + 1) / (last + 1.5)) ** 3,
    "steep": lambda count, last: math.exp(min(700.0, 40 * (count - last - 0.5) / (last + 1))),
    "flat, then infinite": lambda count, last: 1e-9 if count <= last else math.inf,
    "nothing, then not a number": lambda count, last: 0.0 if count <= last else math.nan,
}


@pytest.mark.parametrize("shape", RISES)
@settings(max_examples=100)
@given(st.integers(1, 3000), st.data())
def test_largest_passing_finds_the_last_count_that_passes(shape: str, dimension: int, data: st.DataObject) -> None:
    last = data.draw(st.integers(0, dimension))
    guess, power = data.draw(st.floats(0, 1)), data.draw(st.none() | st.floats(0.01, 100))
    calls = []

    def rise(sparsity: float) -> float:
        calls.append(sparsity)
        return RISES[shape](round(sparsity * dimension), last)

    assert round(largest_passing(rise, 1.0, guess, dimension, 1e-9, power) * dimension) == last
    assert len(calls) <= 40
    assert len(set(calls)) == len(calls)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("guess", [0.96, 0.969, 0.98])
def test_largest_passing_of_a_smooth_rise_takes_few_evaluations(power: float, guess: float) -> None:
    calls = []

    def rise(sparsity: float) -> float:
        calls.append(sparsity)
        return math.exp(2 * (sparsity - 0.97)) * (0.03 / max(1 - sparsity, 1e-9)) ** power

    assert largest_passing(rise, 1.0, guess, 4_000_000) == pytest.approx(0.97, abs=1e-4)
    assert len(calls) <= 6


@pytest.mark.parametrize("error", [0.8, 1.0, 1.25])
@pytest.mark.parametrize("guess", [0.968, 0.9695, 0.97, 0.972])
def test_a_known_power_brackets_a_smooth_rise_in_three_or_four_evaluations(guess: float, error: float) -> None:
    calls = []

    def rise(sparsity: float) -> float:
        calls.append(sparsity)
        return (0.03 / (1 - sparsity)) ** (2 + (sparsity - 0.97))

    assert largest_passing(rise, 1.0, guess, 4_000_000, power=2 * error) == pytest.approx(0.97, abs=1e-4)
    assert len(calls) <= 4


def test_transition_width_matches_the_theorem_and_refuses_bad_eta() -> None:
    assert transition_width(100, 0.5) == pytest.approx(math.sqrt(8 * math.log(8)) * 10)
    for eta in (0.0, 1.0, -1.0):
        with pytest.raises(UserError, match="eta"):
            transition_width(100, eta)
    with pytest.raises(UserError, match="dimension"):
        transition_width(0)


class Quadratic(nn.Module):
    """Loss a/2 |w - w0|^2 as the mean over one sample."""

    def __init__(self, curvature: torch.Tensor, weights: torch.Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(len(weights), 1, bias=False).double()
        self.register_buffer("centre", weights.clone())
        self.register_buffer("matrix", curvature)
        with torch.no_grad():
            self.layer.weight.copy_(weights[None])


def quadratic_problem() -> tuple[Objective, MagnitudeProfile, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(60, generator=generator).double()
    root = torch.randn(60, 60, generator=generator).double() / 8
    matrix = root @ root.T
    model = Quadratic(matrix, weights)

    def loss(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        shift = module.layer.weight[0] - module.centre
        return (0.5 * shift @ module.matrix @ shift).expand(len(batch))

    objective = Objective(model, [torch.zeros(4, 1)], loss)
    return objective, MagnitudeProfile(objective.chosen), matrix


def test_measured_and_quadratic_limits_agree_with_enumeration_on_a_quadratic() -> None:
    objective, profile, matrix = quadratic_problem()
    epsilon = 0.7
    rises = [float(0.5 * (d := profile.removed(k / 60)) @ matrix @ d) for k in range(61)]
    last = next(k for k in range(61) if rises[k] > epsilon) - 1
    assert all(rises[k] <= epsilon for k in range(last + 1))
    assert all(rises[k] > epsilon for k in range(last + 1, 61))
    measured = measured_limit(objective, profile, epsilon, guess=0.2)
    assert round(measured.sparsity * 60) == last
    for sparsity, rise in measured.points:
        assert rise == pytest.approx(rises[round(sparsity * 60)], abs=1e-9)
    operator = Hessian(objective)
    assert round(quadratic_limit(QuadraticRise(operator, objective.gradient(), profile), epsilon, 0.9) * 60) == last


@pytest.mark.parametrize("penalty", [None, L1(1e-3)])
@pytest.mark.parametrize("guess", [0.05, 0.5, 0.99])
def test_measuring_from_a_sub_sample_gives_the_same_in_fewer_passes(guess: float, penalty: L1 | None) -> None:
    torch.manual_seed(0)
    centres, labels = 2 * torch.randn(10, 64), torch.arange(20_000) % 10
    inputs = centres[labels] + torch.randn(len(labels), 64)
    model = nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        loss = nn.functional.cross_entropy(model(inputs[:1000]), labels[:1000])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    objective = Objective(model, [(inputs, labels)], penalty=penalty)
    profile = MagnitudeProfile(objective.chosen)
    part = objective.subset(500)
    epsilon = 0.05
    alone = measured_limit(objective, profile, epsilon, guess)
    helped = measured_limit(objective, profile, epsilon, guess, part=part)
    assert helped.sparsity == pytest.approx(alone.sparsity, abs=1.5 / profile.dimension + 1e-4)
    assert alone.samples == len(alone.points) * len(labels)  # one of them at no sparsity
    assert helped.samples // len(labels) == len(helped.points) <= min(8, len(alone.points))
    assert 0 < helped.samples % len(labels) <= 30 * part.samples
    for sparsity, rise in helped.points:
        weights = profile.vector - profile.removed(sparsity)
        assert rise == pytest.approx(objective.value(weights) - objective.value(), abs=1e-9)


def test_the_linear_term_enters_the_quadratic_limit() -> None:
    objective, profile, matrix = quadratic_problem()
    epsilon, gradient = 0.7, -0.1 * profile.vector
    rises = []
    for count in range(61):
        d = profile.removed(count / 60)
        rises.append(float(0.5 * d @ matrix @ d - gradient @ d))
    last = next(count for count in range(61) if rises[count] > epsilon) - 1
    assert all(rise > epsilon for rise in rises[last + 1 :])
    operator = Hessian(objective)
    assert round(quadratic_limit(QuadraticRise(operator, gradient, profile), epsilon, 0.9) * 60) == last
    assert quadratic_limit(QuadraticRise(operator, 0 * gradient, profile), epsilon, 0.9) * 60 > last


def test_dense_eigenvalues_of_hessian_and_ggn_give_the_same_limit_as_the_estimate(
    tiny: tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]],
) -> None:
    from pruning_limits import predict_limit

    objective = Objective(*tiny)
    identity = torch.eye(objective.dimension, dtype=torch.float64)
    curve = MagnitudeProfile(objective.chosen).curve()
    limit = predict_limit(*tiny, epsilon=0.01, steps=objective.dimension)
    for operator, negative, found in (
        (Hessian(objective), "abs", limit.sparsity),
        (GGN(objective), "clip", limit.retrained),
    ):
        eigenvalues = torch.linalg.eigvalsh(operator @ identity)
        exact = isotropic_limit(SpectralMeasure.from_eigenvalues(eigenvalues.numpy()), curve, 0.01, negative)
        assert found == pytest.approx(exact.sparsity, abs=1e-6)
