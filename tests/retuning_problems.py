"""Small problems of which it is known what re-tuning can do."""

from __future__ import annotations

from typing import Any

import torch
from helpers import random, seeded
from torch import Tensor, nn

FEATURES, ROWS = 6, 400


def squares(model: nn.Module, batch: Any) -> Tensor:
    """Per-sample squared error."""
    return (model(batch[0]) - batch[1]).square().sum(1)


def doubled() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A linear network on inputs that come twice: each pair shares a weight of the sparse teacher about half and half.

    One-shot pruning of half of the weights loses nearly half of every output; the kept ones can make up for all of it.
    """
    x, teacher = random(ROWS, FEATURES), random(FEATURES, 2, seed=1).sign() * torch.linspace(2.5, 2.9, 2)
    model = nn.Linear(2 * FEATURES, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.cat([0.55 * teacher, 0.45 * teacher]).T)
    inputs = torch.cat([x, x], 1)
    return model, [(part, part[:, :FEATURES] @ teacher) for part in inputs.split(100)]


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
