"""The order in which a pattern removes groups of weights, and the norm of the removed weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from estimators import UserError
from pruning_limits.groups import NONE, Groups
from pruning_limits.magnitude import MagnitudeProfile, removed_count
from pruning_limits.magnitude_curve import MagnitudeCurve


class GroupProfile(MagnitudeProfile):
    r"""Pruning of whole groups of weights, the least first.

    A group counts by the root mean square of its weights, or by the mean of other scores. Of N:M all groups go to the
    pattern at once: in each the M - N least weights go.

    Only some numbers of removed weights can be had. A sparsity means the least of them that removes as much or more.

    Args:
        weights: Weights by parameter name; copied.
        groups: Which of them go together.
        scores: Importance of every weight by name, >= 0, in the shape of the weights; default their squares.

    Attributes:
        groups: Which weights go together.

    Raises:
        UserError: Scores do not fit the weights.

    Example:
        >>> from pruning_limits.pattern_names import parsed
        >>> from pruning_limits.patterns import Matrix, runs
        >>> weights = {"w": torch.tensor([[3.0, -1.0, 2.0, 0.5]])}
        >>> profile = GroupProfile(weights, runs(parsed("1:2"), weights, {"w": Matrix(0, 1)}))
        >>> profile.masks(0.5)["w"].tolist()
        [[True, False, True, False]]
    """

    def __init__(
        self, weights: Mapping[str, Tensor], groups: Groups, scores: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(weights)
        self.groups = groups
        self._scores = None if scores is None else _checked(scores, self.weights)

    @cached_property
    def group_scores(self) -> Tensor:
        """Mean score of the weights of every group, float64 ``[count]``."""
        sums = torch.zeros(self.groups.count, dtype=torch.float64, device=self.vector.device)
        sizes = torch.zeros_like(sums)
        for name, weight in self.weights.items():
            score = self._score(name)
            for ids in self.groups.of(name, weight):
                inside = ids != NONE
                sums.index_add_(0, ids[inside], score[inside])
                sizes.index_add_(0, ids[inside], torch.ones_like(score[inside]))
        return sums / sizes.clamp(min=1)

    @cached_property
    def steps(self) -> Tensor:
        """Number of the step at which every weight goes, int64 ``[D]``; ``count`` of the groups where it never does."""
        never = self.groups.count
        parts = []
        ranks = None if self.groups.pattern.fixed else self._group_ranks()
        for name, weight in self.weights.items():
            step = torch.full(weight.shape, never, dtype=torch.int64, device=weight.device)
            for ids in self.groups.of(name, weight):
                if ranks is None:
                    own = torch.where(self._least(name, ids), 0, never)
                else:
                    own = torch.where(ids == NONE, never, ranks[ids.clamp(min=0)])
                step = torch.minimum(step, own)
            parts.append(step.reshape(-1))
        return torch.cat(parts)

    @cached_property
    def order(self) -> Tensor:
        """Positions of the weights in the order in which they go, within a group by position, ``[D]``."""
        return torch.sort(self.steps, stable=True).indices

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Numbers of removed weights that can be had, ascending from 0."""
        never = self.groups.count
        sizes = torch.bincount(self.steps, minlength=never + 1)[:never].cpu().numpy()
        return np.unique(np.concatenate([[0], np.cumsum(sizes)])).astype(np.int64)

    @property
    def most(self) -> float:
        """Largest sparsity of the pattern."""
        return float(self.counts[-1] / self.dimension)

    @cached_property
    def zeros(self) -> int:
        """Number of weights in the first groups that are zero as a whole, and so removed already."""
        squares = self.squares[self.counts]
        return int(self.counts[np.flatnonzero(squares == 0)[-1]])

    def count(self, sparsity: float) -> int:
        """Number of weights that go at a sparsity: the least that the pattern allows and that is as many or more.

        Raises:
            UserError: The pattern does not remove so many.
        """
        asked = removed_count(sparsity, self.dimension)
        place = int(np.searchsorted(self.counts, asked))
        if place == len(self.counts):
            name = self.groups.pattern.name
            raise UserError(f"sparsity: {name} removes at most {self.most:.4f} of the weights here, got {sparsity:g}")
        return int(self.counts[place])

    def refuse_other(self, sparsity: float) -> None:
        """Refuse a sparsity that a pattern of one sparsity, as N:M, does not have.

        Args:
            sparsity: Removed fraction of the weights, as it was asked for.

        Raises:
            UserError: It removes another number of weights.
        """
        name = self.groups.pattern.name
        if self.groups.pattern.fixed and removed_count(sparsity, self.dimension) != self.counts[-1]:
            raise UserError(
                f"sparsity: {name} removes {self.most:.4f} of the weights here and no other share, got {sparsity:g}; "
                "leave the sparsity out"
            )

    def threshold(self, sparsity: float) -> float:
        """Largest magnitude that is removed; 0 when nothing is."""
        removed = self.removed(sparsity)
        return float(removed.abs().max())

    def curve(self, knots: int = 1024) -> MagnitudeCurve:
        """Return R(s)^2 on the sparsities that the pattern allows, or on some of them; constant beyond the largest.

        Of N:M it is that of the pattern at every sparsity: the equation then tells how much could go at this R.

        Args:
            knots: Largest number of knots.
        """
        if self.groups.pattern.fixed:
            whole = float(self.squares[self.counts[-1]])
            return MagnitudeCurve(np.array([0.0, 1.0]), np.array([whole, whole]))
        places = np.unique(np.linspace(0, len(self.counts) - 1, min(knots, len(self.counts))).round().astype(np.int64))
        counts = self.counts[places]
        sparsity, squared = counts / self.dimension, self.squares[counts]
        if counts[-1] < self.dimension:
            sparsity, squared = np.append(sparsity, 1.0), np.append(squared, squared[-1])
        return MagnitudeCurve(sparsity, squared)

    def gone(self, sparsity: float) -> Tensor:
        """Return which groups go at a sparsity, bool ``[count]``; of N:M none goes as a whole."""
        count = self.count(sparsity)
        last = int(self.steps[self.order[count - 1]]) if count else -1
        return self._group_ranks().cpu() <= last

    def companions(self, sparsity: float) -> dict[str, Tensor]:
        """Return what goes with the groups beside prunable weights, such as biases.

        Args:
            sparsity: Removed fraction of the weights.

        Returns:
            Masks along the first dimension by parameter name, True where kept.
        """
        if not self.groups.companions:
            return {}
        gone = torch.cat([self.gone(sparsity), torch.tensor([False])])
        return {name: ~gone[ids] for name, ids in self.groups.companions.items()}

    def _score(self, name: str) -> Tensor:
        return self.weights[name].double().square() if self._scores is None else self._scores[name].double()

    def _group_ranks(self) -> Tensor:
        """Return the step at which every group goes; of each family the last one stays."""
        scores, families = self.group_scores, self.groups.families
        ranks = torch.empty(self.groups.count, dtype=torch.int64, device=scores.device)
        order = torch.sort(scores, stable=True).indices
        ranks[order] = torch.arange(len(order), device=scores.device)
        if families is not None:
            families = families.to(scores.device)
            last = torch.full((int(families.max()) + 1,), -1, dtype=torch.int64, device=scores.device)
            last.scatter_reduce_(0, families, ranks, "amax")
            ranks = torch.where(ranks == last[families], self.groups.count, ranks)
        return ranks

    def _least(self, name: str, ids: Tensor) -> Tensor:
        """Tell which weights of one parameter are among the M - N least of their run; ties go by position."""
        assert self.groups.pattern.sizes is not None
        kept, of = self.groups.pattern.sizes
        flat = torch.sort(ids.reshape(-1), stable=True).indices.reshape(-1, of)  # every row a run, in order
        least = torch.sort(self._score(name).reshape(-1)[flat], dim=1, stable=True).indices[:, : of - kept]
        result = torch.zeros(ids.numel(), dtype=torch.bool, device=ids.device)
        result[flat.gather(1, least)] = True
        return result.reshape(ids.shape)


def _checked(scores: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, weight in weights.items():
        there = tuple(scores[name].shape) if name in scores else "nothing"
        if name not in scores or scores[name].shape != weight.shape:
            raise UserError(f"scores: expected {name} of shape {tuple(weight.shape)}, as the weights, got {there}")
        if not bool((scores[name] >= 0).all()):
            raise UserError(f"scores: expected numbers of at least 0 for {name}, got smaller ones or NaN")
    return {name: scores[name].to(weight.device) for name, weight in weights.items()}
