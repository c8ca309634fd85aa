"""The budget of a prediction: epochs in forward passes, the share of every part, and what it leaves at its ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_limits.compute_budget import (
    EPOCH,
    FEWEST,
    FEWEST_DIAGNOSTIC,
    FEWEST_LOSSES,
    FREE_OPERATIONS,
    PRODUCT,
    SHARES,
    ComputeBudget,
)
from pruning_limits.stopping import STOPPING

epochs_, totals = st.floats(1e-3, 1e3), st.integers(1, 10**7)


@pytest.mark.parametrize("epochs", [0.25, 1.0, 7.0])
def test_an_epoch_is_three_forward_passes_over_all_data(epochs):
    assert ComputeBudget.of(epochs, 60_000, operations=1e3) == ComputeBudget(epochs * 180_000, 60_000)


@pytest.mark.parametrize(
    ("operations", "passes"),
    [(1e12, 3000), (1e12 / 3000, 3000), (1e12 / 3001, pytest.approx(3001)), (1e6, 1e6), (0.0, 1e12)],
)
def test_without_epochs_it_is_one_or_what_is_free_where_that_is_more(operations, passes):
    assert ComputeBudget.of(None, 1000, operations).passes == passes
    assert FREE_OPERATIONS == 1e12


def test_an_epoch_that_is_asked_for_is_no_more_than_that():
    assert ComputeBudget.of(1.0, 1000, 1.0).passes == 3000 < ComputeBudget.of(None, 1000, 1.0).passes


@pytest.mark.parametrize(
    ("passes", "losses"),
    [(180_000, 60_000), (179_999, 22_499), (90_000, 11_250), (2_040, FEWEST_LOSSES), (1, FEWEST_LOSSES)],
)
def test_losses_are_of_all_data_from_one_epoch_on_else_an_eighth_of_the_budget(passes, losses):
    assert ComputeBudget(passes, 60_000).losses == losses


# One epoch of 60,000 samples is 180,000 passes; a spectrum, a third of it for smaller ones, and two directions.
@pytest.mark.parametrize(
    ("kind", "steps", "expected"),
    [("ggn", 24, 196), ("ggn", 8, 590), ("hessian", 48, 175), ("hessian", 16, 527), ("hessian", 400, FEWEST)],
)
def test_samples_of_a_spectrum_are_its_share_by_the_products(kind, steps, expected):
    assert ComputeBudget(180_000, 60_000).samples(kind, steps) == expected


def test_diagnostics_take_forty_products_and_few_samples_at_least():
    assert ComputeBudget(1_800_000, 60_000).diagnostics == 1_800_000 * 0.1 // (4 * 40) == 1125
    assert ComputeBudget(18_000, 60_000).diagnostics == FEWEST_DIAGNOSTIC


@pytest.mark.parametrize("total", [1, 63, 255])
def test_no_part_takes_more_samples_than_there_are(total):
    budget = ComputeBudget(1e9, total)
    parts = [budget.samples("ggn", 1), budget.samples("hessian", 1), budget.diagnostics]
    assert parts == [total] * 3
    assert budget.losses == total
    few = ComputeBudget(1, total)
    assert few.samples("ggn", 24) == min(FEWEST, total)


@given(epochs_, totals, st.floats(1.0, 1e12))
def test_the_parts_together_cost_no_more_than_the_budget_but_for_what_they_take_at_least(epochs, total, operations):
    budget = ComputeBudget.of(epochs, total, operations)
    spent = 0.0
    for kind in ("ggn", "hessian"):
        samples = budget.samples(kind, STOPPING.steps(kind))
        if samples > FEWEST:
            cost = PRODUCT * STOPPING.steps(kind) * samples * (4 / 3 + 2 * (kind == "ggn"))
            assert cost <= SHARES[kind] * budget.passes
            spent += cost
    if (samples := budget.diagnostics) > FEWEST_DIAGNOSTIC:
        spent += PRODUCT * 40 * samples
    assert spent <= 0.7 * budget.passes * (1 + 1e-12)


@given(st.sampled_from(["ggn", "hessian"]), st.floats(1.0, 1e9), st.floats(1.0, 100.0), totals, st.integers(1, 400))
def test_a_larger_budget_never_takes_fewer_samples(kind, passes, factor, total, steps):
    small, large = ComputeBudget(passes, total), ComputeBudget(factor * passes, total)
    assert small.samples(kind, steps) <= large.samples(kind, steps) <= total
    assert small.diagnostics <= large.diagnostics


@given(epochs_, totals)
def test_re_tuning_may_take_half_of_the_budget(epochs, total):
    assert ComputeBudget.of(epochs, total, 1.0).retuning == pytest.approx(0.5 * epochs * total)


def test_epochs_count_products_and_forward_passes():
    budget = ComputeBudget(0.0, 1000)
    assert budget.epochs(samples=0, forward_samples=3000) == 1.0
    assert budget.epochs(samples=750, forward_samples=1500) == pytest.approx(1.5)
    assert budget.epochs(samples=0, forward_samples=300, trained=400) == pytest.approx(0.1 + 0.4)
    assert (EPOCH, PRODUCT) == (3, 4)
