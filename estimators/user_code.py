"""Call the user's model, loss and loader: in which modes they run, and a one-line error when they raise."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch

from estimators.errors import UserError
from estimators.memory import out_of_memory
from estimators.substitution.generators import GENERATORS
from estimators.substitution.randomness import (
    PYTHON_STATES,
    PrivateDraws,
    default_device,
    put_python_states,
    python_states,
)

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
        if default_device().type == "meta":
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device in DEVICES:
            if autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def autocast_enabled(device: str) -> bool:
    """Tell whether autocast is on in this thread for a kind of device."""
    try:
        return torch.is_autocast_enabled(device)
    except TypeError:  # before torch 2.4, where the functions are told apart by name
        return torch.is_autocast_cpu_enabled() if device == "cpu" else torch.is_autocast_enabled()


class Draws:
    """Random numbers of the user's code, from states of its own that begin as those of the process and go on alone.

    Torch's generators are those of ``PrivateDraws``, also where the code seeds them. The states of NumPy and of Python
    exist once per process: they are exchanged while the user's code runs, and put back after it. Where several threads
    run such code at once, they share the states of the first, and the last one puts those of the process back.

    Example:
        >>> draws, before = Draws(), torch.get_rng_state()
        >>> with draws.on():
        ...     first = torch.rand(1)
        >>> bool(torch.equal(before, torch.get_rng_state()) and first == torch.rand(1))
        True
    """

    def __init__(self) -> None:
        self._torch, self._python = PrivateDraws(), python_states()

    @contextmanager
    def on(self) -> Iterator[None]:
        """Draw from these states for a while."""
        with GENERATORS.on(), PYTHON_STATES.on() as first:
            if first:
                put_python_states(self._python)
            try:
                with self._torch:
                    yield
            finally:
                self._python = python_states()


def run(call: Callable[[], T], describe: Callable[[], str], draws: Draws) -> T:
    """Call the user's code.

    Args:
        call: Calls it.
        describe: Called after a failure: what was going on, for the message.
        draws: Where it draws its random numbers from.

    Returns:
        What it returned.

    Raises:
        UserError: It raised; the original error is the cause. An exhausted memory, Ctrl-C and errors of this library
            pass as they are.
    """
    try:
        with draws.on():
            return call()
    except UserError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        name, reason = type(error).__name__, _reason(error)
        line = f"{name}: {reason}" if reason else name
        raise UserError(f"{describe()}: {line}") from error


def _reason(error: Exception) -> str:
    """Return the first line of what an error says; of one that a worker process passed on, of what was raised there."""
    text = str(error).strip()
    if text.startswith("Caught "):
        raised = re.findall(rf"^(?:\w+\.)*{re.escape(type(error).__name__)}: (.*)$", text, re.MULTILINE)
        text = raised[-1] if raised else text
    return text.splitlines()[0] if text else ""


def next_batches(loader: Iterable[Any], draws: Draws) -> Iterator[Any]:
    """Yield the batches of a loader.

    Args:
        loader: Iterable of batches.
        draws: Where it draws its random numbers from.

    Raises:
        UserError: The loader raised; the message names the batch.
    """
    number, end = 0, object()

    def batch_or_end() -> Any:
        return next(batches, end)

    def failing() -> str:
        return f"loader: batch {number} cannot be read"

    batches = run(lambda: iter(loader), lambda: "loader: cannot be read", draws)
    while (batch := run(batch_or_end, failing, draws)) is not end:
        yield batch
        number += 1
