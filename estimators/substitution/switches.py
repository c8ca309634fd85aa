"""Settings of the whole process: the first thread that needs them sets them, the last one restores them.

No function mode reaches these settings, so they change for all threads. While they are set, other threads still compute
correctly, but without cuDNN in recurrent layers, or uncompiled.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Protocol

import torch
from torch import nn


class Lock(Protocol):
    """A lock that its thread may take several times."""

    def release(self) -> None:
        """Release it once."""


def free(lock: Lock) -> None:
    """Release a lock as often as this thread holds it; Ctrl-C may have come between taking and releasing it."""
    with suppress(RuntimeError):  # of a lock that this thread does not hold
        while True:
            lock.release()


class Switch:
    """A setting that is in force while any thread needs it.

    Args:
        turn: Puts the setting in force and returns a function that puts the old one back.
    """

    def __init__(self, turn: Callable[[], Callable[[], None]]) -> None:
        self._turn = turn
        self._back: Callable[[], None] | None = None
        self._users: dict[object, int] = {}
        self._lock = threading.RLock()

    @contextmanager
    def on(self) -> Iterator[bool]:
        """Keep the setting in force for a while; yields whether this user is the first, who put it in force."""
        user = object()
        try:
            with self._lock:
                self._users[user] = threading.get_ident()
                first = self._back is None
                if self._back is None:
                    self._back = self._turn()
            yield first
        except KeyboardInterrupt:
            self.leave()
            raise
        finally:
            self.off(user)

    def off(self, *users: object) -> None:
        """Forget some users, and put the old setting back where none is left."""
        with self._lock:
            for user in users:
                self._users.pop(user, None)
            if not self._users and self._back is not None:
                self._back()
                self._back = None

    def leave(self) -> None:
        """Forget this thread and free the lock, in case Ctrl-C kept it from doing so itself."""
        own = threading.get_ident()
        free(self._lock)
        with self._lock:
            self.off(*[user for user, thread in self._users.items() if thread == own])


def _turn_cudnn_off() -> Callable[[], None]:
    before = torch.backends.cudnn.enabled

    def back() -> None:
        torch.backends.cudnn.enabled = before

    torch.backends.cudnn.enabled = False
    return back


def _turn_compilers_off() -> Callable[[], None]:
    stance = torch.compiler.set_stance("force_eager")
    return lambda: stance.__exit__(None, None, None)


CUDNN, COMPILERS = Switch(_turn_cudnn_off), Switch(_turn_compilers_off)


def without_cudnn(model: nn.Module) -> AbstractContextManager[bool | None]:
    """Return a context without cuDNN for models with recurrent layers on a GPU, an empty one for others."""
    recurrent = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
    on_gpu = any(weight.is_cuda for module in recurrent for weight in module.parameters())
    return CUDNN.on() if on_gpu else nullcontext()


def without_compilers(model: nn.Module) -> AbstractContextManager[bool | None]:
    """Return a context in which compiled functions run as they were written, an empty one where none can be."""
    return COMPILERS.on() if _compiled(model) else nullcontext()


def _compiled(model: nn.Module) -> bool:
    """Tell whether ``torch.compile`` has compiled anything of this process, or of this model before it was reset."""
    frames = sys.modules.get("torch._dynamo.eval_frame")
    if frames is None or not hasattr(torch.compiler, "set_stance"):
        return False
    backends = getattr(frames, "cached_backends", None)
    if backends is None or any(backend is not None for backend in tuple(backends.values())):
        return True
    modules = tuple(model.modules())
    return any(isinstance(module, frames.OptimizedModule) or module._compiled_call_impl for module in modules)
