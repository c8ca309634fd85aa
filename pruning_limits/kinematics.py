"""The approximate kinematic formula: when a randomly rotated subspace meets a cone."""

from __future__ import annotations

import math

from estimators import UserError


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
    if not 0 < eta < 1:
        raise UserError(f"eta: expected a probability in (0, 1), got {eta}")
    return math.sqrt(8 * math.log(4 / eta) * dimension)
