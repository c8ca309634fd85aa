"""R(s)^2, the squared norm of the weights that magnitude pruning removes, as numbers that need no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from estimators import UserError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MagnitudeCurve:
    """The squared norm of the removed weights as a function of sparsity, on knots.

    Attributes:
        sparsity: Knots ascending from 0 to 1, ``[g]``.
        squared: R(s)^2 at the knots, ``[g]``.
    """

    sparsity: Floats
    squared: Floats

    def squared_norm(self, sparsity: float) -> float:
        """R(s)^2 for a sparsity in [0, 1], linear between knots."""
        return float(np.interp(sparsity, self.sparsity, self.squared))

    def scaled(self, weight_scale: float) -> MagnitudeCurve:
        """Return the curve of all weights multiplied by a factor."""
        squared = self.squared * weight_scale**2
        if not np.isfinite(squared).all():
            raise UserError(f"weight_scale: {weight_scale} times the weights has a norm beyond floating point")
        return MagnitudeCurve(self.sparsity, squared)
