"""The shared parts of all benchmarks: options, times of competitors that take turns, and the machine's name.

Times are processor times of the process, user plus system. With one thread they equal the wall time on a machine that
does nothing else, and other processes hardly change them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from validation.tables import writing


def options(description: str | None, runs: bool = True) -> argparse.ArgumentParser:
    """Parser of a benchmark's command line, with ``--out`` and, where it needs trained networks, ``--runs``."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0] if description else None)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    if runs:
        parser.add_argument("--runs", type=Path, default=Path("runs"))
    return parser


def seconds_of(call: Callable[[], Any]) -> float:
    """Processor time of one call."""
    started = time.process_time()
    call()
    return time.process_time() - started


def interleaved(
    calls: Mapping[str, Callable[[], Any]], repeats: int, clock: Callable[[Callable[[], Any]], float] = seconds_of
) -> dict[str, float]:
    """Shortest time of every call, by default processor time; they take turns, and the first turn does not count.

    Other work on the machine, which shares its caches, only ever makes a call slower, so that the shortest time says
    most about the call.
    """
    best = dict.fromkeys(calls, math.inf)
    for turn in range(repeats + 1):
        order = list(calls) if turn % 2 else list(calls)[::-1]
        for name in order:
            spent = clock(calls[name])
            if turn:
                best[name] = min(best[name], spent)
    return best


FREEING = {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # gives freed memory back to the system at once, so that peaks are seen


def in_own_process(script: str, *arguments: str, **variables: str) -> dict[str, Any]:
    """Run a script in a new process with one thread, and return the JSON object that it prints last.

    Args:
        script: Its path.
        arguments: Its arguments after ``--child``.
        variables: Environment variables beside those of this process.
    """
    command = [sys.executable, script, "--child", *arguments]
    run = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **variables}
    )
    row: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return row


def environment() -> dict[str, Any]:
    """Machine, versions, threads and date."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return writing.environment() | {"cpu": names[0] if names else "unknown", "date": date}


def environment_note() -> str:
    """The same as a sentence."""
    said = environment()
    return (
        f"{said['cpu']}, {torch.get_num_threads()} thread(s) of a machine shared with other work, torch "
        f"{said['torch']}, Python {said['python']}, {said['date']}."
    )
