"""Quadrature rules for the spectral measure of a start vector, from its Lanczos matrix."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal, solve_banded
from torch import Tensor

from estimators.errors import UserError
from estimators.lanczos import Tridiagonal, lanczos

Rule = tuple[NDArray[np.float64], NDArray[np.float64]]


def gauss(tridiagonal: Tridiagonal) -> Rule:
    r"""Gauss rule of m nodes, exact for polynomials up to degree 2m - 1.

    The nodes are the eigenvalues of T, the weights the squared first components of its eigenvectors. For a function
    whose even derivatives are positive (such as :math:`c/(c+x)` on :math:`x \ge 0`) the rule is a lower bound.

    Args:
        tridiagonal: Lanczos matrix of m steps.

    Returns:
        Nodes ascending ``[m]`` and weights ``[m]``, which sum to 1.

    Source: Golub and Welsch 1969; Golub and Meurant, Matrices, Moments and Quadrature, 2010, chapter 6.
    """
    return _rule(tridiagonal.alpha, tridiagonal.beta)


def gauss_radau(tridiagonal: Tridiagonal, node: float) -> Rule:
    r"""Gauss-Radau rule of m + 1 nodes with one of them prescribed, exact up to degree 2m.

    With a prescribed node at or below the smallest eigenvalue the rule is an upper bound for functions whose odd
    derivatives are negative, such as :math:`c/(c+x)`.

    Args:
        tridiagonal: Lanczos matrix of m steps.
        node: The prescribed node, outside the interior of the spectrum.

    Returns:
        Nodes ascending ``[m + 1]`` and weights ``[m + 1]``; the Gauss rule when the Krylov space was exhausted.

    Raises:
        UserError: The node is an eigenvalue of T.

    Source: Golub 1973; Golub and Meurant 2010, section 6.2.
    """
    if tridiagonal.exhausted:
        return gauss(tridiagonal)
    alpha, beta, m = tridiagonal.alpha, tridiagonal.beta, tridiagonal.steps
    band = np.zeros((3, m))
    band[0, 1:] = beta
    band[1] = alpha - node
    band[2, :-1] = beta
    right = np.zeros(m)
    right[-1] = tridiagonal.residual**2
    try:
        with np.errstate(divide="ignore", invalid="ignore"):  # a 1 x 1 system is divided, not factorised
            last = node + solve_banded((1, 1), band, right)[-1]
    except np.linalg.LinAlgError:
        last = np.inf
    if not np.isfinite(last):
        raise UserError(f"node: {node} is an eigenvalue of the Lanczos matrix; prescribe another node")
    return _rule(np.append(alpha, last), np.append(beta, tridiagonal.residual))


def averaged_gauss(tridiagonal: Tridiagonal) -> Rule:
    r"""Averaged Gauss rule of 2m - 1 nodes, exact up to degree 2m at least.

    The Lanczos matrix is continued by its own mirror image. The nodes interlace those of the Gauss rule, so a narrow
    bulk is seen by several nodes on both sides, and for functions with a kink such as :math:`c/(c+|x|)` the value moves
    far less from step to step than that of the Gauss rule. The outermost nodes may lie slightly outside the spectrum.

    Args:
        tridiagonal: Lanczos matrix of m steps.

    Returns:
        Nodes ascending ``[2m - 1]`` and weights; the Gauss rule when the Krylov space was exhausted.

    Source: Spalevic, On generalized averaged Gaussian formulas, Mathematics of Computation 76, 2007.
    """
    if tridiagonal.exhausted or tridiagonal.steps == 1:
        return gauss(tridiagonal)
    alpha, beta = tridiagonal.alpha, tridiagonal.beta
    return _rule(np.concatenate([alpha, alpha[-2::-1]]), np.concatenate([beta, [tridiagonal.residual], beta[-2::-1]]))


def even_bracket(tridiagonal: Tridiagonal) -> tuple[Rule, Rule]:
    r"""Rules that bound an even function of an indefinite matrix, such as :math:`c/(c+|x|)`, from both sides.

    Of a function :math:`g(x^2)` only the even moments matter. They are those of the squared matrix, which is positive
    semidefinite, and the first m of them follow from m Lanczos steps with the matrix itself. Where g is completely
    monotone, as :math:`c/(c+\sqrt y)` is (the square root is a Bernstein function), the Gauss rule of the squared
    matrix is a lower bound and its Gauss-Radau rule with a node at 0 an upper bound.

    Args:
        tridiagonal: Lanczos matrix of m steps.

    Returns:
        The rule below and the rule above, in terms of :math:`|x|`: nodes ascending ``[m // 2]`` and ``[m // 2 + 1]``
        and their weights.

    Source: Golub and Meurant 2010, chapter 6; Schilling, Song and Vondracek, Bernstein functions, 2012, theorem 3.7.

    Example:
        >>> matrix = Tridiagonal(np.array([0.0, 0.0]), np.array([1.0]), 1.0, exhausted=False)
        >>> below, above = even_bracket(matrix)
        >>> below[0].round(3).tolist(), above[0].round(3).tolist()
        ([1.0], [0.0, 1.414])
    """
    if tridiagonal.exhausted:
        nodes, weights = gauss(tridiagonal)
        order = np.argsort(np.abs(nodes))
        return ((np.abs(nodes)[order], weights[order]),) * 2
    longer = np.append(tridiagonal.alpha, 0.0), np.append(tridiagonal.beta, tridiagonal.residual)
    nodes, weights = _rule(*longer)  # the last diagonal entry enters no moment up to 2m
    squares, start = torch.from_numpy(nodes**2), torch.from_numpy(np.sqrt(weights))
    squared = lanczos(_Diagonal(squares), start, max(1, tridiagonal.steps // 2))
    below = gauss(squared)
    above = gauss_radau(squared, 0.0) if tridiagonal.steps > 1 else (np.zeros(1), np.ones(1))
    lower, upper = ((np.sqrt(np.maximum(nodes, 0.0)), weights) for nodes, weights in (below, above))
    return lower, upper


class _Diagonal:
    """A diagonal matrix as an operator."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.shape, self.dtype, self.device = (len(values), len(values)), values.dtype, values.device

    def matmat(self, vectors: Tensor) -> Tensor:
        return self.values[:, None] * vectors


def _rule(diagonal: NDArray[np.float64], off_diagonal: NDArray[np.float64]) -> Rule:
    nodes, vectors = eigh_tridiagonal(diagonal, off_diagonal)
    return nodes, vectors[0] ** 2
