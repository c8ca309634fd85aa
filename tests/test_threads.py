"""Predictions in several threads beside one that trains: nobody sees what the others do."""

import random as python_random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers import random, without_cost
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import has_torch_function_unary

from estimators import UserError
from estimators.user_code import autocast_enabled
from pruning_limits import predict_limit

OPTIONS = {"epsilon": 0.05, "steps": 4, "probes": 1, "progress": False}
LABELS = torch.tensor([0, 1, 2, 1, 0, 2, 1, 1])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRU(4, 4, num_layers=2, dropout=0.2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(x).mean(1))


def images():
    return nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Hardsigmoid(), nn.Flatten(), nn.Dropout(), nn.Linear(27, 3)
    )


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 3))


KINDS = {"images": (images, (8, 1, 4, 4)), "encoder": (Encoder, (8, 3, 4)), "recurrent": (Recurrent, (8, 3, 4))}
KINDS["mlp"] = (mlp, (8, 16))


def problem(kind):
    build, shape = KINDS[kind]
    model = build().double()
    for number, parameter in enumerate(model.parameters()):
        parameter.data = random(*parameter.shape, seed=number)
    return model, [(random(*shape), LABELS)]


def limits(model, batches, loss=None):
    return without_cost(predict_limit(model, batches, loss, **OPTIONS))


def state():
    """Functions and settings of the process, as this thread finds them."""
    cuda = torch.backends.cuda
    functions = (functional, torch, torch._C._nn, nn.init, torch.utils.checkpoint, torch.autograd)
    return (
        [{key: id(value) for key, value in vars(module).items() if callable(value)} for module in functions],
        [cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled()],
        (torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn.enabled, torch.is_grad_enabled()),
        (torch.get_default_dtype(), torch.get_num_threads(), autocast_enabled("cpu")),
        has_torch_function_unary(None),
    )


class Training(threading.Thread):
    """Trains a network with dropout from a generator of its own, and looks at the process meanwhile."""

    def __init__(self, steps):
        super().__init__()
        self.steps, self.expected = steps, state()
        self.changes, self.convolutions = 0, set()
        self.generator = torch.Generator().manual_seed(3)
        self.model = images().double().train()
        for number, parameter in enumerate(self.model.parameters()):
            parameter.data = random(*parameter.shape, seed=50 + number)

    def run(self):
        x, optimizer = random(8, 1, 4, 4), torch.optim.SGD(self.model.parameters(), 0.05)
        drop = nn.Dropout()
        self.model[4] = nn.Identity()
        for _ in range(self.steps):
            optimizer.zero_grad()
            kept = torch.rand(8, 27, generator=self.generator).double() > 0.5
            hidden = self.model[:4](x)
            functional.cross_entropy(self.model[5](hidden * kept), LABELS).backward()
            optimizer.step()
            drop(hidden.detach())
            for call in (functional.conv2d, torch.conv2d):
                value = call(x, self.model[0].weight)
                self.convolutions.add(type(value.grad_fn).__name__)
            self.changes += state() != self.expected


def trained(steps):
    training = Training(steps)
    training.start()
    return training


STEPS = 60


@pytest.fixture(scope="module")
def serial():
    return {kind: limits(*problem(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def alone():
    training = trained(STEPS)
    training.join()
    return [parameter.detach().clone() for parameter in training.model.parameters()]


def test_limits_and_a_training_beside_each_other_are_those_of_each_alone(serial, alone):
    before = state()
    training = trained(STEPS)
    with ThreadPoolExecutor(len(KINDS)) as pool:
        together = dict(zip(KINDS, pool.map(lambda kind: limits(*problem(kind)), KINDS), strict=True))
    training.join()
    assert together == serial
    assert training.changes == 0
    assert training.convolutions == {"ConvolutionBackward0"}
    assert all(torch.equal(a, b) for a, b in zip(training.model.parameters(), alone, strict=True))
    assert state() == before


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
def test_errors_in_threads_leave_the_process_and_each_other_alone(kind, serial, alone):
    before, stops = state(), {}

    def stopped(name):
        def loss(model, batch):
            losses = functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
            stops[name] = stops.get(name, 0) + 1
            if stops[name] == 5:
                raise kind
            return losses

        with pytest.raises((kind, UserError)) as error:
            limits(*problem(name), loss)
        assert isinstance(error.value, kind) or isinstance(error.value.__cause__, kind)
        return state()

    training = trained(STEPS)
    with ThreadPoolExecutor(len(KINDS)) as pool:
        whole = pool.submit(lambda: limits(*problem("images")))
        after = list(pool.map(stopped, KINDS))
        assert whole.result() == serial["images"]
    training.join()
    assert after == [before] * len(KINDS)
    assert training.changes == 0
    assert all(torch.equal(a, b) for a, b in zip(training.model.parameters(), alone, strict=True))
    assert state() == before


def test_the_settings_of_the_user_stay_in_force():
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        before = state()
        limits(*problem("encoder"))
        assert state() == before


def test_draws_of_python_and_numpy_in_threads_leave_the_states_of_the_process():
    def drawing(model, batch):
        np.random.rand(3), python_random.random()  # noqa: NPY002
        return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    before = python_random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    with ThreadPoolExecutor(len(KINDS)) as pool:
        list(pool.map(lambda kind: limits(*problem(kind), drawing), KINDS))
    assert (python_random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
