"""Cones given as cvxpy constraints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from estimators import UserError
from pruning_limits.cones.arguments import Floats, checked_dimension, checked_points


class CvxpyCone:
    """A cone given as cvxpy constraints, projected onto by a solver.

    Args:
        dimension: D, at least 1.
        constraints: From a cvxpy variable of shape ``(D,)`` to a list of convex constraints that describe a cone.

    Raises:
        UserError: The constraints are not convex, or do not describe a cone.

    Example:
        >>> cone = CvxpyCone(3, lambda x: [x >= 0])
        >>> np.abs(cone.project([1.0, -2.0, 3.0])).round(3)
        array([1., 0., 3.])
    """

    def __init__(self, dimension: int, constraints: Callable[[Any], Sequence[Any]]) -> None:
        cvxpy: Any = import_module("cvxpy")
        self.dimension = checked_dimension(dimension, 1)
        self._variable, self._target = cvxpy.Variable(dimension), cvxpy.Parameter(dimension)
        distance = cvxpy.Minimize(cvxpy.norm2(self._variable - self._target))
        self._problem: Any = cvxpy.Problem(distance, list(constraints(self._variable)))
        if not self._problem.is_dcp():
            raise UserError("constraints: expected convex constraints, got a problem that breaks cvxpy's DCP rules")
        probe = np.random.default_rng(0).standard_normal(dimension)
        if not np.allclose(self.project(3 * probe), 3 * self.project(probe), atol=1e-3):
            raise UserError("constraints: expected a cone, got a set whose projection does not scale with the point")

    def project(self, x: ArrayLike) -> Floats:
        """Find the nearest points of the cone, to about 1e-4 of their norm.

        Args:
            x: Points ``[*N, D]``.

        Returns:
            Projections ``[*N, D]``.

        Raises:
            UserError: The solver did not finish; the message names its status.
        """
        points = checked_points(x, self.dimension)
        return np.array([self._solve(point) for point in points.reshape(-1, self.dimension)]).reshape(points.shape)

    def _solve(self, point: Floats) -> Floats:
        cvxpy: Any = import_module("cvxpy")
        self._target.value = point
        data, chain, inverse = self._problem.get_problem_data(cvxpy.CLARABEL, solver_opts={})
        solution = chain.invert(chain.solve_via_data(self._problem, data), inverse)
        if solution.status != cvxpy.OPTIMAL:
            raise UserError(f"constraints: expected the solver to finish, got status '{solution.status}'")
        self._problem.unpack(solution)
        return np.asarray(self._variable.value, dtype=np.float64)
