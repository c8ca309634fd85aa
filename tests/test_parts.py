"""Spectral estimates: how limits and errors of several measures are combined."""

import math

import numpy as np
import pytest

from estimators import SpectralMeasure
from pruning_limits.parts import CERTAIN_SHARE, Estimate


def share_above(threshold):
    """A limit that is easy to read off: the share of the spectrum at or below a threshold."""
    return lambda measure: measure.integrate(lambda x: (np.abs(x) <= threshold).astype(float))[0]


def of(*eigenvalues):
    return SpectralMeasure.from_eigenvalues(np.array(eigenvalues, dtype=float))


LOW, HIGH = of(0, 2, 2, 2, 2), of(0, 0, 0, 2, 2)  # kept: four fifths and two fifths


@pytest.mark.parametrize("growth", [0.5, 1.0, 1.2])
def test_the_limit_is_the_geometric_mean_of_what_is_kept_carried_to_all_data(growth):
    solve = share_above(1)
    single = Estimate(LOW, 10, 5, 0.0, 0.0, growth)
    assert single.limit(solve) == pytest.approx(1 - growth * 0.8)
    both = Estimate(LOW, 10, 5, 0.0, 0.0, growth, above=HIGH)
    assert both.limit(solve) == pytest.approx(1 - growth * math.sqrt(0.8 * 0.4))
    assert both.on_samples(both.limit(solve)) == pytest.approx(1 - math.sqrt(0.8 * 0.4))


def test_the_limit_never_leaves_its_range():
    assert Estimate(of(2, 2), 1, 1, 0.0, 0.0, growth=3.0).limit(share_above(1)) == 0.0
    assert Estimate(of(0, 0), 1, 1, 0.0, 0.0, growth=3.0).limit(share_above(1)) == 1.0


def test_the_step_error_reaches_to_both_ends_and_is_a_share_of_a_bracket():
    solve = share_above(1)
    enclosed = Estimate(LOW, 10, 5, math.inf, 0.0, 1.1, above=HIGH).certified(solve)
    middle = enclosed.limit(solve)
    assert enclosed.step_error == pytest.approx(max(abs(1 - 1.1 * kept - middle) for kept in (0.8, 0.4)))
    bracket = Estimate(LOW, 10, 5, math.inf, 0.0, 1.1, bracket=(LOW, HIGH)).certified(solve)
    assert bracket.step_error == pytest.approx(1.1 * CERTAIN_SHARE * 0.4)
    bare = Estimate(LOW, 10, 5, 0.25, 0.0)
    assert bare.certified(solve) is bare


def test_scaling_reaches_every_measure():
    estimate = Estimate(LOW, 10, 5, 0.1, 0.2, above=HIGH, bracket=(LOW, HIGH)).scaled(3.0)
    for measure, before in zip(
        (estimate.measure, estimate.above, *estimate.bracket), (LOW, HIGH, LOW, HIGH), strict=True
    ):
        assert measure.nodes.tolist() == (3 * before.nodes).tolist()
    assert (estimate.samples, estimate.steps, estimate.step_error, estimate.sample_error) == (10, 5, 0.1, 0.2)


def test_a_block_among_known_eigenvalues_is_the_whole_matrix():
    estimate = Estimate(of(1, 3), 10, 5, 0.0, 0.0, above=of(2, 4)).among([(0.0, 0.5), (7.0, 0.25)])
    for measure, (first, second) in ((estimate.measure, (1, 3)), (estimate.above, (2, 4))):
        expected = (0.25 * (first**2 + second**2) / 2) + 0.25 * 49
        assert measure.integrate(np.square)[0] == pytest.approx(expected)


def test_the_half_width_adds_two_standard_errors_to_the_rest():
    assert Estimate(LOW, 10, 5, 0.1, 0.02).half_width(0.003) == pytest.approx(0.126)
