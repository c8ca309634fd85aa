"""Functions that the intrinsic volumes of several cones share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from pruning_limits.cones.arguments import Floats


def halves(dimension: int, count: int) -> Floats:
    """Intrinsic volumes 1/2 at a count and the next one."""
    volumes = np.zeros(dimension + 1)
    volumes[count : count + 2] = 0.5
    return volumes


def log_binomial(n: float, k: Floats | NDArray[np.int64]) -> Floats:
    r"""Return :math:`\log\binom{n}{k}` for real n >= k >= 0."""
    logs: Floats = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return logs
