"""Floating point operations of a forward pass, counted as torch counts them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from estimators.distributed import gathered
from estimators.objective import Objective
from estimators.user_code import plain_modes

# Attention on a processor, which torch's table lacks, counts like that on a GPU.
ALIKE = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: torch.ops.aten._scaled_dot_product_flash_attention,
}
# What a formula calls the result of its operation, which torch 2.3 names otherwise.
_NAMES = inspect.signature(flop_registry[torch.ops.aten.mm], follow_wrapped=False).parameters
RESULT = "out_val" if "out_val" in _NAMES else "out"


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations of matrix products, convolutions and attention in this thread."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Do without the mark that keeps compiled code away, because it imports the whole compiler."""
        return False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function and add its operations where torch knows them."""
        result = function(*args, **(kwargs or {}))
        packet = getattr(function, "_overloadpacket", function)
        count: Callable[..., int] | None = flop_registry.get(ALIKE.get(packet, packet))
        if count is not None:
            self.operations += int(count(*args, **(kwargs or {}), **{RESULT: result}))
        return result


def operations_per_sample(objective: Objective, batches: Iterable[tuple[Any, int]] | None = None) -> float:
    """Count the floating point operations of one sample in a forward pass, on a batch of every rank.

    Args:
        objective: Network and data.
        batches: Batches on the device with their sizes, of which the first is passed; None takes those of the data.

    Returns:
        Operations of matrix products, convolutions and attention, at least two per weight: torch knows none of
        recurrent layers.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> operations_per_sample(Objective(model, [(torch.zeros(5, 3), torch.zeros(5, dtype=torch.long))]))
        12.0
    """
    counting = _Counting()
    with plain_modes(), torch.no_grad(), counting:
        batch, size = next(iter(objective.batches() if batches is None else batches), (None, 0))  # a rank may have none
        if size:
            objective.losses(objective.chosen, batch)
    counts = gathered((counting.operations, size))
    operations, samples = sum(count for count, _ in counts), sum(size for _, size in counts)
    return max(float(operations / samples), 2.0 * objective.dimension)
