"""Re-tuned networks as numbers, and the ways that lead to them."""

from itertools import pairwise

import pytest

from pruning_limits.tuned_points import STRIDE, TunedPoint, Tuning, stages_to

POINTS = (
    TunedPoint(0.8, 0.1),
    TunedPoint(0.85, 0.15, start=0.8),
    TunedPoint(0.87, 0.3, start=0.85),
    TunedPoint(0.9, 0.4, start=0.8),
)


def test_runs_are_told_apart():
    tuning = Tuning((*POINTS, TunedPoint(0.7, 0.0, seed=1)), 2048, 1.0, 1.0)
    assert tuning.runs == [0, 1]
    assert tuning.run(0) == POINTS
    assert [point.sparsity for point in tuning.run(1)] == [0.7]


@pytest.mark.parametrize(
    ("sparsity", "way"),
    [
        (0.8, [0.8]),
        (0.85, [0.8, 0.85]),
        (0.87, [0.8, 0.85, 0.87]),
        (0.9, [0.8, 0.9]),  # that network went on from 0.8, not from 0.85
        (0.86, [0.8, 0.85, 0.86]),
        (0.83, [0.8, 0.83]),
        (0.7, [0.7]),
        (0.95, [0.8, 0.85, 0.925, 0.95]),
    ],
)
def test_the_way_to_a_measured_network_is_its_own(sparsity, way):
    assert stages_to(POINTS, sparsity, alone=0.6, start=0.0) == pytest.approx(way)


@pytest.mark.parametrize(("sparsity", "way"), [(0.5, [0.5]), (0.6, [0.6]), (0.75, [0.75]), (0.8, [0.8])])
def test_up_to_half_of_what_pruning_alone_keeps_one_stage_will_do(sparsity, way):
    assert stages_to([], sparsity, alone=0.6, start=0.0) == pytest.approx(way)


def test_no_stage_keeps_less_than_half():
    way = stages_to([], 0.99, alone=0.2, start=0.1)
    kept = [1 - sparsity for sparsity in (0.2, *way)]
    assert all(after >= STRIDE * before - 1e-12 for before, after in pairwise(kept))
    assert way[-1] == 0.99
