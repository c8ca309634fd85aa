"""A pruned network next to its dense parent and its limit: the gate before deployment."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree

from estimators import UserError
from pruning_limits.result import PruningLimit

if TYPE_CHECKING:
    from torch import Tensor

Status = Literal["achievable", "open", "infeasible"]
ORDER: tuple[Status, ...] = ("achievable", "open", "infeasible")
MOST_ZEROS_IN_DENSE = 0.01
FAR = 10
SAME_NORM = SAME_OBJECTIVE = 1e-3
MOST_ERRORS = 4


@dataclass(frozen=True)
class Case:
    """One question of the gate and its answer.

    Attributes:
        name: What was asked about: ``"sparsity"``, ``"objective"`` or ``"layer NAME"``.
        status: ``"achievable"`` passes, ``"open"`` is for a person to judge, ``"infeasible"`` fails.
        reason: One sentence with the numbers.
    """

    name: str
    status: Status
    reason: str


@dataclass(frozen=True)
class Comparison:
    """What became of a dense network when it was pruned.

    Attributes:
        status: The worst status of the cases.
        reason: The reasons of the cases of that status, in one line.
        sparsity: Share of the prunable weights that are zero in the pruned network.
        rise: Rise of the objective from the dense to the pruned network.
        epsilon: Rise that the limit allows.
        place: Where the sparsity lies: at most ``"achieved"``, ``"limit"`` or ``"upper"``, or ``"beyond"`` them all;
            ``"unbounded"`` beyond the first two where no upper bound is established.
        layers: Removed share by parameter name, in the model's order.
        cases: The questions and answers, ``"sparsity"`` and ``"objective"`` first, then the suspicious layers.
    """

    status: Status
    reason: str
    sparsity: float
    rise: float
    epsilon: float
    place: Literal["achieved", "limit", "upper", "beyond", "unbounded"]
    layers: dict[str, float]
    cases: tuple[Case, ...]


def compare(
    limit: PruningLimit, dense: Mapping[str, Tensor], pruned: Mapping[str, Tensor], dense_value: float, value: float
) -> Comparison:
    """Judge a pruned network by its dense parent and the parent's limit.

    The objective decides first: a rise above epsilon is infeasible. A sparsity beyond the upper bound and its numerical
    error is open while the objective holds; where no upper bound is established, so is one beyond the lower bound. A
    suspicious layer is open, too: one that is removed altogether, or one that keeps less than a tenth of what global
    magnitude pruning at the predicted limit keeps of it.

    Args:
        limit: Limit of the dense network.
        dense: Prunable weights of the dense network by name.
        pruned: The same weights of the pruned network.
        dense_value: Objective of the dense network, on the data and with the penalty of the limit.
        value: Objective of the pruned network.

    Returns:
        The comparison.

    Raises:
        UserError: The limit is not that of the dense network, the dense network is itself pruned, the pruned one has
            more non-zero weights or other shapes, or a number is NaN or infinite.

    Example:
        >>> import torch
        >>> from pruning_limits import predict_limit
        >>> model = torch.nn.Linear(4, 2)
        >>> limit = predict_limit(model, [(torch.randn(64, 4), torch.randint(0, 2, (64,)))], progress=False)
        >>> dense = {"weight": model.weight.detach()}
        >>> pruned = {"weight": dense["weight"] * limit.mask(0.5)["weight"]}
        >>> compare(limit, dense, pruned, limit.objective, limit.objective + 9.0).status
        'infeasible'
    """
    _check_weights(limit, dense, pruned)
    _check_objectives(limit, dense_value, value)
    removed = {name: 1 - int(weight.count_nonzero()) / weight.numel() for name, weight in pruned.items()}
    sparsity = 1 - sum(int(weight.count_nonzero()) for weight in pruned.values()) / limit.parameters
    rise = value - dense_value
    holds = rise <= limit.epsilon
    verdict = limit.check(min(sparsity, 1 - 0.5 / limit.parameters))
    answers: dict[Status, Status] = {
        "achievable": "achievable",
        "open": "open" if limit.unknown else "achievable",
        "infeasible": "open" if holds else "infeasible",
    }
    cases = [
        Case("sparsity", answers[verdict.status], verdict.reason),
        Case(
            "objective",
            "achievable" if holds else "infeasible",
            f"the objective rises by {rise:.4g}, {limit.epsilon:.4g} is allowed",
        ),
    ]
    kept_at_limit = {layer.name: 1 - layer.sparsity for layer in limit.layers()}
    for name, share in removed.items():
        expected = kept_at_limit.get(name, 0.0)
        if share == 1:
            cases.append(Case(f"layer {name}", "open", f"{name} is removed altogether"))
        elif FAR * (1 - share) < expected:
            reason = f"{name} keeps {1 - share:.3%}, less than a tenth of the {expected:.3%} at the predicted limit"
            cases.append(Case(f"layer {name}", "open", reason))
    worst = max((case.status for case in cases), key=ORDER.index)
    telling = cases[:2] if worst == "achievable" else [case for case in cases if case.status == worst]
    ends: list[tuple[Literal["achieved", "limit", "upper", "unbounded"], float]] = [
        ("achieved", limit.lower),
        ("limit", limit.sparsity),
        ("unbounded" if limit.unknown else "upper", limit.upper),
    ]
    return Comparison(
        status=worst,
        reason="; ".join(case.reason for case in telling),
        sparsity=sparsity,
        rise=rise,
        epsilon=limit.epsilon,
        place=next((name for name, end in ends if sparsity <= end), "beyond"),
        layers=removed,
        cases=tuple(cases),
    )


def _check_weights(limit: PruningLimit, dense: Mapping[str, Tensor], pruned: Mapping[str, Tensor]) -> None:
    for name, weight in dense.items():
        if name not in pruned or pruned[name].shape != weight.shape:
            there = tuple(pruned[name].shape) if name in pruned else "nothing"
            raise UserError(f"pruned: expected {name} of shape {tuple(weight.shape)} as in dense, got {there}")
    for which, weights in (("dense", dense), ("pruned", pruned)):
        bad = [name for name, weight in weights.items() if not weight.isfinite().all()]
        if bad:
            raise UserError(f"{which}: holds NaN or infinite weights in {bad[0]}; save the network again")
    total = sum(weight.numel() for weight in dense.values())
    kept, left = (sum(int(weight.count_nonzero()) for weight in one.values()) for one in (dense, pruned))
    if kept < (1 - MOST_ZEROS_IN_DENSE) * total:
        raise UserError(
            f"dense: {1 - kept / total:.2%} of its weights are zero, at most {MOST_ZEROS_IN_DENSE:.0%} is taken for "
            "dense; give the network before pruning"
        )
    if left > kept:
        raise UserError(f"pruned: has {left:,} non-zero weights, dense {kept:,}; are the two files swapped?")
    rows = {layer.name: layer for layer in limit.layers()}
    same = total == limit.parameters and (not rows or list(rows) == list(dense))
    for name, row in rows.items() if same else ():
        norm = float(dense[name].double().norm())
        same = same and abs(norm - row.norm) <= SAME_NORM * row.norm
    if not same:
        raise UserError("limit: belongs to other weights than dense; predict it from the dense network again")


def _check_objectives(limit: PruningLimit, dense_value: float, value: float) -> None:
    if not math.isfinite(value):
        raise UserError(f"pruned: expected a finite objective, got {value}; check its biases, statistics and the data")
    unlike = SAME_OBJECTIVE * abs(limit.objective) + MOST_ERRORS * limit.objective_error + 1e-6
    if not abs(dense_value - limit.objective) <= unlike:
        raise UserError(
            f"limit: the objective of dense was {limit.objective:.6g} there and is {dense_value:.6g} here; "
            "give the data and the penalty that the limit was predicted with"
        )


def junit(cases: Sequence[Case], seconds: float = 0.0) -> str:
    """Return cases as a JUnit report of one test suite.

    An infeasible case is a failure, an open one is skipped, and the exit code of the command tells the two apart from
    success as well.

    Args:
        cases: Questions and answers.
        seconds: Wall time of the whole, >= 0.

    Returns:
        XML text.

    Example:
        >>> print(junit([Case("sparsity", "achievable", "50.00% is at most 60.00%")]).splitlines()[2].strip())
        <testcase classname="pruning-limits" name="sparsity">
    """
    counts = {status: str(sum(case.status == status for case in cases)) for status in ORDER}
    suite = ElementTree.Element(
        "testsuite",
        name="pruning-limits",
        tests=str(len(cases)),
        failures=counts["infeasible"],
        errors="0",
        skipped=counts["open"],
        time=f"{seconds:.3f}",
    )
    for case in cases:
        entry = ElementTree.SubElement(suite, "testcase", classname="pruning-limits", name=_legal(case.name))
        kind = {"achievable": None, "open": "skipped", "infeasible": "failure"}[case.status]
        if kind is not None:
            ElementTree.SubElement(entry, kind, message=_legal(case.reason))
        else:
            ElementTree.SubElement(entry, "system-out").text = _legal(case.reason)
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _legal(text: str) -> str:
    """Replace what XML cannot hold."""
    return re.sub("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)
