"""A suite that is killed goes on where it was and ends in the same bytes as one that was not."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from validation.tables.runner import Run, run_table
from validation.tables.suite import Suite

SUITE = """
[limit]
steps = 8
probes = 1
[[network]]
model = "fc5-mini"
dataset = "digits"
seeds = [0, 1]
recipe = { epochs = 3, lr = 0.05, l1 = 1e-3 }
"""
MOMENTS = [
    ("bounds", "network-*/state.pt"),
    ("bounds", "limit-*/spectra.pt"),
    ("bounds", "bounds-*/row.json"),
    ("weights", "network-*/state.pt"),
]


@pytest.fixture(scope="module")
def whole(suite: Suite, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """Folder of runs that nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    for table in dict(MOMENTS):
        run_table(table, suite, Run(out, command="test"))
    return out


def run(table: str, suite: Suite, out: Path) -> None:
    torch.set_num_threads(1)
    run_table(table, suite, Run(out, command="test"))


@pytest.mark.parametrize(("table", "pattern"), MOMENTS)
def test_a_killed_suite_resumes_to_the_same_bytes(
    suite: Suite, whole: Path, forking: Any, tmp_path: Path, table: str, pattern: str
) -> None:
    process = forking.Process(target=run, args=(table, suite, tmp_path))
    process.start()
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(pattern)) and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "little" / f"{table}.md").exists()
    run_table(table, suite, Run(tmp_path, command="test"))
    for kind in ("json", "md", "png"):
        name = f"little/{table}.{kind}"
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), kind
