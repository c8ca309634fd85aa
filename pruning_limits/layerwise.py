r"""Limits of single layers while the others stay dense.

Only the diagonal blocks :math:`H_{ll}` of the curvature enter. The block of a layer is the curvature of the objective
as a function of that layer's weights alone. A product with it leaves the other layers out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from estimators import (
    GGN,
    Hessian,
    Lanczos,
    Objective,
    UserError,
    dense_measure,
    sphere_probes,
)
from pruning_limits.isotropic import Negative, carried_limit, isotropic_limit
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.one_shot import one_shot_limit
from pruning_limits.parts import Estimate
from pruning_limits.recurrences import estimate_of
from pruning_limits.silence import refuse_silence

Kind = Literal["hessian", "ggn"]
CURVATURES: dict[str, type[Hessian] | type[GGN]] = {"hessian": Hessian, "ggn": GGN}


@dataclass(frozen=True)
class LayerLimit:
    """How far one layer can be pruned while the others stay dense.

    Attributes:
        name: Parameter name.
        weights: Number of weights.
        sparsity: Isotropic limit of the layer's diagonal block, as a share of the layer.
        standard_error: Its error from the choice of probes.
        achieved: Measured one-shot sparsity of the layer at the same epsilon, or None.
    """

    name: str
    weights: int
    sparsity: float
    standard_error: float
    achieved: float | None


def layer_limits(
    objective: Objective,
    epsilon: float,
    curvature: Kind = "hessian",
    negative: Negative = "abs",
    samples: int | None = None,
    steps: int = 32,
    probes: int = 1,
    seed: int = 0,
    measure: bool = True,
) -> tuple[LayerLimit, ...]:
    r"""Predict and measure how far each layer can be pruned alone.

    The isotropic equation :math:`s_l = \frac1{n_l} \operatorname{tr} c\,(c + |H_{ll}|)^{-1}` with
    :math:`c = 2\varepsilon/R_l(s_l)^2` is solved for every layer with its own magnitudes.

    Args:
        objective: The training objective on all its data.
        epsilon: Allowed rise of the objective, > 0; every layer may use it up.
        curvature: ``"hessian"`` or ``"ggn"``.
        negative: What a negative eigenvalue counts as, ``"abs"`` or ``"clip"`` (to zero).
        samples: Random data sub-sample for curvature products; None takes all data.
        steps: Lanczos steps per layer; a layer of at most ``steps * probes`` weights is solved densely.
        probes: Random vectors per layer.
        seed: Seed of probes and sub-sample.
        measure: Also measure the one-shot limit of every layer with forward passes over all data.

    Returns:
        One limit per chosen parameter, in the model's order.

    Raises:
        UserError: An argument is out of range, or the GGN is zero for a layer on which the loss depends.
    """
    if steps < 1:
        raise UserError(f"steps: expected at least 1, got {steps}")
    part = objective if samples is None else objective.subset(samples, seed)
    limits = []
    for name, weight in objective.chosen.items():
        if not weight.any():
            limits.append(LayerLimit(name, weight.numel(), 1.0, 0.0, 1.0 if measure else None))
            continue
        profile = MagnitudeProfile({name: weight})
        block = layer_block(part, name, curvature)
        estimate, curve = _estimate(block, steps, probes, seed), profile.curve()
        sparsity = carried_limit(estimate, curve, epsilon, negative)
        error = isotropic_limit(estimate.measure, curve, epsilon, negative).standard_error
        achieved = None
        if measure:
            achieved = one_shot_limit(_alone(objective, name), profile, epsilon)
        limits.append(LayerLimit(name, profile.dimension, sparsity, error, achieved))
    return tuple(limits)


def layer_block(objective: Objective, name: str, kind: Kind) -> Hessian | GGN:
    """Return the diagonal block of the curvature that belongs to one chosen parameter.

    Args:
        objective: The training objective.
        name: Name of the parameter.
        kind: ``"hessian"`` or ``"ggn"``.

    Raises:
        UserError: The kind is unknown.
    """
    if kind not in CURVATURES:
        raise UserError(f"curvature: expected one of {', '.join(CURVATURES)}, got {kind!r}")
    return CURVATURES[kind](_alone(objective, name))


def _alone(objective: Objective, name: str) -> Objective:
    """Return the objective as a function of one chosen parameter."""
    return Objective(objective.model, objective.loader, objective.loss_fn, objective.penalty, name)


def _estimate(block: Hessian | GGN, steps: int, probes: int, seed: int) -> Estimate:
    """Read the spectrum of a block as ``predict_limit`` does; dense where that takes no more products."""
    dimension, samples = block.shape[0], block.objective.samples
    dense = dimension <= steps * probes
    starts = (
        torch.eye(dimension, dtype=block.dtype, device=block.device) if dense else sphere_probes(block, probes, seed)
    )
    images = block.matmat(starts)
    refuse_silence(block, starts, images)
    if dense:
        return Estimate(dense_measure(block, images), samples, dimension, 0.0, 0.0)
    run = Lanczos(block, starts, images=images)
    run.advance(steps)
    penalty = block.objective.penalty
    kind: Kind = "hessian" if isinstance(block, Hessian) else "ggn"
    return estimate_of(kind, run.tridiagonals(vectors=False), dimension, samples, penalty.curvature if penalty else 0.0)
