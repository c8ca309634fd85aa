"""Stochastic traces, diagonals and row norms from a few products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from estimators.errors import UserError
from estimators.operator import Operator
from estimators.trace_error import leave_out_corrections, shared_variance, sign_statistics, widened


@dataclass(frozen=True)
class TraceEstimate:
    """An estimate of a trace.

    Attributes:
        value: The estimate.
        standard_error: Standard error over the choice of random vectors; 0 where the products give the trace exactly.
            It is widened by Student's t where few products leave it uncertain, so that two standard errors around
            ``value`` cover the trace in about 95 % of seeds.
        products: Number of products taken.
    """

    value: float
    standard_error: float
    products: int


@dataclass(frozen=True)
class BlockTraces:
    """Estimates of the traces of diagonal blocks from the same products.

    Attributes:
        values: Traces ``[blocks]``.
        errors: Their standard errors ``[blocks]``, see ``TraceEstimate``.
        whole: Trace of the whole matrix, the sum of ``values``, with the error of the sum.
    """

    values: NDArray[np.float64]
    errors: NDArray[np.float64]
    whole: TraceEstimate


def hutchinson(operator: Operator, probes: int = 32, seed: int = 0) -> TraceEstimate:
    r"""Estimate the trace by Hutchinson's estimator, the mean of :math:`v^\top A v` over random signs v.

    Args:
        operator: Symmetric operator with ``matmat``. Any object with ``shape``, ``dtype``, ``device`` and ``matmat`` is
            allowed: for the trace of f(A), write a class whose ``matmat`` applies f(A).
        probes: Number of products, at least 2; D x probes numbers are stored. With D or more, the products with the
            identity give the exact trace, and D products are taken.
        seed: Seed of the signs; the global random state is not used.

    Returns:
        The estimate; one probe has variance :math:`2 \sum_{i \ne j} A_{ij}^2`. With 4 products or more, two standard
        errors cover the trace in 93 to 97 % of seeds. With 2 products they cover it in 91 % where few eigenvalues
        dominate. They cover it in 99 % for a matrix with little else than two opposite eigenvalues, because the
        distribution of its estimates is narrow. An exact trace has the standard error 0.

    Raises:
        UserError: Fewer than two probes.

    Source: Hutchinson, Communications in Statistics 18, 1989.

    Example:
        >>> class Twice:
        ...     shape, dtype, device = (3, 3), torch.float64, torch.device("cpu")
        ...     def matmat(self, vectors):
        ...         return 2 * vectors
        >>> hutchinson(Twice(), probes=2)
        TraceEstimate(value=6.0, standard_error=0.0, products=2)
    """
    return traces_of_blocks(operator, [operator.shape[0]], probes, seed).whole


def hutch_plus_plus(operator: Operator, products: int = 33, seed: int = 0) -> TraceEstimate:
    r"""Estimate the trace exactly on a random low-rank range and by Hutchinson's estimator on the rest.

    With Q an orthonormal basis of :math:`A S` for random signs S, the estimate is :math:`\operatorname{tr} Q^\top A Q`
    plus the mean of :math:`g^\top A g` with :math:`g = (I - Q Q^\top) v`. A third of the products goes into each of S,
    Q and v. Given Q, the mean is unbiased; the standard error relies on this.

    Args:
        operator: Symmetric operator with ``matmat``.
        products: Number of products, at least 6; D x products / 3 float64 numbers are stored a few times. With D or
            more, the products with the identity give the exact trace, and D products are taken.
        seed: Seed of the signs; the global random state is not used.

    Returns:
        The estimate; it is exact for matrices of rank up to a third of the products. With D products it is exact and
        its standard error is 0. Two standard errors cover the trace in 93 to 97 % of seeds. With 6 products at a
        dimension as small as 12 they cover it in 92 %, because two vectors of signs take few values.

    Raises:
        UserError: Fewer than six products.

    Source: Meyer, Musco, Musco and Woodruff, Hutch++: optimal stochastic trace estimation, SOSA 2021, algorithm 1.

    Example:
        >>> class Corner:
        ...     shape, dtype, device = (3, 3), torch.float64, torch.device("cpu")
        ...     def matmat(self, vectors):
        ...         return torch.tensor([[5.0], [0.0], [0.0]], dtype=torch.float64) * vectors
        >>> round(hutch_plus_plus(Corner(), products=6).value, 9)
        5.0
    """
    if products < 6:
        raise UserError(f"products: expected at least 6 for a standard error, got {products}")
    if products >= operator.shape[0]:
        return _exact(operator)
    generator = torch.Generator().manual_seed(seed)
    rank = products // 3
    basis = torch.linalg.qr(_times(operator, _signs(operator, rank, generator))).Q
    inside = (basis * _times(operator, basis)).sum()
    signs = _signs(operator, products - 2 * rank, generator)
    rest = signs - basis @ (basis.T @ signs)
    images = _times(operator, rest)
    samples = (rest * images).sum(0)
    spread, _, gram = sign_statistics(signs, signs * (images - basis @ (basis.T @ images)))
    return TraceEstimate(float(inside + samples.mean()), widened(2 * spread / len(samples), gram), products)


def xtrace(operator: Operator, products: int = 32, seed: int = 0) -> TraceEstimate:
    r"""Estimate the trace with every random vector used in the low-rank range of all others and for its own rest.

    For k Gaussian vectors :math:`\omega_i` let :math:`P_i` project onto the range of :math:`A \omega_j, j \ne i`. The
    estimate is the mean over i of :math:`\operatorname{tr} P_i A P_i + (D - k + 1)\, e_i^\top A e_i / \|e_i\|^2` with
    :math:`e_i = (I - P_i) \omega_i`. The length of :math:`e_i` carries no information and is divided out.

    Args:
        operator: Symmetric operator with ``matmat``.
        products: Number of products, at least 4; an odd number is rounded down. D x products / 2 float64 numbers are
            stored a few times. With D or more, the products with the identity give the exact trace, and D products are
            taken.
        seed: Seed of the vectors; the global random state is not used.

    Returns:
        The estimate; it is exact for matrices of rank below half the products. With D products it is exact and its
        standard error is 0. The standard error accounts for the vectors that the k leave-one-out estimates share. Two
        standard errors cover the trace in 93 to 97 % of seeds. They cover it in fewer, down to 90 %, where k is close
        to the number of dominant eigenvalues: there a vector that adds nothing to the range looks like a vector that
        misses much.

    Raises:
        UserError: Fewer than four products.

    Source: Epperly, Tropp and Webber, XTrace: making the most of every sample in stochastic trace estimation, SIAM J.
    Matrix Anal. Appl. 45, 2024, section 2.3.

    Example:
        >>> class Corner:
        ...     shape, dtype, device = (3, 3), torch.float64, torch.device("cpu")
        ...     def matmat(self, vectors):
        ...         return torch.tensor([[5.0], [0.0], [0.0]], dtype=torch.float64) * vectors
        >>> round(xtrace(Corner(), products=4).value, 9)
        5.0
    """
    if products < 4:
        raise UserError(f"products: expected at least 4 for a standard error, got {products}")
    dimension = operator.shape[0]
    if products >= dimension:
        return _exact(operator)
    count = products // 2
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(dimension, count, generator=generator, dtype=torch.float64).to(operator.device)
    images = _times(operator, vectors)
    basis, triangle = torch.linalg.qr(images)
    basis_images = _times(operator, basis)
    inner = basis.T @ basis_images
    left_out = _left_out(triangle)
    parts = basis.T @ vectors
    parts -= left_out * (left_out * parts).sum(0)
    rest = vectors - basis @ parts
    outcomes = images - basis_images @ parts
    squares = rest.square().sum(0)
    outside = (rest * outcomes).sum(0) / squares
    values = inner.trace() - (left_out * (inner @ left_out)).sum(0) + (dimension - count + 1) * outside
    coordinates = triangle - inner @ parts
    corrections = leave_out_corrections(dimension, inner, left_out, parts, coordinates, outside, squares)
    # The part of A e that is orthogonal to the unit vector e and to the range of the others has the mean square of half
    # the variance of sqrt(n) e'Ae, n = D - k + 1.
    coordinates -= left_out * (left_out * coordinates).sum(0)
    across = (outcomes - basis @ coordinates - rest * outside) / squares.sqrt()
    gram = (dimension - count + 1) * (across.T @ across)
    error = widened(shared_variance(2 * float(gram.trace()) / count, corrections), gram)
    return TraceEstimate(float(values.mean()), error, 2 * count)


def _exact(operator: Operator) -> TraceEstimate:
    """Read the trace off the products with the identity."""
    return TraceEstimate(float(_whole_diagonal(operator).sum()), 0.0, operator.shape[0])


def _whole_diagonal(operator: Operator) -> Tensor:
    identity = torch.eye(operator.shape[0], dtype=operator.dtype, device=operator.device)
    return operator.matmat(identity).diagonal().double()


def _left_out(triangle: Tensor) -> Tensor:
    """Return, for every column of R, the unit vector orthogonal to all other columns: the normalised rows of 1/R."""
    diagonal = triangle.diag()
    floor = torch.finfo(triangle.dtype).eps * (float(diagonal.abs().max()) or 1.0)
    full_rank = triangle + torch.diag(torch.where(diagonal.abs() < floor, floor, 0.0))
    identity = torch.eye(len(triangle), dtype=triangle.dtype, device=triangle.device)
    rows: Tensor = torch.linalg.solve_triangular(full_rank.T, identity, upper=False)
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=0)
    return rows / lengths


def _signs(operator: Operator, count: int, generator: torch.Generator) -> Tensor:
    bits = torch.randint(0, 2, (operator.shape[0], count), generator=generator, dtype=torch.int8)
    return bits.mul_(2).sub_(1).to(operator.device, torch.float64)


def _times(operator: Operator, vectors: Tensor) -> Tensor:
    """Multiply in the operator's own type; vectors and result are float64."""
    return operator.matmat(vectors.to(operator.dtype)).double()


def block_traces(
    operator: Operator, sizes: Sequence[int], probes: int = 4, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Estimate the trace of every diagonal block by Hutchinson's estimator :math:`v_b^\top (A v)_b`.

    Args:
        operator: Symmetric operator with ``matmat``.
        sizes: Sizes of consecutive blocks; they sum to D.
        probes: Number of Rademacher vectors, at least 2. With D or more, the products with the identity give the exact
            traces.
        seed: Seed of the vectors; the global random state is not used.

    Returns:
        Traces ``[blocks]`` and their standard errors ``[blocks]``, widened as in ``TraceEstimate``. The trace of A is
        the sum of the traces. Exact traces have the error 0. For a block of at most five rows that is coupled to no
        other block, two standard errors cover the trace in 87 to 95 % of seeds, because so few signs take few values.

    Raises:
        UserError: Sizes do not sum to D, or fewer than two probes.

    Source: Hutchinson, Communications in Statistics 18, 1989.

    Example:
        >>> class Twice:
        ...     shape, dtype, device = (3, 3), torch.float64, torch.device("cpu")
        ...     def matmat(self, vectors):
        ...         return 2 * vectors
        >>> block_traces(Twice(), [1, 2], probes=2)
        (array([2., 4.]), array([0., 0.]))
    """
    blocks = traces_of_blocks(operator, sizes, probes, seed)
    return blocks.values, blocks.errors


def traces_of_blocks(operator: Operator, sizes: Sequence[int], probes: int = 4, seed: int = 0) -> BlockTraces:
    """Estimate the traces of blocks, see ``block_traces``, and that of the whole matrix with the error of the sum."""
    if sum(sizes) != operator.shape[0]:
        raise UserError(f"sizes: must sum to {operator.shape[0]}, got {sum(sizes)}")
    if probes < 2:
        raise UserError(f"probes: expected at least 2 for a standard error, got {probes}")
    if probes >= operator.shape[0]:
        values = np.array([float(part.sum()) for part in torch.split(_whole_diagonal(operator), list(sizes))])
        return BlockTraces(values, np.zeros(len(values)), TraceEstimate(float(values.sum()), 0.0, operator.shape[0]))
    generator = torch.Generator().manual_seed(seed)
    vectors = _signs(operator, probes, generator).to(operator.dtype)
    pairs = (torch.split(columns, list(sizes)) for columns in (vectors, operator.matmat(vectors)))
    samples, errors, spreads, grams = [], [], 0.0, torch.zeros(probes, probes, dtype=torch.float64)
    for signs, product in zip(*pairs, strict=True):
        terms = (signs * product).double()
        samples.append(terms.cpu().contiguous().sum(0).numpy())
        spread, inside, gram = sign_statistics(signs, terms)
        errors.append(widened((1 + inside) * spread / probes, gram))
        spreads, grams = spreads + spread, grams + gram.cpu()
    values = np.stack(samples).mean(1)
    whole = TraceEstimate(float(values.sum()), widened(2 * spreads / probes, grams), probes)
    return BlockTraces(values, np.array(errors), whole)


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
        vector = _signs(operator, 1, generator).to(operator.dtype)
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
