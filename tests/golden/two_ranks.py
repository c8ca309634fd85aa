"""The numbers of a network that two processes share, each with one thread; this module is also what each of them runs.

Usage: python -m golden.two_ranks NAME RANK FOLDER, from the folder of the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

from torch import distributed as dist

from .networks import NETWORKS
from .quantities import Numbers, numbers_of

TESTS = Path(__file__).parent.parent
WAIT = timedelta(minutes=5)


def numbers_of_two_ranks(name: str) -> Numbers:
    """Start both processes and return what they agree on."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        commands = [[sys.executable, "-m", "golden.two_ranks", name, str(rank), folder] for rank in (0, 1)]
        processes = [subprocess.Popen(each, env=environment, stderr=subprocess.PIPE, text=True) for each in commands]
        try:
            errors = [process.communicate(timeout=WAIT.total_seconds())[1] for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
        first, second = (json.loads(Path(folder, f"{rank}.json").read_text()) for rank in (0, 1))
    different = [key for key in first if first[key] != second[key]]
    assert not different, f"{name}: the two processes differ in {', '.join(different)}"
    return first


def main(name: str, rank: int, folder: Path) -> None:
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=WAIT)
    numbers = numbers_of(NETWORKS[name]())
    Path(folder, f"{rank}.json").write_text(json.dumps(numbers))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
