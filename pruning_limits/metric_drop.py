"""The measured change of the metric when a network is pruned; a record that needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from estimators import UserError

if TYPE_CHECKING:
    from torch import Tensor

ROUNDING = 1e-12


@dataclass(frozen=True)
class MetricDrop:
    """The metric of the dense and of the pruned network on the same data.

    Attributes:
        dense: Mean metric of the dense network.
        pruned: Mean metric of the pruned network.
        error: Paired standard error of the fall, as one on all samples there might be; None where a single sample tells
            nothing of it.
        allowed: Allowed fall, > 0, which then decides; None where the metric is only told.
        name: Name of the metric; None takes that of the limit.
    """

    dense: float
    pruned: float
    error: float | None
    allowed: float | None = None
    name: str | None = None

    @classmethod
    def between(
        cls, dense: Tensor, pruned: Tensor, allowed: float | None = None, name: str | None = None
    ) -> MetricDrop:
        """Compare two networks sample by sample.

        Args:
            dense: Metric of the dense network, float64 ``[n]``.
            pruned: That of the pruned network on the same samples in the same order ``[n]``.
            allowed: Allowed fall of the mean, or None.
            name: Name of the metric, or None.

        Example:
            >>> import torch
            >>> MetricDrop.between(torch.ones(4), torch.tensor([1.0, 1.0, 0.0, 1.0]))
            MetricDrop(dense=1.0, pruned=0.75, error=0.25, allowed=None, name=None)
        """
        if dense.shape != pruned.shape:
            raise UserError(f"metric: {len(dense)} samples of the dense network, {len(pruned)} of the pruned one")
        falls = dense - pruned
        error = float(falls.std()) / math.sqrt(len(falls)) if len(falls) > 1 else None
        return cls(float(dense.mean()), float(pruned.mean()), error, allowed, name)

    @property
    def fall(self) -> float:
        """Fall of the mean metric; negative where it rises."""
        return self.dense - self.pruned

    @property
    def holds(self) -> bool:
        """Whether the fall is at most the allowed one, rounding of the means aside; true where none is named."""
        return self.allowed is None or self.fall <= self.allowed + ROUNDING * max(abs(self.dense), abs(self.pruned))
