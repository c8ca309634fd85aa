"""The lowest point of a quadratic model on subspaces through the pruned point, by dense linear algebra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dpstrf

from estimators import Operator, SpectralMeasure, UserError
from pruning_limits.directional import Direction

Floats = NDArray[np.float64]
ROUNDING = 1e3


@dataclass(frozen=True, eq=False)
class Quadratic:
    r"""A dense quadratic model of the rise, :math:`Q(x) = g^\top x + \frac12 x^\top H x`.

    Args:
        curvature: Symmetric matrix H ``[D, D]``.
        gradient: Gradient g ``[D]``; zero for a stationary point.

    Raises:
        UserError: The shapes do not match.

    Example:
        >>> model = Quadratic(np.array([[2.0, 1.0], [1.0, 2.0]]), np.zeros(2))
        >>> removed = np.array([0.0, 1.0])
        >>> model.rise(removed), model.lowest(removed, np.array([0]))
        (1.0, 0.75)
    """

    curvature: Floats
    gradient: Floats

    def __post_init__(self) -> None:
        size = len(self.gradient)
        if self.curvature.shape != (size, size):
            raise UserError(f"curvature: expected shape ({size}, {size}), got {self.curvature.shape}")

    @classmethod
    def of(cls, operator: Operator, gradient: Floats) -> Quadratic:
        """Build the model from all columns of an operator.

        Args:
            operator: Symmetric operator; D products are taken and D x D numbers stored.
            gradient: Gradient ``[D]``.

        Returns:
            The model, its matrix made exactly symmetric.
        """
        columns = operator.matmat(torch.eye(operator.shape[0], dtype=operator.dtype, device=operator.device))
        matrix = columns.double().cpu().numpy()
        return cls((matrix + matrix.T) / 2, gradient)

    @cached_property
    def eigen(self) -> tuple[Floats, Floats]:
        """Eigenvalues ``[D]``, rising, and eigenvectors in the columns ``[D, D]``."""
        values, vectors = np.linalg.eigh(self.curvature)
        return values, vectors

    @property
    def measure(self) -> SpectralMeasure:
        """The exact spectral measure of the curvature."""
        return SpectralMeasure.from_eigenvalues(self.eigen[0])

    def direction(self, removed: Floats) -> Direction:
        """Return the exact spectral measures of removed weights d ``[D]`` and of the gradient."""
        values, vectors = self.eigen
        return Direction.dense(values, vectors.T @ removed, vectors.T @ self.gradient)

    def rise(self, removed: Floats) -> float:
        r"""Rise at the pruned point, :math:`Q(-d)`, for removed weights d ``[D]``."""
        return float(0.5 * removed @ self.curvature @ removed - self.gradient @ removed)

    def lowest(self, removed: Floats, moving: NDArray[np.int64]) -> float | None:
        r"""Lowest rise when some coordinates move freely from the pruned point.

        .. math:: \min_b Q(b - d) = Q(-d) - \tfrac12\, p_K^\top H_{KK}^{+} p_K, \qquad p = Hd - g,

        with b zero outside the set K. Cholesky with pivots takes as many coordinates as have curvature of their own; a
        gradient must lie in the range of H.

        Args:
            removed: Removed weights d ``[D]``.
            moving: Positions K of the coordinates that move, distinct, in any order.

        Returns:
            The rise; None where :math:`H_{KK}` has a negative eigenvalue, so that the model falls without end.

        Source: Haynsworth 1968 for the Schur complement; Higham, Cholesky factorization, 2009, for the pivots.
        """
        start = self.rise(removed)
        block = self.curvature[np.ix_(moving, moving)]
        scale = np.abs(block).max(initial=0.0)
        if scale == 0:
            return start
        pulled = self.curvature[moving] @ removed - self.gradient[moving]
        factor, pivots, rank, _ = dpstrf(block, lower=1)
        first, rest = pivots[:rank] - 1, pivots[rank:] - 1
        lower = factor[:rank, :rank]
        if rest.size:
            half = _solve(lower, block[np.ix_(first, rest)])
            left = block[np.ix_(rest, rest)] - half.T @ half
            if np.abs(left).max() > ROUNDING * len(block) * np.finfo(float).eps * scale:
                return None
        fall = _solve(lower, pulled[first])
        return float(start - 0.5 * fall @ fall)

    def on_random_subspaces(self, removed: Floats, kept: Sequence[int], seed: int) -> Floats:
        r"""Lowest rises on nested random subspaces through pruned points, for a positive semidefinite curvature.

        With the first k columns F of a Gaussian matrix in the eigenbasis, the minimum over b of :math:`Q(F b - d)` is a
        least-squares residual; one QR decomposition gives all of them, see ``sublevel_crossings``.

        Args:
            removed: Removed weights of every case in the columns ``[D, m]``.
            kept: Dimension k of the subspace of every case, m numbers in 0..D.
            seed: Seed of the Gaussian matrix; the global random state is not used.

        Returns:
            Rises ``[m]``.

        Source: derived in ``pruning_limits.kinematics_monte_carlo``.
        """
        values, vectors = self.eigen
        steep = values > len(values) * np.finfo(float).eps * np.abs(values).max()
        roots = np.sqrt(values[steep])
        shift = vectors.T[steep] @ self.gradient / roots
        targets = roots[:, None] * (vectors.T[steep] @ removed) - shift[:, None]
        rank = len(roots)
        frame = roots[:, None] * np.random.default_rng(seed).standard_normal((rank, rank))
        triangle = np.asarray(np.linalg.qr(np.column_stack([frame, targets]), mode="r"))[:, rank:]
        tails = np.zeros((rank + 1, len(kept)))
        tails[:rank] = np.cumsum(triangle[::-1] ** 2, axis=0)[::-1]
        rises: Floats = tails[np.minimum(kept, rank), np.arange(len(kept))] / 2 - shift @ shift / 2
        return rises


def _solve(lower: Floats, right: Floats) -> Floats:
    result: Floats = solve_triangular(lower, right, lower=True) if len(lower) else np.zeros(right.shape)
    return result
