"""Stochastic traces from a few products."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from estimators.curvature import Operator
from estimators.errors import UserError


def block_traces(
    operator: Operator, sizes: Sequence[int], probes: int = 4, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Estimate the trace of every diagonal block by Hutchinson's estimator :math:`v_b^\top (A v)_b`.

    Args:
        operator: Symmetric operator with ``matmat``.
        sizes: Sizes of consecutive blocks; they sum to D.
        probes: Number of Rademacher vectors, at least 2.
        seed: Seed of the vectors; the global random state is not used.

    Returns:
        Traces ``[blocks]`` and their standard errors ``[blocks]``; the trace of A is their sum.

    Raises:
        UserError: Sizes do not sum to D, or fewer than two probes.

    Source: Hutchinson, Communications in Statistics 18, 1989.
    """
    if sum(sizes) != operator.shape[0]:
        raise UserError(f"sizes: must sum to {operator.shape[0]}, got {sum(sizes)}")
    if probes < 2:
        raise UserError(f"probes: expected at least 2 for a standard error, got {probes}")
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (operator.shape[0], probes), generator=generator) * 2 - 1
    vectors = signs.to(operator.device, operator.dtype)
    terms = (vectors * operator.matmat(vectors)).double().cpu()
    samples = np.stack([part.sum(0).numpy() for part in torch.split(terms, list(sizes))])
    return samples.mean(1), samples.std(1, ddof=1) / np.sqrt(probes)


def diagonal(operator: Operator, probes: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    r"""Estimate the diagonal by Hutchinson's estimator :math:`v \odot A v` with random signs v.

    The estimate is unbiased; one probe has variance :math:`\sum_{j \ne i} A_{ij}^2` in entry i.

    Args:
        operator: Symmetric operator with ``matmat``.
        probes: Number of products, at least 2.
        seed: Seed of the signs; the global random state is not used.

    Returns:
        Diagonal and its standard error, float64 ``[D]`` each, on the operator's device.

    Raises:
        UserError: Fewer than two probes.

    Source: Bekas, Kokiopoulou and Saad, An estimator for the diagonal of a matrix, Applied Numerical Mathematics 57,
    2007.

    Example:
        >>> class Diagonal:
        ...     shape, dtype, device = (2, 2), torch.float64, torch.device("cpu")
        ...     def matmat(self, vectors):
        ...         return torch.tensor([[3.0], [1.0]], dtype=torch.float64) * vectors
        >>> diagonal(Diagonal(), probes=2)[0]
        tensor([3., 1.], dtype=torch.float64)
    """
    if probes < 2:
        raise UserError(f"probes: expected at least 2 for a standard error, got {probes}")
    generator = torch.Generator().manual_seed(seed)
    mean = torch.zeros(operator.shape[0], dtype=torch.float64, device=operator.device)
    squares = torch.zeros_like(mean)
    for done in range(1, probes + 1):
        signs = torch.randint(0, 2, (operator.shape[0], 1), generator=generator) * 2 - 1
        vector = signs.to(operator.device, operator.dtype)
        sample = (vector * operator.matmat(vector))[:, 0].double()
        step = sample - mean
        mean += step / done
        squares += step * (sample - mean)
    return mean, (squares / (probes * (probes - 1))).sqrt()


def row_norms(operator: Operator, probes: int = 32, seed: int = 0) -> Tensor:
    r"""Estimate the l1 norm of every row at once by Cauchy projections.

    With v of independent standard Cauchy entries, :math:`(A v)_i` is Cauchy with scale
    :math:`\sum_j |A_{ij}|`; the estimate :math:`\cos^k(\pi / 2k) \prod_{j=1}^k |(A v_j)_i|^{1/k}` is unbiased.

    Args:
        operator: Operator with ``matmat``.
        probes: Number k of products, at least 2; the relative standard deviation of one row is about
            :math:`\pi / (2 \sqrt k)`.
        seed: Seed of the vectors; the global random state is not used.

    Returns:
        Norms, float64 ``[D]``, on the CPU; a row of zeros gives exactly 0.

    Raises:
        UserError: Fewer than two probes.

    Source: Li, Estimators and tail bounds for dimension reduction in l_alpha using stable random projections,
    SODA 2008.

    Example:
        >>> class Identity:
        ...     shape, dtype, device = (3, 3), torch.float64, torch.device("cpu")
        ...     def matmat(self, vectors):
        ...         return vectors
        >>> bool((row_norms(Identity(), probes=2000) - 1).abs().max() < 0.1)
        True
    """
    if probes < 2:
        raise UserError(f"probes: expected at least 2, got {probes}")
    generator = torch.Generator().manual_seed(seed)
    logarithms = torch.zeros(operator.shape[0], dtype=torch.float64)
    for _ in range(probes):
        uniform = torch.rand((operator.shape[0], 1), generator=generator, dtype=torch.float64)
        vector = torch.tan(np.pi * (uniform - 0.5)).to(operator.device, operator.dtype)
        logarithms += operator.matmat(vector)[:, 0].double().abs().log().cpu()
    return float(np.cos(np.pi / (2 * probes)) ** probes) * (logarithms / probes).exp()
