"""Quadrature rules for the spectral measure of a start vector, from its Lanczos matrix."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal, solve_banded

from estimators.lanczos import Tridiagonal
from estimators.measure import Rule

LAST_STEPS, MOST_NODES = 8, 1024


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
        Nodes ascending ``[m + 1]`` and weights ``[m + 1]``; the Gauss rule if the Krylov space is exhausted or if the
        rule already has the node.

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
        return gauss(tridiagonal)
    nodes, weights = _rule(np.append(alpha, last), np.append(beta, tridiagonal.residual))
    beyond, edge = (np.maximum, 0) if node < alpha.mean() else (np.minimum, -1)
    nodes = beyond(nodes, node)  # where a Gauss node lies on the prescribed one, rounding moves one beyond
    nodes[edge] = node
    return nodes, weights


def averaged_gauss(tridiagonal: Tridiagonal) -> Rule:
    r"""Averaged Gauss rule of 2m - 1 nodes, exact up to degree 2m at least.

    The rule extends the Lanczos matrix by its mirror image. The nodes interlace the nodes of the Gauss rule, so a
    narrow bulk of eigenvalues has several nodes on both sides. For functions with a kink such as :math:`c/(c+|x|)`, the
    value changes far less from step to step than the value of the Gauss rule. The outermost nodes may lie slightly
    outside the spectrum.

    Args:
        tridiagonal: Lanczos matrix of m steps.

    Returns:
        Nodes ascending ``[2m - 1]`` and weights; the Gauss rule if the Krylov space is exhausted.

    Source: Spalevic, On generalized averaged Gaussian formulas, Mathematics of Computation 76, 2007.
    """
    if tridiagonal.exhausted or tridiagonal.steps == 1:
        return gauss(tridiagonal)
    alpha, beta = tridiagonal.alpha, tridiagonal.beta
    return _rule(np.concatenate([alpha, alpha[-2::-1]]), np.concatenate([beta, [tridiagonal.residual], beta[-2::-1]]))


def steady_gauss(tridiagonal: Tridiagonal) -> Rule:
    r"""Mean of the averaged Gauss rules of the last steps, at most half of all steps and at most eight.

    In a narrow bulk of eigenvalues the nodes change from step to step, and the value of :math:`c/(c+|x|)` changes with
    them. The mean of neighbouring steps is steady. With many steps, where a single rule is steady too, the mean takes
    fewer rules.

    Args:
        tridiagonal: Lanczos matrix of m steps.

    Returns:
        Nodes and weights, at most 1,024 or those of a single rule; the weights sum to 1. The Gauss rule if the Krylov
        space is exhausted.

    Example:
        >>> matrix = Tridiagonal(np.zeros(6), np.ones(5), 1.0, exhausted=False)
        >>> nodes, weights = steady_gauss(matrix)
        >>> len(nodes), round(float(weights @ nodes**2), 12)
        (27, 1.0)
    """
    steps = tridiagonal.steps
    if tridiagonal.exhausted:
        return gauss(tridiagonal)
    count = max(1, min(LAST_STEPS, steps // 2, MOST_NODES // (2 * steps)))
    rules = [averaged_gauss(tridiagonal.head(steps - back)) for back in range(count)]
    return np.concatenate([nodes for nodes, _ in rules]), np.concatenate([weights for _, weights in rules]) / count


def even_bracket(tridiagonal: Tridiagonal) -> tuple[Rule, Rule]:
    r"""Rules that bound an even function of an indefinite matrix, such as :math:`c/(c+|x|)`, from both sides.

    For a function :math:`g(x^2)` only the even moments matter. They are the moments of the squared matrix, which is
    positive semidefinite. The first m of them follow from m Lanczos steps with the matrix itself. Where g is completely
    monotone, as :math:`c/(c+\sqrt y)` is (the square root is a Bernstein function), the Gauss rule of the squared
    matrix is a lower bound and its Gauss-Radau rule with a node at 0 an upper bound. Both are read off the bidiagonal
    matrices of Golub and Kahan, so that small nodes keep their digits.

    Args:
        tridiagonal: Lanczos matrix of m steps.

    Returns:
        The rule below and the rule above, in terms of :math:`|x|`: nodes ascending ``[m // 2]`` and ``[m // 2 + 1]``
        and their weights.

    Source: Golub and Kahan 1965; Golub and Meurant 2010, chapter 6; Schilling, Song and Vondracek, Bernstein functions,
    2012, theorem 3.7.

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
    wide = _bidiagonal(tridiagonal, max(1, tridiagonal.steps // 2))
    above = wide if tridiagonal.steps > 1 else wide[:1, :0]
    return _singular_rule(wide[:-1]), _singular_rule(above)


def _bidiagonal(tridiagonal: Tridiagonal, steps: int) -> NDArray[np.float64]:
    """Return the bidiagonal B ``[k + 1, k]`` of Golub and Kahan for T and its first unit vector.

    T is continued by the residual and a zero, which enters no moment up to 2m.
    """
    off = np.append(tridiagonal.beta, tridiagonal.residual)
    matrix = np.diag(np.append(tridiagonal.alpha, 0.0)) + np.diag(off, 1) + np.diag(off, -1)
    left, right = np.zeros((2, len(matrix), steps + 1))
    result = np.zeros((steps + 1, steps))
    left[0, 0] = 1.0
    for k in range(steps):
        for basis, source, place in ((right, left[:, k], (k, k)), (left, right[:, k], (k + 1, k))):
            vector = matrix @ source
            for _ in range(2):
                vector -= basis @ (basis.T @ vector)
            result[place] = np.linalg.norm(vector)
            if result[place] > np.finfo(float).eps * np.abs(off).max():
                basis[:, place[0]] = vector / result[place]
    return result


def _singular_rule(bidiagonal: NDArray[np.float64]) -> Rule:
    r"""Nodes and weights of the Gauss rule of :math:`B B^\top`, its nodes as square roots."""
    vectors, values, _ = np.linalg.svd(bidiagonal)
    nodes = np.concatenate([values, np.zeros(len(vectors) - len(values))])
    return nodes[::-1], vectors[0, ::-1] ** 2


def _rule(diagonal: NDArray[np.float64], off_diagonal: NDArray[np.float64]) -> Rule:
    nodes, vectors = eigh_tridiagonal(diagonal, off_diagonal)
    return nodes, vectors[0] ** 2
