"""Time and peak memory of one decomposition of a file of snapshots, in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estimators import UserError
from validation.dmd import dmd

METHODS = ("snapshots", "svd")
STATUS = Path("/proc/self/status")


def synthetic(path: Path, parameters: int, snapshots: int, seed: int = 0) -> None:
    r"""Write snapshots of a fixed point, one decaying mode and noise, float32 ``[snapshots, parameters]``.

    Args:
        path: File to write; it is mapped, never held in memory whole.
        parameters: Number N.
        snapshots: Number tau + 1.
        seed: Seed of the entries.
    """
    rng = np.random.default_rng(seed)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(snapshots, parameters))
    fixed, decaying = rng.standard_normal((2, parameters), dtype=np.float32)
    for time_, row in enumerate(array):
        row[:] = fixed + np.float32(0.9**time_) * decaying + 0.01 * rng.standard_normal(parameters, dtype=np.float32)
    array.flush()


def by_full_svd(snapshots: NDArray[np.floating], tol: float = 1e-7) -> NDArray[np.complexfloating]:
    """Mode whose eigenvalue is nearest 1, through the singular value decomposition of all snapshots.

    Args:
        snapshots: ``[tau + 1, N]``; held in memory in float64.
        tol: Singular values at most ``tol`` times the largest are dropped.

    Returns:
        The unscaled exact mode, ``[N]``.

    Source: Tu et al., On dynamic mode decomposition: theory and applications, J. Comput. Dyn. 2014, Algorithm 2.
    """
    x, y = (np.asarray(part.T, dtype=np.float64) for part in (snapshots[:-1], snapshots[1:]))
    q, sigma, vh = np.linalg.svd(x, full_matrices=False)
    rank = int((sigma > tol * sigma[0]).sum())
    image = y @ (vh[:rank].T / sigma[:rank])
    eigenvalues, omega = np.linalg.eig(q[:, :rank].T @ image)
    number = int(np.argmin(np.abs(eigenvalues - 1)))
    mode: NDArray[np.complexfloating] = image @ omega[:, number] / eigenvalues[number]
    return mode


def measured(path: Path, method: str) -> dict[str, Any]:
    """Decompose a file of snapshots in a new process.

    Args:
        path: ``.npy`` file, ``[tau + 1, N]``.
        method: ``"snapshots"`` or ``"svd"``.

    Returns:
        ``seconds`` without the start of Python, ``peak`` resident memory in bytes, and by how much memory other than
        pages of the file was ``grown`` over that of the loaded libraries; None where the system does not tell.

    Raises:
        UserError: The method is unknown or the process failed.
    """
    if method not in METHODS:
        raise UserError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    command = [sys.executable, "-m", "validation.studies.koopman.dmd_cost", str(path), method]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}, perhaps out of memory"]
        raise UserError(f"koopman-cost: the process that decomposes by {method} failed: {lines[-1]}; lower the share")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@contextmanager
def _watched_memory(memory: list[int]) -> Iterator[None]:
    """Append anonymous resident memory in bytes now and every 20 ms, on Linux."""
    stop = threading.Event()

    def watch() -> None:
        while True:
            memory.extend(_status("RssAnon"))
            if stop.wait(0.02):
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _status(key: str) -> list[int]:
    """Bytes that the system states for this process under a key; nothing where it states none."""
    if not STATUS.exists():
        return []
    lines = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:")]
    return [1024 * int(line.split()[1]) for line in lines]


def _peak() -> int:
    """Peak resident memory in bytes; ``getrusage`` alone would count the parent's on Linux."""
    unit = 1 if sys.platform == "darwin" else 1024
    return next(iter(_status("VmHWM")), unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main(path: Path, method: str) -> None:
    """Decompose and print what ``measured`` returns, as JSON."""
    snapshots = np.load(path, mmap_mode="r")
    memory: list[int] = []
    with _watched_memory(memory):
        started = time.perf_counter()
        if method == "svd":
            by_full_svd(snapshots)
        else:
            dmd(snapshots).mode(0)
        seconds = time.perf_counter() - started
    grown = max(memory) - memory[0] if memory else None
    print(json.dumps({"seconds": seconds, "peak": _peak(), "grown": grown}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
