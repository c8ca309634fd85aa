"""Forward passes of an objective with their graphs, kept where they fit, for all curvatures of that objective."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from estimators.objective import Objective


class SavedBytes:
    """Count the memory that a graph keeps alive, each storage once."""

    def __init__(self, seen: frozenset[int] = frozenset()) -> None:
        self.bytes = 0
        self.seen = set(seen)

    def counting(self) -> saved_tensors_hooks:
        """Return a context that counts what graphs built inside save."""
        return saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor.detach()  # the tensor itself would keep its graph, and the graph it, alive for ever

    @staticmethod
    def _unpack(tensor: Tensor) -> Tensor:
        return tensor


@dataclass(frozen=True)
class Forward:
    """One batch, passed through the model.

    Attributes:
        weights: The chosen weights that the graph starts from.
        outputs: What every call of the model put out.
        loss: Summed losses of the batch.
        bytes: Memory that the graph keeps alive.
        seen: Addresses of the storages behind it.
    """

    weights: list[Tensor]
    outputs: list[Any]
    loss: Tensor
    bytes: int
    seen: frozenset[int]


class Forwards:
    """The forward passes of all batches.

    Args:
        objective: The objective.
        memory: Bytes that kept graphs may take; 0 passes every batch anew in every iteration.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> forwards = Forwards(Objective(model, [(torch.eye(2), torch.tensor([0, 1]))]))
        >>> first, again = list(forwards), list(forwards)
        >>> first[0] is again[0]
        True
    """

    def __init__(self, objective: Objective, memory: int = 2 << 30) -> None:
        self.objective, self.memory = objective, memory
        self._kept: list[Forward] | None = None
        self._kept_at: list[int] = []

    def forget(self) -> None:
        """Drop what is kept."""
        self._kept = None

    def __iter__(self) -> Iterator[Forward]:
        """Yield every batch; what is kept is as good as new as long as the model has not been written to."""
        versions = self.objective.versions()
        if self._kept is not None and self._kept_at == versions:
            yield from self._kept
            return
        self._kept, self._kept_at = None, versions
        keep: list[Forward] | None = [] if self.memory else None
        used = 0
        for batch, size in self.objective.batches():
            forward = self._pass(batch, size)
            used += forward.bytes
            if used > self.memory:
                keep = None
            if keep is not None:
                keep.append(forward)
            yield forward
        self._kept = keep

    def _pass(self, batch: Any, size: int) -> Forward:
        weights = {name: tensor.detach().requires_grad_() for name, tensor in self.objective.chosen.items()}
        counter = SavedBytes()
        with torch.enable_grad(), counter.counting():
            outputs, losses = self.objective.outputs_and_losses(weights, batch)
            loss = losses.sum() if losses.dim() else losses * size
        return Forward(list(weights.values()), outputs, loss, counter.bytes, frozenset(counter.seen))
