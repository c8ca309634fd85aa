"""The eigenpairs of largest absolute value, with residuals that bound their errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from estimators.errors import UserError
from estimators.operator import Operator
from estimators.spectrum import sphere_probes


@dataclass(frozen=True)
class Eigenpairs:
    r"""Approximate eigenpairs, largest absolute value first.

    Attributes:
        values: Eigenvalues, float64 ``[count]``.
        vectors: Orthonormal eigenvectors as columns ``[D, count]``, in the operator's type.
        residuals: Norms :math:`\|A v - \lambda v\|`, float64 ``[count]``, each from a product of its own. Every value
            lies within its residual of an eigenvalue.
        products: Number of products taken.
        converged: True when no residual exceeds the tolerance.
    """

    values: NDArray[np.float64]
    vectors: Tensor
    residuals: NDArray[np.float64]
    products: int
    converged: bool


def eigenpairs(
    operator: Operator, count: int = 5, seed: int = 0, tolerance: float = 1e-4, products: int = 1000
) -> Eigenpairs:
    r"""Compute the eigenpairs of largest absolute value by block Lanczos with full reorthogonalisation.

    The Krylov space starts with ``count`` random vectors and grows by the residuals of the wanted Ritz pairs, so a
    repeated eigenvalue is found as often as it occurs. A space of 3 ``count`` + 12 columns is restarted from its best
    Ritz vectors. The columns and their products are stored in the operator's type and on its device.

    Args:
        operator: Symmetric operator with ``matmat``.
        count: Number of eigenpairs, 1 to D.
        seed: Seed of the start vectors; the global random state is not used.
        tolerance: Wanted residual relative to the largest absolute eigenvalue, at least 0. The error of a well
            separated eigenvalue is of the order of its square.
        products: Largest number of products, at least ``2 * count``; if it does not suffice, ``converged`` is False.

    Returns:
        Values, vectors and residuals, whether they have converged or not.

    Raises:
        UserError: An argument is out of range.

    Source: Golub and Underwood, The block Lanczos method, 1977; Wu and Simon, Thick-restart Lanczos method, SIAM J.
    Matrix Anal. Appl. 22, 2000.

    Example:
        >>> class Diagonal:
        ...     shape, dtype, device = (4, 4), torch.float64, torch.device("cpu")
        ...     def matmat(self, vectors):
        ...         return torch.tensor([[1.0], [-7.0], [3.0], [3.0]], dtype=torch.float64) * vectors
        >>> eigenpairs(Diagonal(), count=3).values.round(6).tolist()
        [-7.0, 3.0, 3.0]
    """
    _check(operator, count, tolerance, products)
    widest = 3 * count + 12
    basis = torch.linalg.qr(sphere_probes(operator, count, seed)).Q
    images = operator.matmat(basis)
    used = count
    while True:
        values, inner = _rayleigh_ritz(basis, images)
        top = inner[:, :count]
        vectors = basis @ top
        residuals = images @ top - vectors * values[:count].to(vectors)
        unfinished = _norms(residuals) > tolerance * values.abs().max()
        if not unfinished.any() or used + int(unfinished.sum()) + count > products:
            break
        if basis.shape[1] + count > widest:
            best = inner[:, : 2 * count]
            basis, images = basis @ best, images @ best
        fresh = _orthonormal(residuals[:, unfinished.to(residuals.device)], basis)
        if not fresh.shape[1]:
            break
        used += fresh.shape[1]
        basis, images = torch.cat([basis, fresh], 1), torch.cat([images, operator.matmat(fresh)], 1)
    norms = _norms(operator.matmat(vectors) - vectors * values[:count].to(vectors))
    converged = bool((norms <= tolerance * values.abs().max()).all())
    return Eigenpairs(values[:count].numpy(), vectors, norms.numpy(), used + count, converged)


def _check(operator: Operator, count: int, tolerance: float, products: int) -> None:
    if not 1 <= count <= operator.shape[0]:
        raise UserError(f"count: expected 1 to {operator.shape[0]}, got {count}")
    if not tolerance >= 0:
        raise UserError(f"tolerance: expected a number >= 0, relative to the largest eigenvalue, got {tolerance}")
    if products < 2 * count:
        raise UserError(f"products: expected at least {2 * count}, twice the count, got {products}")


def _rayleigh_ritz(basis: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return all Ritz values, float64 on the CPU, largest absolute value first, and their coordinates."""
    projected = (basis.T @ images).double().cpu()
    values, inner = torch.linalg.eigh((projected + projected.T) / 2)
    order = values.abs().argsort(descending=True)
    return values[order], inner[:, order].to(basis)


def _orthonormal(columns: Tensor, basis: Tensor) -> Tensor:
    """Orthonormalise columns against a basis and among each other; dependent ones are dropped."""
    columns = columns / torch.linalg.vector_norm(columns, dim=0)
    for _ in range(2):
        columns, triangle = torch.linalg.qr(columns - basis @ (basis.T @ columns))
        columns = columns[:, triangle.diag().abs() > torch.finfo(columns.dtype).eps ** 0.5]
    return columns


def _norms(columns: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(columns, dim=0, dtype=torch.float64)
    return norms.cpu()
