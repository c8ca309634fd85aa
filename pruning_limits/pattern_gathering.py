"""Compute the evidence about the patterns of a prediction: groups, R(s), and one-shot pruning in each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pruning_limits.group_profile import GroupProfile
from pruning_limits.groups import Groups
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.measured import Bar, Point
from pruning_limits.one_shot import PairedDifferences, bracket_width, deciding_of
from pruning_limits.pattern_evidence import PatternEvidence
from pruning_limits.pattern_names import UNSTRUCTURED
from pruning_limits.pattern_points import pattern_points
from pruning_limits.savings import savings_of

if TYPE_CHECKING:
    from pruning_limits.dense_network import DenseNetwork
    from pruning_limits.evidence import Evidence
    from pruning_limits.settings import Settings


@dataclass(frozen=True, eq=False)
class Patterns:
    """What was computed about patterns of groups.

    Attributes:
        rows: One for every pattern.
        profile: The weights by magnitude, with the groups of the patterns.
        samples: Number of samples that were passed for it.
    """

    rows: tuple[PatternEvidence, ...]
    profile: MagnitudeProfile
    samples: int

    def beside(self, evidence: Evidence) -> Evidence:
        """Return the evidence of single weights with that of the patterns beside it; unchanged where there are none."""
        evidence = replace(evidence, savings=savings_of(self.profile))
        return with_patterns(evidence, self.rows) if self.rows else evidence


def with_patterns(evidence: Evidence, rows: tuple[PatternEvidence, ...]) -> Evidence:
    """Return evidence with further patterns; single weights are among them.

    Args:
        evidence: What was computed.
        rows: Evidence of patterns of groups.
    """
    if evidence.patterns:
        return replace(evidence, patterns=(*evidence.patterns, *rows))
    single = PatternEvidence(
        name=UNSTRUCTURED,
        curve=evidence.curve,
        most=1.0,
        already_removed=evidence.already_removed,
        points=evidence.points,
        groups=evidence.parameters,
        directions=evidence.directions,
        model_points=evidence.model_points,
        savings=evidence.savings,
        retuned=evidence.retuned,
    )
    return replace(evidence, patterns=(single, *rows))


def gather_patterns(dense: DenseNetwork, drop: PairedDifferences | None, bar: Bar, asked: Settings) -> Patterns:
    """Measure one-shot pruning in every pattern that is asked for.

    Args:
        dense: The network; the structure of its weights holds the groups.
        drop: Its metric, or None.
        bar: What may be lost.
        asked: What is asked for.
    """
    profile, samples = dense.profile, 0
    rows = []
    for groups in profile.structure.groups.values():
        of_groups = GroupProfile(profile.weights, groups)
        of_groups.structure = profile.structure
        points: tuple[Point, ...] = ()
        if asked.measure:
            losses = dense.losses
            rise = PairedDifferences(dense.draws, of_groups, (losses.values, losses.sizes), total=losses.total)
            lost = None if drop is None else PairedDifferences(drop.draws, of_groups, (drop.values, drop.sizes), -1)
            width = bracket_width(deciding_of(rise, lost, bar), asked.tolerance)
            points = pattern_points(rise, lost, bar, width)
            samples += rise.samples + (0 if lost is None else lost.samples)
        rows.append(pattern_row(of_groups, points))
    return Patterns(tuple(rows), profile, samples)


def pattern_row(profile: GroupProfile, points: tuple[Point, ...] = ()) -> PatternEvidence:
    """Return the evidence of a pattern.

    Args:
        profile: The weights in the order in which the pattern removes them.
        points: What was measured.
    """
    groups: Groups = profile.groups
    return PatternEvidence(
        name=groups.pattern.name,
        curve=profile.curve(),
        most=profile.most,
        already_removed=profile.zeros / profile.dimension,
        points=points,
        groups=groups.count,
        left=tuple(groups.left.items()),
        ragged=groups.ragged,
        savings=savings_of(profile),
    )
