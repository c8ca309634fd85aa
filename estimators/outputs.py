"""Find the tensors of a model's output that the loss is computed from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from estimators.errors import UndefinedGGNError

Edge = tuple[Any, int]


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested dictionaries, lists, tuples and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from tensors([getattr(value, field.name) for field in dataclasses.fields(value)])


def loss_inputs(outputs: Sequence[Any], loss: Tensor) -> list[Tensor]:
    """Find the tensors among a model's outputs from which the loss is computed.

    An output from which the loss follows only through other outputs, such as a hidden state, is left out, and so are
    scalars: a loss that the model computed itself.

    Args:
        outputs: What every call of the model put out.
        loss: A scalar with its graph.

    Returns:
        The tensors, independent of each other, at least one.

    Raises:
        UndefinedGGNError: There is none, or one of them depends on another, so that there is no derivative by one
            alone.
    """
    candidates = {_edge(part): part for part in tensors(list(outputs)) if part.dim() and part.grad_fn is not None}
    sources = _reached(loss, candidates)
    if not sources:
        got = ", ".join(type(output).__name__ for output in outputs) or "0 calls of the model"
        raise UndefinedGGNError(
            f"loss_fn: the GGN needs a loss that is computed from a tensor that the model returns, such as logits, "
            f"got {got}"
        )
    if len(sources) > 1 and any(_reached(source, sources) for source in sources.values()):
        raise UndefinedGGNError(
            "loss_fn: the GGN needs a loss of outputs that do not depend on each other, such as the logits alone; "
            "drop hidden states and chained calls of the model from the loss"
        )
    return list(sources.values())


def _edge(tensor: Tensor) -> Edge:
    return tensor.grad_fn, tensor.output_nr


def _reached(start: Tensor, targets: Mapping[Edge, Tensor]) -> dict[Edge, Tensor]:
    """Return the targets behind a tensor that are reached without passing through another one."""
    reached: dict[Edge, Tensor] = {}
    visited, waiting = set(), list(start.grad_fn.next_functions) if start.grad_fn is not None else []
    while waiting:
        edge = waiting.pop()
        if edge[0] is None or edge in visited:
            continue
        visited.add(edge)
        if edge in targets:
            reached[edge] = targets[edge]
        else:
            waiting += edge[0].next_functions
    return {edge: tensor for edge, tensor in targets.items() if edge in reached}
