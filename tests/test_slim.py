"""Linear layers without what pruning has cut off: same values, less work."""

from contextlib import nullcontext

import pytest
import torch
from helpers import classification, seeded
from torch import nn
from torch.nn import functional

from estimators import L1, Objective
from estimators.slim import slim
from pruning_limits import MagnitudeProfile


@pytest.fixture
def sizes(monkeypatch):
    """Shapes of the weights that PyTorch itself multiplies with."""
    seen, native = [], functional.linear

    def noting(input, weight, bias=None):
        seen.append(tuple(weight.shape))
        return native(input, weight, bias)

    monkeypatch.setattr(functional, "linear", noting)
    return seen


def cut(rows, columns, shape=(6, 5)):
    weight = torch.randn(shape, dtype=torch.float64)
    weight[list(rows)] = 0
    weight[:, list(columns)] = 0
    return weight


@pytest.mark.parametrize("bias", [None, torch.randn(6, dtype=torch.float64)])
@pytest.mark.parametrize(
    ("rows", "columns", "inside"),
    [((0, 2, 3), (), (3, 5)), ((), (0, 1, 4), (6, 2)), ((1, 5), (0, 3), (4, 3)), (range(6), range(5), (0, 0))],
)
@pytest.mark.parametrize("before", [(), (7,), (3, 2)])
def test_zero_rows_and_columns_are_left_out(rows, columns, inside, bias, before, sizes):
    weight, inputs = cut(rows, columns), torch.randn(*before, 5, dtype=torch.float64)
    expected = inputs @ weight.T + (0 if bias is None else bias)
    with slim([weight]):
        found = functional.linear(inputs, weight, bias)
    torch.testing.assert_close(found, expected)
    assert sizes == [inside]


def test_other_weights_and_full_ones_are_multiplied_as_they_are(sizes):
    weight, few = cut((0, 1, 2), ()), cut((0,), ())
    with slim([few]):
        for one in (weight, few):
            functional.linear(torch.ones(2, 5, dtype=torch.float64), one)
    assert sizes == [(6, 5), (6, 5)]


def test_the_function_is_put_back_after_an_error():
    native = functional.linear

    def failing():
        with slim([cut((0, 1, 2), ())]):
            assert functional.linear is not native
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert functional.linear is native


class Attentive(nn.Module):
    """Attention over three tokens that are multiples of one input."""

    def __init__(self):
        super().__init__()
        self.first, self.heads = nn.Linear(4, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        tokens = self.first(x[:, None] * torch.arange(1, 4, dtype=x.dtype)[:, None])
        return self.last(self.heads(tokens, tokens, tokens, need_weights=False)[0].mean(1))


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("make", [Attentive, lambda: nn.Sequential(nn.Linear(4, 50), nn.Tanh(), nn.Linear(50, 3))])
def test_the_objective_of_a_pruned_network_is_the_same(make, sparsity, sizes, monkeypatch):
    objective = Objective(seeded(lambda: make().double()), classification(4, sizes=(9, 4))(), penalty=L1(1e-3))
    profile = MagnitudeProfile(objective.chosen)
    pruned = profile.vector - profile.removed(sparsity)
    found = objective.value(pruned)
    less = sum(rows * columns for rows, columns in sizes)
    sizes.clear()
    monkeypatch.setattr("estimators.objective.slim", lambda weights: nullcontext())
    assert found == pytest.approx(objective.value(pruned), rel=1e-12)
    assert less < (0.3 if sparsity >= 0.99 else 1.001) * sum(rows * columns for rows, columns in sizes)
