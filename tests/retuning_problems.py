"""Small problems of which it is known what re-tuning can do."""

from __future__ import annotations

from typing import Any

import torch
from helpers import random, seeded
from torch import Tensor, nn

FEATURES, ROWS, WIDTH = 6, 400, 8
Problem = tuple[nn.Module, list[tuple[Tensor, Tensor]]]


def squares(model: nn.Module, batch: Any) -> Tensor:
    """Per-sample squared error."""
    return (model(batch[0]) - batch[1]).square().sum(1)


def doubled() -> Problem:
    """A linear network on inputs that come twice: each pair shares a weight of the sparse teacher about half and half.

    One-shot pruning of half of the weights loses nearly half of every output; the kept ones can make up for all of it.
    """
    x, teacher = random(ROWS, FEATURES), random(FEATURES, 2, seed=1).sign() * torch.linspace(2.5, 2.9, 2)
    model = nn.Linear(2 * FEATURES, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.cat([0.55 * teacher, 0.45 * teacher]).T)
    inputs = torch.cat([x, x], 1)
    return model, [(part, part[:, :FEATURES] @ teacher) for part in inputs.split(100)]


def doubled_in_turn() -> Problem:
    """The same network with both inputs of a pair side by side: each is a run of two of which one can go."""
    model, data = doubled()
    order = torch.arange(2 * FEATURES).view(2, FEATURES).T.flatten()
    with torch.no_grad():
        model.weight.copy_(model.weight[:, order])
    return model, [(x[:, order], y) for x, y in data]


def doubled_units() -> Problem:
    """A network whose hidden units come twice, and share the weights of the sparse teacher."""
    single, data = doubled()
    units = torch.eye(FEATURES, dtype=torch.float64) + 0.01  # no weight is zero
    model = nn.Sequential(nn.Linear(FEATURES, 2 * FEATURES, bias=False), single)
    with torch.no_grad():
        model[0].weight = nn.Parameter(torch.cat([units, units]))
        single.weight.copy_(torch.cat([half @ units.inverse() for half in single.weight.chunk(2, 1)], 1))
    return model, [(x[:, :FEATURES], y) for x, y in data]


class Attention(nn.Module):
    """Attention of two heads, averaged over the places."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(WIDTH, 2, bias=False, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[n, places, width]`` to ``[n, width]``."""
        means: Tensor = self.attend(x, x, x, need_weights=False)[0].mean(1)
        return means


def doubled_heads() -> Problem:
    """Attention whose two heads are the same and share what they put out about half and half."""
    model = seeded(Attention).eval()
    with torch.no_grad():
        maps, outputs = model.attend.in_proj_weight.view(3, 2, -1, WIDTH), model.attend.out_proj.weight
        maps[:, 1] = maps[:, 0]
        outputs[:, WIDTH // 2 :] = 0.45 / 0.55 * outputs[:, : WIDTH // 2]
        x = random(ROWS, 5, WIDTH)
        y = model(x) + 0.01 * random(ROWS, WIDTH, seed=1)
    return model, list(zip(x.split(100), y.split(100), strict=True))


def classes(normalised: bool = False, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, list[Any]]:
    """A trained network of 12 inputs and 3 classes, and the data that it was trained on."""
    x, centres = random(ROWS, 12, seed=2), random(3, 12, seed=3)
    y = (x @ centres.T).argmax(1)
    norm = [nn.BatchNorm1d(16)] if normalised else []
    model = seeded(lambda: nn.Sequential(nn.Linear(12, 16), *norm, nn.Tanh(), nn.Linear(16, 3)))
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    model.requires_grad_(True).eval().to(dtype)
    return model, [(part.to(dtype), labels) for part, labels in zip(x.split(50), y.split(50), strict=True)]
