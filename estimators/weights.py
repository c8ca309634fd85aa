"""The chosen and the other weights of a model, and the copies that replace them in its forward passes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from estimators.parameters import choose_parameters, pruning_masks
from estimators.sharding import fully_sharded, gathers, whole
from estimators.substitution import evaluation_mode, replaced

BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class Weights:
    """Private copies of a model's parameters, which its forward passes may write to, as some embeddings do.

    The copies follow the model: they are made anew when it was written to, and when a forward pass wrote to them.
    Parameters that ``fully_shard`` has spread over ranks are gathered once, on every rank, and not followed.

    Args:
        model: Any module; all parameters on one device.
        patterns: Name patterns of the chosen weights; default the weights of convolution and linear layers.

    Attributes:
        names: Names of the chosen parameters, in order.
        dimension: Number D of chosen weights.

    Example:
        >>> Weights(nn.Linear(2, 2)).names
        ('weight',)
    """

    def __init__(self, model: nn.Module, patterns: str | Sequence[str] | None = None) -> None:
        chosen = choose_parameters(model, patterns)
        self.model, self.patterns, self.names = model, patterns, tuple(chosen)
        self.dimension = sum(parameter.numel() for parameter in chosen.values())
        first = next(iter(chosen.values()))
        self.device, self.dtype = first.device, first.dtype
        self.buffers = {name: buffer.detach() for name, buffer in model.named_buffers()}
        plain = whole if fully_sharded(model) else Tensor.detach
        self._own = {name: plain(parameter) for name, parameter in model.named_parameters()}
        self._masks = pruning_masks(model)
        self._copies: dict[str, Tensor] = {}
        self._copied_at: list[int] | None = None

    @property
    def chosen(self) -> dict[str, Tensor]:
        """The chosen weights by name; where a pruning mask multiplies them, the product."""
        return self._effective(self.names)

    @property
    def fixed(self) -> dict[str, Tensor]:
        """All other parameters of the model by name, masked likewise."""
        chosen = set(self.names)
        return self._effective([name for name in self._own if name not in chosen])

    def with_buffers(self, buffers: Mapping[str, Tensor]) -> Weights:
        """Return the same weights beside other buffers, by name; those that are not named stay the model's."""
        weights = copy.copy(self)
        weights.buffers = {name: buffers.get(name, buffer) for name, buffer in self.buffers.items()}
        return weights

    def project(self, vectors: Tensor) -> Tensor:
        """Return columns ``[D, K]`` over the chosen weights as they are: these are all of them."""
        return vectors

    def versions(self) -> list[int]:
        """Count the writes to the model's parameters and buffers so far; a change tells that kept graphs are stale.

        Writes to tensors that were made in inference mode are not counted by PyTorch; their contents are compared.
        """
        tensors = (*self._own.values(), *self.buffers.values())
        return [_written_bytes(tensor) if tensor.is_inference() else tensor._version for tensor in tensors]

    @contextmanager
    def substituted(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Put the model in evaluation mode, and other tensors in the place of its own, for a while.

        These are the given weights, copies of all other parameters and of the buffers. Backward hooks of the model's
        modules are silent meanwhile; its forward hooks are called as always, but for those of ``fully_shard``.

        Args:
            weights: The chosen weights by name.
        """
        state = self.fixed | dict(weights)
        substitutes = {id(parameter): state[name] for name, parameter in self.model.named_parameters()}
        substitutes |= {id(buffer): self.buffers[name].clone() for name, buffer in self.model.named_buffers()}
        try:
            with evaluation_mode(self.model), replaced(self.model, substitutes), _without_hooks(self.model):
                yield
        finally:
            self._drop_written()

    def _effective(self, names: Sequence[str]) -> dict[str, Tensor]:
        versions = self.versions()
        if self._copied_at != versions:
            self._copies, self._copied_at = {}, versions
        self._copies |= {name: self._own[name].clone() for name in names if name not in self._copies}
        tensors = {name: self._copies[name].detach() for name in names}
        return {name: tensor * self._masks[name] if name in self._masks else tensor for name, tensor in tensors.items()}

    def _drop_written(self) -> None:
        """Forget the copies that a forward pass wrote to."""
        for name in [name for name, tensor in self._copies.items() if tensor._version]:
            del self._copies[name]


def _written_bytes(tensor: Tensor) -> int:
    """Return a number that stands for what a tensor holds, where PyTorch does not count the writes to it."""
    return hash(tensor.reshape(-1).cpu().view(torch.uint8).numpy().tobytes())


@contextmanager
def _without_hooks(model: nn.Module) -> Iterator[None]:
    """Silence backward hooks, and the forward hooks that put sharded parameters in the place of others."""
    hooks = []
    for module in model.modules():
        for name in (*BACKWARD_HOOKS, *FORWARD_HOOKS):
            store = getattr(module, name)
            silent = {key for key, hook in store.items() if name in BACKWARD_HOOKS or gathers(hook)}
            if silent:
                hooks.append((store, list(store.items()), silent))
    try:
        for store, _, silent in hooks:
            for key in silent:
                del store[key]
        yield
    finally:
        for store, items, silent in hooks:  # in the order that they are called in
            others = dict(store)
            store.clear()
            store.update((key, hook) for key, hook in items if key in silent or key in others)
            store.update(others)
