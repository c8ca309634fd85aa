"""Measure re-tuning for a prediction, in single weights or in every requested pattern."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pruning_limits.group_profile import GroupProfile
from pruning_limits.measured import Bar, Point, crossing
from pruning_limits.metrics import metric_errors
from pruning_limits.pattern_names import UNSTRUCTURED
from pruning_limits.progress import Progress
from pruning_limits.retuning import Beginning, Compared, staged_retuning
from pruning_limits.states import States, fingerprint
from pruning_limits.tuned_points import Tuning

if TYPE_CHECKING:
    from pruning_limits.dense_network import DenseNetwork
    from pruning_limits.pattern_evidence import PatternEvidence

INTERRUPTED = "re-tuning was interrupted, and what was measured before counts; checkpoint= serves to continue"


@dataclass(frozen=True)
class Retuned:
    """What re-tuning reached.

    Attributes:
        tunings: Networks that were measured, by pattern.
        remarks: What is to be said of it.
    """

    tunings: Mapping[str, Tuning] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def passed(self) -> float:
        """What it cost, in samples that an epoch of training passes."""
        return sum(tuning.passed for tuning in self.tunings.values())

    def rows(self, rows: Sequence[PatternEvidence]) -> tuple[PatternEvidence, ...]:
        """Return the evidence of patterns with what re-tuning reached in each."""
        return tuple(replace(row, retuned=self.tunings.get(row.name)) for row in rows)


def gather_retuned(
    dense: DenseNetwork,
    compared: Compared,
    points: Mapping[str, Sequence[Point]],
    progress: Progress,
    checkpoint: str | Path | None,
) -> Retuned:
    """Measure what staged re-tuning reaches in every pattern that is asked for, where it is asked for.

    The patterns share what it may cost evenly, and later ones have what earlier ones left. Each is re-tuned in one
    stage at least.

    Args:
        dense: The network; the structure of its weights holds the groups of the patterns.
        compared: What re-tuned networks are measured by.
        points: Networks pruned in one shot, by pattern.
        progress: See ``predict_limit``.
        checkpoint: See ``predict_limit``.
    """
    asked, losses = dense.settings, dense.losses
    retuning, patterns = asked.retune, asked.pattern
    if retuning is None:
        return Retuned()
    left = dense.budget.retuning if retuning.epochs is None else retuning.epochs * dense.budget.total
    states = States(checkpoint, fingerprint(losses.objective, losses.values, asked))
    tunings = dict[str, Tuning]()
    with metric_errors("held_out" if asked.held_out else "loader") if compared.drop else nullcontext():
        for place, name in enumerate(patterns):
            beginning = _beginning(dense, compared.bar, name, points[name])
            share = left / (len(patterns) - place)
            reached = staged_retuning(
                losses.objective, retuning, compared, beginning, share, asked.seed, progress, states
            )
            if reached.tuning is not None:
                tunings[name] = reached.tuning
                left -= reached.tuning.passed
            if reached.interrupted:
                return Retuned(tunings, (INTERRUPTED,))
    return Retuned(tunings)


def _beginning(dense: DenseNetwork, bar: Bar, name: str, points: Sequence[Point]) -> Beginning:
    profile = dense.profile
    if name != UNSTRUCTURED:
        profile = GroupProfile(profile.weights, profile.structure.groups[name])
    alone = crossing(points, bar, profile.zeros / profile.dimension).low
    width = max(1, round(dense.settings.tolerance * profile.dimension))
    return Beginning(profile, round(alone * profile.dimension), width)
