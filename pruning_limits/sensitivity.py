"""The loss of every layer when it alone is pruned, measured sample by sample against the dense network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from estimators import Objective, UserError
from estimators.samples import shrinking
from estimators.substitution import without_zero_units
from estimators.user_code import plain_modes
from pruning_limits.group_profile import GroupProfile
from pruning_limits.groups import Groups
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.measured import Point
from pruning_limits.settings import checked, numbers
from pruning_limits.split import LayerCurve

SHARES = "numbers in (0, 1], removed shares of a layer"
SPARSITIES = (0.5, 0.7, 0.9)
SAMPLES = 2048
MOST_BYTES = 256 << 20  # of pruned layers that one pass serves


@dataclass(frozen=True)
class LayerSensitivity:
    """What is lost when one layer is pruned and all others stay dense.

    Attributes:
        name: Parameter name.
        weights: Number of its weights.
        macs: Multiply-accumulates of the layer for one sample, or None where they are unknown.
        points: What was measured, by rising sparsity, which is the removed share of the layer; ``rise_error`` and
            ``drop_error`` are paired standard errors, as those on all samples there might be.
        samples: Number of samples that it was measured on.
    """

    name: str
    weights: int
    macs: float | None
    points: tuple[Point, ...]
    samples: int

    @property
    def sensitivity(self) -> float:
        """Rise at the largest measured sparsity, by which layers are sorted; infinite where a loss is not finite."""
        return self.points[-1].rise if self.points else 0.0


def layer_sensitivities(
    objective: Objective,
    metric: Objective | None = None,
    sparsities: Sequence[float] = SPARSITIES,
    samples: int | None = SAMPLES,
    groups: Groups | None = None,
    uses: Mapping[str, float | None] | None = None,
    seed: int = 0,
) -> tuple[LayerSensitivity, ...]:
    """Prune every layer alone to a few sparsities and measure what is lost.

    Pruned and dense network see the same samples. A batch is passed once for as many pruned layers as fit into 256 MiB.
    A penalty counts by its rise.

    Args:
        objective: The objective on all its data.
        metric: Per-sample values of the metric on its data, larger is better, or None.
        sparsities: Removed shares of a layer in (0, 1]; a pattern of one sparsity takes its own.
        samples: Size of the random draw that is measured on; None takes all data.
        groups: Groups of N:M or blocks, whose patterns the layers are pruned in; None prunes single weights.
        uses: How often weights are used for one sample, by parameter name, see ``weight_uses``.
        seed: Seed of the draw.

    Returns:
        One entry per layer that the pattern fits, the most sensitive first.

    Raises:
        UserError: A sparsity is out of range, or layers share groups.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> data = [(torch.randn(64, 4), torch.randint(0, 2, (64,)))]
        >>> sorted(row.name for row in layer_sensitivities(Objective(model, data)))
        ['0.weight', '2.weight']
    """
    sparsities = numbers("sparsities", sparsities, SHARES, lambda own: 0 < own <= 1)
    samples = checked("samples", samples)
    if groups is not None and groups.pattern.kind in ("channels", "heads"):
        raise UserError(f"layers: those of {groups.pattern.name} share groups; measure single weights, N:M or blocks")
    part = objective if samples is None else objective.subset(samples, seed)
    held = None if metric is None else metric if samples is None else metric.subset(samples, seed)
    trials = [trial for name in part.names for trial in _trials(name, part.chosen[name], sparsities, groups)]
    rises = _differences(part, trials, 1)
    drops = [None] * len(trials) if held is None else _differences(held, trials, -1)
    points: dict[str, list[Point]] = {name: [] for name, *_ in trials}
    for (name, sparsity, _), (rise, rise_error), drop in zip(trials, rises, drops, strict=True):
        fall, fall_error = (None, None) if drop is None else drop
        points[name].append(Point(sparsity, rise, rise_error, fall, fall_error))
    rows = [
        LayerSensitivity(
            name=name,
            weights=objective.chosen[name].numel(),
            macs=None if (often := (uses or {}).get(name)) is None else often * objective.chosen[name].numel(),
            points=tuple(measured),
            samples=part.samples,
        )
        for name, measured in points.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.sensitivity))


def pruned_layer(weight: Tensor, name: str, sparsity: float, groups: Groups | None = None) -> tuple[float, Tensor]:
    """Return one parameter pruned alone, and the share of it that goes.

    Args:
        weight: The parameter.
        name: Its name.
        sparsity: Wanted removed share, in (0, 1].
        groups: Groups of a pattern, or None for single weights.

    Returns:
        The share of the exact count, and the weights with zeros.
    """
    profile = MagnitudeProfile({name: weight}) if groups is None else GroupProfile({name: weight}, groups)
    most = float(profile.counts[-1] / profile.dimension) if isinstance(profile, GroupProfile) else 1.0
    count = profile.count(min(sparsity, most))
    share = count / profile.dimension
    return share, weight * profile.masks(share)[name]


def curves_of(rows: Sequence[LayerSensitivity]) -> list[LayerCurve]:
    """Return measured sensitivities as curves for ``split.best_split``, in the order of the rows.

    They begin at no weight and no rise, and end where the layers were measured last.

    Args:
        rows: What ``layer_sensitivities`` returned.
    """
    curves = []
    for row in rows:
        points = [point for point in row.points if math.isfinite(point.rise)]
        counts = (0, *(round(point.sparsity * row.weights) for point in points))
        curves.append(LayerCurve(row.name, row.weights, counts, (0.0, *(point.rise for point in points)), True))
    return curves


Trial = tuple[str, float, Tensor]


def _trials(name: str, weight: Tensor, sparsities: Sequence[float], groups: Groups | None) -> Iterator[Trial]:
    """Yield a layer pruned to its sparsities, each once; nothing of a layer that is zero or that does not fit."""
    if not weight.any() or (groups is not None and not groups.of(name, weight)):
        return
    shares = set[float]()
    for sparsity in sorted(sparsities):
        share, pruned = pruned_layer(weight, name, sparsity, groups)
        if share not in shares:
            shares.add(share)
            yield name, share, pruned


def _differences(part: Objective, trials: Sequence[Trial], sign: int) -> list[tuple[float, float]]:
    """Return the mean difference of every pruned layer and its paired standard error."""
    dense, sizes = part.sample_losses()
    results = []
    for chunk in _chunks(trials):
        values = _losses_at(part, chunk)
        if any(len(value) != len(dense) for value in values):  # memory ran out and batches were split
            dense, sizes = part.sample_losses()
        for (name, _, pruned), value in zip(chunk, values, strict=True):
            difference = sign * (value - dense)
            if not bool(difference.isfinite().all()):
                results.append((math.inf, 0.0))
                continue
            mean = float((difference * sizes).sum() / sizes.sum())
            error = float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
            results.append((mean + sign * _penalty(part, name, pruned), error))
    return results


def _chunks(trials: Sequence[Trial]) -> Iterator[list[Trial]]:
    chunk, size = list[Trial](), 0
    for trial in trials:
        grown = size + trial[2].numel() * trial[2].element_size()
        if chunk and grown > MOST_BYTES:
            yield chunk
            chunk, grown = [], trial[2].numel() * trial[2].element_size()
        chunk, size = [*chunk, trial], grown
    if chunk:
        yield chunk


@shrinking
@plain_modes()
@torch.no_grad()
def _losses_at(part: Objective, trials: Sequence[Trial]) -> list[Tensor]:
    """Return the losses of every pruned layer in loader order, from one pass over the data."""
    chosen = part.chosen
    losses: list[list[Tensor]] = [[] for _ in trials]
    with part.one_pass(*(pruned for *_, pruned in trials)):
        for batch, _ in part.batches():
            for (name, _, pruned), row in zip(trials, losses, strict=True):
                at = {**chosen, name: pruned}
                with without_zero_units(at.values()):
                    row.append(part.losses(at, batch).double().cpu().reshape(-1))
    return [part.data.in_loader_order(row) for row in losses]


def _penalty(part: Objective, name: str, pruned: Tensor) -> float:
    if part.penalty is None:
        return 0.0
    return part.penalty_value({**part.chosen, name: pruned}) - part.penalty_value(part.chosen)
