"""A suite that is killed goes on where it was and ends in the same bytes as one that was not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from validation.experiments.runner import run_table
from validation.suite import load_suite

SUITE = """
[limit]
steps = 8
probes = 1
[[network]]
model = "fc5-mini"
dataset = "digits"
seeds = [0, 1, 2]
recipe = { epochs = 3, lr = 0.05, l1 = 1e-3 }
"""
RUN = """
import sys
import torch
from pathlib import Path
from validation.experiments.runner import run_table
from validation.suite import load_suite
torch.set_num_threads(1)
run_table(sys.argv[1], load_suite(sys.argv[2]), None, Path(sys.argv[3]), command="test")
"""
MOMENTS = [
    ("bounds", "network-*/state.pt"),
    ("bounds", "limit-*/spectra.pt"),
    ("bounds", "bounds-*/row.json"),
    ("weights", "network-*/state.pt"),
]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("table", "pattern"), MOMENTS)
def test_a_killed_suite_resumes_to_the_same_bytes(tmp_path: Path, table: str, pattern: str) -> None:
    path = tmp_path / "little.toml"
    path.write_text(SUITE)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([sys.executable, "-c", RUN, table, str(path), str(killed)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(killed.glob(pattern)) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "little" / f"{table}.md").exists()
    suite = load_suite(str(path))
    for out in (killed, whole):
        run_table(table, suite, None, out, command="test")
    for kind in ("json", "csv", "md", "png"):
        name = f"little/{table}.{kind}"
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), kind
