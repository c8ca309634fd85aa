"""The training objective minimised over the kept weights of a mask, by L-BFGS on all training data."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from estimators import L1, Objective, UserError
from estimators.vectors import named

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Optimum:
    """Where L-BFGS ended.

    Attributes:
        objective: The training objective there, penalty included.
        weights: All chosen weights, float64 ``[D]``, exactly zero where removed.
        slope: Largest component of the projected gradient over the kept weights; 0 at a minimum.
        iterations: Iterations taken.
        converged: Whether a tolerance ended the search, not the budget.
    """

    objective: float
    weights: Tensor = field(repr=False)
    slope: float
    iterations: int
    converged: bool


def loss_and_gradient(objective: Objective, weights: Tensor) -> tuple[float, Tensor]:
    """Mean loss without penalty at given weights, and its gradient.

    Args:
        objective: The objective.
        weights: Chosen weights ``[D]``.

    Returns:
        Loss, and gradient ``[D]``.
    """
    leaf = weights.detach().clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64, device=weights.device)
    with torch.enable_grad():
        for batch, size in objective.batches():
            losses = objective.losses(named(leaf, objective.chosen), batch, twice=False)
            total = total + (losses.sum() if losses.dim() else losses * size) / objective.samples
        (gradient,) = torch.autograd.grad(total, leaf)
    return float(total.detach()), gradient


def masked_optimum(
    objective: Objective, weights: Tensor, kept: Tensor, iterations: int, tolerance: float = 1e-6
) -> Optimum:
    r"""Minimise the training objective over the kept weights; removed ones stay zero, all other parameters as they are.

    With an L1 penalty the weights are split, :math:`w = u - v` with :math:`u, v \ge 0`, which makes the problem smooth
    without changing it:

    .. math:: \min_{u, v \ge 0}\; L(u - v) + \lambda \sum_i (u_i + v_i) .

    Args:
        objective: The objective of a float64 model, with an L1 penalty or none.
        weights: Weights to start from, their removed ones left out ``[D]``.
        kept: Mask ``[D]``, True where a weight is kept.
        iterations: Budget of iterations; twice as many evaluations are allowed.
        tolerance: Largest component of the projected gradient at which to stop.

    Returns:
        The end point.

    Raises:
        UserError: The objective has another penalty.

    Source: Byrd, Lu, Nocedal and Zhu, A limited memory algorithm for bound constrained optimization, SIAM J. Sci.
    Comput. 16, 1995.
    """
    if not (objective.penalty is None or isinstance(objective.penalty, L1)):
        raise UserError(f"penalty: expected L1 or None, got {objective.penalty}")
    price = objective.penalty.coefficient if objective.penalty else 0.0
    signs = np.array([1.0, -1.0] if price else [1.0])
    index = kept.nonzero()[:, 0].cpu()

    def spread(parts: Floats) -> Tensor:
        full = torch.zeros(len(kept), dtype=torch.float64)
        full[index] = torch.from_numpy(signs @ parts.reshape(len(signs), -1))
        return full.to(weights.device)

    def evaluate(parts: Floats) -> tuple[float, Floats]:
        loss, gradient = loss_and_gradient(objective, spread(parts))
        return loss + price * parts.sum(), (np.outer(signs, gradient.cpu()[index].numpy()) + price).ravel()

    start = np.outer(signs, weights.cpu()[index].double().numpy())
    result = minimize(
        evaluate,
        (np.maximum(start, 0.0) if price else start).ravel(),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * start.size if price else None,
        options={"maxiter": iterations, "maxfun": 2 * iterations, "maxcor": 20, "ftol": 1e-13, "gtol": tolerance},
    )
    step = result.x - result.jac
    projected = (np.maximum(step, 0.0) if price else step) - result.x
    final = spread(result.x)
    return Optimum(
        objective=objective.value(final),
        weights=final,
        slope=float(np.abs(projected).max(initial=0.0)),
        iterations=int(result.nit),
        converged=bool(result.success),
    )
