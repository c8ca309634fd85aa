"""Budgets of what is left of a network: the least sparsity that meets one, and its verdict."""

import pytest
from helpers import small_limit

from estimators import UserError
from pruning_limits import PruningLimit
from pruning_limits.shrinking import Timing

ASKED = ("unstructured", "1:2", "channels")


@pytest.fixture(scope="module")
def limit():
    return small_limit(pattern=ASKED)


@pytest.mark.parametrize("quantity", ["macs", "bytes", "parameters"])
@pytest.mark.parametrize("pattern", ASKED)
def test_a_budget_is_met_at_the_sparsity_and_judged_there(limit, pattern, quantity):
    own = limit.for_pattern(pattern)
    budget = own.for_budget(**{quantity: 0.7})
    assert (budget.quantity, budget.share) == (quantity, 0.7)
    assert budget.verdict == own.check(budget.sparsity)
    dense = own.saving(0.0)
    whole = dense.dense_bytes if quantity == "bytes" else getattr(dense, quantity)
    exact = own.profile.masks(budget.sparsity)
    kept = sum(int(mask.sum()) for mask in exact.values())
    if quantity == "macs":  # of a fully connected network every weight is used once
        assert kept <= 0.7 * limit.parameters
        if pattern == "unstructured":
            assert kept == int(0.7 * limit.parameters)
    assert getattr(budget.saving, quantity) <= 0.7 * whole * 1.02


def test_a_limit_from_a_file_takes_the_next_stored_sparsity(limit, tmp_path):
    limit.to_json(tmp_path / "limit.json")
    loaded = PruningLimit.from_json(tmp_path / "limit.json")
    for pattern in ASKED:
        coarse, fine = (own.for_pattern(pattern).for_budget(macs=0.7) for own in (loaded, limit))
        assert coarse.sparsity >= fine.sparsity
        assert coarse.saving.macs <= 0.7 * loaded.saving(0.0).macs


def test_a_budget_that_cannot_be_met_names_the_nearest(limit):
    with pytest.raises(UserError, match=r"^macs: the pattern leaves at least 0\.5000 .* the nearest is macs=0\.5000$"):
        limit.for_pattern("1:2").for_budget(macs=0.4)
    with pytest.raises(UserError, match=r"^macs: the pattern leaves at least 0\.0833 "):
        limit.for_pattern("channels").for_budget(macs=0.01)


def test_one_budget_at_a_time(limit):
    with pytest.raises(UserError, match=r"^budget: expected one of macs, bytes, parameters, latency, got 0$"):
        limit.for_budget()
    with pytest.raises(UserError, match=r"^budget: expected one of macs, bytes, parameters, latency, got 2$"):
        limit.for_budget(macs=0.5, bytes=0.5)
    with pytest.raises(UserError, match=r"^macs: expected a number in \(0, 1\)"):
        limit.for_budget(macs=2)


def test_a_budget_in_time_needs_timings(limit):
    own = limit.for_pattern("channels")
    times = tuple(
        Timing(s, seconds, seconds, seconds, "cpu, 1 threads") for s, seconds in ((0.0, 4.0), (0.3, 5.0), (0.6, 2.0))
    )
    assert own.for_budget(latency=0.75, timings=times).sparsity == pytest.approx(0.45)  # the slower one counts as none
    with pytest.raises(UserError, match=r"^latency: is measured; give timings=limit\.latency\(model, loader\)$"):
        own.for_budget(latency=0.5)
    with pytest.raises(
        UserError, match=r"^latency: the networks that were timed take 0\.500 of the dense one's, got 0\.4"
    ):
        own.for_budget(latency=0.4, timings=times)
    with pytest.raises(UserError, match=r"^latency: expected a number in \(0, 1\)"):
        own.for_budget(latency=1.0, timings=times)


def test_macs_stand_in_the_table_of_layers(limit):
    assert [layer.macs for layer in limit.layers()] == [72.0, 36.0]
    assert limit.to_pandas()["macs"].tolist() == [72.0, 36.0]
