"""Count what pruning saves from the removed weights: parameters, multiply-accumulates and bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pruning_limits.group_profile import GroupProfile
from pruning_limits.groups import NONE
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.magnitude_curve import Floats
from pruning_limits.saving import Saving, sparsity_within

INDEX_BYTES = 4
KNOTS = 65


def savings_of(profile: MagnitudeProfile, counts: Iterable[int] | None = None) -> tuple[Saving, ...]:
    """Count what is left of a network when so many of its weights are removed.

    Args:
        profile: The weights in the order in which they go, with the structure of their network.
        counts: Numbers of removed weights that the pattern allows, rising; None takes some from none to all.

    Returns:
        One row per number.
    """
    return _Counter(profile).rows(_some(profile) if counts is None else list(counts))


def sparsity_for(profile: MagnitudeProfile, quantity: str, share: float) -> float:
    """Return the least sparsity at which no more than a share of the dense network's quantity remains, exactly.

    Args:
        profile: The weights in the order in which they go.
        quantity: ``"parameters"``, ``"macs"`` or ``"bytes"``.
        share: Share that may remain, in (0, 1).

    Raises:
        UserError: As ``saving.sparsity_within``.
    """
    counter = _Counter(profile)
    allowed = _allowed(profile)
    low, high = sparsity_within(counter.rows(_some(profile)), quantity, share)
    first, last = (int(np.searchsorted(allowed, round(end * profile.dimension))) for end in (low, high))
    (dense,) = counter.rows([0])
    whole = dense.dense_bytes if quantity == "bytes" else getattr(dense, quantity)
    while last - first > 1:
        middle = (first + last) // 2
        (row,) = counter.rows([int(allowed[middle])])
        first, last = (first, middle) if getattr(row, quantity) <= share * whole else (middle, last)
    (row,) = counter.rows([int(allowed[first])])
    place = first if getattr(row, quantity) <= share * whole else last
    return float(allowed[place] / profile.dimension)


def _allowed(profile: MagnitudeProfile) -> NDArray[np.int64]:
    """Numbers of removed weights that can be had."""
    if isinstance(profile, GroupProfile):
        return profile.counts
    return np.arange(profile.dimension + 1)


def _some(profile: MagnitudeProfile) -> list[int]:
    allowed = _allowed(profile)
    places = np.unique(np.linspace(0, len(allowed) - 1, min(KNOTS, len(allowed))).round().astype(np.int64))
    return [int(count) for count in allowed[places]]


class _Counter:
    """Counts what is left, from the ranks of every layer's weights."""

    def __init__(self, profile: MagnitudeProfile) -> None:
        self.profile, self.structure = profile, profile.structure
        sizes = [weight.numel() for weight in profile.weights.values()]
        self.ranks = dict(zip(profile.weights, torch.split(profile.rank, sizes), strict=True))
        self.groups = profile.groups if isinstance(profile, GroupProfile) else None
        self.smaller = self.groups is not None and self.groups.pattern.kind in ("channels", "heads")
        self.item = profile.vector.element_size()

    def rows(self, counts: list[int]) -> tuple[Saving, ...]:
        kept = {name: _kept(ranks, counts) for name, ranks in self.ranks.items()}
        gone = np.array([self._companions(count) for count in counts])
        rest = self.structure.other_bytes - gone * self.item
        total = sum(kept.values(), np.zeros(len(counts)))
        dense = (total if self.smaller else self.profile.dimension) * self.item + rest
        csr = sum((self._csr(name, number) for name, number in kept.items()), rest.astype(float))
        own = csr
        if self.smaller:
            own = dense
        elif self.groups is not None:
            format_bytes = self._run_bytes if self.groups.pattern.fixed else self._block_bytes
            own = sum((format_bytes(name, number, counts) for name, number in kept.items()), rest.astype(float))
        macs = self._macs(kept)
        parameters = total + self.structure.others - gone
        return tuple(
            Saving(
                sparsity=count / self.profile.dimension,
                parameters=float(parameters[place]),
                macs=None if macs is None else float(macs[place]),
                bytes=float(own[place] if count else dense[place]),
                dense_bytes=float(dense[place]),
                csr_bytes=float(csr[place]),
            )
            for place, count in enumerate(counts)
        )

    def _macs(self, kept: Mapping[str, Floats]) -> Floats | None:
        uses = {name: self.structure.uses.get(name) for name in kept}
        if None in uses.values():
            return None
        return np.asarray(sum((uses[name] or 0.0) * number for name, number in kept.items()), dtype=np.float64)

    def _csr(self, name: str, kept: Floats) -> Floats:
        return kept * (self.item + INDEX_BYTES) + (len(self.profile.weights[name]) + 1) * INDEX_BYTES

    def _run_bytes(self, name: str, kept: Floats, counts: list[int]) -> Floats:
        """Values and, in runs of M, their places; layers that do not fit are dense."""
        assert self.groups is not None
        assert self.groups.pattern.sizes is not None
        if name not in self.groups.members[0]:
            return kept * self.item
        return kept * self.item + np.ceil(kept * math.ceil(math.log2(self.groups.pattern.sizes[1])) / 8)

    def _block_bytes(self, name: str, kept: Floats, counts: list[int]) -> Floats:
        """Blocks that stay, padded to their full size, in compressed rows of blocks; other layers are dense."""
        assert self.groups is not None
        assert self.groups.pattern.sizes is not None
        weight = self.profile.weights[name]
        members = self.groups.of(name, weight)
        if not members:
            return kept * self.item
        ids = members[0].reshape(-1)
        first = torch.full((int(ids.max()) + 1,), self.profile.dimension, dtype=torch.int64, device=ids.device)
        first.scatter_reduce_(0, ids, self.ranks[name].long(), "amin")
        present = torch.bincount(ids) > 0
        high, wide = self.groups.pattern.sizes
        rows = -(-weight.shape[self.structure.matrices[name].outputs] // high) + 1
        return _kept(first[present], counts) * (high * wide * self.item + INDEX_BYTES) + rows * INDEX_BYTES

    def _companions(self, count: int) -> int:
        if self.groups is None or not self.groups.companions:
            return 0
        assert isinstance(self.profile, GroupProfile)
        gone: Tensor = self.profile.gone(count / self.profile.dimension)
        return sum(int(gone[ids[ids != NONE]].sum()) for ids in self.groups.companions.values())


def _kept(ranks: Tensor, counts: list[int]) -> Floats:
    """Number of ranks that are not below each of some rising counts."""
    edges = torch.tensor(counts, device=ranks.device)
    passed = torch.bincount(torch.bucketize(ranks, edges, right=True), minlength=len(counts) + 1)
    return passed.flip(0).cumsum(0).flip(0)[1:].double().cpu().numpy()
