"""The fall of a metric sample by sample, its error, and whether it is allowed."""

import numpy as np
import pytest
import torch
from scipy import stats

from estimators import UserError
from pruning_limits.metric_drop import MetricDrop


def test_the_error_of_a_fall_is_that_of_paired_samples():
    generator = np.random.default_rng(0)
    dense = generator.normal(size=50)
    pruned = dense - 0.1 + 0.2 * generator.normal(size=50)
    drop = MetricDrop.between(torch.tensor(dense), torch.tensor(pruned), 0.2, "score")
    test = stats.ttest_rel(dense, pruned)
    assert drop.fall == pytest.approx(dense.mean() - pruned.mean(), rel=1e-12)
    assert drop.fall / drop.error == pytest.approx(test.statistic, rel=1e-12)
    assert drop.error < 0.5 * stats.sem(dense)
    assert (drop.allowed, drop.name, drop.holds) == (0.2, "score", True)


def test_a_single_sample_tells_nothing_of_the_error():
    assert MetricDrop.between(torch.ones(1), torch.zeros(1)).error is None
    with pytest.raises(UserError, match="metric: 2 samples of the dense network, 3 of the pruned one"):
        MetricDrop.between(torch.ones(2), torch.ones(3))


@pytest.mark.parametrize("samples", [400, 397, 10_000, 49])
def test_a_fall_by_as_many_samples_as_are_allowed_holds(samples):
    """Also where the two means are rounded apart."""
    for wrong in (1, 3, 7):
        dense, pruned = torch.ones(samples).double(), torch.ones(samples).double()
        dense[:2] = pruned[: 2 + wrong] = 0
        assert MetricDrop.between(dense, pruned, wrong / samples).holds
        assert not MetricDrop.between(dense, pruned, (wrong - 0.001) / samples).holds
