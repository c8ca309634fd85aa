"""Free memory, and how to go on when memory runs out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from estimators.errors import UserError

T = TypeVar("T")
GIB = 1 << 30
SIGNS = ("out of memory", "DefaultCPUAllocator", "ALLOC_FAILED")


def available(device: torch.device) -> int:
    """Return the bytes that can still be taken on a device.

    Args:
        device: A CUDA device, or any other for the main memory of this machine.

    Returns:
        Bytes, free ones and those that PyTorch or the system would give back; within the limit of a control group.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return int(min(_free_on_machine(), _free_in_group()))


def refuse_beyond(need: int, device: torch.device, what: str, remedy: str) -> None:
    """Refuse what cannot fit, before any of it is taken.

    Args:
        need: Bytes needed.
        device: Where they are needed.
        what: Subject of the message, with the argument's name in front.
        remedy: What to do instead.

    Raises:
        UserError: More is needed than is available.
    """
    free = available(device)
    if need > free:
        raise UserError(f"{what} needs {need / GIB:.3g} GiB, {free / GIB:.3g} GiB are free on {device}; {remedy}")


def retried(compute: Callable[[], T], make_room: Callable[[], None]) -> T:
    """Compute, and as often as memory runs out make room and compute again.

    Args:
        compute: Has no effect when it raises.
        make_room: Called after memory has run out; raises where nothing is left to give up.

    Returns:
        What ``compute`` returned.

    Example:
        >>> sizes = [4, 2, 1]
        >>> def largest():
        ...     if sizes[0] > 1:
        ...         raise MemoryError
        ...     return sizes[0]
        >>> retried(largest, lambda: sizes.remove(sizes[0]))
        1
    """
    while True:
        try:
            return compute()
        except (MemoryError, RuntimeError) as error:  # its traceback holds the memory until this block is left
            if not out_of_memory(error):
                raise
        make_room()


def out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that memory ran out."""
    known = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
    return known or any(sign in str(error) for sign in SIGNS)


def _free_on_machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_in_group(folder: Path = Path("/sys/fs/cgroup")) -> float:
    try:
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        cache = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(cache["inactive_file"]))
    except (OSError, ValueError, KeyError):  # no group, or "max": no limit
        return float("inf")
