"""The networks of the validation suites, by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from estimators.errors import UserError
from validation.references import call, resolve
from validation.slim_models import SLIM

FC5 = (1000, 600, 300, 100)
FC12 = (1000, 900, 800, 750, 700, 650, 600, 500, 400, 200, 100)
Shape = tuple[int, int, int]


class MLP(nn.Sequential):
    """Fully connected ReLU network with Kaiming-normal weights and zero biases.

    Args:
        shape: Channels, height and width of the input.
        classes: Number of outputs.
        hidden: Hidden layer widths.
    """

    def __init__(self, shape: Shape, classes: int, hidden: Sequence[int]) -> None:
        widths = [shape[0] * shape[1] * shape[2], *hidden, classes]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        super().__init__(*layers[:-1])
        _kaiming(self)


class MnistNet(nn.Sequential):
    """Two 5x5 convolutions (20, 50) with pooling and a hidden layer of 500, as in ShrinkBench."""

    def __init__(self, shape: Shape, classes: int) -> None:
        _check_size("mnistnet", shape, 16)
        side = ((shape[1] - 4) // 2 - 4) // 2
        super().__init__(
            nn.Conv2d(shape[0], 20, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(20, 50, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(50 * side * side, 500),
            nn.ReLU(),
            nn.Linear(500, classes),
        )


class SmallCNN(nn.Sequential):
    """Two 3x3 convolutions and one linear layer for 8x8 images."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__(
            nn.Conv2d(shape[0], 12, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(24 * (shape[1] // 4) * (shape[2] // 4), classes),
        )
        _kaiming(self)


class TinyCNN(nn.Sequential):
    """Two 3x3 convolutions of stride 2 (4 and 8 channels) and one linear layer; 644 weights for 8x8 images."""

    def __init__(self, shape: Shape, classes: int) -> None:
        height, width = (-(-side // 4) for side in shape[1:])
        super().__init__(
            nn.Conv2d(shape[0], 4, 3, 2, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 8, 3, 2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * height * width, classes),
        )
        _kaiming(self)


class _Block(nn.Module):
    """Residual block of two 3x3 convolutions with a parameter-free shortcut (ResNet paper, option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[n, inputs, h, w]`` to ``[n, outputs, h / stride, w / stride]``."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.extra:
            shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        return torch.relu(out + shortcut)


class CifarResNet(nn.Module):
    """Residual network for small images: three stages of 16, 32 and 64 channels.

    Args:
        shape: Channels, height and width of the input.
        classes: Number of outputs.
        blocks: Blocks per stage; 3 gives ResNet-20, 1 gives ResNet-8.
    """

    def __init__(self, shape: Shape, classes: int, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(shape[0], 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        channels, stages = 16, []
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            for number in range(blocks):
                stages.append(_Block(channels, width, stride if number == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*stages)
        self.fc = nn.Linear(64, classes)
        _kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[n, c, h, w]`` to logits ``[n, classes]``."""
        out = self.blocks(torch.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(out.mean(dim=(2, 3)))
        return logits


class VisionTransformer(nn.Module):
    """Vision transformer for small images: four pixels to a side of a patch at most, two blocks of four heads.

    Args:
        shape: Channels, height and width of the input.
        classes: Number of outputs.
        width: Size of the tokens.
    """

    def __init__(self, shape: Shape, classes: int, width: int = 32) -> None:
        super().__init__()
        side = 2 if shape[1] <= 16 else 4
        tokens = (shape[1] // side) * (shape[2] // side)
        self.patches = nn.Conv2d(shape[0], width, side, side)
        self.places = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.blocks = nn.Sequential(*(_Attending(width) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[n, c, h, w]`` to logits ``[n, classes]``."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


class _Attending(nn.Module):
    """Transformer block with normalisation first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 4, batch_first=True)
        self.second = nn.LayerNorm(width)
        self.hidden, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens ``[n, tokens, width]`` to tokens."""
        normalised = self.first(x)
        x = x + self.attention(normalised, normalised, normalised, need_weights=False)[0]
        result: Tensor = x + self.back(nn.functional.gelu(self.hidden(self.second(x))))
        return result


def _check_size(name: str, shape: Shape, least: int) -> None:
    if min(shape[1:]) < least:
        raise UserError(f"model: {name} needs images of at least {least}x{least} pixels, got {shape[1]}x{shape[2]}")


def _kaiming(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _alexnet(shape: Shape, classes: int) -> nn.Module:
    """AlexNet's channel plan with 3x3 kernels and one 4x4 map before the classifier."""

    def convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU()]

    features: list[nn.Module] = [*convolution(shape[0], 64, 2 if shape[1] > 32 else 1), nn.MaxPool2d(2)]
    features += [*convolution(64, 192), nn.MaxPool2d(2), *convolution(192, 384)]
    features += [*convolution(384, 256), *convolution(256, 256), nn.MaxPool2d(2)]
    classifier = [nn.Flatten(), nn.Dropout(), nn.Linear(256 * 16, 4096), nn.ReLU()]
    classifier += [nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, classes)]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(4), *classifier)


def _vgg16(shape: Shape, classes: int) -> nn.Module:
    """VGG-16 with batch normalisation and a single linear layer, the usual form for small images."""
    from torchvision.models import vgg16_bn

    _check_size("vgg16", shape, 32)
    model = vgg16_bn(num_classes=classes)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Linear(512, classes)
    return _first_convolution(model, shape)


def _resnet(name: str) -> Callable[[Shape, int], nn.Module]:
    def build(shape: Shape, classes: int) -> nn.Module:
        from torchvision import models

        model: nn.Module = getattr(models, name)(num_classes=classes)
        model.conv1 = nn.Conv2d(shape[0], 64, 3, 1, 1, bias=False)
        if shape[1] <= 32:
            model.maxpool = nn.Identity()
        return model

    return build


def _first_convolution(model: nn.Module, shape: Shape) -> nn.Module:
    """Replace the first convolution where the number of input channels differs."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels != shape[0]:
                parent, _, last = name.rpartition(".")
                changed = nn.Conv2d(
                    shape[0],
                    module.out_channels,
                    module.kernel_size,  # type: ignore[arg-type]
                    module.stride,  # type: ignore[arg-type]
                    module.padding,  # type: ignore[arg-type]
                    bias=module.bias is not None,
                )
                setattr(model.get_submodule(parent), last, changed)
            break
    return model


def _mlp(hidden: Sequence[int]) -> Callable[[Shape, int], nn.Module]:
    return lambda shape, classes: MLP(shape, classes, hidden)


def _cifar_resnet(blocks: int) -> Callable[[Shape, int], nn.Module]:
    return lambda shape, classes: CifarResNet(shape, classes, blocks)


MODELS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "fc5": _mlp(FC5),
    "fc12": _mlp(FC12),
    "fc5-mini": _mlp((100, 60, 30, 20)),
    "fc3-tiny": _mlp((24, 24)),
    "lenet-300-100": _mlp((300, 100)),
    "mnistnet": MnistNet,
    "small-cnn": SmallCNN,
    "cnn-tiny": TinyCNN,
    "resnet8": _cifar_resnet(1),
    "resnet20": _cifar_resnet(3),
    "vit-tiny": VisionTransformer,
    "alexnet": _alexnet,
    "vgg16": _vgg16,
    "resnet18": _resnet("resnet18"),
    "resnet50": _resnet("resnet50"),
    "fc-narrow": _mlp((32, 32)),
    "fc-wide": _mlp((256,)),
    "fc-deep": _mlp((64,) * 6),
    **SLIM,
}

SMALL_FORMS = ("alexnet", "vgg16", "resnet18", "resnet50")  # torchvision has networks of these names for large images


def build_model(
    name: str,
    shape: Shape | None,
    classes: int | None,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a network by name with seeded initial weights; the global random state stays as it was.

    Args:
        name: A name of ``MODELS``; otherwise a torchvision classification model, built with ``num_classes``;
            otherwise ``path.py:factory`` or ``package.module:factory``; one of torchvision gets ``num_classes``, too.
        shape: Channels, height and width of the input, passed to parameters of the name ``shape``; None where unknown.
        classes: Number of outputs, passed to parameters of the name ``classes``; None where unknown.
        seed: Seed of the initial weights.
        arguments: Further arguments by name; they win over shape and classes.

    Returns:
        The network on the CPU in training mode.

    Raises:
        UserError: The name is unknown, the factory takes other arguments, or it fails.

    Example:
        >>> sum(p.numel() for p in build_model("fc5-mini", (1, 8, 8), 10).parameters())
        15220
    """
    given = dict(arguments or {})
    known = {key: value for key, value in (("shape", shape), ("classes", classes)) if value is not None}
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed accelerators too
        if name in MODELS:
            return _network(name, call("model", name, MODELS[name], given, known))
        if ":" in name:
            factory = resolve("model", name)
            if classes is not None and getattr(factory, "__module__", "").startswith("torchvision.models."):
                given.setdefault("num_classes", classes)
            return _network(name, call("model", name, factory, given, known))
        from torchvision import models

        if name in models.list_models(module=models):
            if classes is not None:
                given.setdefault("num_classes", classes)
            model = _network(name, call("model", name, models.get_model_builder(name), given))
            return model if shape is None else _first_convolution(model, shape)
    raise UserError(
        f"model: {name!r} is unknown; expected one of {', '.join(MODELS)}, a torchvision classification model, "
        "path.py:factory or package.module:factory"
    )


def _network(name: str, built: object) -> nn.Module:
    if not isinstance(built, nn.Module):
        raise UserError(f"model: {name!r} returned {type(built).__name__}, expected torch.nn.Module")
    return built
