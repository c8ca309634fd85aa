"""First-layer weights restricted to the subspace that acts on the inputs; eigenvalues outside of it are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from estimators.automatic import AutomaticCurvature
from estimators.curvature import GGN, Hessian
from estimators.distributed import gathered
from estimators.errors import UserError
from estimators.objective import Objective
from estimators.operator import Fronting
from estimators.penalty import Penalty
from estimators.samples import shrinking
from estimators.vectors import columns, flatten, named
from estimators.weights import Weights

WORTH, ALIKE, FAR, COMPARED = 0.75, 1e-3, 10.0, 32


class InputWeights(Weights):
    r"""The weights :math:`V = W Q` of linear layers, the columns of Q spanning all inputs x that such a layer sees.

    With :math:`W x = W Q Q^\top x` the losses do not depend on the part of the weight matrix W ``[out, in]`` that is
    orthogonal to Q ``[in, rank]``.

    Args:
        whole: The weights of the model.
        bases: Orthonormal columns Q by the name of the weight.

    Attributes:
        dimension: Number of weights that are left.

    Source: the chain rule.

    Example:
        >>> whole = Weights(nn.Linear(3, 2))
        >>> InputWeights(whole, {"weight": torch.eye(3)[:, :1]}).dimension
        2
    """

    def __init__(self, whole: Weights, bases: Mapping[str, Tensor]) -> None:
        super().__init__(whole.model, whole.patterns)
        self._whole, self._bases = whole, dict(bases)
        self._inside = {name: self._projected(name, weight) for name, weight in whole.chosen.items()}
        self.dimension = sum(weight.numel() for weight in self._inside.values())

    @property
    def chosen(self) -> dict[str, Tensor]:
        """The weights V by name; those that the model had when this was made."""
        return self._inside

    def project(self, vectors: Tensor) -> Tensor:
        r"""Multiply columns ``[D, K]`` over all weights with :math:`P^\top`; returns columns over the weights V."""
        wide = [named(vector, self._whole.chosen) for vector in columns(vectors)]
        parts = [[self._projected(name, part) for name, part in vector.items()] for vector in wide]
        return torch.stack([flatten(part) for part in parts], dim=1)

    def far(self) -> dict[str, Tensor]:
        """Return all weights by name where what is left out is ``FAR`` times as large, and the losses are the same."""
        weights = self._whole.chosen
        for name, basis in self._bases.items():
            weights[name] = FAR * weights[name] - (FAR - 1) * self._inside[name] @ basis.T
        return weights

    @contextmanager
    def substituted(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Put weights V in the place of the model's, and the inputs' coordinates in the place of the inputs."""

        def onto(basis: Tensor, inputs: Tensor) -> Tensor:
            return inputs if inputs.shape[-1] < len(basis) else inputs @ basis  # held and substituted: once only

        with ExitStack() as hooks:
            for name, basis in self._bases.items():
                layer = self.model.get_submodule(name.rpartition(".")[0])
                hook = layer.register_forward_pre_hook(lambda _, arguments, basis=basis: (onto(basis, *arguments),))
                hooks.enter_context(hook)
            with super().substituted(weights):
                yield

    def _projected(self, name: str, weight: Tensor) -> Tensor:
        return weight @ self._bases[name].to(weight.dtype) if name in self._bases else weight


class InputSubspace(Fronting):
    r"""The curvature :math:`P^\top A P` of an objective in the subspace of its input weights.

    Where the inputs of the layers are data, and no function of the weights, the Hessian of the losses is
    :math:`P H_V P^\top` with :math:`P^\top P = I`, and so is the GGN: its eigenvalues are those in V, and zeros. With a
    penalty of curvature a they are those in V plus a, and a.

    Args:
        curvature: Hessian or GGN of the losses as a function of the input weights.
        penalty: The penalty of the objective.

    Attributes:
        curvature: Hessian or GGN of the losses.
        outside: The eigenvalue of all directions that the subspace leaves out.

    Source: the chain rule.

    Example:
        >>> objective = Objective(nn.Linear(30, 2), [(torch.randn(3, 30), torch.tensor([0, 1, 0]))])
        >>> operator = InputSubspace(Hessian(objective.in_weights(input_weights(objective))), objective.penalty)
        >>> operator.shape, operator.project(torch.ones(60, 1)).shape
        ((6, 6), torch.Size([6, 1]))
    """

    def __init__(self, curvature: Hessian | GGN | AutomaticCurvature, penalty: Penalty | None = None) -> None:
        self.curvature: Hessian | GGN | AutomaticCurvature = curvature
        self.outside = penalty.curvature if penalty else 0.0

    @property
    def products(self) -> int:
        """Products taken so far."""
        return self.curvature.products

    def project(self, vectors: Tensor) -> Tensor:
        r"""Multiply columns ``[D, K]`` over all weights with :math:`P^\top`; returns columns of the subspace."""
        weights = self.curvature.objective.weights
        return weights.project(vectors)

    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply with the columns of ``vectors``, in one pass over the data."""
        products = self.curvature.matmat(vectors)
        if self.outside:
            products += self.outside * vectors.to(products)
        return products

    def forget(self) -> None:
        """Drop the kept graphs and the forward passes beneath."""
        self.curvature.forget()

    def forget_products(self) -> None:
        """Drop the kept graphs of products."""
        self.curvature.forget_products()


def input_weights(objective: Objective) -> InputWeights | None:
    """Find the weights that act on the inputs which an objective's linear layers see, where these are few.

    Args:
        objective: The objective; its data are passed once where a layer is wide enough.

    Returns:
        The weights, or None where more than three quarters would be left: without linear layers on data, or with many
        samples.

    Example:
        >>> objective = Objective(nn.Linear(30, 2), [(torch.randn(3, 30), torch.tensor([0, 1, 0]))])
        >>> objective.dimension, input_weights(objective).dimension
        (60, 6)
    """
    bases = {name: torch.linalg.qr(inputs.T).Q for name, inputs in _inputs(objective).items()}
    weights = InputWeights(objective.weights, bases)
    return weights if weights.dimension <= WORTH * objective.dimension and _alike(objective, weights) else None


def _wide(objective: Objective) -> dict[str, nn.Linear]:
    """Linear layers with more inputs than samples, by the name of their chosen weight, which no other layer holds."""
    holders = Counter(
        id(parameter) for module in objective.model.modules() for parameter in module._parameters.values()
    )
    layers = {f"{path}.weight".lstrip("."): module for path, module in objective.model.named_modules()}
    return {
        name: module
        for name, module in layers.items()
        if type(module) is nn.Linear and name in objective.names and objective.dtype.itemsize >= torch.float32.itemsize
        if holders[id(module.weight)] == 1 and objective.samples <= WORTH * module.in_features
    }


@shrinking
@torch.enable_grad()
def _inputs(objective: Objective) -> dict[str, Tensor]:
    """Rows ``[n, in]`` that wide layers see on all ranks, of those that see nothing but data, few enough of it."""
    layers = _wide(objective)
    if not layers:
        return {}
    inputs: dict[str, list[Tensor]] = {name: [] for name in layers}

    def note(name: str, arguments: tuple[Any, ...]) -> None:
        rows = arguments[0] if len(arguments) == 1 else None
        if not isinstance(rows, Tensor) or rows.requires_grad:
            inputs.pop(name, None)
        elif name in inputs:
            inputs[name].append(rows.reshape(-1, rows.shape[-1]))

    weights = {name: tensor.detach().requires_grad_() for name, tensor in objective.chosen.items()}
    with ExitStack() as hooks:
        for name, layer in layers.items():
            hook = layer.register_forward_pre_hook(lambda _, arguments, name=name: note(name, arguments))
            hooks.enter_context(hook)
        with objective.one_pass():
            for batch, _ in objective.batches():
                if inputs:
                    objective.losses(weights, batch)
    ranks = gathered({name: torch.cat(rows) for name, rows in inputs.items() if rows})
    joined = {name: [rank[name] for rank in ranks] for name in layers if all(name in rank for rank in ranks)}
    few = {name: rows for name, rows in joined.items() if sum(map(len, rows)) <= WORTH * layers[name].in_features}
    return {name: torch.cat([row.to(objective.device) for row in rows]) for name, rows in few.items()}


@torch.no_grad()
def _alike(objective: Objective, weights: InputWeights) -> bool:
    """Tell whether some samples have the losses of the input weights far off in what these leave out.

    Else more than the layer itself uses its weight, such as a penalty in the loss.
    """
    alike, far, inside = [], weights.far(), objective.in_weights(weights)
    for whole, size in islice(objective.batches(), 1):
        layout = objective.data.layout
        few = torch.arange(min(size, COMPARED), device="cpu")
        batch = layout.cut(whole, few) if layout is not None and layout.cuttable else whole
        try:
            losses = inside.losses(inside.chosen, batch)
        except UserError:
            alike.append(False)
        else:
            alike.append(torch.allclose(losses, objective.losses(far, batch), rtol=ALIKE, atol=ALIKE))
    return all(map(all, gathered(alike)))
