from __future__ import annotations

import numpy as np
import pytest
import torch

from estimators import UserError
from validation.studies.lottery.population import kernel, population_gradient, population_hessian, population_loss
from validation.studies.lottery.recovery import End, convex_radius, descend, inward
from validation.studies.lottery.teacher_student import (
    Floats,
    Teachers,
    draw_teachers,
    gradient,
    hessian,
    loss,
    norms,
    outputs,
)

NEURONS, INPUTS, KEPT = 3, 7, 4


@pytest.fixture(scope="module")
def teachers() -> Teachers:
    return draw_teachers(2, NEURONS, INPUTS, KEPT, np.random.default_rng(0))


@pytest.fixture(scope="module")
def student(teachers: Teachers) -> Floats:
    return teachers.perturbed(0.4, np.random.default_rng(1))


@pytest.fixture(scope="module")
def sample(teachers: Teachers) -> tuple[Floats, Floats]:
    x = np.random.default_rng(2).standard_normal((2, 50, INPUTS))
    return x, outputs(teachers.weights, x)


def test_teachers_are_sparse_and_of_unit_norm(teachers: Teachers) -> None:
    assert (teachers.support.sum(-1) == KEPT).all()
    assert ((teachers.weights != 0) == teachers.support).all()
    np.testing.assert_allclose(np.linalg.norm(teachers.weights, axis=-1), 1)
    assert len(np.unique(teachers.support.reshape(-1, INPUTS), axis=0)) > 1


def test_a_perturbation_has_its_length_and_stays_on_the_support(teachers: Teachers, student: Floats) -> None:
    np.testing.assert_allclose(norms(student - teachers.weights), 0.4 * norms(teachers.weights))
    assert (student[~teachers.support] == 0).all()
    steps = inward(teachers, np.random.default_rng(0))
    assert ((steps * teachers.weights).sum(-1) < 0).mean() > 0.8


def test_loss_and_gradient_agree_with_autograd(
    teachers: Teachers, student: Floats, sample: tuple[Floats, Floats]
) -> None:
    x, y = (torch.from_numpy(part) for part in sample)
    weights = torch.from_numpy(student).requires_grad_()
    values = ((weights @ x.mT).relu().mean(1) - y).square().mean(1) / 2
    (expected,) = torch.autograd.grad(values.sum(), weights)
    np.testing.assert_allclose(loss(student, *sample), values.detach().numpy(), rtol=1e-12)
    slopes = gradient(student, teachers.support, *sample)
    np.testing.assert_allclose(slopes, expected.numpy() * teachers.support, atol=1e-15)
    assert (norms(gradient(teachers.weights, teachers.support, *sample)) == 0).all()


def test_the_hessian_agrees_with_autograd_of_the_smooth_network(
    teachers: Teachers, student: Floats, sample: tuple[Floats, Floats]
) -> None:
    """Gauss-Newton part of the ReLU, plus the residual times a normal density as second derivative."""
    width, (x, y) = 0.3, (torch.from_numpy(part[0]) for part in sample)
    support = torch.from_numpy(teachers.support[0])
    weights = torch.from_numpy(student[0])
    residual = (weights @ x.T).relu().mean(0) - y

    def value(flat: torch.Tensor) -> torch.Tensor:
        full = torch.zeros_like(weights).masked_scatter(support, flat)
        hidden = full @ x.T
        sharp = hidden.relu().mean(0) - y
        density = torch.distributions.Normal(0.0, width)
        smooth = hidden * density.cdf(hidden) + width**2 * density.log_prob(hidden).exp()
        return (sharp.square() / 2 + residual * smooth.mean(0)).mean()

    expected = torch.autograd.functional.hessian(value, weights[support])
    matrix = hessian(student[0], teachers.support[0], sample[0][0], sample[1][0], width)
    np.testing.assert_allclose(matrix, expected.numpy(), atol=1e-12)


def test_the_population_loss_is_what_monte_carlo_finds(teachers: Teachers, student: Floats) -> None:
    count = 200_000
    x = np.random.default_rng(3).standard_normal((2, count, INPUTS))
    squares = np.square(outputs(student, x) - outputs(teachers.weights, x)) / 2
    error = squares.std(1) / np.sqrt(count)
    assert (np.abs(squares.mean(1) - population_loss(student, teachers.weights)) < 4 * error).all()
    np.testing.assert_allclose(population_loss(teachers.weights, teachers.weights), 0, atol=1e-15)


def test_the_kernel_by_hand() -> None:
    u = np.array([[3.0, 0.0]])
    v = np.array([[2.0, 0.0], [0.0, 1.0], [-4.0, 0.0]])
    np.testing.assert_allclose(kernel(u, v), [[3.0, 3 / (2 * np.pi), 0.0]], atol=1e-12)


def test_derivatives_of_the_population_loss_are_differences(teachers: Teachers, student: Floats) -> None:
    step, truth, support = 1e-5, teachers.weights[:1], teachers.support[:1]
    slopes, curvature = [], []
    for place in np.argwhere(support[0]):
        shift = np.zeros_like(truth)
        shift[0, place[0], place[1]] = step
        ends = student[:1] + shift, student[:1] - shift
        slopes.append(np.subtract(*(population_loss(end, truth)[0] for end in ends)) / (2 * step))
        gradients = (population_gradient(end, truth, support)[support] for end in ends)
        curvature.append(np.subtract(*gradients) / (2 * step))
    np.testing.assert_allclose(population_gradient(student[:1], truth, support)[support], slopes, atol=1e-9)
    np.testing.assert_allclose(population_hessian(student[0], truth[0], support[0]), curvature, atol=1e-8)


def test_the_sampled_hessian_and_gradient_tend_to_the_expected_ones(teachers: Teachers, student: Floats) -> None:
    x = np.random.default_rng(4).standard_normal((2, 100_000, INPUTS))
    y = outputs(teachers.weights, x)
    expected = population_hessian(student[0], teachers.weights[0], teachers.support[0])
    matrix = hessian(student[0], teachers.support[0], x[0], y[0], 0.1)
    assert np.abs(matrix - expected).max() < 0.05 * np.abs(expected).max()
    slope = population_gradient(student, teachers.weights, teachers.support)
    assert norms(gradient(student, teachers.support, x, y) - slope).max() < 0.03 * norms(slope).min()


def test_descent_recovers_the_truth_at_the_speed_of_the_smallest_curvature() -> None:
    rng = np.random.default_rng(5)
    teachers = draw_teachers(2, NEURONS, 24, 8, rng)
    x = rng.standard_normal((2, 2000, 24))
    y = outputs(teachers.weights, x)
    path = descend(teachers, x, y, teachers.perturbed(0.2, rng), End(800, 1e-8))
    assert path.errors[-1].max() <= 1e-8
    assert (path.iterations(1e-3) > 0).all()
    assert (path.iterations(1e-12) == -1).all()
    for trial, speed in enumerate(path.speed(1e-8)):
        own = teachers.weights[trial], teachers.support[trial], x[trial], y[trial]
        least = np.linalg.eigvalsh(hessian(*own, 0.1))[0]
        assert speed == pytest.approx(-np.log(1 - least * NEURONS**2 / 2), rel=0.15)


def test_removed_weights_stay_zero() -> None:
    rng = np.random.default_rng(6)
    teachers = draw_teachers(1, 2, 6, 3, rng)
    x = rng.standard_normal((1, 100, 6))
    kept = rng.random((1, 2, 6)) < 0.5
    start = rng.standard_normal((1, 2, 6)) * kept
    path = descend(teachers, x, outputs(teachers.weights, x), start, End(5), support=kept)
    assert (path.weights[~kept] == 0).all()
    assert len(path.errors) == 6


@pytest.mark.parametrize("edge", [0.2, 0.77])
def test_the_convex_radius_of_a_known_curvature(edge: float) -> None:
    assert convex_radius(lambda rho: np.diag([2.0, edge - rho]), halvings=10) == pytest.approx(edge, abs=1e-3)


def test_too_many_kept_weights_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="kept: expected 1 to 5 weights per neuron") as caught:
        draw_teachers(1, 1, 5, 6, np.random.default_rng(0))
    assert "\n" not in str(caught.value)
