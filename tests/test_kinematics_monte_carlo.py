"""Random subspaces through the pruned point against the definition and against known probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest

from estimators import UserError
from pruning_limits.kinematics_monte_carlo import half_point, sublevel_crossings

EIGENVALUES, REMOVED = np.array([0.0, 0.5, 1.0, 3.0, 9.0]), np.array([1.0, -2.0, 1.5, 0.5, 1.0])


@pytest.mark.parametrize("tilted", [False, True])
def test_crossings_are_those_of_the_minimum_over_every_subspace(tilted: bool) -> None:
    gradient = np.array([0.0, 0.3, -0.4, 0.2, 1.0]) if tilted else np.zeros(5)
    epsilon, trials = 0.8, 40
    rng, hessian = np.random.default_rng(7), np.diag(EIGENVALUES)
    expected = []
    for _ in range(trials):
        frame = rng.standard_normal((5, 5))
        rises = []
        for k in range(6):
            block = frame[:, :k]
            b = np.linalg.lstsq(block.T @ hessian @ block, block.T @ (hessian @ REMOVED - gradient), rcond=None)[0]
            x = block @ b - REMOVED
            rises.append(gradient @ x + 0.5 * x @ hessian @ x)
        expected.append(next(k for k, rise in enumerate(rises) if rise <= epsilon))
    counts = sublevel_crossings(EIGENVALUES, REMOVED, epsilon, trials, gradient, seed=7)
    assert counts.tolist() == expected
    assert len(set(expected)) > 1


def test_a_point_inside_the_set_needs_no_dimension_and_flat_axes_cost_nothing() -> None:
    assert sublevel_crossings(np.ones(4), 0.1 * np.ones(4), 1.0, 5).tolist() == [0] * 5
    assert sublevel_crossings(np.zeros(4), 9 * np.ones(4), 1.0, 5).tolist() == [0] * 5


def test_where_one_direction_is_curved_any_line_meets_the_set() -> None:
    assert sublevel_crossings([1.0, 0.0, 0.0], [3.0, 0.0, 0.0], 1.0, 50).tolist() == [1] * 50


def test_the_half_point_of_normal_counts_is_their_median_with_an_honest_error() -> None:
    misses = []
    for seed in range(200):
        counts = np.ceil(np.random.default_rng(seed).normal(40, 6, size=300))
        point, error = half_point(counts)
        misses.append((point - 40) / error)
    assert abs(np.mean(misses)) < 4 / math.sqrt(len(misses))
    assert np.std(misses) == pytest.approx(1, abs=4 / math.sqrt(2 * len(misses)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"removed": np.ones(4)}, "removed: expected components like"),
        ({"eigenvalues": -EIGENVALUES}, "eigenvalues: expected numbers >= 0"),
        ({"gradient": np.ones(5)}, "gradient: expected zeros where the curvature is zero"),
        ({"epsilon": 0.0}, "epsilon: expected a positive number"),
        ({"epsilon": math.nan}, "epsilon: expected a positive number"),
        ({"trials": 0}, "trials: expected at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, object], message: str) -> None:
    arguments = {"eigenvalues": EIGENVALUES, "removed": REMOVED, "epsilon": 1.0, "trials": 2} | change
    with pytest.raises(UserError, match=message):
        sublevel_crossings(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("counts", [[], [3]])
def test_an_error_needs_two_trials(counts: list[int]) -> None:
    with pytest.raises(UserError, match=f"counts: expected at least 2 trials for an error, got {len(counts)}"):
        half_point(counts)
