"""Curvature by central finite differences along vectors, where torch can differentiate the objective only once."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from estimators.curvature import Curvature, curving
from estimators.errors import UndefinedGGNError
from estimators.forwards import Forwards
from estimators.objective import Objective
from estimators.outputs import loss_inputs, tensors
from estimators.refusals import MISSING, graph_nodes, once_differentiable_function
from estimators.spectrum import sphere_probes
from estimators.vectors import aligned_rows, flatten, named

MOST_DOUBLINGS, LONGEST = 8, 1 / 4
FUSED = "ScaledDotProduct"  # with what names of torch's fast kernels of attention begin in a graph
SMALL = 512  # weights of which the whole matrix is built, column by column


@dataclass(frozen=True)
class Step:
    """How far the weights are moved.

    Attributes:
        length: Norm of the displacement.
        error: Relative distance of products with this step and with twice this step.
    """

    length: float
    error: float


class Differences(Curvature):
    r"""Products by central differences along the vectors, with a displacement of the same norm s for all of them.

    Rounding errs by :math:`N/s` and the difference by :math:`s^2 T/6`, N being the rounding noise of a gradient and T
    the third derivative. The first guess :math:`s^3 = N/T` takes N from the gradient at weights that are moved in their
    last digits, and :math:`T = \|A v\|/\|w\|`. From there s is doubled or halved as long as products with s and 2 s
    come closer to each other, for a random v, for A v, which lies where the curvature is large, and with few weights
    also for the one weight of every parameter where A v is largest. The largest of the relative distances is the
    error of products, or what those of the neighbouring steps say of it, if that is larger; truncation makes up for
    three times its share in it.

    Args:
        objective: The objective; its penalty's curvature is included.
        mask: See ``Hessian``.
        seed: Seed of the random vector.

    Source: Nocedal and Wright, Numerical Optimization, 2006, section 8.1; Richardson 1911 for the two steps.
    """

    def __init__(self, objective: Objective, mask: Tensor | None = None, seed: int = 0) -> None:
        super().__init__(objective, mask)
        self.seed = seed
        self._step: Step | None = None
        self._length = 0.0
        self._versions: list[int] = []

    @property
    def step(self) -> Step:
        """The step of products: sought before the first one, and again when the model was written to."""
        versions = self.objective.versions()
        if self._step is None or self._versions != versions:
            self._step, self._versions = self._sought(), versions
        return self._step

    @property
    def error(self) -> float:
        """Relative error of products, estimated by two steps; infinite where no step gives finite products."""
        return self.step.error

    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply with the columns of ``vectors`` ``[D, K]`` in one pass over the data; returns ``[D, K]``.

        Every rank passes over its share; the sum over ranks has the same bits on each.
        """
        self._length = self.step.length
        return super().matmat(vectors)

    @abstractmethod
    def _ends(self, batch: Any, size: int, moves: Sequence[Tensor]) -> Iterator[Tensor | None]:
        """Yield for one batch the difference of both ends ``[D]`` of some displacements ``[D]``; None for zero."""

    def _summed(self, rows: list[Tensor]) -> Tensor:
        total = aligned_rows(len(rows), self.shape[0], self.dtype, self.device).zero_()
        norms = [_norm(row) for row in rows]
        pairs = [(row, result, norm) for row, result, norm in zip(rows, total, norms, strict=True) if norm > 0]
        moves = [row * (self._length / norm) for row, _, norm in pairs]
        for batch, size in self.objective.batches():
            for (_, result, norm), difference in zip(pairs, self._ends(batch, size, moves), strict=True):
                if difference is not None:
                    result += difference * (norm / (2 * self._length))
        return total

    def _around(self, move: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights on both sides of the model's, ``[D]`` each."""
        weights = self.objective.vector()
        return (weights + move).to(weights), (weights - move).to(weights)

    def _sought(self) -> Step:
        """Seek the step between rounding and truncation."""
        objective, probe = self.objective, sphere_probes(self, 1, self.seed)
        weights, epsilon = objective.vector(), torch.finfo(objective.dtype).eps
        scale = _norm(self._without_removed(weights[:, None])) or 1.0
        start, longest = scale * epsilon ** (1 / 3), scale * LONGEST
        gradient = objective.gradient()
        image = self._moved(probe, start)
        size = _norm(image)
        if not 0 < size < math.inf:
            return self._closest(probe, start, longest)
        generator = torch.Generator().manual_seed(self.seed)
        signs = torch.randint(0, 2, weights.shape, generator=generator, device="cpu").mul_(2).sub_(1).to(weights)
        noise = _norm(objective.gradient(weights * (1 + epsilon * signs)).to(self.dtype) - gradient)
        start = min(max((noise * scale / size) ** (1 / 3), scale * epsilon**0.5), longest / 2)
        probes = [probe, image / size]
        if self.shape[0] <= SMALL:
            probes.append(self._few_weights(image))
        return self._closest(torch.cat(probes, dim=1), start, longest)

    def _few_weights(self, image: Tensor) -> Tensor:
        """Return the vector ``[D, 1]`` of ones for the weight in every parameter where a product is largest."""
        ones = [
            torch.zeros_like(part).index_fill_(0, part.abs().argmax(), 1.0) for part in torch.split(image, self.blocks)
        ]
        return torch.cat(ones)

    def _closest(self, vectors: Tensor, start: float, longest: float) -> Step:
        """Double or halve a step as long as products with it and with twice it come closer to each other.

        The closest two may be so by luck. Rounding goes with 1/s and truncation with its square, so that half the
        distance at half the step and a quarter of that at twice the step are estimates of its error, too.
        """
        products = [self._moved(vectors, factor * start) for factor in (0.5, 1, 2, 4)]
        steps = [Step(factor * start, _distance(*products[n : n + 2])) for n, factor in enumerate((0.5, 1, 2))]
        errors = {step.length: step.error for step in steps}
        best = min(steps, key=lambda step: step.error)
        up = best is steps[2]
        last = products[3 if up else 0]
        products.clear()
        for _ in range(0 if best is steps[1] else MOST_DOUBLINGS):
            length = 2 * best.length if up else best.length / 2
            if length > longest:
                break
            following = self._moved(vectors, 2 * length if up else length)
            error = _distance(last, following) if up else _distance(following, last)
            errors[length] = error
            if not error < best.error:
                break
            best, last = Step(length, error), following
        others = errors.get(best.length / 2, 0.0) / 2, errors.get(2 * best.length, 0.0) / 4
        return Step(best.length, max([best.error, *filter(math.isfinite, others)]))

    def _moved(self, vectors: Tensor, length: float) -> Tensor:
        """Multiply with columns ``[D, K]`` by a step of a length, whatever comes out."""
        self._length = length
        return self._multiplied(vectors)


class DifferenceHessian(Differences):
    r"""The Hessian by central differences of gradients, :math:`H v \approx (g(w + h v) - g(w - h v))/2h`.

    It is for models, kernels and losses that torch can differentiate only once. Where a function has kinks, like ReLU,
    the difference includes the mean curvature of the kinks over its step; second derivatives leave it out.

    Args:
        objective: The objective; its penalty's curvature is included.
        mask: Bool ``[D]`` or None, see ``Hessian``.
        seed: Seed of the random vector that the step is chosen with.

    Source: Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6, 1994, section 2; Nocedal and
    Wright, Numerical Optimization, 2006, section 8.1.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.eye(2), torch.zeros(2, 1))]
        >>> squared = lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1)
        >>> hessian = DifferenceHessian(Objective(model, data, squared))
        >>> bool((hessian @ torch.tensor([1.0, 0.0]) - torch.tensor([1.0, 0.0])).norm() < 1e-3)
        True
    """

    def _ends(self, batch: Any, size: int, moves: Sequence[Tensor]) -> Iterator[Tensor | None]:
        for move in moves:
            ahead, behind = (self.objective.losses_and_slopes(at, batch, size)[1] for at in self._around(move))
            yield None if ahead is None or behind is None else ahead.to(self.dtype) - behind.to(self.dtype)


class DifferenceGGN(Differences):
    r"""The generalised Gauss-Newton matrix with :math:`J v \approx (z(w + h v) - z(w - h v))/2h`.

    Two forward passes give the product of the Jacobian of the outputs z with the vector. Differentiation gives the
    product with the Hessian of the loss in the outputs, and one backward pass the product with the transposed Jacobian.

    Args:
        objective: The objective; its penalty's curvature is included. The loss must be computed from what the model
            returns and have a second derivative in it.
        mask: Bool ``[D]`` or None, see ``Hessian``.
        seed: Seed of the random vector that the step is chosen with.

    Source: Schraudolph, Fast curvature matrix-vector products, Neural Computation 14, 2002; the Jacobian by
    differences.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.eye(2), torch.zeros(2, 1))]
        >>> squared = lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1)
        >>> ggn = DifferenceGGN(Objective(model, data, squared))
        >>> bool((ggn @ torch.tensor([1.0, 0.0]) - torch.tensor([1.0, 0.0])).norm() < 1e-3)
        True
    """

    def _ends(self, batch: Any, size: int, moves: Sequence[Tensor]) -> Iterator[Tensor | None]:
        forward = Forwards(self.objective, memory=0).of_batch(batch, size, twice=False)
        if not forward.loss.requires_grad:
            yield from (None for _ in moves)
            return
        outputs = loss_inputs(forward.outputs, forward.loss)
        if any(name.startswith(FUSED) for name, _ in graph_nodes([forward.loss], outputs)):
            self.objective.plain_attention = True
            forward = Forwards(self.objective, memory=0).of_batch(batch, size, twice=False)
            outputs = loss_inputs(forward.outputs, forward.loss)
        everything = list(tensors(forward.outputs))
        places = [next(place for place, part in enumerate(everything) if part is output) for output in outputs]
        slopes = _slopes(forward.loss, outputs)
        for move in moves:
            ahead, behind = (self._outputs(at, batch, places) for at in self._around(move))
            bent, along = curving(slopes, [after - before for after, before in zip(ahead, behind, strict=True)])
            if not bent:
                yield None
                continue
            with self.objective.held(twice=False):
                curved = _curved(bent, outputs, along)
                pulled = torch.autograd.grad(
                    outputs, forward.weights, curved, retain_graph=True, materialize_grads=True
                )
            yield flatten(pulled).detach().to(self.dtype)

    @torch.no_grad()
    def _outputs(self, weights: Tensor, batch: Any, places: Sequence[int]) -> list[Tensor]:
        outputs, _ = self.objective.outputs_and_losses(named(weights, self.objective.chosen), batch)
        everything = list(tensors(outputs))
        return [everything[place].detach() for place in places]


def _slopes(loss: Tensor, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the derivatives of a loss by outputs, with their graph."""
    name = once_differentiable_function([loss], outputs)
    if name:
        raise UndefinedGGNError(_undefined(f"{name} is marked once_differentiable"))
    return torch.autograd.grad(loss, outputs, create_graph=True, materialize_grads=True)


def _curved(bent: Sequence[Tensor], outputs: Sequence[Tensor], along: Sequence[Tensor]) -> Sequence[Tensor]:
    """Multiply the Hessian of a loss in the outputs with a vector."""
    try:
        return torch.autograd.grad(bent, outputs, along, retain_graph=True, materialize_grads=True)
    except RuntimeError as error:
        if not MISSING.search(str(error)):
            raise
        raise UndefinedGGNError(_undefined(str(error).splitlines()[0])) from error


def _undefined(reason: str) -> str:
    return f"loss_fn: the GGN needs a second derivative of the loss in the outputs of the model ({reason})"


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _distance(products: Tensor, others: Tensor) -> float:
    """Largest distance of two matrices of columns, relative to those of the first; infinite where there is none."""
    apart = torch.linalg.vector_norm((products - others).double(), dim=0)
    size = torch.linalg.vector_norm(products.double(), dim=0)
    error = float(torch.where(apart == 0, 0.0, apart / size).max())
    return error if math.isfinite(error) else math.inf
