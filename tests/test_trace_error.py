"""Errors of traces: identities of their parts, and their limits for many products."""

import math

import pytest
import torch
from helpers import random, with_spectrum

from estimators.trace_error import shared_variance, sign_statistics, widened


def gram_of(matrix, count, seed=0):
    products = matrix @ random(len(matrix), count, seed=seed)
    return products.T @ products


def test_the_error_is_the_plain_one_with_many_products_and_wider_with_few():
    matrix = with_spectrum(torch.ones(200).double())
    many, few = widened(4.0, gram_of(matrix, 100)), widened(4.0, gram_of(with_spectrum(random(3).square()), 3))
    assert many == pytest.approx(2.0, rel=1e-3)
    assert few > 2.2


@pytest.mark.parametrize(("variance", "gram"), [(0.0, torch.eye(3)), (1.0, torch.zeros(3, 3))])
def test_without_variance_or_products_there_is_no_error(variance, gram):
    assert widened(variance, gram.double()) == 0.0


def test_a_matrix_of_rank_one_has_as_many_degrees_of_freedom_as_products():
    count, errors = 8, []
    for seed in range(300):
        vector = random(50, seed=seed)
        errors.append(widened(1.0, gram_of(torch.outer(vector, vector), count, seed)))
    quantile = 2.3664  # of Student's t with 8 degrees of freedom at the normal probability of two standard errors
    assert sum(errors) / len(errors) == pytest.approx(quantile / 2, rel=0.01)


def test_signs_of_a_diagonal_matrix_have_no_spread():
    signs = torch.where(random(40, 6) > 0, 1.0, -1.0).double()
    spread, inside, _ = sign_statistics(signs, signs * (random(40)[:, None] * signs))
    assert spread == pytest.approx(0.0, abs=1e-20)
    assert inside == 1.0


def test_the_spread_of_signs_is_that_of_the_entries_off_the_diagonal():
    matrix = with_spectrum(torch.linspace(-1, 2, 30).double())
    off = matrix - torch.diag(matrix.diag())
    spreads = []
    for seed in range(400):
        signs = torch.where(random(30, 5, seed=seed) > 0, 1.0, -1.0).double()
        spreads.append(sign_statistics(signs, signs * (matrix @ signs))[0])
    spreads = torch.tensor(spreads)
    truth = float(off.square().sum())
    assert abs(float(spreads.mean()) - truth) < 4 * float(spreads.std()) / math.sqrt(len(spreads))


def test_independent_estimates_have_the_variance_of_a_mean_and_equal_ones_that_of_one():
    assert shared_variance(3.0, torch.zeros(4, 4).double()) == pytest.approx(3.0 / 4)
    equal = torch.full((4, 4), math.sqrt(3.0)).double()
    assert shared_variance(3.0, equal) == pytest.approx(3.0)


def test_estimates_that_differ_against_each_other_count_as_independent():
    corrections = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double()
    assert shared_variance(2.0, corrections) == pytest.approx(1.0)
