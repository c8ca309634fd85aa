"""Activation checkpoints: recomputed in the mode, and refused where they lose gradients."""

import pytest
import torch
from helpers import random, same, seeded, snapshot
from torch import nn
from torch.utils.checkpoint import checkpoint

from estimators import GGN, Hessian, Objective, UserError

OPERATORS = {"hessian": Hessian, "ggn": GGN}
kinds = pytest.mark.parametrize("kind", OPERATORS)


def data():
    return [(random(6, 4), torch.arange(6) % 3)]


def columns(operator):
    return operator.matmat(torch.eye(operator.shape[0], dtype=operator.dtype)).double()


class Block(nn.Module):
    """Has what could go wrong when it is called again: dropout, batch statistics, a factor that is not chosen."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.factor = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.drop(torch.tanh(self.norm(self.linear(x)) * self.factor))


class Blocks(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.first, self.second, self.head = Block(), Block(), nn.Linear(4, 3)
        self.how = how

    def forward(self, x):
        for block in (self.first, self.second):
            x = block(x) if self.how is None else checkpoint(block, x, use_reentrant=self.how)
        return self.head(x)


@kinds
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("memory", [0, 2 << 30])
def test_checkpointed_activations(kind, frozen, memory):
    plain, saving = (Objective(seeded(lambda h=h: Blocks(h)).train(), data()) for h in (None, False))
    saving.model.requires_grad_(not frozen)
    before = snapshot(saving.model)
    assert torch.equal(saving.gradient(), plain.gradient())
    operator = OPERATORS[kind](saving, memory)
    for _ in range(2):
        assert torch.equal(columns(operator), columns(OPERATORS[kind](plain, memory)))
    assert same(before, snapshot(saving.model))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_reentrant_checkpoints_are_refused():
    model = seeded(lambda: Blocks(True))
    before = snapshot(model)
    objective = Objective(model, data())
    for use in (lambda: Hessian(objective) @ random(objective.dimension), objective.gradient):
        with pytest.raises(UserError, match=r"^model: activation checkpointing with use_reentrant=True.*False$"):
            use()
    assert same(before, snapshot(model))
