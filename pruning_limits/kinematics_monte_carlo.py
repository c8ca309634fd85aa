"""Monte Carlo check of the kinematic formula: do random subspaces through the pruned point meet the sublevel set?"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from estimators import UserError

Counts = NDArray[np.int64]


def sublevel_crossings(
    eigenvalues: ArrayLike,
    removed: ArrayLike,
    epsilon: float,
    trials: int,
    gradient: ArrayLike | None = None,
    seed: int = 0,
) -> Counts:
    r"""Draw the smallest dimension at which nested random subspaces through the pruned point meet the sublevel set.

    In the eigenbasis of H, with the first k columns F of a Gaussian matrix, the subspace -d + F b meets
    :math:`\{g^\top x + \frac12 x^\top \Lambda x \le \varepsilon\}` when a least-squares residual is small enough,

    .. math:: \min_b |\Lambda^{1/2} F b - (\Lambda^{1/2} d - \Lambda^{-1/2} g)|^2
              \le 2 \varepsilon + g^\top \Lambda^{-1} g.

    One QR decomposition gives the residual for all k; nothing is approximated.

    Args:
        eigenvalues: Eigenvalues of H ``[D]``, >= 0.
        removed: Components of d in the eigenbasis ``[D]``.
        epsilon: Allowed rise of the objective, > 0, in its units.
        trials: Number of random frames, at least 1.
        gradient: Components of g in the eigenbasis ``[D]``, zero where the eigenvalue is; all zero when not given.
        seed: Seed; the global random state is not used.

    Returns:
        Dimensions in 0..D, ``[trials]``; the share at most k estimates the probability at k.

    Raises:
        UserError: Shapes differ or an argument is out of range.

    Source: derived here; Amelunxen, Lotz, McCoy and Tropp, Living on the edge, Information and Inference 3, 2014, for
    the experiment.

    Example:
        >>> counts = sublevel_crossings(np.ones(50), removed=2 * np.eye(50)[0], epsilon=1.0, trials=400)
        >>> point, error = half_point(counts)
        >>> abs(point - 25) < 4 * error
        True
    """
    x, d = np.asarray(eigenvalues, dtype=np.float64), np.asarray(removed, dtype=np.float64)
    g = np.zeros_like(d) if gradient is None else np.asarray(gradient, dtype=np.float64)
    if x.ndim != 1 or not x.shape == d.shape == g.shape:
        raise UserError(f"removed: expected components like the {x.shape} eigenvalues, got {d.shape} and {g.shape}")
    if not (x >= 0).all():
        raise UserError(f"eigenvalues: expected numbers >= 0, got {x.min():.3g}")
    if g[x == 0].any():
        raise UserError("gradient: expected zeros where the curvature is zero, got a set without a lowest point")
    if not 0 < epsilon < math.inf:
        raise UserError(f"epsilon: expected a positive number (the allowed rise of the objective), got {epsilon}")
    if trials < 1:
        raise UserError(f"trials: expected at least 1, got {trials}")
    root = np.sqrt(x)
    shift = np.divide(g, root, out=np.zeros_like(g), where=root > 0)
    target, allowed = root * d - shift, 2 * epsilon + shift @ shift
    rng = np.random.default_rng(seed)
    counts = np.empty(trials, dtype=np.int64)
    for trial in range(trials):
        frame = root[:, None] * rng.standard_normal((len(x), len(x)))
        triangle = np.asarray(np.linalg.qr(np.column_stack([frame, target]), mode="r"))
        counts[trial] = (np.cumsum(triangle[::-1, -1] ** 2) > allowed).sum()
    return counts


def half_point(counts: ArrayLike) -> tuple[float, float]:
    r"""Read off the dimension at which the probability of meeting the set passes one half.

    The shares :math:`p_k` of trials that need at most k dimensions are joined by straight lines. The error is half the
    distance of the points where the line passes :math:`\frac12 \pm \frac12 N^{-1/2}`, one standard error of a share of
    N trials.

    Args:
        counts: Dimensions that the trials needed, ``[N]`` with N >= 2.

    Returns:
        The dimension, at least 0, and its standard error.

    Raises:
        UserError: Fewer than two trials.

    Example:
        >>> half_point([3, 4, 4, 5])
        (3.5, 0.5)
    """
    needed, repeats = np.unique(np.asarray(counts), return_counts=True)
    trials = int(repeats.sum())
    if trials < 2:
        raise UserError(f"counts: expected at least 2 trials for an error, got {trials}")
    shares = np.concatenate([[0.0], np.cumsum(repeats) / trials])
    step = 0.5 / math.sqrt(trials)
    points = np.interp([0.5 - step, 0.5, 0.5 + step], shares, np.concatenate([[needed[0] - 1], needed]))
    low, middle, high = np.maximum(points, 0.0).tolist()
    return middle, (high - low) / 2
