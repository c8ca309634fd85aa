"""A prediction killed at any moment goes on where its checkpoint was and ends in the same bits."""

import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from pruning_limits import predict_limit
from tests.helpers import random, seeded, without_cost

KILLS = 20
STAGES = 5  # two sub-samples of either curvature, and the directions
STEPS = 16


def problem():
    """A network of 600 weights, too many for the dense spectrum."""
    model = seeded(lambda: nn.Sequential(nn.Linear(12, 30), nn.Tanh(), nn.Linear(30, 8)))
    x = random(64, 12, seed=1)
    return model, [(x, (model(x) + 0.5 * random(64, 8, seed=2)).argmax(1))]


def predicted(checkpoint, told=None):
    torch.set_num_threads(1)
    options = {"epsilon": 0.02, "samples": 48, "steps": STEPS, "probes": 2, "measure": False}
    return without_cost(predict_limit(*problem(), **options, checkpoint=checkpoint, progress=told)).to_json()


def die_at_call(checkpoint, number):
    calls = iter(range(number))

    def told(*_):
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    predicted(checkpoint, told)


def die_after(checkpoint, seconds):
    def strike():
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    predicted(checkpoint, lambda stage, done, total: done == 0 and threading.Thread(target=strike, daemon=True).start())


def killed(forking, target, *arguments):
    process = forking.Process(target=target, args=arguments)
    process.start()
    process.join(300)
    return process.exitcode == -signal.SIGKILL


@pytest.mark.usefixtures("one_thread")
def test_killed_at_20_random_steps_it_resumes_to_the_same_bits(forking, tmp_path):
    whole, calls = predicted(None), STAGES * STEPS // 4
    for number in np.random.default_rng(0).permutation(calls)[:KILLS]:
        checkpoint = tmp_path / f"{number}.pt"
        assert killed(forking, die_at_call, checkpoint, int(number))
        assert number == 0 or checkpoint.exists()
        assert predicted(checkpoint) == whole


@pytest.mark.usefixtures("one_thread")
def test_killed_again_and_again_it_still_gets_there(forking, tmp_path):
    checkpoint = tmp_path / "run.pt"
    strikes = [killed(forking, die_after, checkpoint, seconds) for seconds in np.geomspace(0.001, 0.1, KILLS)]
    assert any(strikes)
    assert predicted(checkpoint) == predicted(None)
    assert [file.name for file in tmp_path.iterdir() if not file.name.startswith(".")] == ["run.pt"]
