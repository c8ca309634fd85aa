"""Find weights with zero curvature on which the loss depends, as when the loss is linear."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor

from estimators import GGN, DifferenceGGN, Objective, Operator, Penalty, UserError, sphere_probes

LINEAR = {
    "ggn": ("the GGN", "as of a loss that is linear in the model's outputs (such as the mean absolute error)"),
    "hessian": ("the Hessian", "as of a loss that is linear in the weights, piece by piece"),
}
MOST_NAMES = 3


def curved_weights(penalty: Penalty | None, vectors: Tensor, images: Tensor, kept: Tensor | None = None) -> Tensor:
    """Mark the weights along which the losses curve: where a product is not that of the penalty alone.

    Args:
        penalty: The penalty of the objective.
        vectors: Columns ``[D, K]`` without zeros, such as random ones, or the identity.
        images: The curvature times these columns ``[D, K]``.
        kept: Bool ``[D]``, False for weights that are removed for good; None keeps all.

    Returns:
        Bool ``[D]``.
    """
    curvature = penalty.curvature if penalty else 0.0
    curved = (images != curvature * vectors).any(1)
    return curved if kept is None else kept & curved


def marked_layers(layers: Sequence[str], sizes: Sequence[int], weights: Tensor) -> frozenset[str]:
    """Name the chosen parameters with a marked weight.

    Args:
        layers: Names of the parameters.
        sizes: Their sizes, which sum to D.
        weights: Marks ``[D]``.
    """
    parts = zip(layers, torch.split(weights, list(sizes)), strict=True)
    return frozenset(layer for layer, marks in parts if marks.any())


def acting_layers(objective: Objective, kept: Tensor | None = None) -> frozenset[str]:
    """Name the chosen parameters along which the losses have a gradient, without that of the penalty."""
    acting = objective.gradient()
    acting = acting != (objective.penalty.gradient(objective.vector()) if objective.penalty else 0.0)
    sizes = [weight.numel() for weight in objective.chosen.values()]
    return marked_layers(objective.names, sizes, acting if kept is None else kept & acting)


def silence(
    kind: Literal["hessian", "ggn"], layers: Collection[str], curved: Collection[str], acting: Collection[str]
) -> str:
    """Say of which layers a curvature says nothing although the loss depends on them; empty where there are none.

    Args:
        kind: Which curvature.
        layers: Names of the chosen parameters, in the model's order.
        curved: Those in which the curvature of the losses is not zero.
        acting: Those on which the losses depend.

    Returns:
        The reason, a clause that begins with the name of the matrix.

    Example:
        >>> silence("ggn", ["body", "head"], curved=["body"], acting=["body"])
        ''
        >>> silence("ggn", ["body", "head"], curved=["body"], acting=["body", "head"]).split(", ")[0]
        'the GGN is zero for head'
    """
    silent = [layer for layer in layers if layer in acting and layer not in curved]
    if not silent:
        return ""
    matrix, cause = LINEAR[kind]
    if not curved:
        return f"{matrix} is zero, {cause}"
    names = ", ".join(silent[:MOST_NAMES]) + (", ..." if len(silent) > MOST_NAMES else "")
    return f"{matrix} is zero for {names}, on which the loss depends, {cause}"


def refuse_silence(operator: Operator, vectors: Tensor | None = None, images: Tensor | None = None) -> None:
    """Refuse a GGN that is zero for a layer on which the loss depends; other matrices pass.

    Args:
        operator: The curvature.
        vectors: Columns ``[D, K]`` without zeros; None draws one.
        images: The curvature times these columns ``[D, K]``, if they are given.

    Raises:
        UserError: The GGN says nothing of a layer.
    """
    if not isinstance(operator, GGN | DifferenceGGN):
        return
    if vectors is None or images is None:
        vectors = sphere_probes(operator, 1)
        images = operator.matmat(vectors)
    objective, kept = operator.objective, operator.mask
    curved = marked_layers(objective.names, operator.blocks, curved_weights(objective.penalty, vectors, images, kept))
    if len(curved) == len(objective.names):
        return
    if reason := silence("ggn", objective.names, curved, acting_layers(objective, kept)):
        raise UserError(f"curvature: {reason}; take the Hessian")
