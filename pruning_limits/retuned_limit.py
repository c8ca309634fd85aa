"""How far magnitude pruning gets when the kept weights are re-tuned inside the quadratic model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from estimators import Operator, UserError
from estimators.vectors import flatten
from pruning_limits.crossing import largest_passing
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.retuned import Retuned, retune
from pruning_limits.silence import refuse_silence


@dataclass(frozen=True)
class RetunedLimit:
    """How far magnitude pruning gets when the kept weights are re-tuned in the quadratic model.

    Attributes:
        sparsity: Largest sparsity whose re-tuned rise is at most epsilon; attained, so a lower bound in any case.
        points: Evaluated ``(sparsity, rise)`` pairs, sorted; the search at a pair ends as soon as its side is known.
        steps: Conjugate-gradient steps of all evaluations.
        status: ``"converged"``, or ``"unresolved: ..."`` when a sparsity counts as failing without proof.
    """

    sparsity: float
    points: tuple[tuple[float, float], ...]
    steps: int
    status: str


def retuned_limit(
    operator: Operator,
    profile: MagnitudeProfile,
    epsilon: float,
    guess: float,
    gradient: Tensor | None = None,
    damping: float = 0.0,
    floor: float = 0.0,
    diagonal: Tensor | None = None,
    tolerance: float = 1e-3,
    steps: int = 300,
    resolution: float = 2e-3,
) -> RetunedLimit:
    r"""Largest sparsity at which the re-tuned quadratic model rises by at most epsilon, for magnitude masks.

    Args:
        operator: Curvature H, positive semidefinite.
        profile: Magnitude profile of the weights.
        epsilon: Allowed rise, > 0.
        guess: Where to start looking, for instance the re-trained limit.
        gradient: Gradient of the objective ``[D]``; None for a stationary point.
        damping: Penalty on the change; the rise that is compared leaves it out.
        floor: Known lower bound of the eigenvalues, >= 0.
        diagonal: Positive diagonal that preconditions, ``[D]``.
        tolerance: Relative residual that ends an evaluation.
        steps: Largest number of steps of one evaluation.
        resolution: Wanted width of the final bracket, in sparsity.

    Returns:
        The limit and what it is read off.

    Raises:
        UserError: ``epsilon`` is not positive, an argument of ``retune`` is wrong, or the GGN is zero for a layer on
            which the loss depends.
    """
    if not 0 < epsilon < math.inf:
        raise UserError(f"epsilon: expected a positive number (the allowed rise of the objective), got {epsilon}")
    refuse_silence(operator)
    evaluations: dict[float, Retuned] = {}

    def rise(sparsity: float) -> float:
        kept = flatten(list(profile.masks(sparsity).values()))
        evaluations[sparsity] = retune(
            operator, profile.vector, kept, gradient, damping, floor, diagonal, tolerance, steps, target=epsilon
        )
        return evaluations[sparsity].rise

    sparsity = largest_passing(rise, epsilon, guess, profile.dimension, resolution)
    open_ends = [s for s, point in evaluations.items() if point.rise > epsilon and point.status.startswith("un")]
    first = min(open_ends, default=None)
    return RetunedLimit(
        sparsity=sparsity,
        points=tuple(sorted((s, point.rise) for s, point in evaluations.items())),
        steps=sum(point.steps for point in evaluations.values()),
        status="converged" if first is None else f"unresolved: sparsity {first:.4f} is {evaluations[first].status}",
    )
