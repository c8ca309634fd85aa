"""The curvature of an objective, by second derivatives where torch has them, else by finite differences."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from estimators.curvature import GGN, Hessian
from estimators.differences import DifferenceGGN, DifferenceHessian
from estimators.distributed import gathered
from estimators.errors import MissingDerivativeError
from estimators.forwards import Forwards
from estimators.objective import Objective
from estimators.operator import Fronting

Kind = Literal["hessian", "ggn"]


class AutomaticCurvature(Fronting):
    """Hessian or GGN by differentiating twice, or from the first product that this is refused by finite differences.

    Args:
        kind: ``"hessian"`` or ``"ggn"``.
        objective: The objective; its penalty's curvature is included.
        forwards: Forward passes to share with other curvatures of the same objective; None makes its own. Finite
            differences share none and take the precision of the model.
        mask: Bool ``[D]`` or None, see ``Hessian``.

    Attributes:
        curvature: What gives the products.
        reason: What lacks a second derivative; empty as long as nothing does.

    Example:
        >>> import torch
        >>> data = [(torch.randn(8, 4), torch.arange(8) % 2)]
        >>> operator = AutomaticCurvature("ggn", Objective(torch.nn.Linear(4, 2), data))
        >>> product = operator.matmat(torch.ones(8, 1))
        >>> operator.reason, operator.error
        ('', 0.0)
    """

    outside = 0.0

    def __init__(
        self, kind: Kind, objective: Objective, forwards: Forwards | None = None, mask: Tensor | None = None
    ) -> None:
        self.kind, self.objective, self.mask = kind, objective, mask
        usual = Hessian if kind == "hessian" else GGN
        self.curvature: Hessian | GGN | DifferenceHessian | DifferenceGGN = usual(
            objective, forwards=forwards, mask=mask
        )
        self.reason = ""
        self._before = 0

    @property
    def products(self) -> int:
        """Products taken so far."""
        return self._before + self.curvature.products

    def project(self, vectors: Tensor) -> Tensor:
        """Return columns ``[D, K]`` over the chosen weights as they are: it acts on all of them."""
        return vectors

    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply with the columns of ``vectors`` ``[D, K]``; returns ``[D, K]``."""
        if not self.reason:
            try:
                return self.curvature.matmat(vectors)
            except Exception as error:  # every rank comes here where one does
                own = error.reason if isinstance(error, MissingDerivativeError) else ""
                self.reason = next(filter(None, gathered(own)), "")
                if not self.reason:
                    raise
            self._before = self.curvature.products
            self.forget()
            by_differences = DifferenceHessian if self.kind == "hessian" else DifferenceGGN
            self.curvature = by_differences(self.objective, self.mask)
        return self.curvature.matmat(vectors)

    def forget(self) -> None:
        """Drop the kept graphs and the forward passes beneath; finite differences keep none."""
        if isinstance(self.curvature, Hessian | GGN):
            self.curvature.forget()

    def forget_products(self) -> None:
        """Drop the kept graphs of products."""
        if isinstance(self.curvature, Hessian | GGN):
            self.curvature.forget_products()
