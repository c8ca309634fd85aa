"""One small network's predicted limits beside its truths: exact spectra, best re-tuned weights, re-trained optimum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from estimators import GGN, L1, Hessian, Objective
from pruning_limits import MagnitudeProfile
from pruning_limits.crossing import largest_passing
from pruning_limits.directional import directional_limit
from pruning_limits.isotropic import isotropic_limit
from pruning_limits.losses import all_losses
from pruning_limits.magnitude import removed_count
from pruning_limits.one_shot import one_shot_limit
from validation.studies.limits.masked_optimum import Optimum, masked_optimum
from validation.studies.limits.subspaces import Quadratic
from validation.tables.writing import Row

Floats = NDArray[np.float64]
Positions = NDArray[np.int64]

KEPT = tuple(float(kept) for kept in np.geomspace(0.9, 0.015, 13))
FINE = 200
TRIALS = 3
ITERATIONS = 400
REFINEMENTS = 2


def crossing(points: Sequence[tuple[float, float]], allowed: float) -> float:
    """Read off the last sparsity with an allowed rise, on the straight line over log(1 - s) to the next point.

    Args:
        points: Sparsities, ascending and below 1, with their rises; the first one passes.
        allowed: Largest rise that passes.

    Returns:
        The sparsity; the last one of the points when it passes.

    Example:
        >>> round(crossing([(0.0, 0.0), (0.5, 1.0), (0.75, 3.0)], allowed=2.0), 4)
        0.6464
    """
    last = max(number for number, (_, rise) in enumerate(points) if number == 0 or rise <= allowed)
    if last == len(points) - 1:
        return points[last][0]
    (low, passed), (high, failed) = points[last : last + 2]
    share = float(np.clip((allowed - passed) / (failed - passed), 0.0, 1.0))
    return 1 - float((1 - low) ** (1 - share) * (1 - high) ** share)


def refined_crossing(
    rise: Callable[[float], float],
    curve: Mapping[float, float],
    allowed: float,
    dimension: int,
    refinements: int = REFINEMENTS,
) -> float:
    """Halve the bracket of the last crossing a few times, in log(1 - s), and read it off with ``crossing``.

    Args:
        rise: Rise at a sparsity, costly.
        curve: Rises at sparsities below 1 that are known already; the first one passes.
        allowed: Largest rise that passes.
        dimension: Number D of weights; sparsities are multiples of 1/D.
        refinements: How often the bracket is halved.

    Returns:
        The sparsity.

    Example:
        >>> round(refined_crossing(lambda s: 1 / (1 - s), {0.0: 1.0, 0.99: 100.0}, allowed=20.0, dimension=10**6), 3)
        0.941
    """
    known = dict(curve)
    for _ in range(refinements):
        low, *later = sorted(known)
        low = max((s for s in later if known[s] <= allowed), default=low)
        high = min((s for s in later if s > low), default=None)
        if high is None:
            break
        middle = removed_count(1 - ((1 - low) * (1 - high)) ** 0.5, dimension) / dimension
        known[middle] = rise(middle)
    return crossing(sorted(known.items()), allowed)


def removed_part(profile: MagnitudeProfile, sparsity: float) -> Floats:
    """Return the removed part d of the weights at a sparsity, float64 ``[D]``."""
    removed: Floats = profile.removed(sparsity).cpu().numpy()
    return removed


def kept_positions(profile: MagnitudeProfile, sparsity: float) -> Positions:
    """Return the positions of the weights that a magnitude mask keeps, by rising magnitude, ``[k]``."""
    kept: Positions = profile.order[removed_count(sparsity, profile.dimension) :].cpu().numpy()
    return kept


def predictions(hessian: Quadratic, ggn: Quadratic, profile: MagnitudeProfile, epsilon: float) -> Row:
    """Return the three predicted limits from exact spectra.

    Args:
        hessian: Quadratic model with the Hessian.
        ggn: Quadratic model with the GGN; its gradient counts in the directional limit.
        profile: Magnitude profile of the weights.
        epsilon: Allowed rise, > 0.

    Returns:
        Sparsities: ``isotropic_hessian``, ``isotropic_ggn`` and ``directional``.
    """
    curve = profile.curve()
    directional = directional_limit(ggn.measure, lambda s: ggn.direction(removed_part(profile, s)), curve, epsilon)
    return {
        "isotropic_hessian": isotropic_limit(hessian.measure, curve, epsilon, "abs").sparsity,
        "isotropic_ggn": isotropic_limit(ggn.measure, curve, epsilon, "clip").sparsity,
        "directional": directional.sparsity,
    }


def limits_and_truths(objective: Objective) -> Row:
    """Compute predictions and truths of a network.

    Args:
        objective: The training objective of a float64 model on all training data, with an L1 penalty or none.

    Returns:
        D, epsilon, the objective, every limit as a sparsity, and under ``points`` the rises along the grid ``KEPT``.
    """
    epsilon, dense = all_losses(objective).deviation(), objective.value()
    profile = MagnitudeProfile(objective.chosen)
    gradient = objective.gradient().cpu().numpy()
    slope = np.zeros_like(gradient) if isinstance(objective.penalty, L1) else gradient
    hessian, ggn = Quadratic.of(Hessian(objective), slope), Quadratic.of(GGN(objective), slope)
    one_shot = Quadratic(hessian.curvature, gradient)
    row: Row = {"parameters": profile.dimension, "epsilon": epsilon, "objective": dense}
    row |= predictions(hessian, ggn, profile, epsilon)
    removed, kept = partial(removed_part, profile), partial(kept_positions, profile)
    guess = row["directional"]

    def last(rise: Callable[[float], float | None]) -> float:
        """Return the last sparsity that passes; a model that falls without end passes."""

        def known(sparsity: float) -> float:
            value = rise(sparsity)
            return -math.inf if value is None else value

        return largest_passing(known, epsilon, guess, profile.dimension)

    rises: dict[str, Callable[[float], float | None]] = {
        "quadratic": lambda s: one_shot.rise(removed(s)),
        "schur": lambda s: ggn.lowest(removed(s), kept(s)),
        "schur_hessian": lambda s: hessian.lowest(removed(s), kept(s)),
    }
    row |= {key: last(rise) for key, rise in rises.items()}
    row["one_shot"] = one_shot_limit(objective, profile, epsilon)
    grid = [removed_count(1 - share, profile.dimension) / profile.dimension for share in KEPT]
    points: list[Row] = [{"sparsity": s} | {key: rise(s) for key, rise in rises.items()} for s in grid]
    for point in points:
        point["one_shot"] = objective.value(profile.vector - profile.removed(point["sparsity"])) - dense
    row |= {
        "random_subspace": _random_subspace(ggn, profile, epsilon, points),
        "random_coordinates": _random_coordinates(ggn, profile, points, last),
    }
    row |= _retrained(objective, profile, epsilon, dense, points)
    return row | {"definite_from": _definite_from(points), "points": points}


def _random_subspace(ggn: Quadratic, profile: MagnitudeProfile, epsilon: float, points: list[Row]) -> float:
    """Let random subspaces through the pruned points re-tune; add their mean rises and return their limit."""
    size = profile.dimension
    counts = np.unique(np.geomspace(1, size, FINE).round().astype(int))[::-1].tolist()
    sparsities = [1 - count / size for count in counts]
    removed = np.column_stack([removed_part(profile, s) for s in sparsities])
    trials = [ggn.on_random_subspaces(removed, counts, seed) for seed in range(TRIALS)]
    for point in points:
        point["random_subspace"] = float(np.interp(point["sparsity"], sparsities, np.mean(trials, axis=0)))
    return _middle([crossing(list(zip(sparsities, rises.tolist(), strict=True)), epsilon) for rises in trials])


def _random_coordinates(
    ggn: Quadratic,
    profile: MagnitudeProfile,
    points: list[Row],
    last: Callable[[Callable[[float], float | None]], float],
) -> float:
    """Let random coordinates re-tune instead of the kept ones; add their mean rises and return their limit."""
    orders = [np.random.default_rng(seed).permutation(profile.dimension) for seed in range(TRIALS)]

    def rise(order: Positions, sparsity: float) -> float:
        moving = order[removed_count(sparsity, profile.dimension) :]
        lowest = ggn.lowest(removed_part(profile, sparsity), moving)
        if lowest is None:
            raise AssertionError("a GGN has no negative curvature")
        return lowest

    for point in points:
        point["random_coordinates"] = float(np.mean([rise(order, point["sparsity"]) for order in orders]))
    return _middle([last(partial(rise, order)) for order in orders])


def _middle(sparsities: Sequence[float]) -> float:
    """Return the sparsity at the geometric mean of the kept fractions."""
    return 1 - math.prod(1 - sparsity for sparsity in sparsities) ** (1 / len(sparsities))


def _retrained(objective: Objective, profile: MagnitudeProfile, epsilon: float, dense: float, points: list[Row]) -> Row:
    """Minimise the objective over the kept weights of every mask, and over all weights as a control."""
    ends: dict[float, Optimum] = {}

    def rise(sparsity: float) -> float:
        if sparsity not in ends:
            kept = torch.zeros(profile.dimension, dtype=torch.bool)
            kept[kept_positions(profile, sparsity)] = True
            ends[sparsity] = masked_optimum(objective, profile.vector, kept, ITERATIONS)
        return ends[sparsity].objective - dense

    curve = {0.0: rise(0.0)}
    for point in points:
        curve[point["sparsity"]] = point["retrained"] = rise(point["sparsity"])
    levels = {"retrained": epsilon, "retrained_control": epsilon + curve[0.0]}
    limits = {key: refined_crossing(rise, curve, allowed, profile.dimension) for key, allowed in levels.items()}
    runs = [
        {"sparsity": s, "rise": rise(s), "iterations": end.iterations, "slope": end.slope, "converged": end.converged}
        for s, end in sorted(ends.items())
    ]
    converged = sum(end.converged for end in ends.values()) / len(ends)
    return limits | {"control_fall": -curve[0.0] / epsilon, "converged": converged, "runs": runs}


def _definite_from(points: Sequence[Row]) -> float | None:
    """Return the grid's sparsity from which on the Hessian of the kept weights has no negative eigenvalue."""
    sparsity = None
    for point in reversed(points):
        if point["schur_hessian"] is None:
            break
        sparsity = point["sparsity"]
    return sparsity
