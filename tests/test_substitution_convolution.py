"""Convolutions with a cheaper second derivative: values, derivatives and what is computed."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from helpers import classification, seeded
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from estimators import GGN, Hessian, Objective
from estimators.substitution.convolution import convolution

NATIVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
SETTINGS = [
    (1, {}),
    (2, {}),
    (3, {}),
    (1, {"stride": 2, "padding": 1}),
    (2, {"stride": (2, 1), "padding": (1, 2)}),
    (3, {"padding": 1}),
    (2, {"dilation": 2, "padding": [2]}),
    (2, {"groups": 2}),
    (2, {"padding": "same"}),
    (2, {"padding": "same", "dilation": (1, 2)}),
    (2, {"padding": "valid"}),
]


def arguments(dimensions, groups=1, kernel=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(dimensions)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=dtype)  # noqa: E731
    kernels = (kernel,) * dimensions
    return draw(2, 4, *(5, 6, 4)[:dimensions]), draw(6, 4 // groups, *kernels), draw(6)


class Counted(TorchDispatchMode):
    """Count the convolutions that are computed: forward ones, and gradients with respect to inputs and weights."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            self.calls["forward"] += 1
        if function is torch.ops.aten.convolution_backward.default:
            self.calls["input"] += args[-1][0]
            self.calls["weight"] += args[-1][1]
        return function(*args, **(kwargs or {}))


def derivatives(function, dimensions, options):
    """Value, gradients, and the three parts of the second derivative together with those of the bias."""
    given = [tensor.requires_grad_() for tensor in arguments(dimensions, options.get("groups", 1))]
    value = function(*given, **options)
    dual = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view_as(value).requires_grad_()
    first = torch.autograd.grad(value, given, dual, create_graph=True)
    along = [slope.detach().cos() for slope in first]
    return value, first, torch.autograd.grad(first, [*given[:2], dual], along)


@pytest.mark.parametrize(("dimensions", "options"), SETTINGS)
def test_values_and_two_derivatives_are_those_of_pytorch(dimensions, options):
    ours = convolution(NATIVE[dimensions], dimensions)
    value, first, second = derivatives(ours, dimensions, options)
    assert type(value.grad_fn).__name__ == "_ConvolutionBackward"
    torch.testing.assert_close((value, first, second), derivatives(NATIVE[dimensions], dimensions, options))


@pytest.mark.parametrize("which", [(True, True), (False, True), (True, False)])
def test_gradients_where_images_have_fewer_pixels_than_channels(which):
    image, weight, slope = (
        torch.randn(*shape, dtype=torch.float64) for shape in ((3, 5, 2, 2), (7, 5, 3, 3), (3, 7, 2, 2))
    )
    image.requires_grad_(which[0])
    weight.requires_grad_(which[1])
    asked = [tensor for tensor in (image, weight) if tensor.requires_grad]

    def gradients(function):
        value = function(image, weight, padding=1)
        return torch.autograd.grad(value, asked, slope)

    with Counted() as counted:
        ours = gradients(convolution(functional.conv2d, 2))
    assert counted.calls["forward"] == 1 + which[1]
    assert counted.calls["weight"] == 0
    torch.testing.assert_close(ours, gradients(functional.conv2d))


def test_gradients_of_gradients_are_those_of_differences():
    given = [tensor.requires_grad_() for tensor in arguments(2)]
    assert torch.autograd.gradgradcheck(
        lambda *these: convolution(functional.conv2d, 2)(*these, padding=1).sin(), given
    )


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_what_it_does_not_take_goes_to_pytorch():
    ours = convolution(functional.conv2d, 2)
    image, weight, bias = arguments(2)
    even = arguments(2, kernel=2)[1]
    assert torch.equal(ours(image[0], weight, bias), functional.conv2d(image[0], weight, bias))
    assert torch.equal(ours(image, even, padding="same"), functional.conv2d(image, even, padding="same"))
    whole = image.long(), weight.long()
    assert torch.equal(ours(*whole), functional.conv2d(*whole))
    for wrong in ({"weight": weight.float()}, {"weight": weight[:, :1]}, {"weight": weight, "padding": "some"}):
        with pytest.raises((RuntimeError, ValueError)):
            ours(image, **wrong)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_torch_func_and_batched_gradients_go_through_it():
    ours, (image, weight, bias) = convolution(functional.conv2d, 2), arguments(2)
    weight.requires_grad_()

    def derived(function):
        losses = lambda weight, single: function(single[None], weight, bias).sin().sum()  # noqa: E731
        value = function(image, weight, bias)
        slope = torch.autograd.grad(value.sin().sum(), weight, create_graph=True)[0]
        several = torch.stack([slope.detach(), slope.detach().cos()])
        with forward_ad.dual_level():
            dual = function(forward_ad.make_dual(image, image.cos()), weight, bias)
            pushed = forward_ad.unpack_dual(dual).tangent
        return (
            torch.func.vmap(torch.func.grad(losses), (None, 0))(weight.detach(), image),
            torch.func.hessian(losses)(weight.detach()[:, :, :1, :1], image[0, :, :2, :2]),
            torch.autograd.grad(slope, weight, several, is_grads_batched=True),
            pushed,
        )

    torch.testing.assert_close(derived(ours), derived(functional.conv2d))


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("saved", [True, False])
def test_backward_and_activation_checkpoints_go_through_it(saved):
    def derived(function):
        image, weight, bias = (tensor.requires_grad_() for tensor in arguments(2))
        call = lambda image: function(image, weight, bias).sin()  # noqa: E731
        value = call(image) if saved else checkpoint(call, image, use_reentrant=False)
        value.square().sum().backward(create_graph=True)
        slopes = [tensor.grad for tensor in (image, weight, bias)]
        image.grad = weight.grad = bias.grad = None  # else they and their graph would keep each other alive
        curved = torch.autograd.grad(sum(tensor.square().sum() for tensor in slopes), (image, weight, bias))
        return [tensor.detach() for tensor in slopes], curved

    torch.testing.assert_close(derived(convolution(functional.conv2d, 2)), derived(functional.conv2d))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_own_type(kind):
    def derived(function):
        image, weight, bias = (tensor.requires_grad_() for tensor in arguments(2, dtype=torch.float32))
        with torch.autocast("cpu", kind):
            value = function(image, weight, bias, padding=1)
        first = torch.autograd.grad(value.float().sin().sum(), (image, weight, bias), create_graph=True)
        return value, *first, *torch.autograd.grad(first[1].square().sum(), (image, weight))

    value, *slopes = derived(convolution(functional.conv2d, 2))
    expected, *others = derived(functional.conv2d)
    assert value.dtype == kind
    assert torch.equal(value, expected)
    assert {slope.dtype for slope in slopes} == {torch.float32}
    for slope, exact in zip(slopes, others, strict=True):
        assert torch.linalg.vector_norm(slope - exact) <= 0.01 * torch.linalg.vector_norm(exact)


def two_layers():
    first, second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 3)
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(Hessian, {"forward": 3, "input": 2, "weight": 3}), (GGN, {"forward": 3, "input": 1, "weight": 2})],
)
def test_a_product_computes_what_its_formula_needs_and_no_more(kind, expected):
    """J v takes two convolutions in a layer and one in the first, whose inputs do not depend on weights.

    The Hessian adds two gradients of inputs and one of weights in the second layer to the gradients of all.
    """
    model = seeded(two_layers)
    objective = Objective(model, classification(1, 4, 4, sizes=(5,))())
    operator, vector = kind(objective), torch.ones(objective.dimension)
    operator @ vector
    with Counted() as counted:
        operator @ vector
    assert counted.calls == expected


def test_a_rebuilt_ggn_computes_no_gradients_to_build_the_graph_of_its_jacobian():
    objective = Objective(seeded(two_layers), classification(1, 4, 4, sizes=(5,))())
    with Counted() as counted:
        GGN(objective, memory=0) @ torch.ones(objective.dimension)
    assert counted.calls == {"forward": 2 + 3, "input": 1, "weight": 2}


@pytest.mark.parametrize("kind", [Hessian, GGN])
@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_products_are_those_with_the_convolutions_of_pytorch(kind, memory):
    model, batches = seeded(two_layers).double(), [(x.double(), y) for x, y in classification(1, 4, 4)()]
    objective = Objective(model, batches)
    vectors = torch.randn(objective.dimension, 3, dtype=torch.float64)
    image, target = (torch.cat(column) for column in zip(*batches, strict=True))
    sizes = [weight.numel() for weight in objective.chosen.values()]
    at = objective.vector()

    def outputs(vector):
        parts = zip(objective.chosen.items(), vector.split(sizes), strict=True)
        return torch.func.functional_call(model, {name: part.view_as(weight) for (name, weight), part in parts}, image)

    def loss(outputs):
        return functional.cross_entropy(outputs, target)

    if kind is Hessian:
        dense = torch.autograd.functional.hessian(lambda vector: loss(outputs(vector)), at)
    else:
        jacobian = torch.autograd.functional.jacobian(outputs, at).flatten(0, 1)
        inner = torch.autograd.functional.hessian(loss, outputs(at).detach())
        dense = jacobian.T @ inner.reshape(len(jacobian), -1) @ jacobian
    torch.testing.assert_close(kind(objective, memory) @ vectors, dense @ vectors)
