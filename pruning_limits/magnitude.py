"""Magnitude pruning: thresholds, masks with exact counts, and the norm R(s) of the removed weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from estimators import UserError
from estimators.vectors import flatten, named
from pruning_limits.magnitude_curve import Floats, MagnitudeCurve
from pruning_limits.settings import number
from pruning_limits.structure import Structure


def removed_count(sparsity: float, dimension: int) -> int:
    """Number of weights removed at a sparsity: ``ceil(sparsity * dimension)``, safe against rounding.

    Args:
        sparsity: Removed fraction in [0, 1].
        dimension: Number D of weights.

    Returns:
        An integer in 0..D.

    Raises:
        UserError: The sparsity is outside [0, 1].

    Example:
        >>> removed_count(0.1, 10), removed_count(0.101, 10)
        (1, 2)
    """
    sparsity = number("sparsity", sparsity, "a number in [0, 1] (the removed fraction)", lambda own: 0 <= own <= 1)
    return min(dimension, math.ceil(sparsity * dimension - 1e-9 * max(1.0, sparsity * dimension)))


class MagnitudeProfile:
    """Global magnitude pruning of a set of weights, from one sort.

    Args:
        weights: Weights by parameter name; copied.

    Attributes:
        dimension: Number D of weights.
        structure: Known properties of the network that the weights belong to.

    Example:
        >>> profile = MagnitudeProfile({"w": torch.tensor([3.0, -1.0, 2.0, 0.5])})
        >>> profile.threshold(0.5), profile.removed_norm(0.5)
        (1.0, 1.118033988749895)
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = {name: weight.detach().clone() for name, weight in weights.items()}
        self.vector = flatten(list(self.weights.values()))
        self.dimension = self.vector.numel()
        self.structure = Structure()
        if not self.vector.isfinite().all():
            raise UserError("model: some weights are NaN or infinite")
        if not self.vector.any():
            raise UserError("model: all chosen weights are zero; there is nothing to prune")

    @cached_property
    def zeros(self) -> int:
        """Number of weights that are zero and therefore count as removed."""
        return self.dimension - int(self.vector.count_nonzero())

    @cached_property
    def order(self) -> Tensor:
        """Positions of the weights by rising magnitude, ties by position, ``[D]``."""
        size = self.vector.element_size()
        bits = self.vector.abs().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[size])  # in the same order
        return torch.sort(bits, stable=True).indices

    @cached_property
    def rank(self) -> Tensor:
        """Place of every weight in ``order``, ``[D]``; pruning removes weights in this order."""
        small = torch.int32 if self.dimension < 2**31 else torch.int64
        places = torch.arange(self.dimension, dtype=small, device=self.vector.device)
        return torch.empty_like(places).index_copy_(0, self.order, places)

    @cached_property
    def squares(self) -> Floats:
        """R^2 after removing 0, 1, ..., D weights, float64 ``[D + 1]``."""
        magnitudes = self.vector[self.order].double().cpu().numpy()
        return np.concatenate([[0.0], np.cumsum(magnitudes**2)])

    def count(self, sparsity: float) -> int:
        """Number of weights that are removed at a sparsity."""
        return removed_count(sparsity, self.dimension)

    def threshold(self, sparsity: float) -> float:
        """Largest removed magnitude; 0 when nothing is removed."""
        count = self.count(sparsity)
        return float(self.vector[self.order[count - 1]].abs()) if count else 0.0

    def removed_norm(self, sparsity: float) -> float:
        """Norm R of the exact number of weights that are removed at a sparsity."""
        return float(self.squares[self.count(sparsity)] ** 0.5)

    def curve(self, knots: int = 4096) -> MagnitudeCurve:
        """Return R(s)^2 at knots: every count for a small model, else half evenly spaced in s, half in log(1 - s).

        Args:
            knots: Largest number of knots.

        Returns:
            The curve; the values at the knots are exact.
        """
        d = self.dimension
        if d < knots:
            counts = np.arange(d + 1)
        else:
            even = np.linspace(0, d, knots // 2)
            kept = np.geomspace(1, d, knots // 2)
            counts = np.unique(np.concatenate([even, d - kept, [d]]).round().astype(np.int64))
        return MagnitudeCurve(counts / d, self.squares[counts])

    def removed(self, sparsity: float) -> Tensor:
        """Return the removed part d = w - w^k of the weights, ``[D]``."""
        return torch.where(self.rank < self.count(sparsity), self.vector, 0)

    def companions(self, sparsity: float) -> dict[str, Tensor]:
        """Return masks of parameters that are removed with the weights, by name; with single weights there are none."""
        return {}

    def masks(self, sparsity: float) -> dict[str, Tensor]:
        """Return masks by parameter name, True where a weight is kept; exactly ``ceil(s D)`` entries are False."""
        return named(self.rank >= self.count(sparsity), self.weights)
