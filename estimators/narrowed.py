"""An objective in fewer weights: those of first layers only as far as they act on the inputs that these see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from estimators.batches import map_leaves, pick_rows
from estimators.distributed import gathered
from estimators.objective import Objective, shrinking
from estimators.parameters import columns, flatten, named

WORTH, ALIKE, FAR, COMPARED = 0.75, 1e-3, 10.0, 32


class Narrowed(Objective):
    r"""The same function of fewer weights :math:`V = W Q`, the columns of Q spanning all inputs x of a linear layer.

    With :math:`W x = W Q Q^\top x` the losses do not depend on the part of the weight matrix W ``[out, in]`` that is
    orthogonal to Q ``[in, rank]``. Where the inputs are data, and no function of the weights, the Hessian of the losses
    is :math:`P H_V P^\top` with :math:`P^\top P = I`, and so is the GGN: its eigenvalues are those in V, and zeros.

    Args:
        objective: The objective.
        bases: Orthonormal columns Q by the name of the weight.

    Attributes:
        dimension: Number of weights that are left.

    Source: the chain rule.

    Example:
        >>> objective = Objective(nn.Linear(3, 2), [(torch.eye(3)[:1], torch.tensor([0]))])
        >>> Narrowed(objective, {"weight": torch.eye(3)[:, :1]}).dimension
        2
    """

    def __init__(self, objective: Objective, bases: Mapping[str, Tensor]) -> None:
        super().__init__(objective.model, objective.loader, objective.loss_fn, objective.penalty, objective.patterns)
        self._samples, self._own_samples, self.most = objective.samples, objective._own_samples, objective.most
        self._whole, self._bases = objective, dict(bases)
        self._weights = {name: self._inside(name, weight) for name, weight in objective.chosen.items()}
        self.dimension = sum(weight.numel() for weight in self._weights.values())

    @property
    def chosen(self) -> dict[str, Tensor]:
        """The chosen weights by name, narrowed; those that the model had when this was made."""
        return self._weights

    def narrow(self, vectors: Tensor) -> Tensor:
        r"""Multiply columns ``[D, K]`` over all weights with :math:`P^\top`; returns columns over the narrowed ones."""
        wide = [named(vector, self._whole.chosen) for vector in columns(vectors)]
        return torch.stack([flatten([self._inside(*item) for item in one.items()]) for one in wide], dim=1)

    def far(self) -> dict[str, Tensor]:
        """Return all weights by name where what is left out is ``FAR`` times as large, and the losses are the same."""
        weights = self._whole.chosen
        for name, basis in self._bases.items():
            weights[name] = FAR * weights[name] - (FAR - 1) * self._weights[name] @ basis.T
        return weights

    def _inside(self, name: str, weight: Tensor) -> Tensor:
        return weight @ self._bases[name].to(weight.dtype) if name in self._bases else weight

    @contextmanager
    def _substituted(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        def onto(basis: Tensor, inputs: Tensor) -> Tensor:
            return inputs if inputs.shape[-1] < len(basis) else inputs @ basis  # held and substituted: once only

        handles = [
            self.model.get_submodule(name.rpartition(".")[0]).register_forward_pre_hook(
                lambda module, arguments, basis=basis: (onto(basis, *arguments),)
            )
            for name, basis in self._bases.items()
        ]
        try:
            with super()._substituted(weights):
                yield
        finally:
            for handle in handles:
                handle.remove()


def narrowed(objective: Objective) -> Narrowed | None:
    """Narrow an objective to the inputs that its linear layers see, where these are fewer than their width.

    Args:
        objective: The objective; its data are passed once where a layer is wide enough.

    Returns:
        The narrowed objective, or None where it would have more than three quarters of the weights: without linear
        layers on data, or with many samples.

    Example:
        >>> objective = Objective(nn.Linear(30, 2), [(torch.randn(3, 30), torch.tensor([0, 1, 0]))])
        >>> narrow = narrowed(objective)
        >>> objective.dimension, narrow.dimension
        (60, 6)
    """
    bases = {name: torch.linalg.qr(inputs.T).Q for name, inputs in _inputs(objective).items()}
    result = Narrowed(objective, bases)
    return result if result.dimension <= WORTH * objective.dimension and _alike(objective, result) else None


def _wide(objective: Objective) -> dict[str, nn.Linear]:
    """Linear layers with more inputs than samples, by the name of their chosen weight, which no other layer holds."""
    holders = Counter(id(one) for module in objective.model.modules() for one in module._parameters.values())
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
    found: dict[str, list[Tensor]] = {name: [] for name in layers}

    def note(name: str, arguments: tuple[Any, ...]) -> None:
        inputs = arguments[0] if len(arguments) == 1 else None
        if not isinstance(inputs, Tensor) or inputs.requires_grad:
            found.pop(name, None)
        elif name in found:
            found[name].append(inputs.reshape(-1, inputs.shape[-1]))

    handles = [
        layer.register_forward_pre_hook(lambda module, arguments, name=name: note(name, arguments))
        for name, layer in layers.items()
    ]
    try:
        weights = {name: tensor.detach().requires_grad_() for name, tensor in objective.chosen.items()}
        with objective.one_pass():
            for batch, _ in objective.batches():
                if found:
                    objective.losses(weights, batch)
    finally:
        for handle in handles:
            handle.remove()
    everywhere = gathered({name: torch.cat(rows) for name, rows in found.items() if rows})
    joined = {name: [one[name] for one in everywhere] for name in layers if all(name in one for one in everywhere)}
    few = {name: rows for name, rows in joined.items() if sum(map(len, rows)) <= WORTH * layers[name].in_features}
    return {name: torch.cat([row.to(objective.device) for row in rows]) for name, rows in few.items()}


@torch.no_grad()
def _alike(objective: Objective, narrow: Narrowed) -> bool:
    """Tell whether some samples have the losses of the narrowed weights far off in what these leave out.

    Else more than the layer itself uses its weight, such as a penalty in the loss.
    """
    alike, far = [], narrow.far()
    for whole, size in islice(objective.batches(), 1):
        few = torch.arange(min(size, COMPARED))
        batch = map_leaves(lambda leaf, size=size, few=few: pick_rows(leaf, few, size), whole)
        try:
            losses = narrow.losses(narrow.chosen, batch)
        except RuntimeError:
            alike.append(False)
        else:
            alike.append(torch.allclose(losses, objective.losses(far, batch), rtol=ALIKE, atol=ALIKE))
    return all(map(all, gathered(alike)))
