"""The trained networks that predictions are timed on, with the data of each."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from estimators import L1, L2
from validation.data import ImageData, load_data
from validation.models import build_model
from validation.tables.storage import load_tensors, run_folder, save_tensors
from validation.training import Network, Recipe, train, trained_network

BATCH = 1000
DRAWN = 10_000  # images of a network that is trained on a part of its data
LENGTH, WIDTH, HEADS, LAYERS = 64, 128, 4, 5
WINDOWS, TEXT_BATCH, TEXT_RATE = 20_000, 64, 1e-3
TEXT_EPOCHS = 3


@dataclass(frozen=True)
class Trained:
    """A trained network, its data, and an epoch of the training that made it.

    Attributes:
        model: The network.
        batches: Its training data as batches.
        epoch: Trains a new network for one epoch.
        penalty: The penalty of its training, or None.
    """

    model: nn.Module
    batches: object
    epoch: Callable[[], object]
    penalty: L1 | L2 | None = None


@dataclass(frozen=True)
class Images:
    """A network on images.

    Attributes:
        network: What it is and how it is trained.
        drawn: Whether only ``DRAWN`` images are taken.
    """

    network: Network
    drawn: bool = False

    def trained(self, runs: Path) -> Trained:
        """Train the network, or read it from its folder."""
        data, network = load_data(self.network.dataset), self.network
        if self.drawn:
            data, network = drawn(data), replace(network, dataset=f"{network.dataset}-{DRAWN}")
        model = trained_network(network, data, runs)
        recipe = replace(network.recipe, epochs=1, warmup=0)

        def epoch() -> None:
            train(build_model(network.model, data.shape, data.classes, network.seed), data, recipe, network.seed)

        return Trained(model, data.batches("train", BATCH), epoch, recipe.penalty)


def drawn(data: ImageData) -> ImageData:
    """Return the data set with a random draw of its training images."""
    order = torch.randperm(len(data.train_y), generator=torch.Generator().manual_seed(0))[:DRAWN]
    return replace(data, train_x=data.train_x[order], train_y=data.train_y[order])


class CharacterTransformer(nn.Module):
    """A transformer that predicts the next character at every place of a window.

    Args:
        characters: Number of different characters.
    """

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(characters, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, characters)

    def forward(self, x: Tensor) -> Tensor:
        """Map characters ``[n, length]`` to scores ``[n, characters, length]``."""
        hidden = self.embedding(x) + self.places.weight[: x.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], x.device, hidden.dtype)
        scores: Tensor = self.head(self.layers(hidden, mask=mask, is_causal=True))
        return scores.transpose(1, 2)


class Text:
    """A character-level transformer on the source of Python's own standard library."""

    def trained(self, runs: Path) -> Trained:
        """Train the network, or read it from its folder."""
        x, characters = windows()
        settings = {"characters": characters, "length": LENGTH, "width": WIDTH, "layers": LAYERS, "epochs": TEXT_EPOCHS}
        file = run_folder(runs, "text", settings) / "weights.pt"
        if not file.exists():
            save_tensors(file, self._epochs(x, characters, TEXT_EPOCHS).state_dict())
        model = CharacterTransformer(characters)
        model.load_state_dict(load_tensors(file))
        batches = [(part[:, :-1], part[:, 1:]) for part in x.split(BATCH // 4)]
        return Trained(model.eval(), batches, lambda: self._epochs(x, characters, 1))

    def _epochs(self, x: Tensor, characters: int, epochs: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = CharacterTransformer(characters)
        optimiser = torch.optim.AdamW(model.parameters(), TEXT_RATE)
        for rows in self._shuffled(x, epochs):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(rows[:, :-1]), rows[:, 1:]).backward()
            optimiser.step()
        return model

    def _shuffled(self, x: Tensor, epochs: int) -> Iterator[Tensor]:
        for epoch in range(epochs):
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
            yield from x[order].split(TEXT_BATCH)


def windows() -> tuple[Tensor, int]:
    """Return windows of characters as numbers ``[n, length + 1]``, and how many characters there are."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = b"".join(file.read_bytes() for file in files)
    values, numbers = torch.frombuffer(bytearray(text), dtype=torch.uint8).unique(return_inverse=True)
    starts = torch.randint(len(text) - LENGTH, (WINDOWS,), generator=torch.Generator().manual_seed(0))
    return numbers[starts[:, None] + torch.arange(LENGTH + 1)], len(values)


CASES: dict[str, Images | Text] = {
    "small-cnn, digits": Images(Network("small-cnn", "digits", Recipe(30, 0.05), 0)),
    "fc5-mini, digits": Images(Network("fc5-mini", "digits", Recipe(30, 0.05), 0)),
    "LeNet-300-100, MNIST": Images(Network("lenet-300-100", "mnist", Recipe(4, 0.05, warmup=1), 0)),
    "MnistNet, MNIST": Images(Network("mnistnet", "mnist", Recipe(10, 0.05, warmup=1), 0)),
    "MnistNet, Fashion-MNIST": Images(Network("mnistnet", "fashion-mnist", Recipe(10, 0.05, warmup=1), 0)),
    "FC5, CIFAR-10": Images(Network("fc5", "cifar10", Recipe(40, 0.05, l1=5e-5, warmup=1), 0)),
    "ResNet-8, CIFAR-10, 10,000 images": Images(
        Network("resnet8", "cifar10", Recipe(20, 0.1, l2=1e-4, warmup=1, augment=True), 0), drawn=True
    ),
    "character transformer": Text(),
    "ResNet-20, CIFAR-10, 10,000 images": Images(
        Network("resnet20", "cifar10", Recipe(12, 0.1, l2=1e-4, warmup=1, augment=True), 0), drawn=True
    ),
    "FC12, CIFAR-10": Images(Network("fc12", "cifar10", Recipe(20, 0.05, l1=5e-5, warmup=1), 0)),
}
