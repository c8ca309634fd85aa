"""The quadratic model along the weights that one-shot magnitude pruning removes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from estimators.operator import SubspaceOperator
from pruning_limits.crossing import largest_passing
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.model_points import ModelPoint

NEARBY = 0.1


class QuadraticRise:
    r"""Rise :math:`-g^\top d + \frac12 d^\top H d` of the quadratic model, each sparsity evaluated once.

    Args:
        operator: Curvature H; where it acts in a subspace, that of all weights is meant.
        gradient: Gradient g of the objective at the weights, ``[D]``.
        profile: Magnitude profile; d(s) are the weights that are removed at sparsity s.
        pull: Gradient of a penalty that the weights were trained with and that the criterion leaves out, ``[D]``; they
            are stationary where it balances the gradient of the loss. None where there is none.

    Example:
        >>> import torch
        >>> from estimators import Hessian, Objective
        >>> from pruning_limits import MagnitudeProfile
        >>> half = lambda model, batch: 0.5 * model.weight.square().sum()
        >>> objective = Objective(torch.nn.Linear(2, 1, bias=False), [torch.zeros(1, 2)], half)
        >>> profile = MagnitudeProfile({"weight": torch.tensor([[1.0, 2.0]])})
        >>> round(QuadraticRise(Hessian(objective), torch.tensor([0.1, 0.0]), profile)(0.5), 6)
        0.4
    """

    def __init__(
        self,
        operator: SubspaceOperator,
        gradient: Tensor,
        profile: MagnitudeProfile,
        pull: Tensor | None = None,
    ) -> None:
        self.operator, self.gradient, self.profile, self.pull = operator, gradient, profile, pull
        self._curved: dict[int, float] = {}

    def __call__(self, sparsity: float) -> float:
        """Return the rise at a sparsity, to the nearest weight."""
        return self.linear(sparsity) + self.quadratic(sparsity)

    def linear(self, sparsity: float) -> float:
        """Return the part of the rise that is linear in the removed weights."""
        return _slope(self.gradient, self.removed(sparsity))

    def points(self) -> tuple[ModelPoint, ...]:
        """Return all that was evaluated so far, in units of the criterion, by rising sparsity."""
        rows = []
        for count, quadratic in sorted(self._curved.items()):
            removed = self._removed(count)
            pull = 0.0 if self.pull is None else _slope(self.pull, removed)
            rows.append(ModelPoint(count / self.profile.dimension, _slope(self.gradient, removed), quadratic, pull))
        return tuple(rows)

    def removed(self, sparsity: float) -> Tensor:
        """Return the weights that are removed at a sparsity, to the nearest weight, ``[D]``."""
        return self._removed(self._count(sparsity))

    def quadratic(self, sparsity: float) -> float:
        """Return the other part of the rise."""
        self.evaluate([sparsity])
        return self._curved[self._count(sparsity)]

    def evaluate(self, sparsities: Sequence[float]) -> None:
        """Evaluate the model at several sparsities at once, in one pass over the data."""
        counts = sorted({self._count(sparsity) for sparsity in sparsities} - set(self._curved))
        if counts:
            removed = torch.stack([self._removed(count) for count in counts], dim=1)
            self._curved |= dict(zip(counts, self._half_curved(removed), strict=True))

    def _count(self, sparsity: float) -> int:
        return round(sparsity * self.profile.dimension)

    def _removed(self, count: int) -> Tensor:
        return self.profile.removed(count / self.profile.dimension)

    def _half_curved(self, removed: Tensor) -> list[float]:
        """Return half of the quadratic forms of columns ``[D, K]``."""
        vectors = self.operator.project(removed)
        forms = (vectors.double() * self.operator.matmat(vectors).double()).sum(0)
        if self.operator.outside:
            forms += self.operator.outside * (removed.double().square().sum(0) - vectors.double().square().sum(0))
        return [0.5 * form for form in forms.tolist()]


def _slope(gradient: Tensor, removed: Tensor) -> float:
    return -float(gradient.double().dot(removed.double()))


def quadratic_limit(rise: QuadraticRise, epsilon: float, guess: float) -> float:
    """Largest sparsity at which the quadratic model rises by at most epsilon.

    Args:
        rise: Rise of the model.
        epsilon: Allowed rise, > 0.
        guess: Where to start looking.

    Returns:
        The sparsity, to a resolution of 1e-3 or one weight.
    """
    profile = rise.profile
    near = [profile.removed_norm(max(0.0, 1 - kept * (1 - guess))) ** 2 for kept in (1 + NEARBY, 1 - NEARBY)]
    return largest_passing(rise, epsilon, guess, profile.dimension, resolution=1e-3, power=_power(*near))


def _power(more: float, less: float) -> float | None:
    """Power by which a rise goes, from those where ``NEARBY`` more and less weights are kept; None where it is none."""
    if not 0 < more < less < math.inf:
        return None
    return math.log(less / more) / math.log((1 + NEARBY) / (1 - NEARBY))
