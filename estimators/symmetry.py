"""Is an operator symmetric, and the same in every product?"""

from __future__ import annotations

import torch

from estimators.curvature import GGN, Hessian, Operator
from estimators.errors import UserError


def check_symmetric(operator: Operator, seed: int = 0) -> None:
    r"""Compare :math:`u^\top (A v)` with :math:`v^\top (A u)` for two random vectors, each with a pass of its own.

    The curvature of a model that draws random numbers in its forward pass is another matrix in every pass. Graphs that
    a ``Hessian`` or a ``GGN`` has kept are dropped, so that both products see the data anew.

    Args:
        operator: Operator with ``matmat``; two products are taken.
        seed: Seed of the vectors; the global random state is not used.

    Raises:
        UserError: The two differ by more than rounding can explain: by more than the root of the precision of the type,
            relative to the size that either has for random vectors.

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
    drawn = torch.randn(2, operator.shape[0], generator=generator, dtype=torch.float64)
    u, v = (vector.to(operator.device, operator.dtype) for vector in drawn)
    along_v, along_u = (_product(operator, vector) for vector in (v, u))
    left, right = (float(a.double() @ b.double()) for a, b in ((u, along_v), (v, along_u)))
    size = max(float(torch.linalg.vector_norm(one, dtype=torch.float64)) for one in (along_u, along_v))
    if not abs(left - right) <= torch.finfo(operator.dtype).eps ** 0.5 * size:
        raise UserError(
            f"operator: not symmetric, u'Hv = {left:.6g} but v'Hu = {right:.6g}; likely causes are dropout that stays "
            "on in evaluation mode (functional.dropout without training=self.training) and random augmentation in "
            "the loader: turn them off"
        )


def _product(operator: Operator, vector: torch.Tensor) -> torch.Tensor:
    if isinstance(operator, Hessian | GGN):
        operator.forget()
        operator.forwards.forget()
    return operator.matmat(vector[:, None])[:, 0]
