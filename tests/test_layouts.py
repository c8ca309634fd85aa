"""Layouts: parts of batches joined again, and what the losses tell where lengths leave a doubt."""

import pytest
import torch
from helpers import random

from estimators import UserError
from estimators.layouts import Layout, close_losses, learned_layout, unchanged_by_cut
from estimators.user_code import Draws, run

X, Y = random(5, 3, seed=1), torch.arange(5)
TABLE = random(5, seed=2)


def test_joining_keeps_samples_and_their_order():
    layout = Layout(frozenset([0, 1]))
    batches = [(X + number, Y, "same") for number in range(3)]
    joined = layout.joined(batches, 8)
    assert [len(batch[0]) for batch in joined] == [8, 7]
    assert torch.equal(torch.cat([batch[0] for batch in joined]), torch.cat([batch[0] for batch in batches]))


@pytest.mark.parametrize(
    "other",
    [
        (random(5, 4), Y, "same"),
        (X.float(), Y, "same"),
        (X, Y, "other"),
        (X, Y[:, None], "same"),
        (X, Y.int(), "same"),
    ],
    ids=["wider", "float32", "another name", "two dimensions", "int32"],
)
def test_batches_that_differ_are_not_joined(other):
    layout = Layout(frozenset([0, 1]))
    joined = layout.joined([(X, Y, "same"), other, (X, Y, "same")], 100)
    assert [len(batch[0]) for batch in joined] == [5, 5, 5]
    assert torch.equal(joined[1][0], other[0])
    assert joined[1][2] == other[2]


def refused(batch):
    raise AssertionError("the losses need not be asked")


def told(losses):
    """Return losses whose errors come in one line, as from the door to the user's code."""
    return lambda batch: run(lambda: losses(batch), lambda: "loss_fn", Draws())


def places(layout):
    return sorted(layout.counting), layout.cuttable


def test_a_pair_of_one_length_needs_no_losses():
    assert places(learned_layout((X, Y), refused, torch.float64)) == ([0, 1], True)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_table_as_long_as_the_batch_is_shared(place):
    batch = [X, Y]
    batch.insert(place, TABLE)

    def losses(parts):
        x, y = (part for number, part in enumerate(parts) if number != place)
        return x.sum(1) * parts[place][y]

    layout = learned_layout(tuple(batch), told(losses), torch.float64)
    assert places(layout) == (sorted({0, 1, 2} - {place}), True)


def test_weights_of_samples_are_cut_with_them():
    layout = learned_layout((X, Y, TABLE), told(lambda batch: batch[0].sum(1) * batch[2]), torch.float64)
    assert places(layout) == ([0, 1, 2], True)


def test_losses_of_whole_batches_tell_their_number_where_lengths_differ():
    nodes, owners = random(7, 2), torch.tensor([0, 0, 0, 1, 1, 2, 2])
    batch = (nodes, owners, torch.tensor([1.0, 0.0, 1.0]).double())
    losses = lambda batch: torch.zeros(3).double().index_add_(0, batch[1], batch[0].sum(1)) - batch[2]  # noqa: E731
    assert not learned_layout(batch, told(losses), torch.float64).cuttable


def test_a_mean_of_samples_that_nothing_counts_is_refused():
    batch = (random(7, 2), torch.zeros(3))
    with pytest.raises(UserError, match=r"^loss_fn: .*return per-sample losses, shape \(n,\)$"):
        learned_layout(batch, told(lambda batch: batch[0].square().mean().sqrt() + batch[1].sum()), torch.float64)


def test_a_loss_that_depends_on_its_company_changes_by_a_cut():
    layout = Layout(frozenset([0, 1]))
    centred = lambda batch: (batch[0] - batch[0].mean(0)).sum(1)  # noqa: E731
    assert unchanged_by_cut(layout, (X, Y), lambda batch: batch[0].sum(1), torch.float64) is True
    assert unchanged_by_cut(layout, (X, Y), centred, torch.float64) is False


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float64, 1e-4), (torch.bfloat16, 1e-2)])
def test_losses_are_close_as_far_as_the_type_of_the_model_allows(dtype, apart):
    losses = torch.ones(3).double()
    assert close_losses(losses, losses * (1 + apart), dtype)
    assert not close_losses(losses, losses * (1 + 100 * apart), dtype)
