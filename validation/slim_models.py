"""Small networks of many kinds, narrow enough to be trained dozens of times on one core."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]
HEADS = 2


class SlimLeNet(nn.Sequential):
    """Two 5x5 convolutions with pooling and two hidden layers, LeNet-5 with ReLU.

    Args:
        shape: Channels, height and width of the input.
        classes: Number of outputs.
        channels: Channels of the convolutions.
        hidden: Widths of the hidden layers.
    """

    def __init__(
        self, shape: Shape, classes: int, channels: tuple[int, int] = (6, 16), hidden: tuple[int, int] = (84, 48)
    ) -> None:
        first, second = channels
        maps = nn.AdaptiveAvgPool2d(4) if shape[1] > 8 else nn.Identity()
        side = 4 if shape[1] > 8 else shape[1] // 2
        super().__init__(
            nn.Conv2d(shape[0], first, 5, 2 if shape[1] > 16 else 1, padding=2),
            nn.ReLU(),
            nn.Conv2d(first, second, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            maps,
            nn.Flatten(),
            nn.Linear(second * side * side, hidden[0]),
            nn.ReLU(),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(),
            nn.Linear(hidden[1], classes),
        )


class SlimVGG(nn.Sequential):
    """Pairs of 3x3 convolutions, each pair behind a step of two pixels, and one hidden layer.

    Args:
        shape: Channels, height and width of the input.
        classes: Number of outputs.
        normalised: Normalise batches behind every convolution.
        widths: Channels of the pairs.
    """

    def __init__(
        self, shape: Shape, classes: int, normalised: bool = True, widths: tuple[int, ...] = (8, 16, 32)
    ) -> None:
        layers, inputs = list[nn.Module](), shape[0]
        for width in widths:
            for stride in (2, 1):
                layers.append(nn.Conv2d(inputs, width, 3, stride, 1, bias=not normalised))
                layers += [nn.BatchNorm2d(width)] if normalised else []
                layers.append(nn.ReLU())
                inputs = width
        layers += [nn.AdaptiveAvgPool2d(2 if shape[1] > 8 else 1), nn.Flatten()]
        features = inputs * (4 if shape[1] > 8 else 1)
        super().__init__(*layers, nn.Linear(features, 48), nn.ReLU(), nn.Linear(48, classes))


class _Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        changes = stride > 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[n, inputs, h, w]`` to ``[n, outputs, h / stride, w / stride]``."""
        out = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(out)) + self.shortcut(x))


class SlimResNet(nn.Sequential):
    """Residual network of 8, 16 and 32 channels that begins with a step of two pixels.

    Args:
        shape: Channels, height and width of the input.
        classes: Number of outputs.
        blocks: Blocks per stage; 1 gives ResNet-8, 2 gives ResNet-14.
    """

    def __init__(self, shape: Shape, classes: int, blocks: int) -> None:
        stem = nn.Conv2d(shape[0], 8, 3, 2 if shape[1] > 8 else 1, 1, bias=False)
        layers, inputs = list[nn.Module]([stem, nn.BatchNorm2d(8), nn.ReLU()]), 8
        for width in (8, 16, 32):
            for number in range(blocks):
                layers.append(_Residual(inputs, width, 2 if number == 0 and width > 8 else 1))
                inputs = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class SlimMobileNet(nn.Sequential):
    """Depthwise 3x3 and pointwise convolutions in turn, with batch normalisation, as in MobileNet.

    Args:
        shape: Channels, height and width of the input.
        classes: Number of outputs.
        widths: Channels of the blocks; every second block steps two pixels.
    """

    def __init__(self, shape: Shape, classes: int, widths: tuple[int, ...] = (16, 32, 32, 64)) -> None:
        first = widths[0]
        layers = list[nn.Module]([nn.Conv2d(shape[0], first, 3, 2 if shape[1] > 8 else 1, 1, bias=False)])
        layers += [nn.BatchNorm2d(first), nn.ReLU()]
        inputs = first
        for number, width in enumerate(widths):
            layers += [nn.Conv2d(inputs, inputs, 3, 2 if number % 2 else 1, 1, groups=inputs, bias=False)]
            layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, width, 1, bias=False)]
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class _Block(nn.Module):
    """Transformer block with normalisation first; attention by two linear layers."""

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.causal, self.norms = causal, nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.inputs, self.outputs = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.hidden, self.back = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens ``[n, tokens, width]`` to tokens."""
        n, tokens, width = x.shape
        parts = self.inputs(self.norms[0](x)).view(n, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.outputs(mixed.transpose(1, 2).reshape(n, tokens, width))
        result: Tensor = x + self.back(nn.functional.gelu(self.hidden(self.norms[1](x))))
        return result


class SlimVisionTransformer(nn.Module):
    """Vision transformer of 16 patches and two blocks of two heads.

    Args:
        shape: Channels, height and width of the input.
        classes: Number of outputs.
        width: Size of the tokens.
    """

    def __init__(self, shape: Shape, classes: int, width: int = 24) -> None:
        super().__init__()
        side = shape[1] // 4
        self.patches = nn.Conv2d(shape[0], width, side, side)
        self.places = nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.Sequential(_Block(width, False), _Block(width, False))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[n, c, h, w]`` to logits ``[n, classes]``."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


class SlimRecurrent(nn.Module):
    """Gated recurrent units over the rows of an image, those of ``torch.nn.GRUCell``, made of linear layers.

    Args:
        shape: Channels, height and width of the input.
        classes: Number of outputs.
        width: Size of the state.
    """

    def __init__(self, shape: Shape, classes: int, width: int = 48) -> None:
        super().__init__()
        self.width, self.inputs = width, nn.Linear(shape[0] * shape[2], 3 * width)
        self.gates, self.candidate = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[n, c, h, w]`` to logits ``[n, classes]``."""
        rows = self.inputs(x.transpose(1, 2).flatten(2))
        state = torch.zeros_like(rows[:, 0, : self.width])
        for row in rows.unbind(1):
            update, reset, proposal = row.chunk(3, 1)
            more_update, more_reset = self.gates(state).chunk(2, 1)
            update, reset = torch.sigmoid(update + more_update), torch.sigmoid(reset + more_reset)
            state = torch.lerp(torch.tanh(proposal + reset * self.candidate(state)), state, update)
        logits: Tensor = self.head(state)
        return logits


class ConvGRU(nn.Sequential):
    """A 3x3 convolution before gated recurrent units over the rows of its maps.

    Args:
        shape: Channels, height and width of the input.
        classes: Number of outputs.
        channels: Channels of the convolution.
    """

    def __init__(self, shape: Shape, classes: int, channels: int = 6) -> None:
        stride = 2 if shape[1] > 8 else 1
        maps = (channels, -(-shape[1] // stride), -(-shape[2] // stride))
        super().__init__(nn.Conv2d(shape[0], channels, 3, stride, 1), nn.ReLU(), SlimRecurrent(maps, classes, 40))


class GeluMLP(nn.Sequential):
    """Fully connected network of two hidden layers with GELU.

    Args:
        shape: Channels, height and width of the input.
        classes: Number of outputs.
        width: Width of the hidden layers.
    """

    def __init__(self, shape: Shape, classes: int, width: int = 96) -> None:
        inputs = shape[0] * shape[1] * shape[2]
        layers = (nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, classes))
        super().__init__(nn.Flatten(), *layers)


class SlimCharacterTransformer(nn.Module):
    """A transformer of two blocks that predicts the next character at every place.

    Args:
        shape: One, one, and the number of characters of a window.
        classes: Number of different characters.
        width: Size of the tokens.
    """

    def __init__(self, shape: Shape, classes: int, width: int = 32) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(classes, width), nn.Parameter(0.02 * torch.randn(shape[2], width))
        self.blocks = nn.Sequential(_Block(width, True), _Block(width, True))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map characters ``[n, 1, 1, length]`` to scores ``[n, classes, length]``."""
        tokens = self.embedding(x.flatten(1).long()) + self.places
        scores: Tensor = self.head(self.norm(self.blocks(tokens)))
        return scores.transpose(1, 2)


SLIM: dict[str, Callable[[Shape, int], nn.Module]] = {
    "lenet-slim": SlimLeNet,
    "lenet-wide": lambda shape, classes: SlimLeNet(shape, classes, (12, 24), (120, 60)),
    "vgg-slim": SlimVGG,
    "vgg-plain": lambda shape, classes: SlimVGG(shape, classes, normalised=False),
    "resnet8-slim": lambda shape, classes: SlimResNet(shape, classes, 1),
    "resnet14-slim": lambda shape, classes: SlimResNet(shape, classes, 2),
    "mobilenet-slim": SlimMobileNet,
    "mobilenet-wide": lambda shape, classes: SlimMobileNet(shape, classes, (24, 48, 48, 96)),
    "vit-slim": SlimVisionTransformer,
    "vit-wide": lambda shape, classes: SlimVisionTransformer(shape, classes, 40),
    "recurrent-slim": SlimRecurrent,
    "recurrent-wide": lambda shape, classes: SlimRecurrent(shape, classes, 80),
    "conv-gru": ConvGRU,
    "gelu-mlp": GeluMLP,
    "characters-slim": SlimCharacterTransformer,
    "characters-wide": lambda shape, classes: SlimCharacterTransformer(shape, classes, 48),
}
