"""Linear layers without what pruning has cut off: same values, less work."""

import pytest
import torch
from helpers import classification, seeded
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from estimators import L1, Objective
from estimators.substitution import without_zero_units
from estimators.vectors import named
from pruning_limits import MagnitudeProfile


class Multiplied(TorchFunctionMode):
    """Notes the shapes of the weights that PyTorch itself multiplies with."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is functional.linear:
            self.shapes.append(tuple(args[1].shape))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def sizes():
    """Shapes of the weights that PyTorch itself multiplies with."""
    with Multiplied() as multiplied:
        yield multiplied.shapes


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
    with without_zero_units([weight]):
        product = functional.linear(inputs, weight, bias)
    torch.testing.assert_close(product, expected)
    assert sizes == [inside]


def test_other_weights_and_full_ones_are_multiplied_as_they_are(sizes):
    weight, few = cut((0, 1, 2), ()), cut((0,), ())
    with without_zero_units([few]):
        for factor in (weight, few):
            functional.linear(torch.ones(2, 5, dtype=torch.float64), factor)
    assert sizes == [(6, 5), (6, 5)]


def test_layers_are_whole_again_after_an_error(sizes):
    weight = cut((0, 1, 2), ())

    def failing():
        with without_zero_units([weight]):
            functional.linear(weight[3:], weight)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    functional.linear(weight[3:], weight)
    assert sizes == [(3, 5), (6, 5)]


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
def test_the_objective_of_a_pruned_network_is_the_same(make, sparsity, sizes):
    objective = Objective(seeded(lambda: make().double()), classification(4, sizes=(9, 4))(), penalty=L1(1e-3))
    profile = MagnitudeProfile(objective.chosen)
    pruned = profile.vector - profile.removed(sparsity)
    value = objective.value(pruned)
    less = sum(rows * columns for rows, columns in sizes)
    sizes.clear()
    weights = named(pruned, objective.chosen)
    with torch.no_grad():
        whole = torch.cat([objective.losses(weights, batch) for batch in objective.loader]).mean()
    assert value == pytest.approx(float(whole) + objective.penalty_value(weights), rel=1e-12)
    assert less < (0.3 if sparsity >= 0.99 else 1.001) * sum(rows * columns for rows, columns in sizes)
