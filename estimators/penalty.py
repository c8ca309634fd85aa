"""Weight penalties that are part of a training objective."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor

from estimators.errors import UserError


class Penalty(Protocol):
    """The interface of a weight penalty."""

    @property
    def curvature(self) -> float:
        """The penalty's Hessian is this number times the identity (almost everywhere)."""

    def value(self, weights: Iterable[Tensor]) -> Tensor:
        """Sum of the penalty over tensors, a float64 scalar."""

    def gradient(self, weights: Tensor) -> Tensor:
        """Gradient of the penalty, shaped like ``weights``."""


@dataclass(frozen=True)
class L1:
    r"""The penalty :math:`\lambda \sum_i |w_i|`; its Hessian is zero almost everywhere.

    Args:
        coefficient: The factor :math:`\lambda \ge 0`.

    Example:
        >>> float(L1(0.5).value([torch.tensor([1.0, -3.0])]))
        2.0
    """

    coefficient: float

    def __post_init__(self) -> None:
        _check(self)

    @property
    def curvature(self) -> float:
        """Zero, as the penalty is linear away from zero weights."""
        return 0.0

    def value(self, weights: Iterable[Tensor]) -> Tensor:
        """Penalty summed over tensors, a float64 scalar."""
        return self.coefficient * _sum(weight.abs().sum(dtype=torch.float64) for weight in weights)

    def gradient(self, weights: Tensor) -> Tensor:
        """Subgradient with value zero at zero."""
        return self.coefficient * weights.sign()

    def add_gradient_(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Add the penalty's gradient to ``gradients`` in place."""
        torch._foreach_add_(list(gradients), torch._foreach_sign(list(weights)), alpha=self.coefficient)


@dataclass(frozen=True)
class L2:
    r"""The penalty :math:`\frac{a}{2} \sum_i w_i^2`, known as weight decay; its Hessian is :math:`a I`.

    Args:
        coefficient: The factor :math:`a \ge 0`.

    Example:
        >>> float(L2(0.5).value([torch.tensor([1.0, -3.0])]))
        2.5
    """

    coefficient: float

    def __post_init__(self) -> None:
        _check(self)

    @property
    def curvature(self) -> float:
        """The coefficient itself."""
        return self.coefficient

    def value(self, weights: Iterable[Tensor]) -> Tensor:
        """Penalty summed over tensors, a float64 scalar."""
        return 0.5 * self.coefficient * _sum(weight.double().square().sum() for weight in weights)

    def gradient(self, weights: Tensor) -> Tensor:
        """Gradient ``a w``."""
        return self.coefficient * weights

    def add_gradient_(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Add the penalty's gradient to ``gradients`` in place."""
        torch._foreach_add_(list(gradients), list(weights), alpha=self.coefficient)


def refuse_penalty(penalty: Any) -> None:
    """Refuse what is no penalty.

    Args:
        penalty: What the user gave, or None.

    Raises:
        UserError: It has no curvature, value and gradient.

    Example:
        >>> refuse_penalty(1e-4)
        Traceback (most recent call last):
        estimators.errors.UserError: penalty: expected L1(coefficient), L2(coefficient) or None, got 0.0001
    """
    parts = ("curvature", "value", "gradient")
    if penalty is not None and (isinstance(penalty, type) or not all(hasattr(penalty, part) for part in parts)):
        raise UserError(f"penalty: expected L1(coefficient), L2(coefficient) or None, got {penalty!r}")


def _check(penalty: L1 | L2) -> None:
    if not isinstance(penalty.coefficient, Real):
        raise UserError(
            f"penalty: {type(penalty).__name__} coefficient must be a number >= 0, got {penalty.coefficient!r}"
        )
    if not 0 <= penalty.coefficient < float("inf"):
        raise UserError(
            f"penalty: {type(penalty).__name__} coefficient must be finite and >= 0, got {penalty.coefficient}"
        )


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum()
