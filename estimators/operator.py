"""Symmetric matrices that are known by their products with vectors, and a test of symmetry."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from estimators.errors import UserError


class Operator(Protocol):
    """A symmetric matrix known by its products."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, ``(D, D)``."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the vectors that the matrix multiplies."""

    @property
    def device(self) -> torch.device:
        """Device of the vectors that the matrix multiplies."""

    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply with the columns of ``vectors`` ``[D, K]``."""


class SubspaceOperator(Operator, Protocol):
    """A symmetric matrix in a subspace outside of which it has a single eigenvalue."""

    @property
    def outside(self) -> float:
        """The eigenvalue outside of the subspace."""

    def project(self, vectors: Tensor) -> Tensor:
        """Project columns ``[D, K]`` of the whole space on the subspace."""


class DataOperator(Operator, Protocol):
    """A curvature on data, by the parameters that it acts on."""

    @property
    def samples(self) -> int:
        """Number of samples behind a product."""

    @property
    def blocks(self) -> list[int]:
        """Sizes of the parameters, in their order."""

    @property
    def error(self) -> float:
        """Relative error of products beyond rounding, see ``DifferenceHessian``."""


class Fronting:
    """An operator that stands before another one, ``curvature``, and is like it in all but its products."""

    curvature: DataOperator

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.curvature.shape

    @property
    def dtype(self) -> torch.dtype:
        """Type of vectors and products."""
        return self.curvature.dtype

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.curvature.device

    @property
    def samples(self) -> int:
        """Number of samples behind a product."""
        return self.curvature.samples

    @property
    def blocks(self) -> list[int]:
        """Sizes of the parameters that it acts on, in their order."""
        return self.curvature.blocks

    @property
    def error(self) -> float:
        """Relative error of products beyond rounding, see ``DifferenceHessian``."""
        return self.curvature.error


@runtime_checkable
class Caching(Protocol):
    """An operator that keeps graphs between products."""

    def forget(self) -> None:
        """Drop what is kept; the next product passes the data anew."""


def check_symmetric(operator: Operator, seed: int = 0) -> None:
    r"""Compare :math:`u^\top (A v)` with :math:`v^\top (A u)` for two random vectors, each product in a separate pass.

    If a model draws random numbers in its forward pass, its curvature is a different matrix in every pass. The stored
    graphs of a ``Hessian`` or a ``GGN`` are dropped, so that both products pass the data again.

    Args:
        operator: Operator with ``matmat``; two products are taken.
        seed: Seed of the vectors; the global random state is not used.

    Raises:
        UserError: The two numbers differ by more than rounding can explain: by more than the square root of the
            precision of the type, relative to their usual size for random vectors.

    Example:
        >>> class Rotation:
        ...     shape, dtype, device = (2, 2), torch.float64, torch.device("cpu")
        ...     def matmat(self, vectors):
        ...         return torch.stack([-vectors[1], vectors[0]])
        >>> check_symmetric(Rotation())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        estimators.errors.UserError: operator: not symmetric...
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2, operator.shape[0], generator=generator, dtype=torch.float64, device="cpu")
    u, v = (vector.to(operator.device, operator.dtype) for vector in drawn)
    along_v, along_u = (_product(operator, vector) for vector in (v, u))
    left, right = (float(a.double() @ b.double()) for a, b in ((u, along_v), (v, along_u)))
    size = max(float(torch.linalg.vector_norm(product, dtype=torch.float64)) for product in (along_u, along_v))
    if not abs(left - right) <= torch.finfo(operator.dtype).eps ** 0.5 * size:
        raise UserError(
            f"operator: not symmetric, u'Hv = {left:.6g} but v'Hu = {right:.6g}; likely causes are dropout that stays "
            "on in evaluation mode (functional.dropout without training=self.training) and random augmentation or "
            "sampling in the loader: turn them off"
        )


def _product(operator: Operator, vector: Tensor) -> Tensor:
    if isinstance(operator, Caching):
        operator.forget()
    return operator.matmat(vector[:, None])[:, 0]
