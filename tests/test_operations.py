"""Floating point operations of a forward pass against formulas by hand."""

import pytest
import torch
from helpers import CASES, random
from torch import nn

from estimators import Objective
from estimators.operations import operations_per_sample

SIZES = (4, 3)  # of two batches


def operations(model, shape, **options):
    """Count those of one sample of a shape."""
    batches = [(random(size, *shape), torch.arange(size) % 3) for size in SIZES]
    return operations_per_sample(Objective(model.double(), batches, **options))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.recurrent(x)[0].mean(1))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


@pytest.mark.parametrize("training", [True, False])
def test_linear_layers_take_a_product_and_a_sum_per_weight(training):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).train(training)
    assert operations(model, (6,)) == 2 * (6 * 8 + 8 * 3)


@pytest.mark.parametrize(("groups", "stride", "places"), [(1, 1, 16), (2, 1, 16), (1, 2, 4)])
def test_convolutions_take_every_weight_at_every_place(groups, stride, places):
    convolution = nn.Conv2d(4, 6, 3, padding=1, groups=groups, stride=stride)
    model = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(6 * places, 3))
    assert operations(model, (4, 4, 4)) == 2 * 6 * (4 // groups) * 9 * places + 2 * 6 * places * 3


def test_of_batches_of_ones_own_the_first_is_counted():
    def loss(model, batch):
        return model(batch).flatten(1).square().sum(1)

    objective = Objective(nn.Linear(6, 3).double(), [random(2, 6)], loss)
    assert operations_per_sample(objective) == 2 * 6 * 3
    assert operations_per_sample(objective, iter([(random(4, 5, 6), 4), None])) == 5 * 2 * 6 * 3


@pytest.mark.parametrize("training", [True, False])
def test_attention_compares_all_places_in_every_head(training):
    places, width, hidden = 5, 8, 16
    maps = 4 * 2 * places * width**2  # queries, keys, values and what comes out
    pairs = 2 * 2 * places**2 * width  # of queries with keys, and of weights with values, over all heads
    expected = maps + pairs + 2 * 2 * places * width * hidden + 2 * width * 3
    assert operations(Encoder().train(training), (places, width)) == expected


@pytest.mark.parametrize("name", ["multi-head attention", "dot product attention"])
def test_fused_attention_counts_like_its_parts(name):
    case = CASES[name]
    places, width = 3, 4
    maps = {"multi-head attention": 4, "dot product attention": 3}[name]
    expected = maps * 2 * places * width**2 + 2 * 2 * places**2 * width + 2 * width * 3
    assert operations_per_sample(Objective(case.model(), case.loader(), case.loss_fn, **case.options)) == expected


def test_recurrent_layers_count_at_every_step_or_two_per_weight_where_torch_does_not_look_inside():
    model = Recurrent()
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert operations(model, (5, 8), parameters="*") == 5 * 2 * 4 * 8 * (8 + 8) + 2 * 8 * 3
    batch = random(4, 5, 8).float(), torch.arange(4) % 3
    one_kernel = operations_per_sample(Objective(Recurrent(), [batch], parameters="*"))
    assert one_kernel in (2 * weights, 5 * 2 * 4 * 8 * (8 + 8) + 2 * 8 * 3)


def test_weights_without_a_product_of_matrices_count_twice():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(5, 7))

        def forward(self, x):
            return (x[:, None, :] * self.weight).sum(-1)

    assert operations(Scale(), (7,), parameters="*") == 2 * 5 * 7


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    operations(model, (6,))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
