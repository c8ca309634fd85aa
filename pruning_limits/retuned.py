r"""Re-tuning of the kept weights inside the quadratic model: the optimum by conjugate gradients.

Near the weights the objective rises by :math:`Q(x) = g^\top x + \frac12 x^\top H x`. A mask removes d, and the kept
weights may move by any b. The lowest value that they reach,

.. math:: \min_b Q(b - d), \qquad H_{kk} b = (H d - g)_k ,

is :math:`\frac12 d^\top (H_{rr} - H_{rk} H_{kk}^{-1} H_{kr}) d` for g = 0, the Schur complement. Its computation needs
only products with H, and any mask is allowed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from estimators import Operator, UserError
from estimators.trace import diagonal
from pruning_limits.silence import refuse_silence

LAG = 4


@dataclass(frozen=True)
class Retuned:
    r"""What re-tuning of the kept weights makes of the rise, in the quadratic model.

    Attributes:
        rise: :math:`Q(b - d)` at the change found, without damping: an upper bound of the minimum.
        before: :math:`Q(-d)`, the rise without re-tuning.
        change: The change b of the weights, float64 ``[D]``, zero where a weight is removed.
        slope: Norm of the gradient of Q along the kept weights at the change found.
        error: Certified bound of what is missing to the minimum of :math:`Q(b - d) + \frac\delta2 |b|^2`; infinite
            where no positive lower bound of the curvature is known and the model has a slope.
        recent: Fall of the rise over the last few steps, an estimate of the error from below at their beginning.
        damping: The number :math:`\delta` that the change was found with.
        ground: Lower bound of Q everywhere: 0 without a gradient, else minus infinity.
        steps: Conjugate-gradient steps.
        status: ``"converged"``, ``"below target"``, ``"above target"``, ``"unresolved: why and what to do"`` or
            ``"unbounded: why and what to do"``.
    """

    rise: float
    before: float
    change: Tensor = field(repr=False)
    slope: float
    error: float
    recent: float
    damping: float
    ground: float
    steps: int
    status: str

    def lower(self, reach: float = math.inf) -> float:
        r"""Lower bound of :math:`Q(b' - d)` over all changes :math:`|b'|` up to ``reach`` of a convex model.

        .. math:: \max\{Q(b-d) + \tfrac\delta2 |b|^2 - \mathrm{error} - \tfrac\delta2 \mathrm{reach}^2,\;
                  Q(b-d) - \mathrm{slope}\,(|b| + \mathrm{reach})\}

        Args:
            reach: Largest norm of a change that counts as re-tuning, in units of the weights.

        Returns:
            The bound; minus infinity where none is known or the model is unbounded.
        """
        if self.status.startswith("unbounded"):
            return -math.inf
        length = float(self.change.norm())
        damped = self.rise - self.error
        if self.damping:
            damped += 0.5 * self.damping * (length**2 - reach**2)
        tangent = self.rise - self.slope * (length + reach) if self.slope else self.rise
        return max(self.ground, damped, tangent)


def preconditioner(operator: Operator, probes: int = 16, seed: int = 0) -> Tensor:
    """Estimate a positive diagonal for ``retune``; an entry counts only where it exceeds the mean beyond its error.

    A noisy diagonal slows conjugate gradients down instead of speeding them up, so two standard errors are taken off
    every entry and all that lies below the mean is raised to it.

    Args:
        operator: Curvature H.
        probes: Products to spend, at least 2.
        seed: Seed of the random signs.

    Returns:
        Diagonal, float64 ``[D]``.

    Raises:
        UserError: The trace is not positive.
    """
    estimate, error = diagonal(operator, probes, seed)
    mean = float(estimate.mean())
    if not mean > 0:
        refuse_silence(operator)
        raise UserError(f"operator: expected a positive trace, got about {mean * len(estimate):.3g}; use the GGN")
    return (estimate - 2 * error).clamp(min=mean)


def retune(
    operator: Operator,
    weights: Tensor,
    kept: Tensor,
    gradient: Tensor | None = None,
    damping: float = 0.0,
    floor: float = 0.0,
    diagonal: Tensor | None = None,
    tolerance: float = 1e-4,
    steps: int = 200,
    target: float | None = None,
) -> Retuned:
    r"""Minimise the quadratic model over the kept weights by preconditioned conjugate gradients.

    The system :math:`(H_{kk} + \delta) b = (H d - g)_k` is solved with masked products. The rise falls with every step.
    With a known lower bound of the curvature the Gauss-Radau rule hidden in the recurrence bounds the error from above.

    Args:
        operator: Curvature H, positive semidefinite, such as the GGN.
        weights: Weights before pruning ``[D]``.
        kept: Mask ``[D]``, True where a weight is kept.
        gradient: Gradient g of the objective at the weights ``[D]``; None for a stationary point.
        damping: :math:`\delta \ge 0`, penalty on the change b, in units of the eigenvalues.
        floor: Known lower bound of the eigenvalues of H, >= 0, such as the coefficient of an L2 penalty.
        diagonal: Positive diagonal that preconditions, ``[D]``, see ``preconditioner``; None takes the identity.
        tolerance: Residual at which to stop, relative to the first one, in the norm of the inverse preconditioner.
        steps: Largest number of steps.
        target: Stop as soon as the rise is known to be at most this, or above it; None asks for the minimum.

    Returns:
        The optimum, its error and what ended the search.

    Raises:
        UserError: A shape is wrong, a number is out of range, or the GGN is zero for a layer on which the loss depends.

    Source: Hestenes and Stiefel 1952; Meurant and Tichy, On computing quadrature-based bounds for the A-norm of the
    error in conjugate gradients, Numerical Algorithms 62, 2013; Strakos and Tichy 2002 for ``recent``.

    Example:
        >>> class Pair:
        ...     shape, dtype, device = (2, 2), torch.float64, torch.device("cpu")
        ...     def matmat(self, vectors):
        ...         return torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64) @ vectors
        >>> retuned = retune(Pair(), torch.ones(2), torch.tensor([True, False]))
        >>> retuned.before, retuned.rise, retuned.change.tolist()
        (1.0, 0.75, [0.5, 0.0])
    """
    _check(operator, weights, kept, gradient, diagonal, damping, floor)
    device = operator.device
    mask = kept.to(device)
    removed = torch.where(mask, 0.0, weights.to(device).double())
    slope = torch.zeros_like(removed) if gradient is None else gradient.to(device).double()
    scales = torch.ones_like(removed) if diagonal is None else diagonal.to(device).double()
    scales = scales + damping

    def product(vector: Tensor) -> Tensor:
        return operator.matmat(vector.to(operator.dtype)[:, None])[:, 0].double()

    pulled = product(removed)
    if removed.any() and not pulled.any():
        refuse_silence(operator)
    before = float(0.5 * removed @ pulled - slope @ removed)
    first = torch.where(mask, pulled - slope, 0.0)
    least = floor + damping
    radau = _Radau(least / float(scales.max()))
    ground = 0.0 if gradient is None or not gradient.any() else -math.inf
    change, residual = torch.zeros_like(first), first.clone()
    ahead = residual / scales
    direction, energy = ahead.clone(), float(residual @ ahead)
    start = energy
    falls: list[float] = []
    rise, status = before, ""
    while not status:
        length = float(change @ change)
        rise = before - float(0.5 * change @ (first + residual)) - 0.5 * damping * length
        if energy <= tolerance**2 * start:
            status = "converged"
        elif target is not None and rise <= target:
            status = "below target"
        elif target is not None and not damping and rise - 0.5 * radau.factor * energy > target:
            status = "above target"
        elif len(falls) == steps:
            status = (
                f"unresolved: relative residual {(energy / start) ** 0.5:.2g} after {steps} steps; "
                "raise steps or damping"
            )
        else:
            curved = torch.where(mask, product(direction), 0.0) + damping * direction
            curvature = float(direction @ curved)
            if curvature <= torch.finfo(operator.dtype).eps * float(direction.norm() * curved.norm()):
                status = (
                    f"unbounded: curvature {curvature / float(direction @ direction):.3g} along a direction of descent "
                    f"after {len(falls)} steps; use the GGN or raise damping"
                )
                break
            stride = energy / curvature
            falls.append(0.5 * stride * energy)
            change += stride * direction
            residual -= stride * curved
            ahead = residual / scales
            energy, last = float(residual @ ahead), energy
            radau.advance(stride, energy / last)
            direction = ahead + (energy / last) * direction
    error = math.inf
    if falls:
        exact = torch.where(mask, first - product(change), 0.0) - damping * change
        rise = before - float(0.5 * change @ (first + exact) + 0.5 * damping * change @ change)
    else:
        exact = residual
    if least:
        drift = float((exact - residual).norm()) / least**0.5
        error = 0.5 * min(((radau.factor * energy) ** 0.5 + drift) ** 2, float(exact @ exact) / least)
    return Retuned(
        rise=rise,
        before=before,
        change=change,
        slope=float((exact + damping * change).norm()),
        error=error,
        recent=sum(falls[-LAG:]),
        damping=damping,
        ground=ground,
        steps=len(falls),
        status=status,
    )


def retuned_weights(weights: Tensor, kept: Tensor, retuned: Retuned) -> Tensor:
    """Return pruned and re-tuned weights, whose rise a forward pass can measure.

    Args:
        weights: Weights before pruning ``[D]``.
        kept: The mask that was re-tuned for ``[D]``.
        retuned: The optimum.

    Returns:
        Weights ``[D]`` of the same type, exactly zero where removed.
    """
    return torch.where(kept, weights + retuned.change.to(weights.device, weights.dtype), 0.0)


class _Radau:
    """Upper bound of the squared error of conjugate gradients over the residual's energy, from a floor > 0."""

    def __init__(self, floor: float) -> None:
        self.floor = floor
        self.factor = 1 / floor if floor > 0 else math.inf

    def advance(self, stride: float, ratio: float) -> None:
        if self.floor > 0:
            left = self.factor - stride
            self.factor = left / (self.floor * left + ratio) if left > 0 else 1 / self.floor


def _check(
    operator: Operator,
    weights: Tensor,
    kept: Tensor,
    gradient: Tensor | None,
    diagonal: Tensor | None,
    damping: float,
    floor: float,
) -> None:
    shape = (operator.shape[0],)
    for name, tensor in (("weights", weights), ("kept", kept), ("gradient", gradient), ("diagonal", diagonal)):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise UserError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
    if kept.dtype != torch.bool:
        raise UserError(f"kept: expected a bool mask, got {kept.dtype}")
    if diagonal is not None and not bool((diagonal > 0).all()):
        raise UserError(f"diagonal: expected positive entries, got {float(diagonal.min()):.3g}")
    for name, value in (("damping", damping), ("floor", floor)):
        if not 0 <= value < math.inf:
            raise UserError(f"{name}: expected a number >= 0 in units of the eigenvalues, got {value}")
