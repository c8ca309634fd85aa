"""Candidate predictors of the sparsity that re-training reaches, computed without training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from estimators import GGN, Objective, SpectralMeasure
from pruning_limits import MagnitudeProfile, PruningLimit
from pruning_limits.answers import bound, directional, spectral_features
from pruning_limits.epsilon import Allowed
from pruning_limits.evidence import Evidence
from pruning_limits.isotropic import carried_limit
from pruning_limits.parts import Estimate
from validation.studies.limits.forecast_curves import Level, Measured, crossing
from validation.studies.limits.subspaces import Quadratic
from validation.studies.limits.truths import kept_positions, removed_part
from validation.tables.writing import Row

LEAST = 1e-9


def rise_at(points: Sequence[Row], kept: float) -> float | None:
    """Rise of the loss of one-shot pruned networks at a kept fraction; None where it has not risen."""
    rises = np.maximum.accumulate([0.0, *(point["rise"] for point in points)])
    places = [0.0, *(-math.log(point["kept"]) for point in points)]
    rise = float(np.interp(-math.log(kept), places, rises))
    return rise if 0 < rise < math.inf else None


def fitted_epsilon(epsilon: float, loss: float) -> float:
    r"""Allowed rise of a network that fits its data, :math:`L \operatorname{arccosh}(1 + \epsilon/L)^2 / 2`.

    The GGN of cross-entropy is proportional to the loss L, so that it grows on the way, :math:`L'' = \kappa L`.

    Example:
        >>> round(fitted_epsilon(0.001, 1.0), 6), round(fitted_epsilon(0.1, 0.01), 4)
        (0.001, 0.0477)
    """
    return max(loss, LEAST) * math.acosh(1 + epsilon / max(loss, LEAST)) ** 2 / 2


def shifted(estimate: Estimate, shift: float) -> Estimate:
    """Return the estimate of a curvature to which a multiple of the identity is added."""

    def of(measure: SpectralMeasure) -> SpectralMeasure:
        return measure.mapped(lambda nodes: nodes + shift)

    above = None if estimate.above is None else of(estimate.above)
    return dataclasses.replace(estimate, measure=of(estimate.measure), above=above, bracket=None)


def spectral(limit: PruningLimit, epsilon: float, loss: float, shift: float) -> Row:
    """Kept fractions that spectra give at an allowed rise.

    Args:
        limit: Evidence of the network.
        epsilon: Allowed rise of the mean training loss, > 0.
        loss: Mean training loss of the dense network.
        shift: Coefficient of an L2 penalty, which the objective's curvature has more.
    """
    evidence = limit.evidence
    features = spectral_features(evidence, limit.settings, epsilon)
    row: Row = {name.replace(" ", "_"): value for name, value in features.items()} | {
        "hessian_clipped": 1 - carried_limit(evidence.hessian, evidence.curve, epsilon, "clip"),
        "hessian_objective": 1 - carried_limit(shifted(evidence.hessian, shift), evidence.curve, epsilon, "abs"),
    }
    ggn = evidence.ggn
    if ggn is not None:
        fitted = fitted_epsilon(epsilon, loss)
        allowed = Allowed.exactly(epsilon)
        along = directional(evidence, allowed)
        row |= {
            "ggn_fitted": 1 - carried_limit(ggn, evidence.curve, fitted, "clip"),
            "ggn_objective": 1 - carried_limit(shifted(ggn, shift), evidence.curve, epsilon, "clip"),
            "directional": None if along is None else 1 - along,
            "bound": _bound(evidence, allowed, along),
        }
    return row


def _bound(evidence: Evidence, allowed: Allowed, along: float | None) -> float | None:
    """Kept fraction below which hope ends, with the bound's numerical error; None where no bound is established."""
    high = bound(evidence, allowed, along, evidence.already_removed).high
    return None if high is None else 1 - high


def schur(objective: Objective, epsilons: Sequence[float]) -> list[float]:
    """Kept fractions at which the best re-tuned weights of the GGN's quadratic model reach an allowed rise.

    Args:
        objective: The mean loss of a float64 model on all training data.
        epsilons: Allowed rises.
    """
    profile = MagnitudeProfile(objective.chosen)
    model = Quadratic.of(GGN(objective), objective.gradient().cpu().numpy())
    counts = np.unique(np.geomspace(1, profile.dimension, 60).round().astype(int))[::-1]
    rows: list[Row] = []
    for count in counts.tolist():
        sparsity = 1 - count / profile.dimension
        lowest = model.lowest(removed_part(profile, sparsity), kept_positions(profile, sparsity))
        rows.append({"kept": count / profile.dimension, "rise": math.inf if lowest is None else lowest})
    kept = [crossing(rows[1:], Level("", "rise", epsilon)) for epsilon in epsilons]
    return [rows[-1]["kept"] if value is None else value for value in kept]


def levels_of(dense: Measured, fluctuation: float, rises: Sequence[float], drops: Sequence[float]) -> list[Level]:
    """Return the levels of a network.

    Args:
        dense: The dense network.
        fluctuation: Standard deviation of the mean loss of 128 samples, the default of ``predict_limit``.
        rises: Further allowed rises of the mean training loss.
        drops: Allowed falls of the accuracy, as fractions.
    """
    levels = [Level("batch-std", "rise", fluctuation)] + [Level(f"loss +{rise:g}", "rise", rise) for rise in rises]
    for key, where in (("drop", "training"), ("held_out_drop", "held-out")):
        levels += [Level(f"{where} accuracy -{100 * drop:g} points", key, drop) for drop in drops]
    return levels


def predicted(curves: Mapping[str, Sequence[Row]], level: Level) -> Row:
    """Kept fractions that measured curves give at a level, and the rise that belongs to it."""
    row: Row = {name: crossing(points, level) for name, points in curves.items()}
    alone = row["alone"]
    if level.key == "rise":
        row["epsilon"] = level.allowed
    else:
        row["epsilon"] = None if alone is None else rise_at(curves["alone"], alone)
    return row
