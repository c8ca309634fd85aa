"""Ten small trained networks, their data and the arguments of their predictions, each from a fixed seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from estimators import L1, L2

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Network:
    """A trained model, its batches and further arguments of ``predict_limit``."""

    model: nn.Module
    batches: list[Any]
    options: dict[str, Any]


@contextmanager
def seeded(seed: int) -> Iterator[torch.Generator]:
    """Initialise models from a seed and yield a generator for data; the global random state stays as it is."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        yield torch.Generator().manual_seed(seed + 1)


def batched(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


def labels(features: Tensor, classes: int, noise: float, generator: torch.Generator) -> Tensor:
    """Draw labels that a linear map of the features and some noise decide."""
    scores = features @ torch.randn(features.shape[1], classes, generator=generator, dtype=features.dtype)
    scores = scores / scores.std()
    return (scores + noise * torch.randn(scores.shape, generator=generator, dtype=features.dtype)).argmax(1)


def low_rank(samples: int, features: int, rank: int, generator: torch.Generator) -> Tensor:
    """Draw float64 features that lie in a subspace."""
    draws = torch.randn(samples, rank, generator=generator, dtype=torch.float64)
    return draws @ torch.randn(rank, features, generator=generator, dtype=torch.float64) / rank**0.5


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def train(
    model: nn.Module, batches: Sequence[Any], epochs: int, lr: float, loss: Loss = cross_entropy, l1: float = 0.0
) -> nn.Module:
    """Take plain gradient steps, one a batch."""
    optimiser = torch.optim.SGD(model.parameters(), lr=lr)
    model.train()
    for _ in range(epochs):
        for batch in batches:
            optimiser.zero_grad(set_to_none=True)
            objective = loss(model, batch).mean()
            if l1:
                objective = objective + l1 * sum(p.abs().sum() for p in model.parameters() if p.dim() > 1)
            objective.backward()
            optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return model.eval()


def layers(*widths: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Build linear layers with tanh between them, their weights drawn in the given type."""
    parts = [part for pair in pairwise(widths) for part in (nn.Linear(*pair, dtype=dtype), nn.Tanh())]
    return nn.Sequential(*parts[:-1])


def mlp() -> Network:
    """More samples than the pool of 2,048: importance draws, nested sub-samples and extrapolation."""
    with seeded(10) as generator:
        model = layers(16, 24, 16, 5)
        x = torch.randn(2600, 16, generator=generator)
        batches = batched(x, labels(x, 5, 0.3, generator), 100)
        train(model, batches, 4, 0.2)
    return Network(model, batches, {"tolerance": 0.05, "probes": 1})


def l1_mlp() -> Network:
    """Inputs in a subspace, so that many weights of the first layer have no influence."""
    with seeded(20) as generator:
        model = layers(36, 24, 16, 4, dtype=torch.float64)
        x = low_rank(400, 36, 14, generator)
        batches = batched(x, labels(x, 4, 0.2, generator), 64)
        train(model, batches, 10, 0.2, l1=1e-3)
    return Network(
        model,
        batches,
        {"criterion": "objective", "penalty": L1(1e-3), "epsilon": 0.02, "steps": 20, "samples": 200, "probes": 2},
    )


def batch_norm() -> Network:
    with seeded(30) as generator:
        model = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 12, 3, stride=2, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(48, 4)),
        )
        x = torch.randn(160, 1, 8, 8, generator=generator)
        batches = batched(x, labels(x.flatten(1), 4, 0.2, generator), 32)
        train(model, batches, 8, 0.1)
    return Network(model, batches, {"criterion": "objective", "penalty": L2(1e-4), "steps": 16, "probes": 2})


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.LSTM(6, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


def lstm() -> Network:
    with seeded(40) as generator:
        model = Recurrent()
        x = torch.randn(120, 5, 6, generator=generator)
        batches = batched(x, labels(x[:, -2:].flatten(1), 3, 0.2, generator), 30)
        train(model, batches, 12, 0.5)
    options = {"parameters": ["recurrent.weight_*", "head.weight"], "steps": 16, "probes": 1}
    return Network(model, batches, options)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 12), nn.Linear(12, 3)
        self.encoder = nn.TransformerEncoderLayer(12, 2, 20, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


def encoder() -> Network:
    with seeded(50) as generator:
        model = Encoder()
        x = torch.randn(120, 5, 6, generator=generator)
        batches = batched(x, labels(x.mean(1), 3, 0.2, generator), 30)
        train(model, batches, 12, 0.1)
    return Network(model, batches, {"steps": 16, "probes": 1, "samples": 80})


class Tied(nn.Module):
    """The decoder has the encoder's matrix, and a head classifies what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.head = (nn.Linear(24, n, dtype=torch.float64) for n in (24, 24, 4))
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.decoder(torch.sigmoid(self.encoder(x)))))


def tied() -> Network:
    with seeded(60) as generator:
        model = Tied()
        x = torch.randn(200, 24, generator=generator, dtype=torch.float64)
        batches = batched(x, labels(x, 4, 0.2, generator), 50)
        train(model, batches, 15, 0.5)
    return Network(
        model,
        batches,
        {"criterion": "objective", "penalty": L2(1e-3), "tolerance": 0.04, "probes": 2, "measure": False},
    )


def pruned() -> Network:
    """Zeros in the first layer, a mask of ``torch.nn.utils.prune`` on the second, few steps of training after both."""
    with seeded(70) as generator:
        model = layers(16, 32, 24, 5)
        x = torch.randn(300, 16, generator=generator)
        batches = batched(x, labels(x, 5, 0.2, generator), 60)
        train(model, batches, 8, 0.2)
        prune.l1_unstructured(model[2], "weight", 0.5)
        train(model, batches, 2, 0.1)
        with torch.no_grad():
            weight = model[0].weight
            weight.mul_(weight.abs() > weight.abs().median())
    return Network(model, batches, {"tolerance": 0.02, "probes": 1})


def float64() -> Network:
    """More samples than the smallest sub-sample of 1,024, a smooth activation, negative eigenvalues clipped."""
    with seeded(80) as generator:
        first, last = nn.Linear(14, 36, dtype=torch.float64), nn.Linear(36, 5, dtype=torch.float64)
        model = nn.Sequential(first, nn.Softplus(), last)
        x = torch.randn(1500, 14, generator=generator, dtype=torch.float64)
        batches = batched(x, labels(x, 5, 0.4, generator), 125)
        train(model, batches, 5, 0.2)
    return Network(model, batches, {"negative": "clip", "tolerance": 0.02, "probes": 2, "measure": False, "seed": 3})


def squared_distance(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return (model(batch["inputs"]) - batch["targets"]).square().mean(1)


def dict_batches() -> Network:
    """A regression on dictionaries, its curvature the GGN, few enough weights for the dense spectrum."""
    with seeded(90) as generator:
        model = layers(8, 20, 3)
        x = torch.randn(1200, 8, generator=generator)
        y = torch.sin(x @ torch.randn(8, 3, generator=generator)) + 0.1 * torch.randn(1200, 3, generator=generator)
        batches = [{"inputs": inputs, "targets": targets} for inputs, targets in batched(x, y, 150)]
        train(model, batches, 8, 0.2, squared_distance)
    return Network(model, batches, {"loss_fn": squared_distance, "curvature": "ggn", "epsilon": 0.01})


def two_ranks() -> Network:
    """What two processes share, each taking its part of the batches; inputs in a subspace again."""
    with seeded(100) as generator:
        model = layers(24, 20, 8, dtype=torch.float64)
        x = low_rank(240, 24, 12, generator)
        batches = batched(x, labels(x, 8, 0.2, generator), 20)
        train(model, batches, 6, 0.3)
    return Network(
        model, batches, {"criterion": "objective", "penalty": L2(1e-4), "steps": 12, "probes": 2, "samples": 100}
    )


NETWORKS: dict[str, Callable[[], Network]] = {
    "mlp": mlp,
    "l1 mlp": l1_mlp,
    "batch norm": batch_norm,
    "lstm": lstm,
    "encoder": encoder,
    "tied": tied,
    "pruned": pruned,
    "float64": float64,
    "dict batches": dict_batches,
    "two ranks": two_ranks,
}
SHARED = ("two ranks",)
