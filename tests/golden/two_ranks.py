"""The numbers of a network that two processes share, each with one thread."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist

from .networks import NETWORKS
from .quantities import Numbers, numbers_of

WAIT = timedelta(minutes=5)


def numbers_of_two_ranks(name: str) -> Numbers:
    """Start both processes and return what they agree on."""
    context = multiprocessing.get_context("forkserver")
    with tempfile.TemporaryDirectory() as folder:
        processes = [context.Process(target=main, args=(name, rank, Path(folder))) for rank in (0, 1)]
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join(WAIT.total_seconds())
        finally:
            for process in processes:
                process.kill()
        assert [process.exitcode for process in processes] == [0, 0]
        first, second = (json.loads(Path(folder, f"{rank}.json").read_text()) for rank in (0, 1))
    different = [key for key in first if first[key] != second[key]]
    assert not different, f"{name}: the two processes differ in {', '.join(different)}"
    return first


def main(name: str, rank: int, folder: Path) -> None:
    """Compute and write down what one of the two processes finds."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=WAIT)
    numbers = numbers_of(NETWORKS[name]())
    Path(folder, f"{rank}.json").write_text(json.dumps(numbers))
    dist.destroy_process_group()
