"""Runs independent calls in this process, in worker processes, or on Ray."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from estimators.errors import UserError

EXECUTORS = ("process", "ray")
ATTEMPTS = 3
Item = TypeVar("Item")


def nothing(item: Any) -> Sequence[Any]:
    """Release no further items."""
    return ()


def run_all(
    call: Callable[[Item], None],
    items: Sequence[Item],
    jobs: int,
    executor: str,
    label: str,
    then: Callable[[Item], Sequence[Item]] = nothing,
) -> None:
    """Call a function on every item; results are what the calls leave on disk.

    Args:
        call: Picklable function that can be repeated: a call cut off by the death of its worker runs again.
        items: Picklable arguments.
        jobs: Calls at the same time; 1 runs here, one after another.
        executor: ``"process"`` or ``"ray"``.
        label: Name of the progress bar.
        then: From a finished item to those that had to wait for it.

    Raises:
        UserError: The executor is unknown or not installed, or workers died three times in a row.
    """
    if executor not in EXECUTORS:
        raise UserError(f"executor: expected one of {', '.join(EXECUTORS)}, got {executor!r}")
    with tqdm(total=len(items), desc=label, unit="cell", disable=None) as bar:
        released = partial(_release, then, bar)
        if jobs == 1:
            queue = deque(items)
            while queue:
                call(queue[0])
                queue.extend(released(queue.popleft()))
        elif executor == "ray":
            _on_ray(call, items, jobs, released)
        else:
            _in_processes(call, items, jobs, released)


def _release(then: Callable[[Item], Sequence[Item]], bar: Any, item: Item) -> Sequence[Item]:
    more = then(item)
    bar.total += len(more)
    bar.update()
    return more


def _in_processes(
    call: Callable[[Item], None], items: Sequence[Item], jobs: int, released: Callable[[Item], Sequence[Item]]
) -> None:
    waiting, deaths = list(items), 0
    context = multiprocessing.get_context("spawn")
    while waiting:
        with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (_threads(jobs),)) as pool:
            futures = {pool.submit(call, item): item for item in waiting}
            try:
                while futures:
                    for future in wait(futures, return_when=FIRST_COMPLETED).done:
                        item = futures.pop(future)
                        future.result()
                        waiting.remove(item)
                        deaths = 0
                        more = released(item)
                        waiting += more
                        futures |= {pool.submit(call, follower): follower for follower in more}
            except BrokenProcessPool:
                _kill(pool)
                deaths += 1
                if deaths == ATTEMPTS:
                    raise UserError(
                        f"jobs: worker processes died {ATTEMPTS} times in a row, perhaps for want of memory; "
                        f"try fewer than {jobs}"
                    ) from None
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _kill(pool: ProcessPoolExecutor) -> None:
    """End the workers of a broken pool: it waits for ever for one that was started while another one died."""
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.kill()


def _on_ray(
    call: Callable[[Item], None], items: Sequence[Item], jobs: int, released: Callable[[Item], Sequence[Item]]
) -> None:
    try:
        import ray
    except ImportError:
        raise UserError("executor: ray is not installed; pip install 'pruning-limits[ray]'") from None
    if not ray.is_initialized():
        ray.init(num_cpus=None if "RAY_ADDRESS" in os.environ else jobs, log_to_driver=False)
    threads = _threads(jobs)

    def work(item: Item) -> None:
        torch.set_num_threads(threads)
        call(item)

    remote = ray.remote(num_cpus=1, max_retries=ATTEMPTS)(work)
    waiting = {remote.remote(item): item for item in items}
    while waiting:
        (done,), _ = ray.wait(list(waiting))
        try:
            ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        waiting |= {remote.remote(item): item for item in released(waiting.pop(done))}


def _threads(jobs: int) -> int:
    return max(1, (os.cpu_count() or 1) // jobs)
