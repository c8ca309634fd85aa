"""Leave a model as it was, at whatever moment Ctrl-C arrives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from estimators.substitution.generators import GENERATORS
from estimators.substitution.mode import end_generators, leave, substitutions
from estimators.substitution.randomness import PYTHON_STATES, SWAPPING
from estimators.substitution.switches import COMPILERS, CUDNN, free
from estimators.substitution.tensors import modes_and_tensors

STORES = (
    "_parameters",
    "_buffers",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@contextmanager
def intact(model: nn.Module) -> Iterator[None]:
    """Put back what evaluation changes for a while, in case Ctrl-C arrives where evaluation itself does so.

    These are the modes of the modules, their parameters, buffers, hooks and plain tensors, this thread's forms of
    torch's functions, the settings that it shares with other threads, and whether it records gradients.

    Args:
        model: Any module.
    """
    modules = list(model.modules())
    stores: list[Any] = [getattr(module, name) for module in modules for name in STORES]
    before, back = [dict(store) for store in stores], modes_and_tensors(model)
    count = len(substitutions())
    with torch.set_grad_enabled(torch.is_grad_enabled()):
        try:
            yield
        except KeyboardInterrupt as error:
            end_generators(error)
            raise
        finally:
            back()
            leave(count)
            CUDNN.leave()
            COMPILERS.leave()
            GENERATORS.leave()
            PYTHON_STATES.leave()
            free(SWAPPING)
            for store, old in zip(stores, before, strict=True):
                store.update(old)
                for key in store.keys() - old.keys():
                    del store[key]
