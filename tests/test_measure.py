"""A spectral measure by itself: integrals, density, cumulative spectrum, scaling, and rules that it refuses."""

import numpy as np
import pytest
import torch
from helpers import Dense, assert_close, with_spectrum
from scipy.integrate import trapezoid

from estimators import SpectralMeasure, UserError, spectral_measure

RAMP = torch.linspace(-1, 2, 30, dtype=torch.float64)
FUNCTIONS = {
    "one": lambda x: np.ones_like(x),
    "square": lambda x: x**2,
    "resolvent": lambda x: 0.1 / (0.1 + np.abs(x)),
    "step": lambda x: (x > 0.5).astype(float),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_from_eigenvalues(function):
    value, error = SpectralMeasure.from_eigenvalues(RAMP).integrate(function)
    assert_close(value, function(RAMP.numpy()).mean())
    assert error == 0.0


def test_from_eigenvalues_takes_any_order_and_type():
    for values in ([3.0, -1.0, 2.0], (3, -1, 2), np.array([[3.0], [-1.0], [2.0]]), torch.tensor([3.0, -1.0, 2.0])):
        measure = SpectralMeasure.from_eigenvalues(values)
        assert measure.nodes.tolist() == [-1.0, 2.0, 3.0]
        assert (measure.dimension, measure.probes, measure.largest) == (3, 1, 3.0)
        assert_close(measure.weights, [1 / 3] * 3)


@pytest.mark.parametrize("values", [[], [torch.nan], [1.0, torch.inf]])
def test_from_eigenvalues_that_are_none(values):
    with pytest.raises(UserError, match="rules"):
        SpectralMeasure.from_eigenvalues(values)


@pytest.mark.parametrize("width", [0.01, 0.1, 1.0])
def test_density_integrates_to_one(width):
    measure = spectral_measure(Dense(RAMP), probes=2, steps=10)
    grid = np.linspace(-1 - 10 * width, 2 + 10 * width, 20_001)
    density = measure.density(grid, width)
    assert density.shape == grid.shape
    assert (density >= 0).all()
    assert_close(trapezoid(density, grid), 1.0)
    assert_close(trapezoid(grid * density, grid), measure.moment(1)[0], scale=1.0)
    assert_close(trapezoid(grid**2 * density, grid), measure.moment(2)[0] + width**2)


def test_density_of_one_eigenvalue_is_the_gaussian():
    density = SpectralMeasure.from_eigenvalues([2.0]).density([2.0, 2.5], 0.5)
    assert_close(density, [(2 * np.pi) ** -0.5 / 0.5, (2 * np.pi) ** -0.5 / 0.5 * np.exp(-0.5)])


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan")])
def test_density_needs_a_width(width):
    with pytest.raises(UserError, match="width: expected a positive number"):
        SpectralMeasure.from_eigenvalues([1.0]).density([0.0], width)


def test_cumulative_of_known_eigenvalues_counts_them():
    grid = [-2.0, -1.0, -0.5, 0.0, 1.0, 2.0, 3.0]
    fractions, errors = SpectralMeasure.from_eigenvalues(RAMP).cumulative(grid)
    assert_close(fractions, [float((x >= RAMP).double().mean()) for x in grid])
    assert not errors.any()


def test_cumulative_against_dense():
    eigenvalues = torch.cat([torch.linspace(-1, 2, 60), torch.zeros(40)]).double()
    grid = np.array([-1.5, -0.8, -0.3, -0.02, 0.02, 0.4, 1.0, 1.7, 2.5])
    truth = np.array([float((eigenvalues <= x).double().mean()) for x in grid])
    scores = []
    for seed in range(12):
        fractions, errors = spectral_measure(Dense(with_spectrum(eigenvalues)), 4, 100, seed).cumulative(grid)
        assert (np.diff(fractions) >= -1e-12).all()
        scores.append((fractions - truth) / np.maximum(errors, 1e-6))
    assert np.abs(scores).max() < 5
    inner = np.array(scores)[:, 1:-1]
    assert 0.6 < np.sqrt((inner**2).mean()) < 1.2
    assert np.abs(np.array(scores)[:, [0, -1]]).max() < 1e-3


def test_cumulative_takes_any_grid():
    measure = spectral_measure(Dense(RAMP), 2, 5)
    for grid, size in (([], 0), (0.5, 1), ([3.0], 1), (RAMP, 30)):
        fractions, errors = measure.cumulative(grid)
        assert fractions.shape == errors.shape == (size,)
        assert ((fractions >= 0) & (fractions <= 1 + 1e-12)).all()


@pytest.mark.parametrize("factor", [2.0, -0.5, 0.0])
def test_scaled(factor):
    measure = spectral_measure(Dense(RAMP), probes=3, steps=10)
    scaled = measure.scaled(factor)
    assert scaled.dimension == 30
    assert scaled.probes == 3
    for order in (1, 2, 3):
        value, error = measure.moment(order)
        assert_close(scaled.moment(order), [value * factor**order, error * abs(factor) ** order], scale=8.0)


def test_scaled_exact_stays_exact():
    assert SpectralMeasure.from_eigenvalues([1.0, 3.0]).scaled(-2.0).moment(1) == (-4.0, 0.0)


@pytest.mark.parametrize(
    ("nodes", "weights", "message"),
    [
        ([np.nan], [1.0], "finite"),
        ([np.inf], [1.0], "finite"),
        ([1.0], [np.nan], "finite"),
        ([1.0, 2.0], [1.0], "equal number"),
        ([1.0, 2.0], [1.5, -0.5], ">= 0"),
        ([1.0, 2.0], [0.5, 0.4], "sum to 1, got a sum of 0.9"),
        ([], [], "sum to 1"),
    ],
)
def test_invalid_rules(nodes, weights, message):
    good = (np.array([1.0]), np.array([1.0]))
    with pytest.raises(UserError, match=message):
        SpectralMeasure((good, (np.array(nodes), np.array(weights))), 2)


def test_no_rules():
    with pytest.raises(UserError, match="at least one quadrature rule"):
        SpectralMeasure((), 3)
