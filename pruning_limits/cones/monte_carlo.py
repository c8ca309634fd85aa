"""Statistical dimension by projecting Gaussian vectors, for any cone."""

from __future__ import annotations

import math

import numpy as np

from estimators import UserError
from pruning_limits.cones.base import Projector


def monte_carlo_dimension(cone: Projector, samples: int = 1000, seed: int = 0) -> tuple[float, float]:
    r"""Estimate :math:`\delta(C) = E|\Pi_C(g)|^2` by projecting Gaussian vectors.

    Args:
        cone: Any cone of this package, a ``CvxpyCone``, or an object with ``dimension`` and ``project``.
        samples: Number of vectors, at least 2.
        seed: Seed; the global random state is not used.

    Returns:
        Mean and its standard error.

    Raises:
        UserError: Fewer than two samples, or a solver that did not finish.

    Source: Amelunxen, Lotz, McCoy and Tropp 2014, equation 1.3 and section 4.4.

    Example:
        >>> from pruning_limits.cones import Orthant
        >>> value, error = monte_carlo_dimension(Orthant(40))
        >>> bool(abs(value - 20) < 4 * error)
        True
    """
    if samples < 2:
        raise UserError(f"samples: expected at least 2 for a standard error, got {samples}")
    points = np.random.default_rng(seed).standard_normal((samples, cone.dimension))
    squares = (cone.project(points) ** 2).sum(-1)
    return float(squares.mean()), float(squares.std(ddof=1) / math.sqrt(samples))
