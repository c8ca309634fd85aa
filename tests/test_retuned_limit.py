"""The re-tuned limit against dense float64 Schur complements."""

import math

import pytest
import torch
from helpers import MASKED, Dense, masked_problem, schur_complement
from hypothesis import given, settings
from hypothesis import strategies as st

from estimators import UserError
from estimators.vectors import flatten
from pruning_limits import MagnitudeProfile
from pruning_limits.quadratic import QuadraticRise, quadratic_limit
from pruning_limits.retuned import retune
from pruning_limits.retuned_limit import retuned_limit


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 100), st.floats(0.01, 0.9), st.floats(0.0, 1.0))
def test_the_limit_is_where_the_schur_complement_crosses(seed: int, share: float, guess: float) -> None:
    matrix, weights, _ = masked_problem(seed, rank=30)
    profile = MagnitudeProfile({"w": weights})
    rises = [
        schur_complement(matrix, weights, flatten(list(profile.masks(k / MASKED).values())))[0]
        for k in range(MASKED + 1)
    ]
    epsilon = share * rises[-1]
    limit = retuned_limit(Dense(matrix), profile, epsilon, guess, tolerance=1e-9)
    assert limit.status == "converged"
    assert limit.sparsity == max(k for k in range(MASKED + 1) if rises[k] <= epsilon) / MASKED
    assert limit.sparsity >= quadratic_limit(QuadraticRise(Dense(matrix), torch.zeros(MASKED), profile), epsilon, guess)
    assert [sparsity for sparsity, _ in limit.points] == sorted(sparsity for sparsity, _ in limit.points)


def test_the_limit_says_when_a_failure_is_not_proven() -> None:
    matrix, weights, _ = masked_problem(1)
    profile = MagnitudeProfile({"w": weights})
    epsilon = 0.1 * retune(Dense(matrix), weights, torch.zeros(MASKED, dtype=torch.bool)).rise
    short = retuned_limit(Dense(matrix), profile, epsilon, 0.5, steps=1)
    assert short.status.startswith("unresolved: sparsity 0.")
    assert short.sparsity <= retuned_limit(Dense(matrix), profile, epsilon, 0.5).sparsity
    for epsilon in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="epsilon: expected a positive number"):
            retuned_limit(Dense(matrix), profile, epsilon, 0.5)
