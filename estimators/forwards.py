"""Forward passes of an objective with their graphs, kept in memory where they fit, and shared by all curvatures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from estimators.errors import UserError
from estimators.objective import Objective

Precision = Literal["full", "bfloat16"]
UNCOUNTED = "saved tensor hooks"  # what torch.func says where it differentiates and they are on


class SavedBytes:
    """Count the memory that a graph keeps alive, each storage once and those given not at all.

    It is infinite where it cannot be counted: where hooks are not allowed, and of sparse tensors.
    """

    def __init__(self, storages: frozenset[int] = frozenset()) -> None:
        self.bytes = 0.0
        self.storages = set(storages)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what graphs built inside save."""
        with ExitStack() as stack:
            try:
                stack.enter_context(saved_tensors_hooks(self._pack, self._unpack))
            except RuntimeError:  # torch.autograd.graph.disable_saved_tensors_hooks is on
                self.bytes = math.inf
            yield

    def _pack(self, tensor: Tensor) -> Tensor:
        if tensor.layout != torch.strided:
            self.bytes = math.inf
            return tensor.detach()
        storage = tensor.untyped_storage()
        try:
            address = storage.data_ptr()
        except RuntimeError:  # a tensor that a compiler traces has no memory
            return tensor
        if address not in self.storages:
            self.storages.add(address)
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
        bytes: Memory that the graph keeps alive; infinite where it was not counted and must not be kept.
        storages: Addresses of the storages behind it.
    """

    weights: list[Tensor]
    outputs: list[Any]
    loss: Tensor
    bytes: float
    storages: frozenset[int]


class Forwards:
    """The forward passes of all batches.

    Args:
        objective: The objective.
        memory: Bytes that kept graphs may take; 0 passes every batch anew in every iteration.
        precision: ``"full"`` is that of the model; ``"bfloat16"`` passes a float32 model under ``torch.autocast``.

    Raises:
        UserError: The precision is unknown, or the model is not a float32 one.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> forwards = Forwards(Objective(model, [(torch.eye(2), torch.tensor([0, 1]))]))
        >>> first, again = list(forwards), list(forwards)
        >>> first[0] is again[0]
        True
    """

    def __init__(self, objective: Objective, memory: int = 2 << 30, precision: Precision = "full") -> None:
        if precision not in ("full", "bfloat16"):
            raise UserError(f"precision: expected 'full' or 'bfloat16', got {precision!r}")
        if precision == "bfloat16" and objective.dtype != torch.float32:
            raise UserError(f"precision: 'bfloat16' needs a float32 model, got {objective.dtype}; call model.float()")
        self.objective, self.memory, self.precision = objective, memory, precision
        self.keeping = False
        self._forwards: list[Forward] | None = None
        self._versions: list[int] = []

    def forget(self) -> None:
        """Drop what is kept."""
        self._forwards = None

    def __iter__(self) -> Iterator[Forward]:
        """Yield every batch; what is kept is as good as new as long as the model has not been written to.

        ``keeping`` says of the batch that was yielded last whether its graph may be asked for again.
        """
        versions = self.objective.versions()
        if self._forwards is not None and self._versions == versions:
            self.keeping = True
            yield from self._forwards
            return
        self._forwards, self._versions = None, versions
        keep: list[Forward] | None = [] if self.memory else None
        used = 0.0
        for batch, size in self.objective.batches():
            forward = self.of_batch(batch, size, counted=keep is not None)
            used += forward.bytes
            if used > self.memory:
                keep = None
            if keep is not None:
                keep.append(forward)
            self.keeping = keep is not None
            yield forward
            del forward  # before the next graph is built
        self._forwards = keep

    def of_batch(self, batch: Any, size: int, counted: bool = False, twice: bool = True) -> Forward:
        """Pass a batch of a size.

        Args:
            batch: A batch on the model's device.
            size: Its number of samples.
            counted: Whether bytes are counted, which takes time and is left out where nothing is kept.
            twice: Whether the model will be differentiated twice, see ``Objective.losses``.
        """
        weights = {name: tensor.detach().requires_grad_() for name, tensor in self.objective.chosen.items()}
        counter = SavedBytes(self._shared())
        with torch.enable_grad(), self._autocast():
            try:
                with counter.counting() if counted else nullcontext():
                    outputs, losses = self.objective.outputs_and_losses(weights, batch, twice)
            except UserError as error:
                if not counted or UNCOUNTED not in str(error.__cause__):
                    raise
                counter.bytes = math.inf
                outputs, losses = self.objective.outputs_and_losses(weights, batch, twice)
            loss = losses.sum() if losses.dim() else losses * size
        taken = counter.bytes if counted else math.inf
        return Forward(list(weights.values()), outputs, loss, taken, frozenset(counter.storages))

    def _shared(self) -> frozenset[int]:
        """Addresses of the model's own storages, which no graph keeps alive."""
        tensors = (*self.objective.chosen.values(), *self.objective.fixed.values())
        return frozenset(tensor.untyped_storage().data_ptr() for tensor in tensors)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "full":
            return nullcontext()
        return torch.autocast(self.objective.device.type, torch.bfloat16)
