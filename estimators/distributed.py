"""Several processes that share the data: sums with equal bits on all ranks, and errors that stop all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from estimators.errors import UserError

Value = TypeVar("Value")
SAMPLED = 64


@dataclass(frozen=True)
class Shard:
    """A loader that yields this rank's own part of the data, which no other rank reads.

    Args:
        loader: Iterable of batches, the same samples on every pass. The loaders of all ranks together yield every
            sample once.
    """

    loader: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        """Yield this rank's batches."""
        return iter(self.loader)


def rank() -> int:
    """Return the number of this process among those of the default process group; 0 without one."""
    return dist.get_rank() if _initialised() else 0


def world() -> int:
    """Return the number of processes of the default process group; 1 without one."""
    return dist.get_world_size() if _initialised() else 1


def gathered(value: Value) -> list[Value]:
    """Collect one picklable value per rank, in rank order, on all ranks.

    Args:
        value: What this rank contributes.

    Returns:
        One value per rank ``[world]``.

    Raises:
        UserError: Another rank died or does not answer.
    """
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    with _answered():
        dist.all_gather_object(values, value)
    return values


def total(tensor: Tensor) -> Tensor:
    """Sum a tensor over ranks; all ranks get the same bits.

    Args:
        tensor: Of the same shape and type on all ranks, on a device that the process group serves.

    Returns:
        The sum; with one process the tensor itself.

    Raises:
        UserError: Another rank died or does not answer.
    """
    if world() > 1:
        tensor = tensor.contiguous()
        with _answered():
            dist.all_reduce(tensor)
    return tensor


@contextmanager
def together(equal: Callable[[], Mapping[str, str]] = dict) -> Iterator[None]:
    """Let all ranks come through a block, or none.

    Args:
        equal: Called after the block: values that must be equal on all ranks, by the complaint if they are not.

    Yields:
        Nothing; the block must not communicate.

    Raises:
        UserError: The block failed on another rank, whose reason is told, or a value differs between ranks.
    """
    if world() == 1:
        yield
        return
    try:
        yield
    except Exception as error:
        with suppress(UserError):
            gathered((_line(error), []))
        raise
    own = equal()
    reports = gathered(("", [*own.values()]))
    for number, (reason, _) in enumerate(reports):
        if reason:
            raise UserError(f"distributed: rank {number} stopped: {reason}")
    if len({len(values) for _, values in reports}) > 1:
        raise UserError("distributed: the ranks do different things at the same time; give all the same arguments")
    for complaint, *answers in zip(own, *(values for _, values in reports), strict=True):
        if len(set(answers)) > 1:
            raise UserError(complaint)


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """Digest a few evenly spaced entries of every tensor, which tells apart what was loaded or computed differently.

    Args:
        tensors: Any tensors.

    Returns:
        Hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        few = flat[:: max(1, len(flat) // SAMPLED)].cpu().contiguous()
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode() + few.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


@contextmanager
def _answered() -> Iterator[None]:
    """Tell in one line that a collective failed."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"distributed: rank {rank()} lost the other ranks ({_line(error)}); "
            "one of them stopped or hangs, look at its output"
        ) from None
