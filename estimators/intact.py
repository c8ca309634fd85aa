"""A model that Ctrl-C leaves as it was, wherever it arrives."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from estimators.kernels import REPLACED
from estimators.substitutes import modes_and_tensors


@contextmanager
def intact(model: nn.Module) -> Iterator[None]:
    """Put back what evaluation changes for a while, in case Ctrl-C arrives where evaluation itself does so.

    These are the modes of the modules, their parameters, buffers, hooks and plain tensors, functions of PyTorch, and
    whether it records gradients.

    Args:
        model: Any module.
    """
    modules = list(model.modules())
    stores: list[Any] = [store for one in modules for store in (one._parameters, one._buffers)]
    stores += [store for one in modules for store in (one._forward_hooks, one._forward_pre_hooks)]
    before, back = [dict(store) for store in stores], modes_and_tensors(model)
    functions = {name: getattr(functional, name) for name in (*REPLACED, "linear")}
    with torch.set_grad_enabled(torch.is_grad_enabled()):
        try:
            yield
        except KeyboardInterrupt as error:
            _end_generators(error)
            raise
        finally:
            back()
            vars(functional).update(functions)
            for store, old in zip(stores, before, strict=True):
                store.update(old)
                for key in store.keys() - old.keys():
                    del store[key]


def _end_generators(error: BaseException | None) -> None:
    """Let contexts that an error kept from ending do so now instead of when its traceback is forgotten."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
