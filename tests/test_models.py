from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from estimators import UserError
from validation.models import MODELS, Shape, build_model
from validation.slim_models import SLIM

CIFAR, MNIST, DIGITS, TINY = (3, 32, 32), (1, 28, 28), (1, 8, 8), (3, 64, 64)
HEAVY = ("alexnet", "vgg16", "resnet18", "resnet50")


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def weights(model: nn.Module) -> int:
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d))


def cifar_resnet_parameters(blocks: int) -> int:
    """Count the weights of the three stages: 9 a b per convolution, 2 per normalised channel."""
    total, channels = 9 * 3 * 16 + 2 * 16, 16
    for width in (16, 32, 64):
        total += 9 * channels * width + (2 * blocks - 1) * 9 * width**2 + 2 * blocks * 2 * width
        channels = width
    return total + 64 * 10 + 10


# ------------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("fc5", CIFAR, 10),
        ("fc5", MNIST, 10),
        ("fc12", CIFAR, 10),
        ("fc5-mini", DIGITS, 10),
        ("fc3-tiny", DIGITS, 10),
        ("fc-narrow", DIGITS, 10),
        ("fc-wide", MNIST, 10),
        ("fc-deep", CIFAR, 10),
        ("lenet-300-100", MNIST, 10),
        ("mnistnet", MNIST, 10),
        ("mnistnet", CIFAR, 10),
        ("mnistnet", (1, 16, 16), 3),
        ("small-cnn", DIGITS, 10),
        ("small-cnn", CIFAR, 10),
        ("cnn-tiny", DIGITS, 10),
        ("cnn-tiny", (3, 9, 30), 4),
        ("resnet8", DIGITS, 10),
        ("resnet8", CIFAR, 100),
        ("vit-tiny", DIGITS, 10),
        ("vit-tiny", CIFAR, 10),
        ("resnet20", CIFAR, 10),
        ("resnet20", TINY, 200),
    ],
)
def test_a_small_network_maps_its_images_to_logits(name: str, shape: Shape, classes: int) -> None:
    model = build_model(name, shape, classes)
    assert model.training
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    with torch.no_grad():
        logits = model.eval()(torch.randn(2, *shape))
    assert logits.shape == (2, classes)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [(name, shape, classes) for name in HEAVY for shape, classes in ((CIFAR, 10), (TINY, 200))]
    + [(name, MNIST, 10) for name in HEAVY if name != "vgg16"],
)
def test_a_large_network_maps_its_images_to_logits(name: str, shape: Shape, classes: int) -> None:
    with torch.device("meta"):  # shapes without numbers
        model = MODELS[name](shape, classes).eval()
        assert model(torch.randn(2, *shape)).shape == (2, classes)


def test_every_name_is_tested_here() -> None:
    fully_connected = {"fc5", "fc12", "fc5-mini", "fc3-tiny", "lenet-300-100", "fc-narrow", "fc-wide", "fc-deep"}
    convolutional = {"mnistnet", "small-cnn", "cnn-tiny", "resnet8", "resnet20"}
    in_a_module_of_its_own = set(SLIM)
    assert set(MODELS) == fully_connected | convolutional | {"vit-tiny"} | set(HEAVY) | in_a_module_of_its_own


def test_a_large_network_runs_on_one_image() -> None:
    model = build_model("resnet18", CIFAR, 100).eval()
    with torch.no_grad():
        assert model(torch.randn(1, *CIFAR)).isfinite().all()


@pytest.mark.parametrize(("name", "shape"), [("mnistnet", DIGITS), ("mnistnet", (1, 15, 16)), ("vgg16", MNIST)])
def test_images_too_small_for_a_network_are_refused(name: str, shape: Shape) -> None:
    with pytest.raises(UserError, match=rf"{name} needs images of at least .* got {shape[1]}x{shape[2]}"):
        build_model(name, shape, 10)


# ------------------------------------------------------------------------------------------------- sizes


def test_fc5_and_fc12_have_the_weights_of_the_paper() -> None:
    assert weights(build_model("fc5", CIFAR, 10)) == 3072 * 1000 + 1000 * 600 + 600 * 300 + 300 * 100 + 100 * 10
    widths = [3072, 1000, 900, 800, 750, 700, 650, 600, 500, 400, 200, 100, 10]
    fc12 = build_model("fc12", CIFAR, 10)
    assert weights(fc12) == sum(a * b for a, b in pairwise(widths))
    assert sum(isinstance(module, nn.Linear) for module in fc12.modules()) == 12


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("lenet-300-100", MNIST, 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10),
        ("mnistnet", MNIST, 431_080),
        ("fc5-mini", DIGITS, 15_220),
        ("fc3-tiny", DIGITS, 2352 + 24 + 24 + 10),
        ("fc-narrow", DIGITS, 64 * 32 + 32 + 32 * 32 + 32 + 32 * 10 + 10),
        ("fc-wide", MNIST, 784 * 256 + 256 + 256 * 10 + 10),
        ("fc-deep", DIGITS, 6 * (64 * 64 + 64) + 64 * 10 + 10),
        ("cnn-tiny", DIGITS, 644 + 4 + 8 + 10),
        ("resnet8", CIFAR, cifar_resnet_parameters(1)),
        ("resnet20", CIFAR, cifar_resnet_parameters(3)),
    ],
)
def test_parameter_counts(name: str, shape: Shape, parameters: int) -> None:
    assert count(build_model(name, shape, 10)) == parameters


def test_resnet20_has_the_size_of_its_paper() -> None:
    assert count(build_model("resnet20", CIFAR, 10)) == pytest.approx(0.27e6, rel=0.01)


@pytest.mark.parametrize(("name", "millions"), [("vgg16", 14.73), ("resnet18", 11.17), ("resnet50", 23.52)])
def test_large_networks_have_their_usual_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        assert count(MODELS[name](CIFAR, 10)) == pytest.approx(1e6 * millions, rel=1e-3)


# ------------------------------------------------------------------------------------------------- initial weights


@pytest.mark.parametrize("name", ["fc5-mini", "small-cnn", "resnet8", "squeezenet1_1"])
def test_initial_weights_depend_on_the_seed_only(name: str) -> None:
    first = build_model(name, (3, 8, 8), 10, seed=1).state_dict()
    torch.rand(7)
    again = build_model(name, (3, 8, 8), 10, seed=1).state_dict()
    other = build_model(name, (3, 8, 8), 10, seed=2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(
        torch.equal(first[key], other[key]) for key in first if key.endswith("weight") and first[key].dim() > 1
    )


@pytest.mark.parametrize("name", ["fc5-mini", "squeezenet1_1", f"{__name__}:factory", "no-such-model"])
def test_the_global_random_state_stays_as_it_was(name: str) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    try:
        build_model(name, CIFAR, 10)
    except UserError:
        assert name == "no-such-model"
    assert torch.equal(before, torch.random.get_rng_state())


def test_fully_connected_networks_start_kaiming_normal_with_zero_biases() -> None:
    model = build_model("fc5", CIFAR, 10)
    for layer in (module for module in model.modules() if isinstance(module, nn.Linear)):
        assert not layer.bias.any()
        deviation = math.sqrt(2 / layer.in_features)
        assert float(layer.weight.detach().std()) == pytest.approx(
            deviation, rel=5 / math.sqrt(2 * layer.weight.numel())
        )


def test_the_shortcut_of_a_residual_block_has_no_parameters() -> None:
    block = build_model("resnet8", DIGITS, 10).get_submodule("blocks.1")
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)
    x = torch.rand(2, 16, 8, 8)
    out = block.eval()(x)
    torch.testing.assert_close(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


# ------------------------------------------------------------------------------------------------- other sources


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small"])
@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision_names_take_any_number_of_channels_and_classes(name: str, channels: int) -> None:
    model = build_model(name, (channels, 32, 32), 7).eval()
    with torch.no_grad():
        assert model(torch.randn(1, channels, 32, 32)).shape == (1, 7)


def factory(shape: Shape, classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def plain_factory() -> nn.Module:
    return nn.Linear(3, 2)


def shape_factory(shape: Shape) -> nn.Module:
    return nn.Linear(shape[0], 2)


def failing_factory() -> nn.Module:
    raise KeyError("weights")


def wrong_factory() -> str:
    return "a model"


NO_FACTORY = 3


@pytest.mark.parametrize(
    ("attribute", "size"), [("factory", (10, 3072)), ("plain_factory", (2, 3)), ("shape_factory", (2, 3))]
)
def test_a_factory_is_called_with_what_it_takes(attribute: str, size: tuple[int, int]) -> None:
    model = build_model(f"{__name__}:{attribute}", CIFAR, 10)
    assert next(model.parameters()).shape == size


def test_a_factory_of_the_users_own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text("from torch import nn\n\n\ndef tiny():\n    return nn.Linear(2, 2)\n")
    monkeypatch.syspath_prepend(tmp_path)
    first, again = (build_model("my_networks:tiny", DIGITS, 10, seed=3) for _ in range(2))
    assert torch.equal(first.get_parameter("weight"), again.get_parameter("weight"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_package.models:net", "cannot import"),
        (f"{__name__}:no_such_factory", "cannot import"),
        (":net", "expected path.py:function or package.module:function"),
        (f"{__name__}:failing_factory", "KeyError"),
        (f"{__name__}:wrong_factory", "returned str"),
        (f"{__name__}:NO_FACTORY", "is of type int, expected a function"),
    ],
)
def test_a_factory_that_gives_no_model_is_refused_by_name(name: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        build_model(name, DIGITS, 10)
    assert said in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["fc6", "", "resnet18x"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(UserError) as caught:
        build_model(name, DIGITS, 10)
    assert all(known in str(caught.value) for known in MODELS)
    assert "package.module:factory" in str(caught.value)
