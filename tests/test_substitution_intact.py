"""Ctrl-C: at whatever line it arrives the model stays as it was, and a stopped run continues to the same bits."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import BatchNormNet, classification, same, seeded, snapshot, without_cost
from torch import nn
from torch.overrides import has_torch_function_unary

from estimators import Objective
from estimators.substitution import intact
from pruning_limits import MagnitudeProfile, predict_limit

ROOT = Path(__file__).parent.parent
WRITERS = tuple(
    f"estimators/{name}.py"
    for name in (
        "objective",
        "weights",
        "input_subspace",
        *(f"substitution/{part}" for part in ("mode", "switches", "tensors")),
    )
)
CALLS = ("__torch_function__", "_pop_mode_temporarily", "_push_mode", "_pop_mode")  # run at every call of torch


@contextmanager
def interrupted(line, calls=False):
    """Raise KeyboardInterrupt at line number ``line`` of the code that swaps tensors and functions; count them."""
    counts = Counter()

    def trace(frame, event, argument):
        code = frame.f_code
        if not (calls if code.co_name in CALLS else code.co_filename.endswith((*WRITERS, "contextlib.py"))):
            return None
        if event == "line":
            counts["lines"] += 1
            if counts["lines"] == line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield counts
    finally:
        sys.settrace(before)


def problem():
    model = seeded(BatchNormNet).train()
    return model, classification(1, 4, 4, sizes=(9, 4))()


def images():
    """A network whose first layer acts on few inputs."""
    model = seeded(lambda: nn.Sequential(nn.Linear(64, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 3))).train()
    return model, classification(64, sizes=(9, 4))()


@pytest.mark.parametrize("make", [problem, images])
def test_an_interrupt_at_any_line_leaves_the_model_and_pytorch_alone(make):
    model, batches = make()
    options = {"epsilon": 0.05, "steps": 2, "probes": 1, "samples": 8, "progress": False}
    expected = predict_limit(model, batches, **options)
    with interrupted(-1) as counts:
        predict_limit(model, batches, **options)
    before = snapshot(model)
    stopped = 0
    for line in sorted(random.Random(0).sample(range(1, counts["lines"]), 25)):
        grad = torch.is_grad_enabled()
        try:
            with interrupted(line):
                predict_limit(model, batches, **options)
        except KeyboardInterrupt:
            stopped += 1
        assert same(snapshot(model), before), line
        assert torch.is_grad_enabled() == grad
        assert not has_torch_function_unary(None), line
    assert stopped == 25
    assert predict_limit(model, batches, **options).sparsity == expected.sparsity


def test_an_interrupt_at_every_line_of_evaluating_a_pruned_network_leaves_pytorch_alone():
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 3)))
    objective = Objective(model, classification(4, sizes=(5,))())
    profile = MagnitudeProfile(objective.chosen)
    pruned = profile.vector - profile.removed(0.98)
    before, expected = snapshot(model), objective.value(pruned)
    with interrupted(-1, calls=True) as counts:
        objective.value(pruned)
    assert counts["lines"] > 100
    for line in range(1, counts["lines"] + 1):
        with pytest.raises(KeyboardInterrupt), intact(model), interrupted(line, calls=True):
            objective.value(pruned)
        assert not has_torch_function_unary(None), line
        assert same(snapshot(model), before), line
    assert objective.value(pruned) == expected


def many_weights():
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return seeded(lambda: nn.Sequential(nn.Linear(4, 150), nn.Tanh(), nn.Linear(150, 3))), [(x, (x.sum(1) > 0).long())]


WAIT = 300  # seconds, more than a busy machine takes to start a process
LONG = {"epsilon": 0.05, "steps": 40, "probes": 1, "samples": 30, "measure": False}


def predict_until_interrupted(folder, connection):
    """Predict a limit with a checkpoint, tell how far it is, and wait for Ctrl-C in the middle."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # programs in the background are born deaf to it
    with (folder / "output").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)

    def told(stage, done, total):
        if stage.startswith("ggn") and done >= 8:
            connection.send(done)
            connection.poll(WAIT)

    model, batches = many_weights()
    before = snapshot(model)
    try:
        predict_limit(model, batches, checkpoint=folder / "run.pt", progress=told, **LONG)
    except KeyboardInterrupt:
        connection.send("stopped" if same(snapshot(model), before) else "changed")


@pytest.mark.usefixtures("one_thread")
def test_a_signal_stops_a_program_and_the_run_continues_elsewhere_to_the_same_bits(forking, tmp_path):
    connection, other = forking.Pipe()
    process = forking.Process(target=predict_until_interrupted, args=(tmp_path, other))
    process.start()
    assert connection.poll(WAIT)
    assert connection.recv()
    os.kill(process.pid, signal.SIGINT)
    assert connection.poll(WAIT)
    assert connection.recv() == "stopped"
    process.join(WAIT)
    assert process.exitcode == 0
    assert (tmp_path / "output").read_text() == ""
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "output") == ["run.pt"]
    model, batches = many_weights()
    resumed, reference = (
        predict_limit(model, batches, checkpoint=file, **LONG) for file in (tmp_path / "run.pt", None)
    )
    assert resumed.cost.products < reference.cost.products
    assert without_cost(resumed) == without_cost(reference)


def python(folder, *arguments, **options):
    """Start Python in a folder, with this checkout and the helpers of the tests."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(folder)])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, *map(str, arguments)]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # programs in the background are born deaf to it
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, preexec_fn=heard, **pipes, **options)


SLOW = """
import time
from functools import partial
from pathlib import Path
from torch import nn

class Slow(nn.Sequential):
    def forward(self, x):
        Path("started").touch()
        time.sleep(0.02)
        return super().forward(x)

def slow(shape, classes):
    return Slow(nn.Flatten(), nn.Linear(64, classes))
"""


def test_a_signal_stops_the_command_with_one_line(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    arguments = ("predict", "--model", "slow:slow", "--dataset", "digits", "--json", "limit.json")
    with python(tmp_path, "-m", "validation.cli", *arguments) as process:
        while not (tmp_path / "started").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert [line for line in output.splitlines() if line and not line.startswith("data: ")] == []
    assert [line for line in errors.splitlines() if not line.startswith("note: ")] == ["Interrupted."]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["slow.py", "started"]
