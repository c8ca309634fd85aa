"""The kinematic formula: the probability that a randomly rotated cone or subspace meets a cone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from estimators import UserError

Floats = NDArray[np.float64]


class Conic(Protocol):
    """What the kinematic formula needs of a cone; every class of ``pruning_limits.cones`` has it."""

    @property
    def dimension(self) -> int:
        """Dimension D of the space."""

    def statistical_dimension(self) -> float:
        """Return the mean of the intrinsic volumes."""

    def variance(self) -> float:
        """Return the variance of the intrinsic volumes."""

    def intrinsic_volumes(self) -> Floats | None:
        """Return the intrinsic volumes, or None."""


@dataclass(frozen=True)
class Crossing:
    r"""Probability that a randomly rotated cone meets a fixed one in more than the origin.

    Attributes:
        probability: Probability ``[*N]``.
        lower: Rigorous lower bound ``[*N]``, given the statistical dimensions.
        upper: Rigorous upper bound ``[*N]``.
        method: ``"intrinsic volumes"``: ``probability`` is exact. ``"normal"``: it is
            :math:`\Phi((\delta(C) + \delta(K) - D)/\sigma)` with the variances of both cones in :math:`\sigma^2`.
    """

    probability: Floats
    lower: Floats
    upper: Floats
    method: Literal["intrinsic volumes", "normal"]


def transition_width(dimension: int, eta: float = 0.05) -> float:
    r"""Half-width :math:`a_\eta \sqrt D` of the transition, with :math:`a_\eta = \sqrt{8 \log(4/\eta)}`.

    A cone of statistical dimension :math:`\delta` meets a random k-dimensional subspace of :math:`R^D` with
    probability at least :math:`1-\eta` when :math:`\delta + k \ge D + a_\eta \sqrt D`, and at most :math:`\eta` when
    :math:`\delta + k \le D - a_\eta \sqrt D`.

    Args:
        dimension: D, at least 1.
        eta: Probability in (0, 1).

    Returns:
        The half-width in dimensions; divided by D it is one in sparsity.

    Raises:
        UserError: An argument is out of range.

    Source: Amelunxen, Lotz, McCoy and Tropp, Living on the edge, Information and Inference 3, 2014, theorem I.

    Example:
        >>> round(transition_width(10_000), 1)
        592.1
    """
    if dimension < 1:
        raise UserError(f"dimension: expected at least 1, got {dimension}")
    return math.sqrt(8 * math.log(4 / _probability(eta)) * dimension)


def concentration_width(delta: float, dimension: int, eta: float = 0.05) -> float:
    r"""Half-width of the transition of a cone whose statistical dimension is known, never above ``transition_width``.

    .. math:: \lambda = \tfrac23 L + \sqrt{\tfrac49 L^2 + 4 L \omega^2}, \quad
              L = \log(1/\eta),\ \omega^2 = \min(\delta, D - \delta),

    solves :math:`\exp(-\frac{\lambda^2/4}{\omega^2 + \lambda/3}) = \eta`. At extreme sparsity, where
    :math:`D - \delta \ll D`, it is far smaller than :math:`a_\eta \sqrt D`.

    Args:
        delta: Statistical dimension of the cone, in [0, D].
        dimension: D, at least 1.
        eta: Probability in (0, 1).

    Returns:
        The half-width in dimensions.

    Raises:
        UserError: An argument is out of range.

    Source: McCoy and Tropp, From Steiner formulas for cones to concentration of intrinsic volumes, Discrete and
    Computational Geometry 51, 2014, section 4 (tail bounds).

    Example:
        >>> round(concentration_width(9_900, 10_000), 1)
        36.7
    """
    if dimension < 1:
        raise UserError(f"dimension: expected at least 1, got {dimension}")
    if not 0 <= delta <= dimension:
        raise UserError(f"delta: expected a statistical dimension in [0, {dimension}], got {delta}")
    log = -math.log(_probability(eta))
    return 2 / 3 * log + math.sqrt(4 / 9 * log**2 + 4 * log * min(delta, dimension - delta))


def crossing_window(cone: Conic, eta: float = 0.05) -> tuple[float, float]:
    r"""Dimensions k between which a random k-dimensional subspace starts to meet the cone.

    The threshold is :math:`D - \delta(C)`; below ``low`` the probability is at most :math:`\eta`, above ``high`` at
    least :math:`1 - \eta`.

    Args:
        cone: C.
        eta: Probability in (0, 1).

    Returns:
        ``(low, high)``, the threshold minus and plus ``concentration_width``, within [0, D].

    Raises:
        UserError: ``eta`` is out of range.

    Example:
        >>> from pruning_limits.cones import Orthant
        >>> [round(k, 1) for k in crossing_window(Orthant(1000))]
        [420.6, 579.4]
    """
    delta = cone.statistical_dimension()
    width = concentration_width(delta, cone.dimension, eta)
    threshold = cone.dimension - delta
    return max(threshold - width, 0.0), min(threshold + width, float(cone.dimension))


def subspace_crossing(cone: Conic, kept: ArrayLike) -> Crossing:
    r"""Probability that a random k-dimensional subspace meets a cone, as a curve in k.

    .. math:: P = 2 (v_{D-k+1} + v_{D-k+3} + \dots)

    when the intrinsic volumes are known, :math:`\Phi((\delta + k - D)/\sigma)` otherwise.

    Args:
        cone: C.
        kept: Dimensions k of the subspace, integers in 0..D, ``[*N]``.

    Returns:
        The probability with rigorous bounds, each ``[*N]``.

    Raises:
        UserError: A dimension is out of range or not an integer.

    Source: Amelunxen et al. 2014, fact 2.1 (Crofton formula); Goldstein, Nourdin and Peccati, Annals of Applied
    Probability 27, 2017, for the normal approximation; McCoy and Tropp 2014, section 4, for the bounds.

    Example:
        >>> from pruning_limits.cones import Orthant
        >>> subspace_crossing(Orthant(3), [1, 2]).probability
        array([0.25, 0.75])
    """
    counts = np.asarray(kept)
    d = cone.dimension
    if not (np.isreal(counts).all() and (counts == np.round(counts)).all() and ((counts >= 0) & (counts <= d)).all()):
        raise UserError(f"kept: expected integers in 0..{d}, got {kept!r}")
    counts = counts.astype(np.int64)
    delta = cone.statistical_dimension()
    return _crossing(cone.intrinsic_volumes(), d - counts, delta - (d - counts), cone.variance(), min(delta, d - delta))


def cone_crossing(cone: Conic, other: Conic) -> Crossing:
    r"""Probability that a cone meets a randomly rotated other one.

    .. math:: P = 2 (v_{D+1}(C \times K) + v_{D+3}(C \times K) + \dots)

    when the intrinsic volumes of both are known, :math:`\Phi((\delta(C) + \delta(K) - D)/\sigma)` otherwise.

    Args:
        cone: C.
        other: K, of the same dimension.

    Returns:
        The probability with rigorous bounds, arrays without axes.

    Raises:
        UserError: The cones have different dimensions.

    Source: Amelunxen et al. 2014, fact 2.1 (kinematic formula) and theorem I; McCoy and Tropp 2014, section 4, for the
    bounds; Goldstein, Nourdin and Peccati 2017 for the normal approximation.

    Example:
        >>> from pruning_limits.cones import Circular
        >>> round(float(cone_crossing(Circular(3, np.pi / 4), Circular(3, np.pi / 4)).probability), 6)
        0.5
    """
    d = cone.dimension
    if d != other.dimension:
        raise UserError(f"other: expected a cone of dimension {d} like the first, got dimension {other.dimension}")
    first, second = cone.intrinsic_volumes(), other.intrinsic_volumes()
    volumes = None if first is None or second is None else np.convolve(first, second)
    deltas = [cone.statistical_dimension(), other.statistical_dimension()]
    variances = [cone.variance(), other.variance()]
    noise = sum(min(delta, d - delta) for delta, variance in zip(deltas, variances, strict=True) if variance > 0)
    return _crossing(volumes, np.asarray(d), np.asarray(sum(deltas) - d), sum(variances), noise)


def _crossing(
    volumes: Floats | None, codimension: NDArray[np.int64], excess: Floats, variance: float, noise: float
) -> Crossing:
    """Read the probability off the intrinsic volumes above a codimension, or off their mean and variance."""
    from scipy.special import ndtr

    tail = np.exp(-(excess**2) / 4 / np.maximum(noise + np.abs(excess) / 3, 1e-300))
    lower, upper = np.where(excess > 0, 1 - tail, 0.0), np.where(excess < 0, tail, 1.0)
    if variance == 0:  # two subspaces in general position
        return Crossing(np.where(excess > 0, 1.0, 0.0), lower, np.where(excess > 0, 1.0, 0.0), "intrinsic volumes")
    if volumes is None:
        return Crossing(ndtr(excess / math.sqrt(variance)), lower, upper, "normal")
    padded = np.append(volumes, np.zeros(2 + len(volumes) % 2))
    pairs = padded.reshape(-1, 2)[::-1].cumsum(0)[::-1].reshape(-1)
    return Crossing(np.minimum(2 * pairs[codimension + 1], 1.0), lower, upper, "intrinsic volumes")


def _probability(eta: float) -> float:
    if not 0 < eta < 1:
        raise UserError(f"eta: expected a probability in (0, 1), got {eta}")
    return eta
