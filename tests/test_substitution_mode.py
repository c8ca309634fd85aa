"""The mode: what it reaches, whom it leaves alone, and how it ends."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from helpers import random, seeded
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode, has_torch_function_unary
from torch.utils.checkpoint import checkpoint

from estimators import GGN, Hessian, Objective
from estimators.substitution import PrivateDraws, substituted_functions, without_zero_units
from estimators.substitution.mode import substitutions

ROOT = Path(__file__).parent.parent
ANY = nn.Linear(1, 1)
conv2d = functional.conv2d


class Called(TorchFunctionMode):
    """Counts calls of some functions that arrive at torch itself, as the outermost mode."""

    def __init__(self, *functions):
        super().__init__()
        self.functions, self.calls = functions, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.calls += function in self.functions
        return function(*args, **(kwargs or {}))


def convolved(value):
    return type(value.grad_fn).__name__ == "_ConvolutionBackward"


@pytest.mark.parametrize("call", [functional.conv2d, torch.conv2d, conv2d, torch.ops.aten.conv2d.default])
def test_every_name_of_a_function_has_its_form(call):
    image, weight = random(1, 1, 3, 3).requires_grad_(), random(1, 1, 2, 2)
    with substituted_functions(ANY):
        assert convolved(call(image, weight))
    assert not convolved(call(image, weight))


def test_other_threads_have_their_own_functions():
    image, weight, kinds = random(1, 1, 3, 3).requires_grad_(), random(1, 1, 2, 2), []
    with substituted_functions(ANY):
        thread = threading.Thread(target=lambda: kinds.append(convolved(functional.conv2d(image, weight))))
        thread.start()
        thread.join()
    assert kinds == [False]


def test_an_inner_context_adds_to_the_outer_one_and_takes_back_what_it_added():
    image, kernel = random(1, 1, 3, 3).requires_grad_(), random(1, 1, 2, 2)
    weight = torch.zeros(4, 4)
    weight[0, 0] = 1
    with Called(functional.linear) as called, substituted_functions(ANY):
        with without_zero_units([weight]), substituted_functions(ANY):
            assert convolved(functional.conv2d(image, kernel))
            functional.linear(torch.ones(2, 4), weight)
            assert len(substitutions()) == 1
        assert convolved(functional.conv2d(image, kernel))
    assert called.calls == 1
    assert not has_torch_function_unary(None)


def test_a_mode_of_the_users_sees_functions_first():
    image, kernel = random(1, 1, 3, 3).requires_grad_(), random(1, 1, 2, 2)
    with substituted_functions(ANY), Called(functional.conv2d) as called, substituted_functions(ANY):
        assert convolved(functional.conv2d(image, kernel))
    assert called.calls == 1


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
def test_errors_end_it(kind):
    def failing(*arguments):
        raise kind

    y = torch.ones(1, requires_grad=True) * 2
    y.register_hook(failing)
    for fail in (failing, y.sum().backward):
        with pytest.raises(kind), substituted_functions(ANY):
            fail()
        assert not has_torch_function_unary(None)


# ------------------------------------------------------------------------------------------ what torch wrote in Python


def layers():
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    layer = nn.TransformerEncoderLayer(4, 2, 3, dropout=0.0, batch_first=True)
    stack = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 3, batch_first=True), 2)
    hidden = torch.tensor([[False, False, False], [False, False, True]])
    return {
        "attention": (attention, lambda x: attention(x, x, x, need_weights=False)[0]),
        "attention, padded": (attention, lambda x: attention(x, x, x, hidden, need_weights=False)[0]),
        "attention with weights": (attention, lambda x: attention(x, x, x)[0]),
        "layer": (layer, layer),
        "layer, padded": (layer, lambda x: layer(x, src_key_padding_mask=hidden)),
        "stack": (stack, stack),
        "stack, padded": (stack, lambda x: stack(x, src_key_padding_mask=hidden)),
    }


FAST = (torch._native_multi_head_attention, torch._transformer_encoder_layer_fwd, torch._nested_tensor_from_mask)


@pytest.mark.parametrize("name", layers())
@pytest.mark.parametrize("grad", [False, True])
def test_attention_takes_no_fast_path_and_its_plain_form(name, grad):
    torch.manual_seed(0)
    model, call = layers()[name]
    model.double().eval().requires_grad_(grad)
    x = random(2, 3, 4)
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH), torch.enable_grad():
        expected = call(x.clone().requires_grad_()).detach()  # with a graph there is no fast path
    fused = functional.scaled_dot_product_attention
    with torch.set_grad_enabled(grad), Called(fused, *FAST) as called, substituted_functions(model):
        assert torch.equal(call(x), expected)
    assert called.calls == 0


def test_layers_that_a_checkpoint_calls_again_run_under_the_mode():
    class Saving(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Linear(18, 3)
            self.kinds = []

        def body(self, x):
            y = self.conv(x)
            self.kinds.append(convolved(y))
            return functional.hardsigmoid(self.norm(y))

        def forward(self, x):
            return self.head(checkpoint(self.body, x, use_reentrant=False).flatten(1))

    model = seeded(lambda: Saving().double())
    objective = Objective(model, [(random(4, 1, 4, 4), torch.tensor([0, 1, 2, 1]))])
    for operator in (Hessian(objective, 0), GGN(objective, 0)):
        model.kinds.clear()
        operator @ torch.ones(objective.dimension, dtype=torch.float64)
        assert len(model.kinds) > 1
        assert all(model.kinds)


@pytest.mark.parametrize("call", [functional.max_pool2d, functional.adaptive_max_pool2d])
def test_functions_that_ask_for_modes_elsewhere_end(call):
    with substituted_functions(ANY), PrivateDraws(0):
        assert call(torch.ones(1, 1, 4, 4), 2).shape == (1, 1, 2, 2)


def test_backward_inside_a_loss_runs_under_the_mode():
    counts, value = [], torch.ones(1, requires_grad=True).exp()
    value.register_hook(lambda slope: counts.append(len(substitutions())))
    with substituted_functions(ANY):
        value.sum().backward()
    assert counts == [1]


# ----------------------------------------------------------------------------------------- versions of torch without

ALL = "torch.compiled_with_cxx11_abi"  # what this project does not use
WITHOUT = """
import os, sys
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.maps = torch.nn.Conv2d(1, 2, 2), torch.nn.Linear(2, 6)

    def forward(self, x):
        q, k, v = self.maps(self.conv(x).flatten(2).transpose(1, 2)).chunk(3, -1)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.nn.functional.hardsigmoid(y.mean(1))

def without(name):
    exec(f"del {name}")
    from estimators import GGN, Hessian, Objective
    from estimators.substitution.kernels import FORMS

    torch.manual_seed(0)
    objective = Objective(Net().double(), [(torch.randn(4, 1, 3, 3).double(), torch.tensor([0, 1, 1, 0]))])
    eye = torch.eye(objective.dimension, dtype=torch.float64)
    print(name, torch.conv2d in FORMS, [round(float((one(objective) @ eye).norm()), 9) for one in (Hessian, GGN)])

for name in sys.argv[1:]:
    if not os.fork():
        without(name)
        sys.stdout.flush()
        os._exit(0)  # without taking all of torch down
    assert os.wait()[1] == 0
"""
FORMS = {
    ALL: "True",
    "torch._C._will_engine_execute_node": "False",
    "torch.autograd.forward_ad._current_level": "False",
    "torch._scaled_dot_product_attention_math": "True",
}


@pytest.fixture(scope="module")
def told():
    """Form of convolutions and norms of products by what torch lacks; one process imports torch and forks for each."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", WITHOUT, *FORMS]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
    return {
        name: rest.split(maxsplit=1) for name, rest in (line.split(maxsplit=1) for line in result.stdout.splitlines())
    }


@pytest.mark.parametrize("name", FORMS)
def test_without_a_private_function_of_torch_products_are_the_same(name, told):
    assert told[name] == [FORMS[name], told[ALL][1]]
