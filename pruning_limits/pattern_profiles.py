"""The weights of a network in the order in which a pattern removes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from estimators import UserError
from pruning_limits.group_profile import GroupProfile
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.pattern_gathering import pattern_row, with_patterns
from pruning_limits.pattern_names import UNSTRUCTURED, Pattern, parsed
from pruning_limits.patterns import Matrix, blocks, matrices, runs

if TYPE_CHECKING:
    from pruning_limits.evidence import Evidence
    from pruning_limits.groups import Groups
    from pruning_limits.result import PruningLimit


def other_pattern(
    evidence: Evidence, profile: MagnitudeProfile | None, name: str
) -> tuple[Evidence, MagnitudeProfile | None]:
    """Return evidence and weights of another pattern.

    Args:
        evidence: What was computed.
        profile: The weights of the present pattern, or None.
        name: The other one.

    Raises:
        UserError: It was not asked for and cannot be grouped from the weights alone.
    """
    single = None if profile is None else _single(profile)
    if name == UNSTRUCTURED or any(row.name == name for row in evidence.patterns):
        return evidence.of(name), None if single is None else _profile(single, name)
    pattern = parsed(name)
    if single is None or pattern.kind in ("channels", "heads"):
        raise UserError(f"pattern: nothing is known of {name} here; predict it with pattern={name!r}")
    of_groups = _profile(single, name)
    assert isinstance(of_groups, GroupProfile)
    return with_patterns(evidence, (pattern_row(of_groups),)).of(name), of_groups


def profile_for(limit: PruningLimit, model: nn.Module, weights: Mapping[str, Tensor]) -> MagnitudeProfile:
    """Return the weights of a network of the same layers in the order in which the limit's pattern removes them.

    Args:
        limit: A limit.
        model: The network.
        weights: Its weights by parameter name.

    Raises:
        UserError: The limit is one of channels or heads from a file, so that its groups are not at hand.
    """
    groups = groups_for(limit, model, weights)
    return MagnitudeProfile(weights) if groups is None else GroupProfile(weights, groups)


def groups_for(limit: PruningLimit, model: nn.Module, weights: Mapping[str, Tensor]) -> Groups | None:
    """Return the groups of a limit's pattern in a network of the same layers; None of single weights.

    Args:
        limit: A limit.
        model: The network.
        weights: Its weights by parameter name.

    Raises:
        UserError: The limit is one of channels or heads from a file, so that its groups are not at hand.
    """
    pattern = parsed(limit.pattern)
    if pattern.name == UNSTRUCTURED:
        return None
    if limit.profile is not None and limit.pattern in limit.profile.structure.groups:
        return limit.profile.structure.groups[limit.pattern]
    if pattern.kind in ("channels", "heads"):
        raise UserError(f"prune: this limit holds no groups of {limit.pattern}; predict it again in this process")
    return _grouped(pattern, weights, matrices(model, weights))


def _single(profile: MagnitudeProfile) -> MagnitudeProfile:
    if not isinstance(profile, GroupProfile):
        return profile
    single = MagnitudeProfile(profile.weights)
    single.structure = profile.structure
    return single


def _profile(single: MagnitudeProfile, name: str) -> MagnitudeProfile:
    if name == UNSTRUCTURED:
        return single
    known = single.structure
    if name not in known.groups:
        groups = _grouped(parsed(name), single.weights, known.matrices)
        known = single.structure = replace(known, groups={**known.groups, name: groups})
    result = GroupProfile(single.weights, known.groups[name])
    result.structure = known
    return result


def _grouped(pattern: Pattern, weights: Mapping[str, Tensor], layers: Mapping[str, Matrix]) -> Groups:
    return (runs if pattern.fixed else blocks)(pattern, weights, layers)
