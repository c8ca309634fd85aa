"""One check for models of every family: the limit exists, its curvature is right, and the model is left alone.

The reference is double differentiation by loops over single entries of a copy's own parameters, or for larger models
a central difference of its gradients; neither uses an operator of the package.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from helpers import assert_close, random, same, seeded, snapshot
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from estimators import Hessian, Objective
from pruning_limits import PruningLimit, predict_limit

Losses = Callable[[nn.Module, Any], Tensor]
LARGEST_DENSE = 400


@dataclass(frozen=True, eq=False)
class Case:
    """A model of some family.

    Attributes:
        build: Makes the model.
        batches: Makes the data, float64.
        losses: Per-sample losses ``[n]`` in plain torch, for the reference.
        dimension: Number D of prunable weights, counted by hand; None for all parameters of two or more dimensions.
        loss_fn: What the user gives.
        options: Further arguments of the prediction and of the objective.
        steps: Lanczos steps, where the spectrum is not dense.
        dtype: Type in which the model computes its loss, whatever that of its weights.
    """

    build: Callable[[], nn.Module]
    batches: Callable[[], list[Any]]
    losses: Losses
    dimension: int | None = None
    loss_fn: Losses | None = None
    options: dict[str, Any] = field(default_factory=dict)
    steps: int = 2
    dtype: torch.dtype = torch.float64


def check(case: Case) -> PruningLimit:
    """Predict the limit of a case and compare its curvature with the reference."""
    model, batches = seeded(case.build).train(), case.batches()
    before, inputs = snapshot(model), copy.deepcopy(batches)
    limit = predict_limit(
        model, batches, case.loss_fn, epsilon=0.05, steps=case.steps, probes=1, progress=False, **case.options
    )
    assert same(before, snapshot(model))
    assert same(inputs, batches)
    copy.deepcopy(model)
    dimension = case.dimension or sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert limit.parameters == dimension
    for value in (limit.sparsity, limit.retrained, limit.directional, limit.lower, limit.upper):
        assert 0 <= value <= 1
    assert limit.sparsity > 0
    names = limit.settings.parameters
    masks = limit.mask(0.5)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert {name: mask.shape for name, mask in masks.items()} == {name: shapes[name] for name in names}
    objective = Objective(model, batches, case.loss_fn, parameters=case.options.get("parameters"))
    hessian = Hessian(objective)
    with sdpa_kernel(SDPBackend.MATH):
        assert_close(objective.value(), mean_loss(copy.deepcopy(model).eval(), batches, case.losses), case.dtype)
        if dimension <= LARGEST_DENSE:
            matrix = hessian.matmat(torch.eye(dimension, dtype=torch.float64))
            assert float(matrix.abs().max()) > 0
            assert_close(matrix, dense_hessian(model, batches, case.losses, names), case.dtype)
        else:
            vector = random(dimension)
            product = hessian @ vector
            assert float(product.abs().max()) > 0
            assert_close(product, difference_product(model, batches, case.losses, names, vector), torch.float32)
    return limit


def parameters_of(model: nn.Module, names: Sequence[str]) -> list[nn.Parameter]:
    known = dict(model.named_parameters())
    return [known[name].requires_grad_() for name in names]


def joined(parts: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    return torch.cat([(torch.zeros_like(b) if a is None else a).flatten() for a, b in zip(parts, like, strict=True)])


def mean_loss(model: nn.Module, batches: Sequence[Any], losses: Losses) -> Tensor:
    return torch.cat([losses(model, batch) for batch in batches]).mean()


def dense_hessian(model: nn.Module, batches: Sequence[Any], losses: Losses, names: Sequence[str]) -> Tensor:
    """Differentiate the mean of per-sample losses twice, one row at a time."""
    model = copy.deepcopy(model).eval()
    weights = parameters_of(model, names)
    loss = mean_loss(model, batches, losses)
    gradient = joined(torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True), weights)
    rows = (torch.autograd.grad(slope, weights, retain_graph=True, allow_unused=True) for slope in gradient)
    return torch.stack([joined(row, weights) for row in rows])


def gradient_of(model: nn.Module, batches: Sequence[Any], losses: Losses, names: Sequence[str]) -> Tensor:
    weights = parameters_of(model, names)
    return joined(torch.autograd.grad(mean_loss(model, batches, losses), weights, allow_unused=True), weights)


def difference_product(
    model: nn.Module,
    batches: Sequence[Any],
    losses: Losses,
    names: Sequence[str],
    vector: Tensor,
) -> Tensor:
    """Multiply the Hessian with a vector by a central difference of gradients, too small to reach the kinks of ReLU."""
    step = 1e-6 / float(vector.norm())
    model = copy.deepcopy(model).eval()
    weights = parameters_of(model, names)
    gradients = []
    for sign in (1, -1):
        _shift(weights, vector, sign * step)
        gradients.append(gradient_of(model, batches, losses, names))
        _shift(weights, vector, -sign * step)
    return (gradients[0] - gradients[1]) / (2 * step)


def _shift(weights: Sequence[Tensor], vector: Tensor, step: float) -> None:
    with torch.no_grad():
        for weight, part in zip(weights, vector.split([weight.numel() for weight in weights]), strict=True):
            weight += step * part.view_as(weight)
