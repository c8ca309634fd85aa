"""The Hessian and the generalised Gauss-Newton matrix of an objective, as products with vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from estimators import distributed
from estimators.errors import UserError
from estimators.forwards import Forward, Forwards, Precision, SavedBytes
from estimators.memory import retried
from estimators.objective import Objective
from estimators.outputs import loss_inputs
from estimators.refusals import check_twice_differentiable, no_lost_graphs, refuse_weight_norm, second_derivatives
from estimators.user_code import plain_modes
from estimators.vectors import aligned_rows, columns, unflatten

Product = Callable[[Tensor, bool], Sequence[Tensor]]


class Curvature(ABC):
    """A curvature of an objective as products, the sum of those of its batches.

    Args:
        objective: The objective; its penalty's curvature is included.
        mask: See ``Hessian``.
    """

    def __init__(self, objective: Objective, mask: Tensor | None = None) -> None:
        self.objective = objective
        self.mask = mask
        self.products = 0
        self.passes = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, ``(D, D)``."""
        return self.objective.dimension, self.objective.dimension

    @property
    def dtype(self) -> torch.dtype:
        """Type of vectors and products, that of the chosen weights, at least float32."""
        return torch.promote_types(self.objective.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.objective.device

    @property
    def samples(self) -> int:
        """Number of samples behind a product."""
        return self.objective.samples

    @property
    def blocks(self) -> list[int]:
        """Sizes of the chosen parameters, in their order."""
        return [weight.numel() for weight in self.objective.chosen.values()]

    @property
    def outside(self) -> float:
        """The eigenvalue outside of the space that it acts in, which is empty; see ``InputSubspace``."""
        return 0.0

    @property
    def error(self) -> float:
        """Relative error of products beyond rounding, 0 where they are derivatives; see ``DifferenceHessian``."""
        return 0.0

    def project(self, vectors: Tensor) -> Tensor:
        """Return columns ``[D, K]`` over the chosen weights as they are: it acts on all of them."""
        return vectors

    def matvec(self, vector: Tensor) -> Tensor:
        """Multiply with one vector ``[D]``; returns ``[D]``."""
        if vector.shape != (self.shape[1],):
            raise UserError(f"vector: expected shape ({self.shape[1]},), got {tuple(vector.shape)}")
        return self.matmat(vector[:, None])[:, 0]

    @plain_modes()
    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply with the columns of ``vectors`` ``[D, K]`` in one pass over the data; returns ``[D, K]``.

        Every rank passes over its share; the sum over ranks has the same bits on each.
        """
        if vectors.dim() != 2 or vectors.shape[0] != self.shape[1]:
            raise UserError(f"vectors: expected shape ({self.shape[1]}, K), got {tuple(vectors.shape)}")
        result = self._multiplied(vectors)
        if not all(end.isfinite() for end in result.aminmax()):
            raise UserError(
                f"{type(self).__name__}: a product is NaN or infinite; look for infinite losses or layers whose second "
                "derivative is undefined, or use a float64 model"
            )
        return result

    def _multiplied(self, vectors: Tensor) -> Tensor:
        """Multiply with columns ``[D, K]``, whatever comes out."""
        rows = columns(self._without_removed(vectors.detach().to(self.device, self.dtype)))
        with self.objective.one_pass(*rows), second_derivatives(self.objective), no_lost_graphs():
            local = retried(lambda: self._summed(rows), self._make_room)
        total = distributed.total(local)
        self.products += len(rows)
        self.passes += 1
        total /= self.objective.samples
        if self.objective.penalty:
            for row, result in zip(rows, total, strict=True):
                result += self.objective.penalty.curvature * row
        return self._without_removed(total.T)

    def _without_removed(self, vectors: Tensor) -> Tensor:
        return vectors if self.mask is None else vectors * self.mask[:, None]

    def __matmul__(self, other: Tensor) -> Tensor:
        """Multiply with a vector ``[D]`` or with columns ``[D, K]``."""
        return self.matvec(other) if other.dim() == 1 else self.matmat(other)

    @abstractmethod
    def _summed(self, rows: list[Tensor]) -> Tensor:
        """Sum the products of all batches of this rank with K vectors; returns ``[K, D]``."""

    def _make_room(self) -> None:
        """Pass smaller batches."""
        self.objective.shrink()


class _Differentiated(Curvature):
    """Products by differentiating twice; the differentiated graphs are kept between products where they fit.

    Args:
        objective: The objective; its penalty's curvature is included.
        memory: Bytes that stored graphs may take; 0 rebuilds every graph in every product.
        forwards: Forward passes to share with other curvatures of the same objective; None makes its own.
        precision: See ``Hessian``.
        mask: See ``Hessian``.
    """

    def __init__(
        self,
        objective: Objective,
        memory: int = 2 << 30,
        forwards: Forwards | None = None,
        precision: Precision = "full",
        mask: Tensor | None = None,
    ) -> None:
        super().__init__(objective, mask)
        self.memory = memory
        self.forwards = Forwards(objective, memory, precision) if forwards is None else forwards
        self._graphs: list[Product] | None = None
        self._versions: list[int] = []

    def forget(self) -> None:
        """Drop the kept graphs and the forward passes beneath; the next product passes the data anew."""
        self.forget_products()
        self.forwards.forget()

    def forget_products(self) -> None:
        """Drop the graphs of this curvature and keep the forward passes, which another one may share."""
        self._graphs = None

    @abstractmethod
    def _differentiate(self, forward: Forward) -> Product:
        """Differentiate the summed losses of one batch.

        Returns:
            The product with a vector ``[D]``, told whether it will be asked again, one tensor per chosen parameter. The
            last time it frees the graph on the way, so that the memory is used again at once, which saves the time to
            get new memory.
        """

    def _summed(self, rows: list[Tensor]) -> Tensor:
        total = aligned_rows(len(rows), self.shape[0], self.dtype, self.device).zero_()
        with self.objective.held():
            for product, again in self._batch_products():
                for number, (row, result) in enumerate(zip(rows, total, strict=True), 1):
                    parts = product(row.to(self.objective.dtype), again or number < len(rows))
                    for place, part in zip(unflatten(result, parts), parts, strict=True):
                        place += part.detach()  # zeros of idle weights, in torch 2.3
                del product
        return total

    def _make_room(self) -> None:
        """Stop keeping graphs; where none were kept, pass smaller batches, whose graphs together are no smaller."""
        memory = self.memory or self.forwards.memory
        self.memory = self.forwards.memory = 0
        self.forget()
        if not memory:
            super()._make_room()

    def _batch_products(self) -> Iterator[tuple[Product, bool]]:
        """Yield the product of every batch and whether anyone needs its graph again."""
        versions = self.objective.versions()
        if self._graphs is not None and self._versions == versions:
            yield from ((product, True) for product in self._graphs)
            return
        self._graphs, self._versions = None, versions
        keep: list[Product] | None = [] if self.memory else None
        used = 0.0
        for forward in self.forwards:
            check_twice_differentiable(self.objective, forward)
            counter = SavedBytes(forward.storages)
            with torch.enable_grad(), counter.counting() if keep is not None else nullcontext():
                product = self._differentiate(forward)
            used += forward.bytes + counter.bytes + self.objective.dimension * self.objective.dtype.itemsize
            if used > self.memory:
                keep = None
            if keep is not None:
                keep.append(product)
            yield product, keep is not None or self.forwards.keeping
            del product, forward  # before the next graph is built
        self._graphs = keep


def _nothing(vector: Tensor, again: bool) -> Sequence[Tensor]:
    """Product of a batch whose losses do not depend on the chosen weights."""
    return [torch.zeros_like(vector)]


def curving(slopes: Sequence[Tensor], along: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Keep the slopes that depend on what they are differentiated by, and their partners."""
    pairs = [pair for pair in zip(slopes, along, strict=True) if pair[0].requires_grad]
    return [slope for slope, _ in pairs], [partner for _, partner in pairs]


class Hessian(_Differentiated):
    r"""The Hessian :math:`\nabla^2 F(w)` with respect to the chosen weights, as products.

    Args:
        objective: The objective; its penalty's curvature is included.
        memory: Bytes that stored gradient graphs may take; 0 rebuilds every graph in every product.
        forwards: Forward passes to share with a GGN of the same objective; None makes its own.
        precision: ``"full"`` is the precision of the model. ``"bfloat16"`` computes products of a float32 model in
            bfloat16 where ``torch.autocast`` considers it safe, and sums them in float32. The error is about a
            hundredth, which hides eigenvalues that are far smaller than the largest. Shared forward passes have their
            own precision.
        mask: Bool ``[D]``, False for weights that are removed for good; their rows and columns are zero. None keeps
            all.

    Source: Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6, 1994.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.eye(2), torch.zeros(2, 1))]
        >>> squared = lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1)
        >>> Hessian(Objective(model, data, squared)) @ torch.tensor([1.0, 0.0])
        tensor([1., 0.])
    """

    def _differentiate(self, forward: Forward) -> Product:
        inputs = forward.weights
        if not forward.loss.requires_grad:
            return _nothing
        refuse_weight_norm(forward.loss)
        slopes = torch.autograd.grad(forward.loss, inputs, create_graph=True, materialize_grads=True)

        def product(vector: Tensor, again: bool) -> Sequence[Tensor]:
            bent, along = curving(slopes, unflatten(vector, inputs))
            if not bent:
                return _nothing(vector, again)
            return torch.autograd.grad(bent, inputs, along, retain_graph=again, materialize_grads=True)

        return product


class GGN(_Differentiated):
    r"""The generalised Gauss-Newton matrix :math:`\frac1n \sum_j J_j^\top \nabla^2_z \ell_j J_j`, as products.

    :math:`J_j` is the Jacobian of the model's output :math:`z_j`. The output consists of all tensors that the model
    returns, in one call or in several, and that the loss is computed from. The matrix is positive semidefinite where
    the loss is convex in the output. Terms of the loss that depend on the weights but not through the output do not
    count.

    Args:
        objective: The objective; its penalty's curvature is included. The loss must be computed from the tensors that
            the model returns, and none of these tensors from another.
        memory: Bytes that stored graphs may take; 0 rebuilds every graph in every product.
        forwards: Forward passes to share with a Hessian of the same objective; None makes its own.
        precision: ``"full"`` or ``"bfloat16"``, see ``Hessian``.
        mask: Bool ``[D]`` or None, see ``Hessian``.

    Source: Schraudolph, Fast curvature matrix-vector products, Neural Computation 14, 2002.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.eye(2), torch.zeros(2, 1))]
        >>> squared = lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1)
        >>> GGN(Objective(model, data, squared)) @ torch.tensor([1.0, 0.0])
        tensor([1., 0.])
    """

    def _differentiate(self, forward: Forward) -> Product:
        inputs = forward.weights
        if not forward.loss.requires_grad:
            return _nothing
        outputs = loss_inputs(forward.outputs, forward.loss)
        slopes = torch.autograd.grad(forward.loss, outputs, create_graph=True, materialize_grads=True)
        duals = [torch.zeros_like(output, requires_grad=True) for output in outputs]
        pulled = torch.autograd.grad(outputs, inputs, duals, create_graph=True, materialize_grads=True)

        def product(vector: Tensor, again: bool) -> Sequence[Tensor]:
            live, directions = curving(pulled, unflatten(vector, inputs))
            if not live:  # behind steps, such as round and sign, whose derivative is zero
                return _nothing(vector, again)
            pushed = torch.autograd.grad(live, duals, directions, retain_graph=True, materialize_grads=True)
            bent, along = curving(slopes, pushed)
            if not bent:
                return _nothing(vector, again)
            curved = torch.autograd.grad(bent, outputs, along, retain_graph=True, materialize_grads=True)
            return torch.autograd.grad(outputs, inputs, curved, retain_graph=again, materialize_grads=True)

        return product
