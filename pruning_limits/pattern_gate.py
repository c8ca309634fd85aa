"""Recognise the pattern of a pruned network by its zeros, and judge it in the gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruning_limits.pattern_answers import NOT_MEASURED
from pruning_limits.pattern_names import UNSTRUCTURED

if TYPE_CHECKING:
    from torch import Tensor

    from pruning_limits.gate import Status
    from pruning_limits.groups import Groups
    from pruning_limits.result import PruningLimit

STRAY = 0.001  # share of the zeros that may lie outside groups that are zero as a whole, by accident
MOST_NAMED = 3


@dataclass(frozen=True)
class Fit:
    """How the zeros of a network fit a pattern.

    Attributes:
        misfits: By parameter name, how many of how many groups do not fit: runs that keep too many weights, or zeros
            outside groups that are zero as a whole.
        fits: Whether the zeros are those of the pattern.
    """

    misfits: dict[str, tuple[int, int]]
    fits: bool

    def reason(self, groups: Groups) -> str:
        """Say in one sentence how the zeros fit."""
        pattern = groups.pattern
        if self.fits:
            left = f"; {len(groups.left)} layers that do not fit are left out" if groups.left else ""
            return f"the zeros are those of {pattern.name}{left}"
        named = list(self.misfits.items())
        what = "runs keep more" if pattern.fixed else "zeros are no part of a group that is zero"
        parts = [f"{name}: {wrong:,} of {all_of:,} {what}" for name, (wrong, all_of) in named[:MOST_NAMED]]
        more = f"; and {len(named) - MOST_NAMED} more layers" if len(named) > MOST_NAMED else ""
        return f"the zeros are not those of {pattern.name} ({'; '.join(parts) or 'nothing is zero'}{more})"


def fit_of(groups: Groups, pruned: Mapping[str, Tensor]) -> Fit:
    """Tell how the zeros of a network fit a pattern.

    Of N:M every run of M inputs keeps at most N weights in every layer that fits; of others the zeros are groups that
    are zero as a whole, but for one of a thousand.

    Args:
        groups: Groups of the pattern.
        pruned: Weights of the network by parameter name.
    """
    misfits = dict(_runs(groups, pruned) if groups.pattern.fixed else _strays(groups, pruned))
    if groups.pattern.fixed:
        return Fit(misfits, not misfits)
    zeros = sum(int((weight == 0).sum()) for weight in pruned.values())
    strays = sum(wrong for wrong, _ in misfits.values())
    return Fit(misfits, zeros > 0 and strays <= STRAY * zeros)


def pattern_of(groups: Mapping[str, Groups], pruned: Mapping[str, Tensor]) -> str:
    """Return the first pattern that the zeros of a network fit; that of single weights where they fit none.

    Args:
        groups: Groups by the name of their pattern.
        pruned: Weights of the network by parameter name.

    Example:
        >>> import torch
        >>> from pruning_limits.patterns import Matrix, runs
        >>> from pruning_limits.pattern_names import parsed
        >>> weights = {"w": torch.tensor([[1.0, 0.0, 0.0, 2.0]])}
        >>> pattern_of({"2:4": runs(parsed("2:4"), weights, {"w": Matrix(0, 1)})}, weights)
        '2:4'
    """
    return next((name for name, part in groups.items() if fit_of(part, pruned).fits), UNSTRUCTURED)


def _runs(groups: Groups, pruned: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[int, int]]]:
    import torch

    assert groups.pattern.sizes is not None
    kept, _ = groups.pattern.sizes
    for name, weight in pruned.items():
        for ids in groups.of(name, weight):
            _, numbers = torch.unique(ids, return_inverse=True)
            there = torch.zeros(int(numbers.max()) + 1, dtype=torch.int64, device=weight.device)
            there.index_add_(0, numbers.reshape(-1), (weight != 0).long().reshape(-1))
            if wrong := int((there > kept).sum()):
                yield name, (wrong, len(there))


def _strays(groups: Groups, pruned: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the zeros that are no part of a group that is zero as a whole."""
    import torch

    alive = torch.zeros(groups.count + 1, dtype=torch.bool)
    for name, weight in pruned.items():
        for ids in groups.of(name, weight):
            alive[ids[weight != 0].cpu()] = True  # the last entry is that of weights in no group
    alive[-1] = True
    for name, weight in pruned.items():
        zero = (weight == 0).cpu()
        explained = torch.zeros_like(zero)
        for ids in groups.of(name, weight):
            explained |= ~alive[ids.cpu()]
        if wrong := int((zero & ~explained).sum()):
            yield name, (wrong, int(zero.sum()))


def pattern_sparsity(limit: PruningLimit, holds: bool, decides: str) -> tuple[Status, str] | None:
    """Judge the sparsity of a network that is pruned in a pattern of one sparsity, or in one that was not measured.

    Args:
        limit: The limit of that pattern.
        holds: Whether what decides holds.
        decides: Its name.

    Returns:
        Status and reason; None where the words for single weights serve.
    """
    own = limit.evidence.own
    if own is None or limit.evidence.dense.at_chance:
        return None
    measured = f"the {decides} was measured to hold"
    if limit.answer("one-shot").sparsity is None:
        if holds:
            return "achievable", f"{own.name}: what pruning reaches alone was {NOT_MEASURED}; {measured}"
        return "open", f"{own.name}: what pruning reaches alone was {NOT_MEASURED}"
    if not own.fixed:
        return None
    verdict = limit.check()
    if verdict.status == "achievable":
        return "achievable", f"in reach by pruning alone: {verdict.reason}"
    if holds:
        return "achievable", f"by pruning alone {verdict.reason}; {measured}"
    return "open", f"by pruning alone {verdict.reason}"
