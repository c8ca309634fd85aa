"""Attention: on torch's fast kernels for values, gradients and finite differences, in its plain form for products."""

from collections import Counter

import pytest
import torch
from helpers import random, seeded
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from estimators import GGN, DifferenceGGN, DifferenceHessian, Hessian, Objective
from estimators.errors import UndefinedGGNError
from estimators.substitution import substituted_functions

FAST = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
FAST_SLOPE = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
HEADS, WIDTH = 2, 4
HIDDEN = torch.tensor([[False, False, True]])


class Kernels(TorchDispatchMode):
    """Counts the kernels that run."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[function] += 1
        return function(*args, **(kwargs or {}))


class Heads(nn.Module):
    """Causal attention in heads, by torch's function or written out."""

    def __init__(self, written_out=False):
        super().__init__()
        self.maps, self.out, self.written_out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), written_out

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.maps(x).chunk(3, -1))
        if self.written_out:
            later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(later, float("-inf"))
            mixed = torch.softmax(scores, -1) @ v
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Classifier(nn.Module):
    """A body and what reads three classes off its mean."""

    def __init__(self, body):
        super().__init__()
        self.body, self.head = body, nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.head(self.body(x).mean(1))


class Encoder(nn.Module):
    """Torch's own layer, with padding."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 5, activation="gelu", batch_first=True)

    def forward(self, x):
        return self.layer(x, src_key_padding_mask=HIDDEN.expand(len(x), -1))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Heads()

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


BODIES = {"heads": Heads, "encoder layer": Encoder, "checkpointed": Checkpointed}


def batches(dtype=torch.float64):
    return [(random(size, 3, WIDTH, seed=size).to(dtype), torch.arange(size) % 3) for size in (3, 2)]


def objective(body=Heads, dtype=torch.float64, **options):
    return Objective(seeded(lambda: Classifier(body())).to(dtype), batches(dtype), **options)


def ones(part, columns=1):
    return torch.ones(part.dimension, columns, dtype=part.dtype)


ONCE = {
    "value": lambda part: part.value(),
    "losses": lambda part: part.sample_losses(),
    "gradient": lambda part: part.gradient(),
    "Hessian by differences": lambda part: DifferenceHessian(part).matmat(ones(part)),
    "GGN by differences": lambda part: DifferenceGGN(part).matmat(ones(part)),
}
TWICE = {
    "Hessian": lambda part: Hessian(part).matmat(ones(part)),
    "GGN": lambda part: GGN(part).matmat(ones(part)),
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("what", [*ONCE, *TWICE])
def test_the_fast_kernel_runs_where_nothing_is_differentiated_twice(body, what):
    part = objective(BODIES[body])
    assert part.samples == 5  # which is counted by a pass
    with Kernels() as kernels:
        (ONCE | TWICE)[what](part)
    assert (kernels.calls[FAST] > 0) == (what in ONCE)
    assert (kernels.calls[FAST_SLOPE] > 0) == (what not in ("value", "losses", *TWICE))
    assert not part.plain_attention


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients_are_those_of_attention_that_is_written_out(dtype):
    fast, plain = objective(Heads, dtype), objective(lambda: Heads(written_out=True), dtype)
    with Kernels() as kernels:
        losses, gradient = fast.losses_and_gradient()
    assert (kernels.calls[FAST], kernels.calls[FAST_SLOPE]) == (2, 2)
    tolerance = {"rtol": 20 * torch.finfo(dtype).eps, "atol": 20 * torch.finfo(dtype).eps}
    expected, slope = plain.losses_and_gradient()
    torch.testing.assert_close(losses, expected, **tolerance)
    torch.testing.assert_close(gradient, slope, **tolerance)
    torch.testing.assert_close(fast.value(), plain.value(), **tolerance)


@pytest.mark.parametrize(("usual", "by_differences"), [(Hessian, DifferenceHessian), (GGN, DifferenceGGN)])
@pytest.mark.parametrize("body", BODIES)
def test_finite_differences_give_the_products_of_the_plain_form(body, usual, by_differences):
    exact = usual(objective(BODIES[body]))
    close = by_differences(objective(BODIES[body]))
    vectors = random(exact.shape[0], 3)
    product = exact.matmat(vectors)
    assert float((close.matmat(vectors) - product).norm()) <= max(2 * close.error, 1e-9) * float(product.norm())


def test_an_inner_context_never_takes_the_plain_form_away():
    query = random(1, 2, 3, WIDTH).requires_grad_()
    with substituted_functions(nn.Linear(1, 1)), substituted_functions(nn.Linear(1, 1), twice=False):
        mixed = functional.scaled_dot_product_attention(query, query, query)
    (slope,) = torch.autograd.grad(mixed.sum(), query, create_graph=True)
    assert torch.autograd.grad(slope.square().sum(), query)[0].any()


# --------------------------------------------------------------- first gradients that differentiate attention twice


class Force(nn.Module):
    """Derivatives of an energy by positions, taken inside the forward pass once or twice."""

    def __init__(self, attention, times=1):
        super().__init__()
        self.attention, self.head, self.times = attention, nn.Linear(WIDTH, 1), times

    def forward(self, x):
        with torch.enable_grad():
            value = x = x.detach().requires_grad_()
            value = torch.tanh(self.head(self.attention(x))).sum((1, 2))
            for _ in range(self.times):
                (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
                value = slope.square().sum((1, 2))
        return slope.mean(1)


def norm(model, batch):
    return model(batch[0]).square().sum(1)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("what", [*ONCE, *TWICE])
def test_models_that_differentiate_attention_inside(what, times):
    fast, plain = (
        Objective(seeded(lambda w=w: Force(Heads(written_out=w), times)), batches(), norm) for w in (False, True)
    )
    ours, expected = ((ONCE | TWICE)[what](part) for part in (fast, plain))
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)
    asks = ("value", "losses") if times == 1 else ()
    assert fast.plain_attention == (what not in (*asks, *TWICE))


def test_attention_between_the_outputs_and_the_loss():
    head = seeded(Heads)
    head.requires_grad_(False)

    def loss(model, batch):
        return head(torch.tanh(model(batch[0]))).square().sum((1, 2))

    exact, close = (kind(Objective(seeded(Heads), batches(), loss)) for kind in (GGN, DifferenceGGN))
    vectors = random(exact.shape[0], 2)
    torch.testing.assert_close(close.matmat(vectors), exact.matmat(vectors), rtol=1e-7, atol=1e-9)
    assert close.objective.plain_attention


def test_settings_of_the_caller_that_allow_no_fast_kernel():
    part, expected = objective(), objective(lambda: Heads(written_out=True)).gradient()
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):  # which a processor does not have
        gradient = part.gradient()
    torch.testing.assert_close(gradient, expected)
    assert part.plain_attention


def test_a_loss_without_second_derivative_is_named_as_before():
    def loss(model, batch):
        x = model(batch[0]).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        return FAST(x, x, x)[0].square().sum((1, 2, 3))

    with pytest.raises(UndefinedGGNError, match="the GGN needs a second derivative of the loss"):
        DifferenceGGN(Objective(seeded(Heads), batches(), loss)).matmat(torch.ones(64, 1))
