"""Evidence about one pattern of pruning: its R(s), and the measured effect of one-shot pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pruning_limits.pattern_names import UNSTRUCTURED, parsed

if TYPE_CHECKING:
    from pruning_limits.directions import Directions
    from pruning_limits.magnitude_curve import MagnitudeCurve
    from pruning_limits.measured import Point
    from pruning_limits.model_points import ModelPoint
    from pruning_limits.saving import Saving
    from pruning_limits.tuned_points import Tuning


@dataclass(frozen=True, eq=False)
class PatternEvidence:
    """What was computed about one pattern; the spectra are those of the network and serve all patterns.

    Attributes:
        name: The pattern.
        curve: R(s)^2 of what the pattern removes.
        most: Largest sparsity of the pattern, in all prunable weights.
        already_removed: Sparsity of the pattern in the network as it is.
        points: Networks pruned in one shot in this pattern, by rising sparsity; empty where nothing was measured.
        groups: Number of groups; of single weights that of the weights.
        left: Why layers are left dense, pairs of a parameter's name and a reason.
        ragged: Number of weights in groups that are smaller than the pattern's.
        directions: Of single weights, where the removed ones point; None of others.
        model_points: Of single weights, the quadratic model along the removed ones; empty of others.
        savings: What is left of the network, by rising sparsity.
        retuned: Networks pruned in this pattern in stages and re-tuned, or None.
    """

    name: str
    curve: MagnitudeCurve
    most: float
    already_removed: float
    points: tuple[Point, ...]
    groups: int
    left: tuple[tuple[str, str], ...] = ()
    ragged: int = 0
    directions: Directions | None = None
    model_points: tuple[ModelPoint, ...] = ()
    savings: tuple[Saving, ...] = ()
    retuned: Tuning | None = None

    @property
    def fixed(self) -> bool:
        """Whether the pattern has one sparsity only, ``most``."""
        return parsed(self.name).fixed

    @property
    def structured(self) -> bool:
        """Whether weights go in groups."""
        return self.name != UNSTRUCTURED

    def scaled(self, weight_scale: float, curvature_scale: float) -> PatternEvidence:
        """Return the evidence of scaled weights and a scaled curvature, see ``Evidence.scaled``."""
        factor = weight_scale**2 * curvature_scale
        return replace(
            self,
            curve=self.curve.scaled(weight_scale),
            points=tuple(point.scaled(factor) for point in self.points),
            directions=None if self.directions is None else self.directions.scaled(weight_scale, curvature_scale),
            model_points=tuple(point.scaled(factor) for point in self.model_points),
            retuned=None,
        )


def pattern_notes(own: PatternEvidence | None) -> list[str]:
    """Say which layers a pattern leaves dense, and which of its groups are smaller.

    Args:
        own: What was computed about it; None of single weights.
    """
    return [] if own is None else group_notes(own.name, own.left, own.ragged)


def group_notes(name: str, left: Sequence[tuple[str, str]], ragged: int) -> list[str]:
    """Say the same of groups of weights.

    Args:
        name: The pattern.
        left: Why layers are left dense, pairs of a parameter's name and a reason.
        ragged: Number of weights in groups that are smaller than the pattern's.

    Example:
        >>> group_notes("2:4", [("0.weight", "3 inputs are no multiple of 4")], 0)
        ['2:4 leaves 1 layer dense (0.weight: 3 inputs are no multiple of 4)']
    """
    notes = []
    if left:
        named = "; ".join(f"{layer}: {reason}" for layer, reason in left[:3])
        more = f"; and {len(left) - 3} more" if len(left) > 3 else ""
        notes.append(f"{name} leaves {len(left)} {'layer' if len(left) == 1 else 'layers'} dense ({named}{more})")
    if ragged:
        notes.append(f"{ragged:,} weights are in smaller {name.partition(':')[0]} at the edges of layers")
    return notes
