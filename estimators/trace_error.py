r"""Errors of stochastic traces, from few products.

A trace is the mean of k quadratic forms. The spread of so few forms says little about their variance, and their
distribution is skewed where few eigenvalues dominate. Here the variance comes from all entries of the products, and the
error is widened by Student's t with the degrees of freedom that this variance has.

**Random signs.** Let :math:`g = v \odot A v`. The terms :math:`g_i` and :math:`g_j` have covariance
:math:`A_{ij}^2` and :math:`\operatorname{var} g_i = \sum_{j \ne i} A_{ij}^2`, so
:math:`\operatorname{var} v^\top A v = 2 \sum_i \operatorname{var} g_i`. The D sample variances of the :math:`g_i` over
the probes estimate it without bias, and it is exactly zero for a diagonal matrix. For a block b the factor 2 becomes
:math:`1 + r`, where r is the share of :math:`\sum_{i \in b} \operatorname{var} g_i` that lies inside the block. With
:math:`M_{ac} = v_{a,b}^\top (A v_c)_b` for probes :math:`a \ne c`, :math:`M_{ac} M_{ca}` has the mean
:math:`\|A_{bb}\|_F^2` and :math:`M_{ac}^2` the mean :math:`\sum_{i \in b} \|A_i\|^2`; r is the ratio of their sums.

**Vectors that share their low-rank range.** XTrace is the mean of estimates :math:`t_i`, each unbiased given all
vectors but the i-th. Let :math:`t_{i \setminus j}` be the estimate of the i-th vector without the j-th in the range,
and :math:`\gamma_{ij} = t_i - t_{i \setminus j}`. Given all vectors but i and j, :math:`t_{i \setminus j}` and
:math:`t_{j \setminus i}` are independent, and :math:`\gamma_{ij}` has mean zero for every j-th vector; hence
:math:`\operatorname{cov}(t_i, t_j) = \operatorname{E} \gamma_{ij} \gamma_{ji}` exactly. No further product is needed.

**Degrees of freedom.** The mean of :math:`\|A v\|^2` over k Gaussian vectors has the first two moments of
:math:`\chi^2_\nu` with :math:`\nu = k\, (\operatorname{tr} A^2)^2 / \operatorname{tr} A^4` (Satterthwaite), from k for
rank one to kD for equal eigenvalues. :math:`\operatorname{tr} A^4` and :math:`(\operatorname{tr} A^2)^2` have unbiased
estimates from the Gram matrix of the products, which is Wishart distributed.
"""

from __future__ import annotations

import math

import torch
from scipy.special import ndtr, stdtrit
from torch import Tensor

MOST_FREEDOM = 1e9


def widened(variance: float, gram: Tensor) -> float:
    r"""Return the standard error, widened so that two of it cover as often as two of a normal variable, 95.4 %.

    Args:
        variance: Estimated variance of the mean.
        gram: Gram matrix of the k products behind it, float64 ``[k, k]``.

    Returns:
        :math:`\frac12 t_\nu \sqrt{\text{variance}}` with the quantile :math:`t_\nu` at :math:`\Phi(2)`; it tends to the
        plain standard error where :math:`\nu` is large. Zero where the products or the variance are zero.

    Source: Satterthwaite, An approximate distribution of estimates of variance components, Biometrics Bulletin 2, 1946.
    """
    count, total = len(gram), float(gram.trace())
    if not (variance > 0 and total > 0):
        return 0.0
    fourth = (float(gram.square().sum()) - total**2 / count) / ((count + 2) * (count - 1))
    second = (total**2 - 2 * count * fourth) / count**2
    freedom = min(count * second / fourth, MOST_FREEDOM) if fourth > 0 else MOST_FREEDOM
    return 0.5 * float(stdtrit(freedom, ndtr(2.0))) * math.sqrt(variance)


def sign_statistics(signs: Tensor, terms: Tensor) -> tuple[float, float, Tensor]:
    r"""Return what the error of a block's trace is made of.

    Args:
        signs: The block's rows of the random signs, ``[n, k]``.
        terms: Signs times products, float64 ``[n, k]``; overwritten.

    Returns:
        :math:`\sum_i \operatorname{var} g_i`; the share r of it inside the block, in [0, 1]; and the Gram matrix
        ``[k, k]`` of the products with :math:`A - m I`, m being the mean of the diagonal, which adds no variance.
    """
    spread = float(terms.var(1).sum())
    shifted = terms.sub_(terms.mean()).mul_(signs)
    forms = torch.stack([column.double() @ shifted for column in signs.unbind(1)])
    gram = shifted.T @ shifted
    forms.fill_diagonal_(0.0)
    outer = float(forms.square().sum())
    inside = float((forms * forms.T).sum()) / outer if outer > 0 else 1.0
    return spread, max(0.0, inside), gram


def shared_variance(variance: float, corrections: Tensor) -> float:
    r"""Return the variance of the mean of k estimates that share their vectors.

    Args:
        variance: Variance of each estimate.
        corrections: :math:`\gamma_{ij}`, float64 ``[k, k]``; the diagonal is not read.

    Returns:
        :math:`(\text{variance} + (k - 1)\, c) / k`, where c is the mean of :math:`\gamma_{ij} \gamma_{ji}` over pairs,
        at least 0.
    """
    count = len(corrections)
    products = corrections * corrections.T
    covariance = float(products.sum() - products.trace()) / (count * (count - 1))
    return (variance + (count - 1) * max(covariance, 0.0)) / count


def leave_out_corrections(
    dimension: int,
    inner: Tensor,
    left_out: Tensor,
    parts: Tensor,
    coordinates: Tensor,
    outside: Tensor,
    squares: Tensor,
) -> Tensor:
    r"""Return the :math:`\gamma_{ij}` of XTrace: estimate i minus estimate i without vector j in the range.

    The direction that the range loses with vector j is that part of ``left_out`` j which is orthogonal to
    ``left_out`` i; all its products follow from those of the ``left_out``.

    Args:
        dimension: D.
        inner: The matrix on the basis of the range of all products, ``[k, k]``.
        left_out: Coordinates of the unit vectors of this range that are orthogonal to all products but the i-th.
        parts: Coordinates of every vector's projection onto the range of the other products.
        coordinates: Coordinates of the products with the rests, the vectors without their projections.
        outside: Rayleigh quotients of the rests ``[k]``.
        squares: Squared lengths of the rests ``[k]``.

    Returns:
        Corrections ``[k, k]``; their diagonal means nothing.
    """
    cosines, forms = left_out.T @ left_out, left_out.T @ inner @ left_out
    tiny = torch.finfo(inner.dtype).eps
    lengths = (1 - cosines.square()).clamp(min=tiny).sqrt()
    lost = (forms.diag()[None] - 2 * cosines * forms + cosines.square() * forms.diag()[:, None]) / lengths.square()
    regained = parts.T @ left_out / lengths
    crossed = coordinates.T @ left_out
    crossed = (crossed - cosines * crossed.diag()[:, None]) / lengths
    total = outside * squares
    quotients = total[:, None] + 2 * regained * crossed + regained.square() * lost
    quotients /= squares[:, None] + regained.square()
    size = dimension - len(inner) + 1
    return lost + size * outside[:, None] - (size + 1) * quotients
