"""Run a command as one of several processes that ``torchrun`` started."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any

from estimators.errors import UserError

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = timedelta(minutes=30)


def several_ranks() -> bool:
    """Tell whether ``torchrun`` started this process as one of several."""
    return all(name in os.environ for name in ENVIRONMENT) and int(os.environ["WORLD_SIZE"]) > 1


def shared(command: Callable[..., None]) -> Callable[..., None]:
    """Let the ranks that ``torchrun`` started share a command with the option ``device``; the first one prints."""

    @functools.wraps(command)
    def run(*, device: str, **options: Any) -> None:
        if not several_ranks():
            command(device=device, **options)
            return
        from torch import distributed as dist

        from estimators.distributed import rank

        own = _own_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if own.startswith("cuda") else "gloo", timeout=TIMEOUT)
        with _printing(rank() == 0):
            command(device=own, **options)
        dist.destroy_process_group()

    return run


def alone(command: Callable[..., None]) -> Callable[..., None]:
    """Refuse to run a command as one of several ranks."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        if several_ranks():
            raise UserError(f"{command.__name__}: runs in one process; start it without torchrun")
        command(**options)

    return run


def _own_device(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    if device != "cuda":
        raise UserError(f"device: expected cpu or cuda under torchrun (every rank takes its own GPU), got {device!r}")
    import torch

    local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= count:
        raise UserError(f"device: local rank {local} needs its own GPU, this machine has {count}; start fewer ranks")
    return f"cuda:{local}"


@contextmanager
def _printing(wanted: bool) -> Iterator[None]:
    if wanted:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield
