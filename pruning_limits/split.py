r"""The best split of a pruning budget over the layers, in the block-diagonal quadratic model.

Removing the smallest weights :math:`d_l` of layer l costs :math:`\frac12 d_l^\top H_{ll} d_l`. The choice neglects the
terms between two layers; the comparison includes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from estimators import Objective, Operator, UserError
from pruning_limits.layerwise import CURVATURES, Kind, layer_block
from pruning_limits.magnitude import MagnitudeProfile, removed_count
from pruning_limits.silence import refuse_silence

GRID = (*(k / 20 for k in range(1, 19)), 0.925, 0.95, 0.965, 0.98, 0.99, 0.995, 0.998, 1.0)


@dataclass(frozen=True)
class LayerCurve:
    """Rise of the objective when one layer is pruned by magnitude.

    Attributes:
        name: Parameter name.
        weights: Number of weights.
        counts: Removed weights, ascending from 0 to all of them.
        rises: Modelled or measured rise at these counts; 0 at the first.
        measured: Whether the rises were measured.
    """

    name: str
    weights: int
    counts: tuple[int, ...]
    rises: tuple[float, ...]
    measured: bool = False


@dataclass(frozen=True)
class Split:
    r"""One distribution of the removed weights over the layers, and what it costs.

    Attributes:
        counts: Removed weights by parameter name.
        block: Rise of the block-diagonal quadratic model, :math:`\frac12 \sum_l d_l^\top H_{ll} d_l`.
        quadratic: The same with the terms between layers, :math:`\frac12 d^\top H d`.
        measured: Rise of the objective, by a forward pass over all its data.
        removed: Amount that goes, in weights or, of a budget in them, in multiply-accumulates.
    """

    counts: dict[str, int]
    block: float
    quadratic: float
    measured: float
    removed: float


@dataclass(frozen=True)
class SplitComparison:
    """The best split of a budget against global magnitude pruning and the same share of every layer.

    Attributes:
        sparsity: Removed fraction of all weights, or of all multiply-accumulates; the same for all up to one weight.
        best: The split with the least modelled rise that was found.
        magnitude: The split of global magnitude pruning.
        uniform: The same removed share of every layer.
    """

    sparsity: float
    best: Split
    magnitude: Split
    uniform: Split


def layer_curves(
    objective: Objective,
    curvature: Kind = "ggn",
    sparsities: Sequence[float] = GRID,
    samples: int | None = None,
    seed: int = 0,
) -> tuple[LayerCurve, ...]:
    r"""Evaluate the rise of each layer's quadratic model at a stationary point, :math:`\frac12 d_l^\top H_{ll} d_l`.

    Args:
        objective: The training objective.
        curvature: ``"ggn"`` or ``"hessian"``.
        sparsities: Where to evaluate every layer, removed fractions of it in (0, 1].
        samples: Random data sub-sample for curvature products; None takes all data.
        seed: Seed of the sub-sample.

    Returns:
        One curve per chosen parameter, in the model's order; it always reaches to all weights.

    Raises:
        UserError: A sparsity is out of range, or the GGN is zero for a layer on which the loss depends.
    """
    counts = {
        name: sorted({removed_count(s, weight.numel()) for s in (0.0, *sparsities, 1.0)})
        for name, weight in objective.chosen.items()
    }
    rises = _block_rises(objective, curvature, counts, samples, seed)
    return tuple(
        LayerCurve(name, objective.chosen[name].numel(), tuple(counts[name]), tuple(layer))
        for name, layer in zip(counts, rises, strict=True)
    )


def best_split(curves: Sequence[LayerCurve], count: float, uses: Mapping[str, float] | None = None) -> dict[str, int]:
    r"""Minimise :math:`\sum_l \mathrm{rise}_l(m_l)` subject to :math:`\sum_l u_l m_l \ge m`.

    Every curve is replaced by its lower convex hull; taking the pieces of all hulls by rising slope is then exact, the
    slope of the last piece being the Lagrange multiplier. At most one layer ends between two points of its curve. With
    uses the last weight may remove a little more than m.

    Args:
        curves: One curve per layer.
        count: Number m of weights to remove in all; with uses, of multiply-accumulates.
        uses: How often a weight of a layer is used for one sample, > 0, by parameter name, see ``weight_uses``; None
            counts every weight once.

    Returns:
        Removed weights by parameter name; without uses they sum to ``count``.

    Raises:
        UserError: ``count`` is negative or more than the curves reach to.

    Source: Everett 1963; Shoham and Gersho, Efficient bit allocation for an arbitrary set of quantizers, 1988.

    Example:
        >>> flat, steep = (LayerCurve(n, 2, (0, 1, 2), r) for n, r in (("a", (0.0, 1.0, 4.0)), ("b", (0.0, 2.0, 9.0))))
        >>> best_split([flat, steep], 2)
        {'a': 1, 'b': 1}
    """
    amount = {curve.name: 1.0 if uses is None else uses[curve.name] for curve in curves}
    total = sum(curve.counts[-1] * amount[curve.name] for curve in curves)
    if not 0 <= count <= total:
        of = "weights" if uses is None else "multiply-accumulates"
        raise UserError(f"count: expected 0 to {total:,.0f} {of} to remove, got {count:,.0f}")
    pieces = []
    for layer, curve in enumerate(curves):
        corners = _hull(curve.counts, curve.rises)
        for (start, low), (end, high) in pairwise(corners):
            pieces.append(((high - low) / ((end - start) * amount[curve.name]), layer, end - start))
    split, left = {curve.name: 0 for curve in curves}, float(count)
    for _, layer, size in sorted(pieces):
        each = amount[curves[layer].name]
        taken = min(size, math.ceil(left / each - 1e-9)) if left > 0 else 0
        split[curves[layer].name] += taken
        left -= taken * each
    return split


def compare_splits(
    objective: Objective,
    sparsity: float,
    curves: Sequence[LayerCurve] | None = None,
    curvature: Kind = "ggn",
    samples: int | None = None,
    seed: int = 0,
    uses: Mapping[str, float] | None = None,
) -> SplitComparison:
    """Compare the best split of a budget with global magnitude pruning and with the same share of every layer.

    Within a layer all remove the smallest weights. They are compared by model and by measurement.

    Args:
        objective: The training objective on all its data.
        sparsity: Removed fraction of all weights, in [0, 1]; with uses, of all multiply-accumulates.
        curves: What ``layer_curves`` returned for the same objective, or ``sensitivity.curves_of`` for measured rises
            in the place of modelled ones; None computes them.
        curvature: ``"ggn"`` or ``"hessian"``.
        samples: Random data sub-sample for curvature products; None takes all data.
        seed: Seed of the sub-sample.
        uses: How often a weight of a layer is used for one sample, by parameter name, see ``weight_uses``; the budget
            is then one of multiply-accumulates.

    Returns:
        The splits with their modelled and measured rises.

    Raises:
        UserError: The sparsity is out of range, or uses are not known of every layer.
    """
    profile = MagnitudeProfile(objective.chosen)
    sizes = {name: weight.numel() for name, weight in profile.weights.items()}
    amount = _amounts(sizes, uses)
    whole = sum(size * amount[name] for name, size in sizes.items())
    wanted = removed_count(sparsity, profile.dimension) if uses is None else sparsity * whole
    curves = layer_curves(objective, curvature, samples=samples, seed=seed) if curves is None else curves
    splits = [best_split(curves, wanted, uses), _global(profile, wanted, amount), _uniform(sizes, wanted, amount)]
    counts = {name: [split[name] for split in splits] for name in objective.names}
    layers = _block_rises(objective, curvature, counts, samples, seed)
    blocks = [math.fsum(rises) for rises in zip(*layers, strict=True)]
    removed = torch.stack(
        [torch.cat([_smallest(weight, split[name]) for name, weight in objective.chosen.items()]) for split in splits],
        dim=1,
    )
    part = objective if samples is None else objective.subset(samples, seed)
    rises = _rises(CURVATURES[curvature](part), removed)
    start = objective.value()
    best, magnitude, uniform = (
        Split(
            split,
            block,
            quadratic,
            objective.value(profile.vector - column) - start,
            sum(count * amount[name] for name, count in split.items()),
        )
        for split, block, quadratic, column in zip(splits, blocks, rises, removed.unbind(1), strict=True)
    )
    if not any(curve.measured for curve in curves):
        best = min(best, magnitude, key=lambda split: split.block)
    return SplitComparison(wanted / whole, best, magnitude, uniform)


def _amounts(sizes: Mapping[str, int], uses: Mapping[str, float] | None) -> dict[str, float]:
    """Return what a removed weight of every layer counts."""
    if uses is None:
        return dict.fromkeys(sizes, 1.0)
    unknown = [name for name in sizes if not (uses.get(name) or 0.0) > 0]
    if unknown:
        raise UserError(f"uses: expected a positive number for {unknown[0]}, got {uses.get(unknown[0])}")
    return {name: uses[name] for name in sizes}


def _global(profile: MagnitudeProfile, wanted: float, amount: Mapping[str, float]) -> dict[str, int]:
    """Return the split of global magnitude pruning that removes so much, up to one weight."""
    parts = [torch.full((weight.numel(),), amount[name]).double() for name, weight in profile.weights.items()]
    spent = torch.cat(parts).to(profile.order.device)[profile.order].cumsum(0)
    count = int((spent < wanted - 1e-9 * float(spent[-1])).sum()) + (wanted > 0)
    return {name: int((~mask).sum()) for name, mask in profile.masks(count / profile.dimension).items()}


def _uniform(sizes: Mapping[str, int], wanted: float, amount: Mapping[str, float]) -> dict[str, int]:
    """Return the split of the same share of every layer that removes so much, up to one weight."""
    whole = sum(size * amount[name] for name, size in sizes.items())
    split = {name: math.floor(size * wanted / whole + 1e-9) for name, size in sizes.items()}
    left = wanted - sum(count * amount[name] for name, count in split.items())
    for name in sorted(sizes, key=lambda name: split[name] - sizes[name] * wanted / whole):  # most is cut off first
        if left > 1e-9 * whole and split[name] < sizes[name]:
            split[name] += 1
            left -= amount[name]
    return split


def _smallest(weight: Tensor, count: int) -> Tensor:
    """Return the part of one parameter that magnitude pruning removes, flat."""
    flat = weight.reshape(-1)
    part = torch.zeros_like(flat)
    index = torch.sort(flat.abs(), stable=True).indices[:count]
    part[index] = flat[index]
    return part


def _block_rises(
    objective: Objective, kind: Kind, counts: Mapping[str, Sequence[int]], samples: int | None, seed: int
) -> list[list[float]]:
    """Return the rises at the wanted counts, layer by layer."""
    part = objective if samples is None else objective.subset(samples, seed)
    rises = []
    for name, wanted in counts.items():
        removed = torch.stack([_smallest(part.chosen[name], count) for count in wanted], dim=1)
        block = layer_block(part, name, kind)
        refuse_silence(block)
        rises.append(_rises(block, removed))
    return rises


def _rises(operator: Operator, removed: Tensor) -> list[float]:
    """Quadratic rise of every column of removed weights."""
    rises: list[float] = (0.5 * (removed.double() * operator.matmat(removed).double()).sum(0)).tolist()
    return rises


def _hull(counts: Sequence[int], rises: Sequence[float]) -> list[tuple[int, float]]:
    """Return the corners of the lower convex hull of points sorted by count."""
    corners: list[tuple[int, float]] = []
    for x, y in zip(counts, rises, strict=True):
        while len(corners) > 1:
            (x0, y0), (x1, y1) = corners[-2:]
            if (y1 - y0) * (x - x0) < (y - y0) * (x1 - x0):
                break
            corners.pop()
        corners.append((x, y))
    return corners
