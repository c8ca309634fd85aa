"""From the kept fractions of sub-samples to that of all data."""

from __future__ import annotations

import math

from scipy.special import expit, logit

LEAST = 0.5
LEAST_STEP = 1e-6  # between logarithms of coverages, against division by zero
LEAST_ERROR, LINE_ERROR = 0.3, 0.4  # they cover four of six misses on the two networks, and all on others


def settling(kept: float, before: float, ratio: float, left: float) -> tuple[float, float]:
    r"""Factor from the Hessian's kept fraction on a sub-sample to that on all data, and what it may be wrong by.

    Noise widens the Hessian's bulk in proportion to :math:`1/\sqrt n`, and the kept fraction k with it:
    :math:`k(n) = k_\infty + a/\sqrt n`. With :math:`\Delta = k_0 - k` between sub-samples of n/r and n samples

    .. math:: k(N) = k - \frac{\Delta}{\sqrt r - 1} \left(1 - \sqrt{n/N}\right).

    A kept fraction that rises with the samples is left as it is, because the scatter of the steps does that, too.

    Args:
        kept: Kept fraction k on the sub-sample, in (0, 1).
        before: Kept fraction :math:`k_0` on the smaller one, in (0, 1).
        ratio: How many times more samples r the sub-sample has than the smaller one, > 1.
        left: Share n/N of all data that the sub-sample is, in (0, 1).

    Returns:
        The factor, 0.5 to 1, and the error :math:`|\Delta| / (\sqrt r - 1)`, as a fraction of all weights: as large as
        the correction to infinitely many samples, whether it is made or not. That is too little: it held in 13 of
        21 cases (``docs/results/benchmarks/carried.md``).

    Source: an observation, held against all data in ``docs/theory/limit.md``, section 7.

    Example:
        >>> factor, error = settling(0.30, 0.31, ratio=4, left=0.01)
        >>> round(0.30 * factor, 4), round(error, 4)
        (0.291, 0.01)
    """
    infinite = (before - kept) / (math.sqrt(ratio) - 1)
    return max(LEAST, min(1.0, 1 - infinite * (1 - math.sqrt(left)) / kept)), abs(infinite)


def saturation(kept: tuple[float, float], coverage: tuple[float, float], known: bool = True) -> tuple[float, float]:
    r"""Factor from the GGN's kept fraction on a sub-sample to that on all data, and what it may be wrong by.

    The rank of the GGN grows with the samples, and with it the kept fraction k, the less the more of what curves is
    there already. With the share :math:`f` of that which a sub-sample covers, the logarithm of the odds
    :math:`o = k/(1-k)` is nearly a line in :math:`\log f`:

    .. math:: \log o(N) = \log o_2 + b, \quad b = -\log f_2 \, \log(o_2/o_1) / \log(f_2/f_1).

    The error in :math:`\log o` is :math:`\min(b, \max(0.3, 0.4\,b))`.

    Args:
        kept: Kept fractions of two sub-samples of rising size, in (0, 1).
        coverage: Shares f that they cover ``(0, 1)``, rising.
        known: Whether these follow from the samples' shares in the curvature, not from numbers of samples alone, which
            do not show where growth ends; then all of b is error.

    Returns:
        The factor, at least 1, and the error as a fraction of all weights.

    Source: an observation on two networks, held against others in ``docs/results/benchmarks/carried.md``.

    Example:
        >>> factor, error = saturation((0.002, 0.004), coverage=(0.2, 0.4))
        >>> round(0.004 * factor, 4), round(error, 4)
        (0.01, 0.0044)
    """
    odds, shares = [float(logit(value)) for value in kept], [math.log(value) for value in coverage]
    line = -shares[1] * max(0.0, odds[1] - odds[0]) / max(LEAST_STEP, shares[1] - shares[0])
    error = min(line, max(LEAST_ERROR, LINE_ERROR * line)) if known else line
    low, carried, high = (float(expit(odds[1] + line + sign * error)) for sign in (-1, 0, 1))
    return max(1.0, carried / kept[1]), max(high - carried, carried - low)
