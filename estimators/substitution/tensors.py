"""Replace the tensors and the training modes of a model for a limited time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

COMPUTED = (Tensor, list)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode and each one back into its own mode afterwards.

    Tensors that are plain attributes are put back too: pruning and weight normalisation compute them in hooks, and
    recurrent layers keep lists of them.
    """
    back = modes_and_tensors(model)
    try:
        for module in model.modules():
            module.training = False
        yield
    finally:
        back()


def modes_and_tensors(model: nn.Module) -> Callable[[], None]:
    """Return a function that puts the modes and the tensors that are plain attributes back as they are now."""
    flags = [(module, module.training) for module in model.modules()]
    stores = [vars(module) for module, _ in flags]
    computed = [(store, key, value) for store in stores for key, value in store.items() if isinstance(value, COMPUTED)]

    def back() -> None:
        for module, flag in flags:
            module.training = flag
        for store, key, value in computed:
            store[key] = value

    return back


@contextmanager
def replaced(model: nn.Module, tensors: Mapping[int, Tensor]) -> Iterator[None]:
    """Put other tensors, by the identity of the old ones, in the place of parameters and buffers for a while."""
    stores: list[dict[str, Any]] = [s for module in model.modules() for s in (module._parameters, module._buffers)]
    places = [(store, key, value) for store in stores for key, value in store.items() if value is not None]
    try:
        for store, key, value in places:
            store[key] = tensors[id(value)]
        yield
    finally:
        for store, key, value in places:
            store[key] = value
