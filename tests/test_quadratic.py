from __future__ import annotations

import pytest
import torch
from helpers import Dense, random
from torch import nn

from estimators import Hessian, Objective
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.quadratic import QuadraticRise, quadratic_limit


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


def removed_by_hand(weights: torch.Tensor, count: int) -> torch.Tensor:
    removed = torch.zeros_like(weights)
    smallest = weights.abs().argsort()[:count]
    removed[smallest] = weights[smallest]
    return removed


def test_the_quadratic_limit_agrees_with_enumeration_on_a_quadratic() -> None:
    objective, profile, matrix = quadratic_problem()
    epsilon = 0.7
    rises = [float(0.5 * (d := removed_by_hand(profile.vector, k)) @ matrix @ d) for k in range(61)]
    last = next(k for k in range(61) if rises[k] > epsilon) - 1
    assert all(rises[k] <= epsilon for k in range(last + 1))
    assert all(rises[k] > epsilon for k in range(last + 1, 61))
    operator = Hessian(objective)
    for guess in (0.05, 0.5, 0.9):
        rise = QuadraticRise(operator, objective.gradient(), profile)
        assert round(quadratic_limit(rise, epsilon, guess) * 60) == last
        for point in rise.points():
            assert point.rise == pytest.approx(rises[round(60 * point.sparsity)], abs=1e-9)


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


@pytest.mark.parametrize("count", [0, 1, 30, 60])
def test_the_parts_of_the_rise_are_dense_products(count: int) -> None:
    weights, gradient, pull = random(60), random(60, seed=1), random(60, seed=2)
    root = random(60, 60, seed=3)
    matrix = root + root.T  # indefinite
    rise = QuadraticRise(Dense(matrix), gradient, MagnitudeProfile({"w": weights}), pull)
    removed = removed_by_hand(weights, count)
    linear, quadratic = -float(gradient @ removed), float(0.5 * removed @ matrix @ removed)
    assert torch.equal(rise.removed(count / 60), removed)
    assert rise.linear(count / 60) == pytest.approx(linear, abs=1e-12)
    assert rise.quadratic(count / 60) == pytest.approx(quadratic, abs=1e-12)
    assert rise(count / 60) == pytest.approx(linear + quadratic, abs=1e-12)
    (point,) = rise.points()
    assert point.sparsity == count / 60
    assert point.pull == pytest.approx(-float(pull @ removed), abs=1e-12)
    assert point.rise == pytest.approx(linear + quadratic, abs=1e-12)


def test_every_count_is_evaluated_once_and_points_rise() -> None:
    operator = Dense(torch.eye(10, dtype=torch.float64))
    rise = QuadraticRise(operator, torch.zeros(10), MagnitudeProfile({"w": random(10)}))
    for sparsity in (0.5, 0.2, 0.52, 0.48, 0.2, 0.9):  # to the nearest weight
        rise(sparsity)
    assert operator.calls == 3
    assert [point.sparsity for point in rise.points()] == [0.2, 0.5, 0.9]
    assert all(point.pull == 0.0 for point in rise.points())


def test_several_sparsities_are_evaluated_in_one_product() -> None:
    matrix, weights = random(10, 10) + random(10, 10).T, random(10, seed=1)
    operator = Dense(matrix)
    rise = QuadraticRise(operator, torch.zeros(10, dtype=torch.float64), MagnitudeProfile({"w": weights}))
    rise(0.3)
    rise.evaluate([0.2, 0.3, 0.7, 0.71, 1.0])
    rise.evaluate([0.2, 0.7])
    assert operator.calls == 2
    assert [point.sparsity for point in rise.points()] == [0.2, 0.3, 0.7, 1.0]
    for point in rise.points():
        removed = removed_by_hand(weights, round(10 * point.sparsity))
        assert point.quadratic == pytest.approx(float(0.5 * removed @ matrix @ removed), abs=1e-12)


def test_the_curvature_outside_a_subspace_counts() -> None:
    """Half of the weights have the curvature 3 alone, which the operator leaves out but for its number."""

    class Half(Dense):
        outside = 3.0

        def project(self, vectors: torch.Tensor) -> torch.Tensor:
            return vectors[:5]

    root = random(5, 5, seed=1)
    block, weights = root @ root.T, random(10)
    whole = torch.block_diag(block, 3.0 * torch.eye(5, dtype=torch.float64))
    rise = QuadraticRise(Half(block), torch.zeros(10, dtype=torch.float64), MagnitudeProfile({"w": weights}))
    for count in (1, 4, 7, 10):
        removed = removed_by_hand(weights, count)
        assert rise(count / 10) == pytest.approx(float(0.5 * removed @ whole @ removed), rel=1e-12)


def test_a_model_that_rises_with_the_last_weight_or_not_at_all_has_its_limit_at_the_end() -> None:
    profile = MagnitudeProfile({"w": random(50)})
    flat = QuadraticRise(Dense(torch.zeros(50, dtype=torch.float64)), torch.zeros(50), profile)
    assert quadratic_limit(flat, 0.1, 0.5) == 1.0
    steep = QuadraticRise(Dense(torch.full((50,), 1e9, dtype=torch.float64)), torch.zeros(50), profile)
    assert quadratic_limit(steep, 1e-9, 0.5) == 0.0
