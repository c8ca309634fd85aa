"""Every form of a function of torch: value, gradient and second derivative are those of the plain function."""

import pytest
import torch
from helpers import OLD_TORCH, random
from torch import nn
from torch.nn import functional

from estimators.substitution import substituted_functions
from estimators.substitution.kernels import ATTENTION, FORMS

ANY = nn.Linear(1, 1)
WORDS = torch.tensor([[0, 3, 2], [1, 1, 4]])
MASK = torch.tensor([[True, False, True], [True, True, False], [True, True, True]])


def plain_hardsigmoid(x):
    return torch.where(x <= -3, 0 * x, torch.where(x >= 3, 0 * x + 1, x / 6 + 0.5))


def in_place(function):
    def call(x):
        y = x * 1
        function(y)  # what it returns is y itself
        return y

    return call


def plain_convolution(image, weight, bias, function, **options):
    """Sum over the places of the kernel, one by one; ``function`` tells the number of dimensions."""
    dimensions = int(function.__name__[4])
    each = lambda value: (value,) * dimensions if isinstance(value, int) else tuple(value) * (dimensions // len(value))  # noqa: E731
    stride, dilation = each(options.get("stride", 1)), each(options.get("dilation", 1))
    groups, padding = options.get("groups", 1), options.get("padding", 0)
    whole = image.dim() == dimensions + 2
    image = image if whole else image[None]
    sizes = weight.shape[2:]
    if padding == "same":
        both = [spread * (size - 1) for spread, size in zip(dilation, sizes, strict=True)]
        sides = [(total // 2, total - total // 2) for total in both]
    else:
        sides = [(side, side) for side in each(0 if padding == "valid" else padding)]
    image = functional.pad(image, [side for pair in reversed(sides) for side in pair])
    lengths = [
        (n - spread * (size - 1) - 1) // step + 1
        for n, spread, size, step in zip(image.shape[2:], dilation, sizes, stride, strict=True)
    ]
    total = 0
    for place in torch.cartesian_prod(*[torch.arange(size) for size in sizes]).view(-1, dimensions).tolist():
        part = image
        for axis, (at, spread, step, length) in enumerate(zip(place, dilation, stride, lengths, strict=True)):
            part = part.index_select(2 + axis, at * spread + step * torch.arange(length))
        kernel = weight[(..., *place)]
        chunks = zip(part.chunk(groups, 1), kernel.chunk(groups, 0), strict=True)
        total = total + torch.cat([torch.einsum("nc...,oc->no...", x, k) for x, k in chunks], 1)
    total = total if bias is None else total + bias.view(-1, *[1] * dimensions)
    return total if whole else total[0]


def convolutions():
    settings = {
        "1d": (1, {}),
        "2d": (2, {"padding": 1}),
        "3d": (3, {}),
        "stride": (2, {"stride": (2, 1), "padding": (1, 2)}),
        "dilation": (2, {"dilation": 2, "padding": [2]}),
        "groups": (2, {"groups": 2}),
        "depth-wise": (1, {"groups": 4}),
        "valid": (2, {"padding": "valid"}),
        "same": (2, {"padding": "same", "dilation": (1, 2)}),
        "same with an even kernel": (1, {"padding": "same", "kernel": 2}),
        "no samples": (2, {"samples": 0}),
        "no samples, few pixels": (2, {"samples": 0, "image": 3}),
        "few pixels": (2, {"image": 3}),
        "no batch": (2, {"samples": None}),
        "no bias": (2, {"bias": False}),
    }
    for name, (dimensions, options) in settings.items():
        rest = {key: options[key] for key in ("stride", "padding", "dilation", "groups") if key in options}
        samples, kernel = options.get("samples", 2), options.get("kernel", 3)
        lead = () if samples is None else (samples,)
        image = random(*lead, 4, *[options.get("image", 5)] * dimensions)
        weight = random(8, 4 // rest.get("groups", 1), *[kernel] * dimensions, seed=1)
        tensors = [image, weight] + ([random(8, seed=2)] if options.get("bias", True) else [])
        function = getattr(functional, f"conv{dimensions}d")

        def form(x, w, b=None, function=function, rest=rest):
            return function(x, w, b, **rest)

        def plain(x, w, b=None, function=function, rest=rest):
            return plain_convolution(x, w, b, function, **rest)

        yield f"convolution, {name}", (form, plain, tensors)


def plain_batch_norm(x, mean, variance, weight=None, bias=None):
    place = (-1, *[1] * (x.dim() - 2))
    y = (x - mean.view(place)) / (variance + 1e-5).sqrt().view(place)
    y = y if weight is None else y * weight.view(place)
    return y if bias is None else y + bias.view(place)


def plain_training(x, mean, variance, weight, bias):
    return plain_batch_norm(x, x.mean(0), x.var(0, unbiased=False), weight, bias)


def plain_attention(q, k, v, mask=None, is_causal=False, scale=None):
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ v


def heads(x, weight, out):
    return functional.multi_head_attention_forward(
        *[x.transpose(0, 1)] * 3, 4, 2, weight, None, None, None, False, 0.0, out, None, need_weights=False
    )[0].transpose(0, 1)


def plain_heads(x, weight, out):
    q, k, v = ((x @ part.T).unflatten(-1, (2, 2)).transpose(1, 2) for part in weight.chunk(3))
    return plain_attention(q, k, v).transpose(1, 2).flatten(2) @ out.T


SPECIAL = torch.tensor([-4.0, -3.0, -1.5, 0.0, 2.0, 3.0, 7.0])
NORMED = [random(3, 2, 2, 2), random(2, seed=1), random(2, seed=2).square() + 0.1, random(2, seed=3), random(2, seed=4)]
QKV = [random(2, 3, 4), random(2, 3, 4, seed=1), random(2, 3, 4, seed=2)]
sdpa = functional.scaled_dot_product_attention
# the function as it is called, the plain one, and the tensors that both are differentiated by
CASES = {
    "hardsigmoid": (functional.hardsigmoid, plain_hardsigmoid, [SPECIAL]),
    "hardsigmoid, a module": (nn.Hardsigmoid(), plain_hardsigmoid, [SPECIAL]),
    "hardsigmoid, native": (torch._C._nn.hardsigmoid, plain_hardsigmoid, [SPECIAL]),
    "hardsigmoid, an operator": (torch.ops.aten.hardsigmoid.default, plain_hardsigmoid, [SPECIAL]),
    "hardsigmoid, nothing": (functional.hardsigmoid, plain_hardsigmoid, [SPECIAL[:0]]),
    "hardsigmoid, in place": (
        in_place(lambda x: functional.hardsigmoid(x, inplace=True)),
        plain_hardsigmoid,
        [SPECIAL],
    ),
    "hardsigmoid_": (in_place(torch._C._nn.hardsigmoid_), plain_hardsigmoid, [SPECIAL]),
    "batch norm": (lambda x, m, v, w, b: functional.batch_norm(x, m, v, w, b), plain_batch_norm, NORMED),
    "batch norm, flat": (functional.batch_norm, plain_batch_norm, [NORMED[0][:, :, 0, 0], *NORMED[1:]]),
    "batch norm, no weights": (functional.batch_norm, plain_batch_norm, NORMED[:3]),
    "batch norm, no bias": (functional.batch_norm, plain_batch_norm, NORMED[:4]),
    "batch norm, no samples": (functional.batch_norm, plain_batch_norm, [NORMED[0][:0], *NORMED[1:]]),
    "batch norm, native": (
        lambda x, m, v, w, b: torch.batch_norm(x, w, b, m, v, False, 0.1, 1e-5, False),
        plain_batch_norm,
        NORMED,
    ),
    "batch norm, training": (
        lambda x, m, v, w, b: functional.batch_norm(x, None, None, w, b, True),
        plain_training,
        [NORMED[0][:, :, 0, 0], *NORMED[1:]],
    ),
    "embedding": (lambda w: functional.embedding(WORDS, w, sparse=True), lambda w: w[WORDS], [random(5, 2)]),
    "embedding, by position": (
        lambda w: functional.embedding(WORDS, w, None, None, 2.0, False, True),
        lambda w: w[WORDS],
        [random(5, 2)],
    ),
    "embedding, native": (
        lambda w: torch.embedding(w, WORDS, -1, False, True),
        lambda w: w[WORDS],
        [random(5, 2)],
    ),
    "attention": (sdpa, plain_attention, QKV),
    "attention, causal": (
        lambda *qkv: sdpa(*qkv, is_causal=True),
        lambda *qkv: plain_attention(*qkv, is_causal=True),
        QKV,
    ),
    "attention, scaled": (lambda *qkv: sdpa(*qkv, scale=0.3), lambda *qkv: plain_attention(*qkv, scale=0.3), QKV),
    "attention, masked": (lambda *qkv: sdpa(*qkv, MASK), lambda *qkv: plain_attention(*qkv, MASK), QKV),
    "attention, biased": (sdpa, plain_attention, [*QKV, random(3, 3, seed=3)]),
    "attention, no samples": (sdpa, plain_attention, [tensor[:0] for tensor in QKV]),
    "attention, in heads": (heads, plain_heads, [random(2, 3, 4), random(12, 4, seed=1), random(4, 4, seed=2)]),
    **dict(convolutions()),
}


def derivatives(function, tensors, dtype):
    """Value, gradients, and the product of the second derivative with a vector."""
    given = [tensor.to(dtype).clone().requires_grad_() for tensor in tensors]
    value = function(*given)
    dual = torch.linspace(-1, 2, value.numel(), dtype=dtype).view_as(value).requires_grad_()
    first = torch.autograd.grad(value, given, dual, create_graph=True, materialize_grads=True)
    along = [(1 + slope.detach()).cos() for slope in first]
    pairs = [(slope, part) for slope, part in zip(first, along, strict=True) if slope.requires_grad]
    slopes, partners = zip(*pairs, strict=True)
    second = torch.autograd.grad(slopes, [*given, dual], partners, materialize_grads=True)
    return value.detach(), [slope.detach() for slope in first], second


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CASES)
def test_values_gradients_and_second_derivatives(name, dtype):
    function, plain, tensors = CASES[name]
    with substituted_functions(ANY):
        ours = derivatives(function, tensors, dtype)
    tolerance = {torch.float64: 1e-10, torch.float32: 2e-4}[dtype]
    expected = derivatives(plain, tensors, torch.float64)
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance, check_dtype=False)
    assert {tensor.dtype for tensor in (ours[0], *ours[1], *ours[2])} == {dtype}


@pytest.mark.parametrize(
    "options", [{}, {"attn_mask": MASK}, {"is_causal": True}, {"scale": 0.3}, {"enable_gqa": True}]
)
@pytest.mark.parametrize("kind", [None, torch.bfloat16])
def test_attention_has_the_bits_of_the_backend_that_torch_calls_math(options, kind):
    q, k, v = (tensor[:, None].repeat(1, 2, 1, 1).float().requires_grad_() for tensor in QKV)
    if "enable_gqa" in options:
        if OLD_TORCH:
            pytest.skip("this torch knows no groups of queries")
        k, v = k[:, :1], v[:, :1]
    with torch.autocast("cpu", kind, enabled=kind is not None):
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            expected = sdpa(q, k, v, **options)
        with substituted_functions(ANY):
            ours = sdpa(q, k, v, **options)
    assert ours.dtype == expected.dtype
    assert torch.equal(ours, expected)


def test_wrong_arguments_are_refused_as_torch_does():
    x, three = torch.ones(2, 3), torch.ones(3)
    for wrong in (
        lambda: functional.batch_norm(x, three[:1], three[:1]),
        *([] if OLD_TORCH else [lambda: functional.batch_norm(x, three, three, eps=-1.0)]),
        lambda: functional.hardsigmoid(x.long()),
        lambda: functional.conv2d(x, x),
        lambda: sdpa(x, x, x, torch.ones(2, 2, dtype=torch.bool), is_causal=True),
    ):
        with pytest.raises((RuntimeError, ValueError)):
            wrong()
        with pytest.raises((RuntimeError, ValueError)), substituted_functions(ANY):
            wrong()


def test_the_table_holds_every_name_of_a_function():
    names = [torch.conv1d, torch.conv2d, functional.conv3d, torch.embedding, torch.embedding_bag, torch.batch_norm]
    names += [torch.ops.aten.conv2d, torch.ops.aten.conv2d.default]
    assert set(names) <= FORMS.keys()
    assert {sdpa, torch.ops.aten.scaled_dot_product_attention.default} <= ATTENTION.keys()
