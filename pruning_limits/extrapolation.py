"""Extrapolate the kept fraction from sub-samples to all data."""

from __future__ import annotations

import math

from scipy.special import expit, logit

LEAST = 0.5
LEAST_STEP = 1e-6  # between logarithms of coverages, against division by zero
LEAST_ERROR, LINE_ERROR = 0.3, 0.4  # they cover four of six misses on the two networks, and all on others
DRAW_ERROR = 2.5  # of the Hessian, times kept / sqrt(samples): it covers six of six misses on the two networks


def settling(kept: tuple[float, float], samples: tuple[int, int], total: int) -> tuple[float, float]:
    r"""Factor from the Hessian's kept fraction on a sub-sample to that on all data, and what it may be wrong by.

    Noise widens the Hessian's bulk in proportion to :math:`1/\sqrt n`, and the kept fraction k with it:
    :math:`k(n) = k_\infty + a/\sqrt n`. Two sub-samples of :math:`n_1 < n_2` samples give

    .. math:: a = \frac{k_1 - k_2}{1/\sqrt{n_1} - 1/\sqrt{n_2}}, \quad
              k(N) = k_2 - a \left(\frac{1}{\sqrt{n_2}} - \frac{1}{\sqrt N}\right).

    A kept fraction that rises with the samples is left as it is, because the scatter of the steps does that, too. Two
    sub-samples can agree by chance, so that the error is at least that of a draw of :math:`n_2` from N samples:

    .. math:: \max\left(\frac{|a|}{\sqrt{n_2}},\; 2.5\, k_2 \sqrt{\frac{1}{n_2} - \frac{1}{N}}\right).

    Args:
        kept: Kept fractions :math:`k_1, k_2` of two sub-samples of rising size, in (0, 1).
        samples: Their sizes :math:`n_1, n_2`, rising, at least 1.
        total: Number N of all samples, more than these.

    Returns:
        The factor, 0.5 to 1, and the error as a fraction of all weights.

    Source: an observation on two networks, held against others in ``docs/results/benchmarks/carried.md``.

    Example:
        >>> factor, error = settling((0.31, 0.30), samples=(2500, 10_000), total=1_000_000)
        >>> round(0.30 * factor, 4), round(error, 4)
        (0.291, 0.01)
    """
    noise = 1 / math.sqrt(samples[1])
    infinite = (kept[0] - kept[1]) / (1 / math.sqrt(samples[0]) - noise) * noise
    factor = 1 - infinite * (1 - math.sqrt(samples[1] / total)) / kept[1]
    scatter = DRAW_ERROR * kept[1] * math.sqrt(1 / samples[1] - 1 / total)
    return max(LEAST, min(1.0, factor)), max(abs(infinite), scatter)


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
