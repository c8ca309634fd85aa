"""Top eigenpairs against dense eigenvalue decompositions, and the residuals that vouch for them."""

import numpy as np
import pytest
import torch
from helpers import CASES, Dense, assert_close, random, with_spectrum

from estimators import GGN, Hessian, Objective, UserError, eigenpairs, lanczos

D = 150
SPECTRA = {
    "outliers": torch.cat([torch.tensor([-20.0, 17.0, 9.0, 8.5, -3.0]), 0.1 * random(D - 5)]),
    "ramp": torch.linspace(-1, 2, D),
    "decaying": 0.9 ** torch.arange(D),
    "repeated": torch.tensor([5.0] * 3 + [-5.0] * 2 + [4.0] * 4 + [1.0] * (D - 9)),
    "opposite signs": torch.tensor([3.0, -3.0, 2.0, -2.0] + [0.5] * (D - 4)),
    "low rank": torch.tensor([6.0, -4.0] + [0.0] * (D - 2)),
    "zero": torch.zeros(D),
}


def by_size(values):
    values = np.asarray(values, dtype=np.float64)
    return values[np.argsort(-np.abs(values), kind="stable")]


def check(pairs, matrix, count):
    """Compare with the dense decomposition; equal absolute values may come in any order."""
    truth = by_size(np.linalg.eigvalsh(matrix.double().numpy()))[:count]
    size = max(abs(truth[0]), 1e-300)
    assert_close(np.abs(pairs.values), np.abs(truth), matrix.dtype, scale=size)
    assert_close(np.sort(pairs.values), np.sort(truth), matrix.dtype, scale=size)
    vectors = pairs.vectors.double()
    assert_close(vectors.T @ vectors, torch.eye(count), matrix.dtype)
    actual = (matrix.double() @ vectors - vectors * torch.from_numpy(pairs.values)).norm(dim=0)
    assert_close(pairs.residuals, actual, matrix.dtype, scale=size)


CUTS = [(name, count) for name in ("outliers", "ramp", "decaying", "low rank") for count in (1, 4, 9)]
CUTS += [("repeated", 5), ("repeated", 9), ("opposite signs", 2), ("opposite signs", 4)]


@pytest.mark.parametrize(("name", "count"), CUTS)
def test_against_numpy(name, count):
    matrix = with_spectrum(SPECTRA[name])
    pairs = eigenpairs(Dense(matrix), count, tolerance=1e-8, products=3000)
    assert pairs.converged
    assert (pairs.residuals <= 1e-8 * abs(pairs.values[0])).all()
    check(pairs, matrix, count)


def test_ties_at_the_cut():
    matrix = with_spectrum(SPECTRA["repeated"])
    for count in (1, 4):
        pairs = eigenpairs(Dense(matrix), count, tolerance=1e-8)
        assert_close(np.abs(pairs.values), [5.0] * count)
        assert pairs.converged


def test_multiplicity_beyond_a_single_krylov_space():
    pairs = eigenpairs(Dense(torch.tensor([2.0] * 7 + [1.0] * 30).double()), 7)
    assert_close(pairs.values, [2.0] * 7)
    assert pairs.products <= 7 * 5


@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_all_eigenpairs_of_a_small_matrix(size):
    matrix = with_spectrum(torch.linspace(-1, 2, size))
    for count in {1, size}:
        check(eigenpairs(Dense(matrix), count, tolerance=0.0), matrix, count)


def test_zero_matrix():
    pairs = eigenpairs(Dense(with_spectrum(SPECTRA["zero"])), 3)
    assert not pairs.values.any()
    assert not pairs.residuals.any()
    assert pairs.converged


@pytest.mark.parametrize("kind", [Hessian, GGN])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_network(kind, dtype):
    case = CASES["ragged"]
    operator = kind(Objective(case.model(dtype), case.loader(dtype)))
    before = operator.products
    pairs = eigenpairs(operator, 4, tolerance=torch.finfo(dtype).eps ** 0.5)
    assert pairs.converged
    assert pairs.vectors.dtype == dtype
    assert pairs.products == operator.products - before
    matrix = operator.matmat(torch.eye(operator.shape[0], dtype=dtype)).double()
    truth = by_size(np.linalg.eigvalsh(((matrix + matrix.T) / 2).numpy()))[:4]
    assert_close(pairs.values, truth, dtype)


def test_residual_bounds_the_error_before_convergence():
    spectrum = torch.linspace(-1, 2, 400).double()
    for products in (2, 6, 20, 60):
        pairs = eigenpairs(Dense(spectrum), 1, products=products, tolerance=1e-12)
        assert not pairs.converged
        assert pairs.products <= products
        assert float((spectrum - pairs.values[0]).abs().min()) <= pairs.residuals[0]
    assert pairs.residuals[0] < 0.1


def test_tolerance_is_met_and_no_more_products_are_taken_than_needed():
    operator = Dense(with_spectrum(SPECTRA["outliers"]))
    loose, tight = (eigenpairs(operator, 3, tolerance=tolerance) for tolerance in (1e-2, 1e-8))
    assert loose.converged
    assert tight.converged
    assert loose.products < tight.products < 100


def test_same_seed_same_bits_and_the_global_state_is_left_alone():
    state, operator = torch.get_rng_state(), Dense(with_spectrum(SPECTRA["ramp"]))
    first, again, other = (eigenpairs(operator, 3, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.values, again.values)
    assert torch.equal(first.vectors, again.vectors)
    assert not torch.equal(first.vectors, other.vectors)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, f"count: expected 1 to {D}, got 0"),
        ({"count": D + 1}, f"count: expected 1 to {D}, got {D + 1}"),
        ({"tolerance": -1.0}, "tolerance: expected a number >= 0"),
        ({"tolerance": float("nan")}, "tolerance: expected a number >= 0"),
        ({"count": 3, "products": 5}, "products: expected at least 6"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(UserError, match=message):
        eigenpairs(Dense(torch.ones(D)), **options)


# ------------------------------------------------------------------------------------------- Lanczos residuals


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_residuals_of_ritz_pairs_come_with_the_tridiagonal_matrix(steps):
    matrix = with_spectrum(SPECTRA["ramp"])
    run = lanczos(Dense(matrix), random(D), steps)
    values, residuals = run.ritz()
    t = np.diag(run.alpha) + np.diag(run.beta, 1) + np.diag(run.beta, -1)
    expected, inner = np.linalg.eigh(t)
    vectors = run.basis.T @ torch.from_numpy(inner)
    assert_close(values, expected)
    assert_close(residuals, (matrix @ vectors - vectors * torch.from_numpy(expected)).norm(dim=0), scale=2.0)


def test_ritz_pairs_of_an_exhausted_space_have_no_residual():
    assert not lanczos(Dense(SPECTRA["ramp"].double()[:6]), random(6), 6).ritz()[1].any()
