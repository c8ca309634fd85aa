"""Traces, diagonals and row norms against dense matrices, within their own standard errors."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import CASES, Dense, assert_close, random, with_spectrum

from estimators import (
    GGN,
    Hessian,
    Objective,
    UserError,
    block_traces,
    diagonal,
    hutch_plus_plus,
    hutchinson,
    row_norms,
    xtrace,
)

D = 120
LINEAR = torch.linspace(-1, 3, D, dtype=torch.float64)
MATRICES = {
    "positive": with_spectrum(torch.linspace(0.1, 1, D, dtype=torch.float64), 1),
    "indefinite": with_spectrum(LINEAR, 2),
    "negative": with_spectrum(-torch.linspace(0.1, 1, D, dtype=torch.float64), 3),
    "low rank and noise": with_spectrum(torch.cat([torch.linspace(5, 50, 8), 0.01 * random(D - 8)]), 4),
    "decaying": with_spectrum(torch.arange(1, D + 1, dtype=torch.float64) ** -2, 5),
}
ESTIMATORS = {"hutchinson": hutchinson, "hutch++": hutch_plus_plus, "xtrace": xtrace}
estimators = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
low_rank = pytest.mark.parametrize("estimator", [hutch_plus_plus, xtrace], ids=["hutch++", "xtrace"])


def scores(estimator, matrix, products, seeds=50):
    """Return (estimate - truth) / standard error for so many seeds."""
    truth, result = float(matrix.trace()), []
    for seed in range(seeds):
        estimate = estimator(Dense(matrix), products, seed)
        result.append((estimate.value - truth) / estimate.standard_error)
    return np.array(result)


# ----------------------------------------------------------------------------------------------- against dense


@estimators
@pytest.mark.parametrize("name", MATRICES)
def test_error_is_what_the_standard_error_says(estimator, name):
    z = scores(estimator, MATRICES[name], 60)
    optimism = 1.7 if estimator is xtrace else 1.0  # leave-one-out estimates share their vectors
    assert np.abs(z).max() < 5 * optimism
    assert 0.7 < np.sqrt((z**2).mean()) < 1.4 * optimism
    assert abs(z.mean()) < 4 * z.std() / len(z) ** 0.5


@estimators
@pytest.mark.parametrize("kind", [Hessian, GGN])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_trace_of_a_network(estimator, kind, dtype):
    case = CASES["ragged"]
    operator = kind(Objective(case.model(dtype), case.loader(dtype)))
    truth = float(operator.matmat(torch.eye(operator.shape[0], dtype=dtype)).double().trace())
    estimate = estimator(operator, 18)
    assert abs(estimate.value - truth) <= 5 * estimate.standard_error
    assert 0 < estimate.standard_error < abs(truth)


@low_rank
@pytest.mark.parametrize("name", ["low rank and noise", "decaying"])
def test_low_rank_part_beats_hutchinson_at_equal_products(estimator, name):
    def deviation(one):
        errors = [one(Dense(MATRICES[name]), 36, seed).value - float(MATRICES[name].trace()) for seed in range(30)]
        return float(np.sqrt(np.mean(np.square(errors))))

    assert deviation(estimator) < 0.1 * deviation(hutchinson)


def test_xtrace_beats_hutch_plus_plus_on_a_decaying_spectrum():
    matrix = with_spectrum(0.7 ** torch.arange(D, dtype=torch.float64), 6)
    errors = {
        one: np.mean([abs(one(Dense(matrix), 30, seed).value - float(matrix.trace())) for seed in range(20)])
        for one in (hutch_plus_plus, xtrace)
    }
    assert errors[xtrace] < 0.3 * errors[hutch_plus_plus]


@low_rank
@pytest.mark.parametrize("rank", [0, 1, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_exact_where_the_rank_is_small(estimator, rank, dtype):
    eigenvalues = torch.cat([torch.linspace(-4, 9, rank, dtype=torch.float64), torch.zeros(D - rank).double()])
    matrix = with_spectrum(eigenvalues).to(dtype)
    estimate = estimator(Dense(matrix), 24)
    assert_close(estimate.value, matrix.double().trace(), dtype, scale=9.0)
    assert_close(estimate.standard_error, 0.0, dtype, scale=9.0)


@low_rank
def test_matrix_of_one_entry_has_exact_zeros(estimator):
    estimate = estimator(Dense(torch.tensor([7.0] + [0.0] * 9).double()), 8)
    assert_close([estimate.value, estimate.standard_error], [7.0, 0.0], scale=7.0)


@low_rank
@pytest.mark.parametrize("size", [1, 2, 5])
def test_more_products_than_dimensions_are_exact(estimator, size):
    matrix = with_spectrum(LINEAR[-size:])
    estimate = estimator(Dense(matrix), 40)
    assert_close([estimate.value, estimate.standard_error], [float(matrix.trace()), 0.0], scale=3.0 * size)


def test_diagonal_matrix_is_exact_for_random_signs():
    estimate = hutchinson(Dense(LINEAR), 2)
    assert_close([estimate.value, estimate.standard_error], [float(LINEAR.sum()), 0.0])


def test_function_of_a_matrix_is_an_operator_too():
    class Squared(Dense):
        def matmat(self, vectors):
            return super().matmat(super().matmat(vectors))

    estimate = xtrace(Squared(MATRICES["indefinite"]), 60)
    assert abs(estimate.value - float(LINEAR.square().sum())) < 4 * estimate.standard_error


# ------------------------------------------------------------------------------------------------- bookkeeping


@estimators
@pytest.mark.parametrize("products", [6, 7, 20])
def test_products_are_counted(estimator, products):
    columns = []

    class Counting(Dense):
        def matmat(self, vectors):
            assert vectors.dtype == self.dtype
            columns.append(vectors.shape[1])
            return super().matmat(vectors)

    assert estimator(Counting(LINEAR.float()), products).products == sum(columns) in (products, products - 1)


@estimators
def test_same_seed_same_bits_and_the_global_state_is_left_alone(estimator):
    state, operator = torch.get_rng_state(), Dense(MATRICES["indefinite"])
    first = estimator(operator, 12, seed=3)
    assert first == estimator(operator, 12, seed=3)
    assert first.value != estimator(operator, 12, seed=4).value
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("estimator", "least", "word"),
    [
        (hutchinson, 2, "probes"),
        (hutch_plus_plus, 6, "products"),
        (xtrace, 4, "products"),
        (diagonal, 2, "probes"),
        (row_norms, 2, "probes"),
    ],
)
def test_too_few_products(estimator, least, word):
    estimator(Dense(LINEAR), least)
    for count in (least - 1, 0, -3):
        with pytest.raises(UserError, match=f"{word}: expected at least {least}.*, got {count}"):
            estimator(Dense(LINEAR), count)


# ----------------------------------------------------------------------------------- blocks, diagonal, row norms


def test_traces_of_blocks():
    matrix, sizes = MATRICES["indefinite"], [10, 30, D - 40]
    expected = [float(part.sum()) for part in matrix.diag().split(sizes)]
    z = np.stack([(block_traces(Dense(matrix), sizes, 30, seed)) for seed in range(50)])
    z = (z[:, 0] - expected) / z[:, 1]
    assert np.abs(z).max() < 5
    assert 0.7 < np.sqrt((z**2).mean()) < 1.4
    with pytest.raises(UserError, match=f"sizes: must sum to {D}"):
        block_traces(Dense(matrix), [10, 20])


@pytest.mark.parametrize("name", MATRICES)
def test_diagonal_within_its_errors(name):
    estimate, error = diagonal(Dense(MATRICES[name]), probes=200)
    assert float(((estimate - MATRICES[name].diag()) / error).abs().max()) < 5


@pytest.mark.parametrize("name", MATRICES)
def test_row_norms_within_their_errors(name):
    truth = MATRICES[name].abs().sum(1)
    estimates = row_norms(Dense(MATRICES[name]), probes=400)
    assert float((estimates / truth - 1).abs().max()) < 5 * np.pi / 2 / 20
    assert float((estimates / truth - 1).mean().abs()) < 0.1


@pytest.mark.parametrize("estimator", [partial(diagonal, probes=5), partial(row_norms, probes=5)])
def test_vectors_of_estimates_are_reproducible(estimator):
    state, operator = torch.get_rng_state(), Dense(MATRICES["positive"])
    first, again, other = (torch.stack(tuple(estimator(operator, seed=seed))) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())
