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
from estimators.trace import traces_of_blocks

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
    assert np.abs(z).max() < 5
    assert 0.7 < np.sqrt((z**2).mean()) < 1.4
    assert abs(z.mean()) < 4 * z.std() / len(z) ** 0.5


def spectrum(name, size):
    """Return eigenvalues; none of these matrices chose a rule of the estimators."""
    ranks = torch.arange(1, size + 1, dtype=torch.float64)
    return {
        "power law": ranks**-1,
        "flat": torch.linspace(0.5, 1, size, dtype=torch.float64),
        "low rank and noise": torch.cat([torch.linspace(3, 30, size // 5), 0.1 * random(size - size // 5).abs()]),
        "indefinite": torch.linspace(-2, 3, size, dtype=torch.float64) ** 3,
    }[name]


def estimates(estimator, matrix, products, seeds=1000):
    """Return the errors of so many seeds and what two standard errors say of them."""
    results = [estimator(Dense(matrix), products, seed) for seed in range(seeds)]
    errors = np.array([estimate.value for estimate in results]) - float(matrix.trace())
    return errors, 2 * np.array([estimate.standard_error for estimate in results])


@pytest.mark.parametrize(
    ("label", "size", "products", "name"),
    [
        ("hutchinson", 12, 4, "power law"),
        ("hutchinson", 12, 8, "indefinite"),
        ("hutchinson", 60, 6, "low rank and noise"),
        ("hutchinson", 210, 4, "flat"),
        ("hutch++", 12, 8, "power law"),
        ("hutch++", 60, 6, "indefinite"),
        ("hutch++", 60, 12, "low rank and noise"),
        ("hutch++", 210, 6, "flat"),
        ("xtrace", 12, 4, "power law"),
        ("xtrace", 60, 8, "indefinite"),
        ("xtrace", 210, 6, "low rank and noise"),
        ("xtrace", 60, 32, "power law"),
    ],
)
def test_two_errors_cover_95_percent_of_seeds_and_the_mean_is_the_trace(label, size, products, name):
    matrix = with_spectrum(spectrum(name, size), seed=7)
    errors, doubled = estimates(ESTIMATORS[label], matrix, products)
    assert 0.93 <= (np.abs(errors) <= doubled).mean() <= 0.97
    assert abs(errors.mean()) < 4 * errors.std() / len(errors) ** 0.5


def test_a_pair_of_opposite_eigenvalues_is_covered_more_often():
    """One large eigenvalue and such a pair look alike where the error is large, and the former needs the width."""
    pair = with_spectrum(torch.tensor([1.0, -1.0] + [0.01] * 58), seed=7)
    errors, doubled = estimates(hutchinson, pair, 4, seeds=400)
    assert (np.abs(errors) <= doubled).mean() > 0.97


def test_two_errors_of_blocks_and_of_their_sum_cover():
    matrix, sizes = with_spectrum(spectrum("power law", 60), seed=7), [12, 18, 30]
    truth = np.array([float(part.sum()) for part in matrix.diag().split(sizes)])
    results = [traces_of_blocks(Dense(matrix), sizes, 4, seed) for seed in range(1000)]
    covered = np.mean([np.abs(blocks.values - truth) <= 2 * blocks.errors for blocks in results], axis=0)
    assert covered.min() >= 0.93
    assert covered.max() <= 0.98
    wholes = [blocks.whole for blocks in results]
    assert 0.93 <= np.mean([abs(whole.value - truth.sum()) <= 2 * whole.standard_error for whole in wholes]) <= 0.97
    single = hutchinson(Dense(matrix), 4)
    assert wholes[0].value == pytest.approx(single.value)
    assert wholes[0].standard_error == pytest.approx(single.standard_error, rel=0.1)  # other diagonals are removed


@estimators
@pytest.mark.parametrize("surplus", [0, 1, 9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_exact_with_as_many_products_as_rows(estimator, surplus, dtype):
    matrix = with_spectrum(spectrum("indefinite", 12), seed=7).to(dtype)
    estimate = estimator(Dense(matrix), 12 + surplus)
    assert_close(estimate.value, matrix.double().trace(), dtype, scale=27.0)
    assert (estimate.standard_error, estimate.products) == (0.0, 12)
    assert estimator(Dense(matrix), 11).standard_error > 0


def test_exact_traces_of_blocks():
    matrix, sizes = with_spectrum(spectrum("indefinite", 12), seed=7), [5, 0, 7]
    traces, errors = block_traces(Dense(matrix), sizes, 12)
    assert_close(traces, torch.stack([part.sum() for part in matrix.diag().split(sizes)]))
    assert errors.tolist() == [0.0, 0.0, 0.0]


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
    def deviation(method):
        errors = [method(Dense(MATRICES[name]), 36, seed).value - float(MATRICES[name].trace()) for seed in range(30)]
        return float(np.sqrt(np.mean(np.square(errors))))

    assert deviation(estimator) < 0.1 * deviation(hutchinson)


def test_xtrace_beats_hutch_plus_plus_on_a_decaying_spectrum():
    matrix = with_spectrum(0.7 ** torch.arange(D, dtype=torch.float64), 6)
    errors = {
        method: np.mean([abs(method(Dense(matrix), 30, seed).value - float(matrix.trace())) for seed in range(20)])
        for method in (hutch_plus_plus, xtrace)
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
