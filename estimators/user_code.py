"""One door for the user's model, loss and loader: the modes they run in, and one line when they raise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch

from estimators.errors import UserError
from estimators.memory import out_of_memory

T = TypeVar("T")
DEVICES = ("cpu", "cuda")
NO_GRAPH = "does not require grad"


@contextmanager
def plain_modes() -> Iterator[None]:
    """Leave inference mode, autocast and a default device without numbers, as trainers' hooks set them, for a while.

    All of them belong to the calling thread. The mode that records gradients is left to the caller, and so is a default
    device that holds numbers, on which a model may make its tensors.
    """
    with ExitStack() as stack:
        if torch.get_default_device().type == "meta":
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device in DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def run(call: Callable[[], T], describe: Callable[[], str]) -> T:
    """Call the user's code.

    Args:
        call: Calls it.
        describe: Called after a failure: what was going on, for the message.

    Returns:
        What it returned.

    Raises:
        UserError: It raised; the original error is the cause. An exhausted memory, Ctrl-C and errors of this library
            pass as they are.
    """
    try:
        return call()
    except UserError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()
        line = f"{type(error).__name__}: {reason[0]}" if reason else type(error).__name__
        raise UserError(f"{describe()}: {line}") from error


def next_batches(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches of a loader.

    Raises:
        UserError: The loader raised; the message names the batch.
    """
    number, end = 0, object()

    def batch_or_end() -> Any:
        return next(batches, end)

    def failing() -> str:
        return f"loader: batch {number} cannot be read"

    batches = run(lambda: iter(loader), lambda: "loader: cannot be read")
    while (batch := run(batch_or_end, failing)) is not end:
        yield batch
        number += 1
