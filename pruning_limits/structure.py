"""Properties of the network that weights belong to: layers, groups, uses per sample, and other parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pruning_limits.pattern_names import UNSTRUCTURED

if TYPE_CHECKING:
    from estimators import Objective
    from pruning_limits.groups import Groups
    from pruning_limits.patterns import Matrix
    from pruning_limits.source import Source


@dataclass(frozen=True, eq=False)
class Structure:
    """What is known of a network beside its prunable weights.

    Attributes:
        matrices: How the weights act as matrices, by parameter name.
        uses: How often each is used for one sample, by parameter name; None where that is unknown.
        others: Number of its parameters that are not prunable.
        other_bytes: Their size.
        groups: Which weights go together, by the name of a pattern.
        source: The network and its data, where they are at hand.
    """

    matrices: Mapping[str, Matrix] = field(default_factory=dict)
    uses: Mapping[str, float | None] = field(default_factory=dict)
    others: int = 0
    other_bytes: int = 0
    groups: Mapping[str, Groups] = field(default_factory=dict)
    source: Source | None = None


def structure_of(objective: Objective, patterns: Sequence[str] = (), source: Source | None = None) -> Structure:
    """Return what is known of the network of an objective, from a forward pass of one batch.

    Args:
        objective: Network and data.
        patterns: Names of patterns whose groups are wanted.
        source: The network and its data, which are to be kept.

    Raises:
        UserError: A pattern fits no layer, or needs a package that is missing.
    """
    from pruning_limits.patterns import groups_of, matrices
    from pruning_limits.weight_uses import weight_uses

    fixed = objective.fixed.values()
    return Structure(
        matrices=matrices(objective.model, objective.chosen),
        uses=weight_uses(objective),
        others=sum(parameter.numel() for parameter in fixed),
        other_bytes=sum(parameter.numel() * parameter.element_size() for parameter in fixed),
        groups={name: groups_of(name, objective) for name in patterns if name != UNSTRUCTURED},
        source=source,
    )
