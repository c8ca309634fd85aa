"""The gate before deployment: compare a pruned network with its dense parent and with its limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from estimators import UserError
from pruning_limits.ladder import drop_text, percent
from pruning_limits.measured import ERRORS
from pruning_limits.metric_drop import MetricDrop
from pruning_limits.pattern_gate import fit_of, pattern_of, pattern_sparsity
from pruning_limits.pattern_names import UNSTRUCTURED

if TYPE_CHECKING:
    from torch import Tensor

    from pruning_limits.groups import Groups
    from pruning_limits.result import PruningLimit

Status = Literal["achievable", "open", "infeasible"]
Place = Literal["achieved", "limit", "upper", "beyond", "unbounded"]
ORDER: tuple[Status, ...] = ("achievable", "open", "infeasible")
MOST_ZEROS_IN_DENSE = 0.01
FAR = 10
SAME_NORM = SAME_OBJECTIVE = 1e-3
MOST_ERRORS = 4
DIGITS = range(3, 18)


@dataclass(frozen=True)
class Case:
    """One question of the gate and its answer.

    Attributes:
        name: What was asked about: ``"network"``, ``"sparsity"``, the criterion, ``"metric"`` or ``"layer NAME"``.
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
        rise: Rise of the criterion from the dense to the pruned network.
        epsilon: Rise that the limit allows.
        drop: What became of the metric, or None where it was not measured.
        place: Where the sparsity lies: at most what one-shot pruning has ``"achieved"``, at most the formula's
            ``"limit"``, at most the ``"upper"`` bound and its error, or ``"beyond"`` them all; ``"unbounded"`` past
            the first two where no bound is established.
        layers: Removed share by parameter name, in the model's order.
        cases: The questions and answers: ``"network"`` where it is no better than constant outputs, ``"pattern"`` where
            one of groups was looked for, ``"sparsity"``, the criterion, ``"metric"`` where it was measured, then the
            suspicious layers.
        pattern: The pattern of the zeros, whose limit it is judged by.
    """

    status: Status
    reason: str
    sparsity: float
    rise: float
    epsilon: float
    drop: MetricDrop | None
    place: Place
    layers: dict[str, float]
    cases: tuple[Case, ...]
    pattern: str = UNSTRUCTURED


def compare(
    limit: PruningLimit,
    dense: Mapping[str, Tensor],
    pruned: Mapping[str, Tensor],
    dense_value: float,
    value: float,
    drop: MetricDrop | None = None,
    groups: Mapping[str, Groups] | None = None,
    pattern: str | None = None,
) -> Comparison:
    """Judge a pruned network by its dense parent and the parent's limit.

    Where a fall of the metric is allowed, the metric decides: a larger fall is infeasible, and the criterion is only
    told. Else the criterion decides: a rise above epsilon is infeasible, and the metric is only told.

    A sparsity beyond the bound and its numerical error is infeasible where what decides fails, and open where it holds.
    Where no bound is established, one beyond what pruning reaches alone is achievable where what decides holds, for
    that was measured, and open where it fails. A suspicious layer is open, too: one that is removed altogether, or one
    that keeps less than a tenth of what global magnitude pruning at the formula's limit keeps of it. A network that was
    no better than constant outputs before pruning never passes.

    Args:
        limit: Limit of the dense network.
        dense: Prunable weights of the dense network by name.
        pruned: The same weights of the pruned network.
        dense_value: Criterion of the dense network, on the data and with the penalty of the limit.
        value: Criterion of the pruned network.
        drop: What became of the metric, or None where it was not measured.
        groups: Groups of patterns by name, as ``patterns.groups_of`` returns them. The network is judged by the limit
            of the first that its zeros fit.
        pattern: The one of them that they have to fit; None lets the zeros tell.

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
    _check_values(limit, dense_value, value, drop)
    kept = {name: int(weight.count_nonzero()) for name, weight in pruned.items()}
    removed = {name: 1 - kept[name] / weight.numel() for name, weight in pruned.items()}
    sparsity = (limit.parameters - sum(kept.values())) / limit.parameters
    rise = value - dense_value
    decides = drop if drop is not None and drop.allowed is not None else None
    holds = rise <= limit.epsilon if decides is None else decides.holds
    groups = groups or {}
    fitting = pattern or (pattern_of(groups, pruned) if groups else limit.pattern)
    own = limit.for_pattern(fitting)
    cases = [
        *_network(limit),
        *_pattern(groups.get(fitting), pruned),
        _sparsity(own, sparsity, holds, limit.criterion if decides is None else _name(limit, decides)),
        _criterion(limit, rise, decides),
        *([] if drop is None else [_metric(limit, drop)]),
    ]
    asked = len(cases)
    cases += _layers(limit, removed, expected=own is limit)
    worst = max((case.status for case in cases), key=ORDER.index)
    telling = cases[:asked] if worst == "achievable" else [case for case in cases if case.status == worst]
    return Comparison(
        status=worst,
        reason="; ".join(case.reason for case in telling),
        sparsity=sparsity,
        rise=rise,
        epsilon=limit.epsilon,
        drop=drop,
        place=_place(own, sparsity),
        layers=removed,
        cases=tuple(cases),
        pattern=fitting,
    )


def _network(limit: PruningLimit) -> list[Case]:
    dense = limit.evidence.dense
    if not dense.at_chance:
        return []
    reason = f"{dense.chance}, so that pruning can lose nothing; train it first"
    return [Case("network", "infeasible", reason)]


def _pattern(groups: Groups | None, pruned: Mapping[str, Tensor]) -> list[Case]:
    if groups is None:
        return []
    fit = fit_of(groups, pruned)
    return [Case("pattern", "achievable" if fit.fits else "infeasible", fit.reason(groups))]


def _sparsity(limit: PruningLimit, sparsity: float, holds: bool, decides: str) -> Case:
    alone = "pruning alone reaches" if limit.achieved is not None else "pruning alone reaches by the quadratic model"
    if limit.evidence.dense.at_chance:
        return Case("sparsity", "open", f"{percent(sparsity)} means nothing before the network is trained")
    of_groups = pattern_sparsity(limit, holds, decides)
    if of_groups is not None:
        return Case("sparsity", *of_groups)
    here, reached = _apart(sparsity, limit.lower, _percent)
    if sparsity <= limit.lower:
        return Case("sparsity", "achievable", f"{here} is in reach: {alone} {reached}")
    more, bound = f"{here} is more than the {reached} that {alone}", limit.answer("bound")
    if bound.high is None:
        reason = f"{more}; no bound is established ({bound.status})"
        if holds:
            return Case("sparsity", "achievable", f"{reason}, and the {decides} was measured to hold")
        return Case("sparsity", "open", reason)
    here, end = _apart(sparsity, bound.high, _percent)
    if sparsity <= bound.high:
        return Case("sparsity", "achievable", f"{more}, and no more than the bound of the quadratic model, {end}")
    reason = f"{here} is beyond {end}, the bound of the quadratic model and its numerical error"
    if holds:
        return Case("sparsity", "open", f"{reason}, and yet the {decides} holds: look at how it was measured")
    return Case("sparsity", "infeasible", reason)


def _criterion(limit: PruningLimit, rise: float, decides: MetricDrop | None) -> Case:
    name, holds = limit.criterion, rise <= limit.epsilon
    amount, allowed = _apart(abs(rise), limit.epsilon, _number)
    change = f"the {name} {_change(rise, 'rises', 'falls')}" + (f" by {amount}" if rise else "")
    if decides is None:
        return Case(name, "achievable" if holds else "infeasible", f"{change}, a rise of {allowed} is allowed")
    beyond = "" if holds else f", beyond {allowed}"
    if beyond and limit.max_drop is not None and limit.allowed.origin == "max-drop":
        of = "" if limit.metric == "accuracy" else f" of {limit.metric}"
        lost = drop_text(limit, limit.max_drop)
        beyond = f", beyond the {allowed} at which one-shot pruned networks have lost {lost}{of}"
    return Case(name, "achievable", f"{change}{beyond}; the {_name(limit, decides)} decides")


def _metric(limit: PruningLimit, drop: MetricDrop) -> Case:
    name, fall = _name(limit, drop), drop.fall
    of_accuracy = name == "accuracy"
    scale, unit = (100, " points") if of_accuracy else (1, "")
    dense, pruned = (f"{100 * mean:.2f} %" if of_accuracy else f"{mean:.4g}" for mean in (drop.dense, drop.pruned))
    amount, allowed = _apart(scale * abs(fall), scale * (drop.allowed or 0.0), _number)
    noise = "" if not drop.error else f" +- {scale * ERRORS * drop.error:.2g}"
    if fall:
        change = f"the {name} {_change(fall, 'falls', 'rises')} by {amount}{noise}{unit} ({dense} to {pruned})"
    else:
        change = f"the {name} does not change{noise and f',{noise}{unit}'} ({dense})"
    if drop.allowed is None:
        return Case("metric", "achievable", f"{change}; the {limit.criterion} decides")
    status: Status = "achievable" if drop.holds else "infeasible"
    return Case("metric", status, f"{change}, a fall of {allowed}{unit} is allowed")


def _layers(limit: PruningLimit, removed: Mapping[str, float], expected: bool) -> list[Case]:
    """Name layers that are gone, and of single weights those that keep far less than is expected."""
    kept_at_limit = {layer.name: 1 - layer.sparsity for layer in limit.layers()} if expected else {}
    cases = []
    for name, share in removed.items():
        likely = kept_at_limit.get(name, 0.0)
        if share == 1:
            cases.append(Case(f"layer {name}", "open", f"{name} is removed altogether"))
        elif FAR * (1 - share) < likely:
            reason = f"{name} keeps {1 - share:.3%}, less than a tenth of the {likely:.3%} at the formula's limit"
            cases.append(Case(f"layer {name}", "open", reason))
    return cases


def _place(limit: PruningLimit, sparsity: float) -> Place:
    high = limit.answer("bound").high
    last: tuple[Place, float] = ("unbounded", 1.0) if high is None else ("upper", high)
    ends: list[tuple[Place, float]] = [("achieved", limit.lower), ("limit", limit.sparsity), last]
    return next((name for name, end in ends if sparsity <= end), "beyond")


def _name(limit: PruningLimit, drop: MetricDrop) -> str:
    return drop.name or limit.metric or "metric"


def _change(amount: float, up: str, down: str) -> str:
    return up if amount > 0 else down if amount < 0 else "does not change"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}g}"


def _percent(share: float, digits: int) -> str:
    return percent(share) if digits == DIGITS[0] else f"{100 * share:.{digits}g} %"


def _apart(value: float, other: float, write: Callable[[float, int], str]) -> tuple[str, str]:
    """Write two numbers with as many digits as tell them apart, three where they are equal."""
    if value == other:
        return write(value, DIGITS[0]), write(other, DIGITS[0])
    texts = ((write(value, digits), write(other, digits)) for digits in DIGITS)
    return next(pair for pair in texts if pair[0] != pair[1])


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
    kept, left = (sum(int(weight.count_nonzero()) for weight in weights.values()) for weights in (dense, pruned))
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


def _check_values(limit: PruningLimit, dense_value: float, value: float, drop: MetricDrop | None) -> None:
    name = limit.criterion
    if not math.isfinite(value):
        raise UserError(f"pruned: expected a finite {name}, got {value}; check its biases, statistics and the data")
    unlike = SAME_OBJECTIVE * abs(limit.objective) + MOST_ERRORS * limit.evidence.dense.objective_error + 1e-6
    if not abs(dense_value - limit.objective) <= unlike:
        given = "the data" if name == "loss" else "the data and the penalty"
        raise UserError(
            f"limit: the {name} of dense was {limit.objective:.6g} there and is {dense_value:.6g} here; "
            f"give {given} that the limit was predicted with"
        )
    for network, mean in () if drop is None else (("dense", drop.dense), ("pruned", drop.pruned)):
        if not math.isfinite(mean):
            raise UserError(f"{network}: expected a finite mean of the metric, got {mean}; check the held-out data")
