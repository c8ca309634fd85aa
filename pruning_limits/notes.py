"""The notes of a limit: numbers that contradict each other, and weights that are not counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import torch

from estimators.parameters import left_out
from pruning_limits.answers import REFUTED, Answer, crossed
from pruning_limits.model_points import ModelPoint, model_point
from pruning_limits.pattern_evidence import pattern_notes

if TYPE_CHECKING:
    from torch import Tensor

    from estimators import Objective
    from pruning_limits.epsilon import Allowed
    from pruning_limits.evidence import Evidence
    from pruning_limits.settings import Settings

NOTED_SHARE = 0.1


def notes_of(evidence: Evidence, settings: Settings, allowed: Allowed, answers: Sequence[Answer]) -> tuple[str, ...]:
    """Say where the numbers of a limit contradict each other or themselves.

    Args:
        evidence: What was computed.
        settings: What was asked for.
        allowed: The allowed rise of the criterion.
        answers: The rungs.

    Returns:
        Notes, the gravest first; empty where there is nothing to say.
    """
    rungs = {answer.rung: answer for answer in answers}
    notes = [*_chance(evidence), *_metric(evidence, settings, allowed), *_monotone(evidence, settings, allowed)]
    own = evidence.own
    notes += pattern_notes(own)
    if own is None or not own.fixed:  # a margin is no sparsity
        notes += _compared(rungs["one-shot"], rungs["formula"])
    at = rungs["formula"].sparsity
    if at is not None:
        notes += _model(model_point(evidence.model_points, at, evidence.curve), allowed.epsilon)
    bound = rungs["bound"]
    if bound.status.startswith(REFUTED):
        notes.append(bound.status)
    return (*notes, *evidence.remarks)


def _chance(evidence: Evidence) -> Iterator[str]:
    dense = evidence.dense
    if dense.at_chance:
        yield (f"{dense.chance}; pruning it can lose nothing, so no sparsity means anything")


def _metric(evidence: Evidence, settings: Settings, allowed: Allowed) -> Iterator[str]:
    dense, drop = evidence.dense, settings.max_drop
    if drop is None:
        return
    if dense.resolution is not None and drop < dense.resolution:
        yield (
            f"max_drop {drop:g} is below the resolution {dense.resolution:.2g} of the metric on "
            f"{dense.metric_samples:,} samples: the answer is for a metric that does not fall at all"
        )
    if allowed.origin != "max-drop":
        yield (
            f"no rise of the {settings.criterion} goes with a metric that is lower by {drop:g}; epsilon is "
            f"{allowed.epsilon:.2g} instead, the fluctuation of a batch"
        )


def _monotone(evidence: Evidence, settings: Settings, allowed: Allowed) -> Iterator[str]:
    where = crossed(evidence, settings, allowed.epsilon)
    if where.again:
        stretches = ", ".join(f"{low:.2%}" if low == high else f"{low:.2%} to {high:.2%}" for low, high in where.again)
        yield (
            f"pruning alone fails from {where.high:.2%} on but passes again at {stretches}; the answer is the first "
            "crossing"
        )


def _compared(measured: Answer, formula: Answer) -> Iterator[str]:
    if measured.basis != "measured" or None in (measured.low, measured.high, formula.low, formula.high):
        return
    assert measured.sparsity is not None
    assert formula.sparsity is not None
    apart = max(formula.low - measured.high, measured.low - formula.high)  # type: ignore[operator]
    if apart > 0:
        points = 100 * (formula.sparsity - measured.sparsity)
        side = "high" if points > 0 else "low"
        yield f"the formula is {abs(points):.1f} points too {side} here; trust the measured rung"


def _model(point: ModelPoint, epsilon: float) -> Iterator[str]:
    """Say where the quadratic model along the removed weights is not that of a minimum."""
    if point.quadratic < 0:
        yield (
            f"the curvature along the removed weights is negative ({point.quadratic:.2g} at {point.sparsity:.2%}); "
            "the quadratic model does not bound one-shot pruning here"
        )
    slope = point.linear + point.pull
    if abs(slope) > epsilon:
        yield (
            f"the weights are not stationary: the linear term at {point.sparsity:.2%} is {slope:+.2g}, "
            f"epsilon is {epsilon:.2g}; train longer or state the penalty that it was trained with"
        )


def note_untrue(names: Sequence[str]) -> tuple[str, ...]:
    """Say which parameters are left out because their gradient is not that of the loss.

    Args:
        names: Their names.

    Returns:
        One note, or none.
    """
    if not names:
        return ()
    return (
        f"left out: {_listed(names)}; the gradient of these weights does not match the change of the loss "
        "(torch.no_grad, detach, a gate or a straight-through estimator), so their curvature is unknown",
    )


def note_doubles(objective: Objective) -> tuple[str, ...]:
    """Say which chosen tensors hold the same numbers, as those of two layers that were tied in training.

    Args:
        objective: The objective.

    Returns:
        One note, or none; a tensor of one value throughout has no double.
    """
    pairs = [f"{name} and {double}" for name, double in _doubles(objective)]
    if not pairs:
        return ()
    return (
        f"the same numbers twice: {_listed(pairs)}; D counts both. If the network was trained with tied weights, tie "
        "them again (load_state_dict without assign=True, or model.tie_weights())",
    )


def note_uncounted(objective: Objective) -> tuple[str, ...]:
    """Name the weights in matrices that the default leaves out, where they are more than a tenth of all.

    Args:
        objective: The objective.

    Returns:
        One note, or none.
    """
    others = left_out(objective.model, objective.chosen)
    size = sum(parameter.numel() for parameter in others.values())
    share = size / (size + objective.dimension)
    if share <= NOTED_SHARE:
        return ()
    names = ", ".join(list(others)[:3]) + (", ..." if len(others) > 3 else "")
    return (
        f"{share:.0%} of the weights in matrices are not counted ({names}); name them with parameters= to count them",
    )


def _doubles(objective: Objective) -> Iterator[tuple[str, str]]:
    parameters = objective.chosen
    groups: dict[tuple[int, float], list[str]] = {}
    for name in objective.names:
        tensor = parameters[name]
        groups.setdefault((tensor.numel(), float(tensor.double().abs().sum())), []).append(name)
    for names in groups.values():
        for pair in combinations(names, 2):
            if _equal(*(parameters[name] for name in pair)):
                yield pair


def _equal(tensor: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors hold the same numbers, also transposed, and not the same number throughout."""
    if bool((tensor == tensor.flatten()[0]).all()):
        return False
    turned = (tensor, tensor.T) if tensor.dim() == 2 else (tensor,)
    return any(torch.equal(side, other) for side in turned)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
