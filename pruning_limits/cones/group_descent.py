"""Descent cones of the group norm, with the l1 and l2 norms as its extremes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaincc, gammaln

from estimators import UserError
from pruning_limits.cones.arguments import Floats, nonzero_array
from pruning_limits.cones.descent import DescentCone, best_multiple


class GroupDescent(DescentCone):
    r"""Descent cone of the group norm :math:`\sum_g |x_g|_2` at a point.

    With k non-zero groups, :math:`\delta = \min_t \sum_{x_g \ne 0} (p_g + t^2) + \sum_{x_g = 0} E(\chi_{p_g} - t)_+^2`.

    Args:
        point: Non-zero point ``[D]``.
        groups: Label of the group of every entry, ``[D]``.

    Raises:
        UserError: The point is zero or not finite, or the number of labels differs.

    Source: Amelunxen, Lotz, McCoy and Tropp 2014, recipe 4.1; Stojnic, Parvaresh and Hassibi, IEEE Transactions on
    Signal Processing 57, 2009, for groups.

    Example:
        >>> cone = GroupDescent([1.0, 2.0, 0.0, 0.0, 0.0, 0.0], groups=[0, 0, 1, 1, 2, 2])
        >>> round(cone.statistical_dimension(), 3)
        3.817
    """

    def __init__(self, point: ArrayLike, groups: ArrayLike) -> None:
        vector = nonzero_array("point", point, 1)
        labels = np.asarray(groups)
        if labels.shape != vector.shape:
            raise UserError(f"groups: expected {len(vector)} labels, one per entry, got shape {labels.shape}")
        self.dimension = len(vector)
        _, self._label, self._sizes = np.unique(labels, return_inverse=True, return_counts=True)
        norms = np.sqrt(self._sums(vector**2))
        self._is_active = norms > 0
        self._active = int(self._is_active.sum())
        self._unit = vector / np.where(self._is_active, norms, 1.0)[self._label]
        self.error_bound = 0.0 if self._is_active.all() else 2 * math.sqrt(len(norms) / self._active)

    @property
    def _fixed(self) -> int:
        return int(self._sizes[self._is_active].sum())

    def _excess(self, t: float) -> tuple[float, float]:
        squares, firsts, _ = self._powers(t)
        return float(squares.sum()), float(firsts.sum())

    def _spread(self, t: float) -> float:
        squares, _, fourths = self._powers(t)
        return float((fourths - squares**2).sum())

    def _powers(self, t: float) -> tuple[Floats, Floats, Floats]:
        """Second, first and fourth moment of the excess of a chi variable over t, per group without weight."""
        sizes, index = np.unique(self._sizes[~self._is_active], return_inverse=True)
        moments = np.stack([_truncated_chi(sizes, order, t) for order in range(5)])
        powers = [sum(math.comb(n, j) * (-t) ** (n - j) * moments[j] for j in range(n + 1)) for n in (2, 1, 4)]
        second, first, fourth = (np.maximum(power, 0.0)[index] for power in powers)
        return second, first, fourth

    def _sums(self, x: Floats) -> Floats:
        """Sum over groups along the last axis."""
        order = np.argsort(self._label, kind="stable")
        starts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        sums: Floats = np.add.reduceat(x[..., order], starts, axis=-1)
        return sums

    def _project(self, x: Floats) -> Floats:
        norms = np.sqrt(self._sums(x**2))
        t = best_multiple(x @ self._unit, self._active, norms[..., ~self._is_active])[..., None]
        shrink = np.divide(t, norms, out=np.ones_like(norms), where=norms > t)
        polar = np.where(self._is_active[self._label], t * self._unit, shrink[..., self._label] * x)
        return x - polar


class L1Descent(GroupDescent):
    r"""Descent cone of the l1 norm at a point; :math:`\delta` depends on D and the number k of non-zero entries only.

    .. math:: \delta = \min_t\, k(1 + t^2) + (D - k)\, E(|g| - t)_+^2

    Args:
        point: Non-zero point ``[D]``.

    Source: Amelunxen, Lotz, McCoy and Tropp 2014, proposition 4.5; Donoho and Tanner 2009 for the curve.

    Example:
        >>> cone = L1Descent([1.0] * 10 + [0.0] * 90)
        >>> round(cone.statistical_dimension(), 2)
        32.88
    """

    def __init__(self, point: ArrayLike) -> None:
        super().__init__(point, np.arange(np.size(np.asarray(point))))


class L2Descent(GroupDescent):
    r"""Descent cone of the l2 norm at a point: the half-space :math:`\langle x, y \rangle \le 0`, :math:`D - 1/2`.

    Args:
        point: Non-zero point ``[D]``.

    Raises:
        UserError: The point is zero or not finite.

    Example:
        >>> L2Descent(np.ones(10)).statistical_dimension()
        9.5
    """

    def __init__(self, point: ArrayLike) -> None:
        super().__init__(point, np.zeros(np.size(np.asarray(point)), dtype=np.int64))


def _truncated_chi(sizes: NDArray[np.int64], order: int, t: float) -> Floats:
    """Expectation of chi^order above t for chi variables with the given degrees of freedom."""
    half = (sizes + order) / 2
    scale = np.exp(order / 2 * math.log(2) + gammaln(half) - gammaln(sizes / 2))
    moments: Floats = scale * gammaincc(half, t * t / 2)
    return moments
