"""From the kept fractions of two sub-samples to that of all data."""

from __future__ import annotations

import math

from scipy.special import expit, logit

LEAST_GROWTH, LEAN, BENT = 0.5, 0.4, 0.7


def growth(kept: float, before: float, doublings: float, left: float, rank: bool) -> tuple[float, float]:
    r"""Factor from the kept fraction on a sub-sample to that on all data, and what it may be wrong by.

    Near all data the kept fraction k is taken as linear in :math:`\log n`,

    .. math:: k(N) = k + (k - k_0)\, \ell / d.

    Farther away it follows a law. Noise widens the Hessian's bulk in proportion to :math:`1/\sqrt n`; as its share of
    k goes with :math:`|x|/(c+|x|)`, :math:`1/k` is linear in :math:`\sqrt n`. The rank of the GGN grows with n, and
    the odds :math:`k/(1-k)` by a power of n. The geometric mean of line and law leans to the law by
    :math:`0.4\,(\ell/d - 0.7)`, at least 0 and at most 1.

    Args:
        kept: Kept fraction k on the sub-sample, in (0, 1).
        before: Kept fraction :math:`k_0` on a smaller one, in (0, 1).
        doublings: Doublings d from that to this sub-sample, > 0.
        left: Doublings :math:`\ell` from this sub-sample to all data, > 0.
        rank: Whether the matrix is a GGN, which only grows; else a Hessian, which only shrinks, at most by half.

    Returns:
        The factor, and the size of the correction that the two fractions suggest, made or not, as a fraction of all
        weights; for less than one doubling that of a whole one.

    Source: an observation on the networks in ``docs/theory/limit.md``, section 7.

    Example:
        >>> factor, error = growth(0.0026, 0.0008, doublings=3, left=5.6, rank=True)
        >>> round(0.0026 * factor, 4), round(error, 4)
        (0.0112, 0.0086)
    """
    share = left / doublings
    lean = min(1.0, max(0.0, LEAN * (share - BENT)))
    linear = 1 + (1 - before / kept) * share
    if rank:
        law = float(expit(logit(kept) + share * (logit(kept) - logit(before)))) / kept
        low, high = 1.0, math.inf
    else:
        rise = (1 - kept / before) * (2 ** (left / 2) - 1) / (1 - 2 ** (-doublings / 2))
        law = 1 / (1 + rise) if rise > 0 else 1.0
        low, high = LEAST_GROWTH, 1.0
    line, law = (min(high, max(low, one)) for one in (linear, law))
    factor = max(low, line ** (1 - lean) * law**lean)
    return factor, kept * max(abs(factor - 1), abs(linear - 1) / min(1.0, left))
