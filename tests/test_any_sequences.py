"""Limits of convolutions of every dimension, embeddings and recurrent layers."""

import copy

import pytest
import torch
from any_model import Case, check
from helpers import random, seeded
from torch import nn
from torch.nn import functional

from estimators import Hessian, Objective
from pruning_limits import predict_limit

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def entropies(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def inputs(*shape):
    return lambda: [(random(4, *shape, seed=1), torch.tensor([0, 1, 2, 1])), (random(2, *shape), torch.tensor([2, 0]))]


def words():
    return [(torch.tensor([[0, 3, 2], [1, 1, 4], [2, 0, 0]]), torch.tensor([0, 1, 2]))]


def conv1d():
    return nn.Sequential(
        nn.Conv1d(2, 4, 2, groups=2), nn.GELU(), nn.Conv1d(4, 3, 2), nn.AdaptiveAvgPool1d(1), nn.Flatten()
    )


def conv3d():
    return nn.Sequential(
        nn.Conv3d(2, 4, 2, padding=1, groups=2),
        nn.BatchNorm3d(4),
        nn.ELU(),
        nn.AvgPool3d(2),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def transposed():
    return nn.Sequential(
        nn.Conv2d(1, 4, 2, stride=2), nn.SiLU(), nn.ConvTranspose2d(4, 2, 2, stride=2, groups=2), nn.Tanh(),
        nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip


def transposed1d():
    return nn.Sequential(nn.ConvTranspose1d(2, 3, 2), nn.Mish(), nn.AdaptiveMaxPool1d(1), nn.Flatten())


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.cell = kind(2, 3, batch_first=True, **options)
        self.head = nn.Linear(6 if options.get("bidirectional") else 3, 3)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.cell, self.head = nn.Embedding(5, 2), nn.GRUCell(2, 3), nn.Linear(3, 3)

    def forward(self, x):
        hidden = torch.zeros(len(x), 3, dtype=self.head.weight.dtype)
        for word in self.embed(x).unbind(1):
            hidden = self.cell(word, hidden)
        return self.head(hidden)


EVERY = {"parameters": ["cell.weight*", "head.weight"]}
CASES = {
    "conv1d": Case(conv1d, inputs(2, 5), entropies, 4 * 2 + 3 * 4 * 2),
    "conv3d": Case(conv3d, inputs(2, 2, 2, 2), entropies, 4 * 8 + 12),
    "transposed": Case(transposed, inputs(1, 4, 4), entropies, 16 + 4 * 4 + 96),
    "transposed 1d": Case(transposed1d, inputs(2, 4), entropies, 12),
    "lstm": Case(lambda: Recurrent(nn.LSTM), inputs(4, 2), entropies, 12 * 2 + 12 * 3 + 9, options=EVERY),
    "lstm, two layers, two ways": Case(
        lambda: Recurrent(nn.LSTM, num_layers=2, dropout=0.5, bidirectional=True),
        inputs(2, 2),
        entropies,
        2 * 36,
        options={"parameters": "cell.weight_hh_l0*"},
    ),
    "gru": Case(lambda: Recurrent(nn.GRU), inputs(4, 2), entropies, 9 * 5 + 9, options=EVERY),
    "rnn": Case(lambda: Recurrent(nn.RNN), inputs(4, 2), entropies, 3 * 5 + 9, options=EVERY),
    "embedding and cell": Case(Bag, words, entropies, 10 + 45 + 9, options={"parameters": "*weight*"}),
}


@pytest.mark.parametrize("name", CASES)
def test_limit(name):
    check(CASES[name])


def test_what_the_default_leaves_out_is_noted():
    limit = predict_limit(seeded(lambda: Recurrent(nn.LSTM)), inputs(4, 2)(), epsilon=0.05, measure=False)
    assert limit.parameters == 9
    assert limit.notes[-1].startswith("87% of the weights in matrices are not counted (cell.weight_ih_l0, cell.weight_")
    assert "parameters=" in limit.summary()
    every = predict_limit(seeded(lambda: Recurrent(nn.LSTM)), inputs(4, 2)(), epsilon=0.05, measure=False, **EVERY)
    assert not any("not counted" in note for note in every.notes)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])
def test_recurrent_layers_on_a_gpu_run_without_cudnn_and_all_else_with_it(device):
    """cuDNN's recurrent kernels have no second derivative, and none at all in evaluation mode."""
    enabled = []

    class Watched(Recurrent):
        def forward(self, x):
            enabled.append(torch.backends.cudnn.enabled)
            return super().forward(x)

    class Plain(nn.Linear):
        def forward(self, x):
            enabled.append(torch.backends.cudnn.enabled)
            return super().forward(x.mean(1))

    before = torch.backends.cudnn.enabled
    for build, expected in ((lambda: Watched(nn.GRU), before and device == "cpu"), (lambda: Plain(2, 3), before)):
        enabled.clear()
        objective = Objective(seeded(build).to(device), inputs(4, 2)())
        assert float((Hessian(objective) @ random(objective.dimension).to(device)).norm()) > 0
        assert set(enabled) == {expected}
    assert torch.backends.cudnn.enabled == before


def test_a_recurrent_model_can_be_copied_and_trained_on_afterwards():
    model = seeded(lambda: Recurrent(nn.LSTM))
    kept = list(model.cell._flat_weights)
    predict_limit(model, inputs(4, 2)(), epsilon=0.05, measure=False, **EVERY)
    assert all(a is b for a, b in zip(model.cell._flat_weights, kept, strict=True))
    twin = copy.deepcopy(model)
    x, y = inputs(4, 2)()[0]
    functional.cross_entropy(model(x), y).backward()
    assert float(model.cell.weight_ih_l0.grad.norm()) > 0
    assert torch.equal(twin(x), model(x))
