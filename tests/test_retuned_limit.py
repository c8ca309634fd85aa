"""The re-tuned limit against dense float64 Schur complements."""

import math

import pytest
import torch
from helpers import Dense, random, with_spectrum
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from estimators import UserError
from estimators.vectors import flatten
from pruning_limits import MagnitudeProfile
from pruning_limits.bounds import QuadraticRise, quadratic_limit
from pruning_limits.retuned import retune
from pruning_limits.retuned_limit import retuned_limit

D = 40


def schur(
    matrix: Tensor, weights: Tensor, kept: Tensor, gradient: Tensor | None = None, damping: float = 0.0
) -> tuple[float, Tensor]:
    """Minimum of the damped model over the kept coordinates and the minimiser, by a pseudo-inverse."""
    d = torch.where(kept, 0.0, weights)
    g = torch.zeros_like(d) if gradient is None else gradient
    block = matrix[kept][:, kept] + damping * torch.eye(int(kept.sum()), dtype=torch.float64)
    x = -d.clone()
    b = torch.linalg.pinv(block, hermitian=True, rtol=1e-11) @ (matrix @ d - g)[kept]
    x[kept] += b
    return float(g @ x + 0.5 * x @ matrix @ x), b


def problem(seed: int, rank: int = D, kept: float = 0.4) -> tuple[Tensor, Tensor, Tensor]:
    eigenvalues = torch.cat([torch.zeros(D - rank), torch.logspace(-3, 1, rank)])
    mask = torch.rand(D, generator=torch.Generator().manual_seed(seed)) < kept
    return with_spectrum(eigenvalues, seed), random(D, seed=seed + 1), mask


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 100), st.floats(0.01, 0.9), st.floats(0.0, 1.0))
def test_the_limit_is_where_the_schur_complement_crosses(seed: int, share: float, guess: float) -> None:
    matrix, weights, _ = problem(seed, rank=30)
    profile = MagnitudeProfile({"w": weights})
    rises = [schur(matrix, weights, flatten(list(profile.masks(k / D).values())))[0] for k in range(D + 1)]
    epsilon = share * rises[-1]
    found = retuned_limit(Dense(matrix), profile, epsilon, guess, tolerance=1e-9)
    assert found.status == "converged"
    assert found.sparsity == max(k for k in range(D + 1) if rises[k] <= epsilon) / D
    assert found.sparsity >= quadratic_limit(QuadraticRise(Dense(matrix), torch.zeros(D), profile), epsilon, guess)
    assert [sparsity for sparsity, _ in found.points] == sorted(sparsity for sparsity, _ in found.points)


def test_the_limit_says_when_a_failure_is_not_proven() -> None:
    matrix, weights, _ = problem(1)
    profile = MagnitudeProfile({"w": weights})
    epsilon = 0.1 * retune(Dense(matrix), weights, torch.zeros(D, dtype=torch.bool)).rise
    short = retuned_limit(Dense(matrix), profile, epsilon, 0.5, steps=1)
    assert short.status.startswith("unresolved: sparsity 0.")
    assert short.sparsity <= retuned_limit(Dense(matrix), profile, epsilon, 0.5).sparsity
    for epsilon in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="epsilon: expected a positive number"):
            retuned_limit(Dense(matrix), profile, epsilon, 0.5)
