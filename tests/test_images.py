"""From real images to a limit: training, prediction, pruning with plain forward passes, and the command line."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from pruning_limits import PruningLimit, predict_limit
from validation.cli import main
from validation.data import Batches, ImageData, load_data
from validation.models import build_model
from validation.training import Recipe, train

IMAGES, BATCH, STEPS, SAMPLES = 4000, 1000, 16, 500
OPTIONS = {"samples": SAMPLES, "probes": 1, "seed": 3}


@dataclass(frozen=True)
class Digits:
    """A few thousand images of MNIST, a network after two epochs on them, and its limit."""

    file: Path
    data: ImageData
    model: nn.Module
    limit: PruningLimit

    @property
    def batches(self) -> Batches:
        return self.data.batches("train", BATCH)


@pytest.fixture(scope="module")
def mnist(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Digits:
    whole = load_data("mnist", data_dir)
    file = tmp_path_factory.mktemp("images") / "few.npz"
    images, labels = (part[:, 0].numpy() for part in (whole.train_x, whole.test_x)), (whole.train_y, whole.test_y)
    arrays = zip(("train", "test"), images, labels, strict=True)
    few = {name: (x[:: len(y) // IMAGES], y[:: len(y) // IMAGES].numpy()) for name, x, y in arrays}
    np.savez(
        file, **{f"{axis}_{name}": part for name, pair in few.items() for axis, part in zip("xy", pair, strict=True)}
    )
    data = load_data(str(file))
    model = build_model("lenet-300-100", data.shape, data.classes, seed=0)
    train(model, data, Recipe(epochs=2, lr=0.02), seed=0)
    model.eval()
    asked = {"metric": "accuracy", "held_out": data.batches("test", BATCH), "steps": STEPS}
    return Digits(file, data, model, predict_limit(model, data.batches("train", BATCH), **asked, **OPTIONS))


@torch.no_grad()
def mean_loss(model: nn.Module, digits: Digits, masks: dict[str, Tensor] | None = None) -> float:
    """Average the cross-entropy over all images with the weights of the masks alone."""
    pruned = copy.deepcopy(model)
    for name, mask in (masks or {}).items():
        pruned.get_parameter(name).mul_(mask)
    losses = [nn.functional.cross_entropy(pruned(x).double(), y, reduction="sum") for x, y in digits.batches]
    return float(sum(losses)) / IMAGES


def magnitude_masks(model: nn.Module, count: int) -> dict[str, Tensor]:
    """Remove as many of the smallest weights of all linear layers, by one sort."""
    weights = {name: p.detach() for name, p in model.named_parameters() if p.dim() == 2}
    order = torch.cat([weight.abs().flatten() for weight in weights.values()]).argsort(stable=True)
    flat = torch.ones(len(order), dtype=torch.bool)
    flat[order[:count]] = False
    parts = flat.split([weight.numel() for weight in weights.values()])
    return {name: part.view(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}


def test_the_network_learned_the_images(mnist: Digits) -> None:
    with torch.no_grad():
        right = [mnist.model(x).argmax(1) == y for x, y in mnist.data.batches("test", BATCH)]
    assert float(torch.cat(right).double().mean()) > 0.85
    assert mnist.limit.objective == pytest.approx(mean_loss(mnist.model, mnist), abs=1e-6)
    assert mnist.limit.parameters == 28 * 28 * 300 + 300 * 100 + 100 * 10


def test_pruning_to_the_measured_limit_costs_at_most_epsilon_and_beyond_it_more(mnist: Digits) -> None:
    limit, dense = mnist.limit, mean_loss(mnist.model, mnist)
    assert limit.achieved is not None
    assert 0.2 < limit.achieved < 0.99
    for sparsity, fits in ((limit.achieved, True), (limit.answer("one-shot").high, False)):
        masks = magnitude_masks(mnist.model, round(sparsity * limit.parameters))
        assert (mean_loss(mnist.model, mnist, masks) - dense <= limit.epsilon) == fits


def test_the_allowed_rise_is_the_deviation_of_a_batch(mnist: Digits) -> None:
    with torch.no_grad():
        losses = torch.cat([nn.functional.cross_entropy(mnist.model(x), y, reduction="none") for x, y in mnist.batches])
    assert mnist.limit.epsilon == pytest.approx(float(losses.double().std()) / 128**0.5, rel=0.02)


def test_the_interval_holds_the_answer_of_twice_the_steps(mnist: Digits) -> None:
    twice = predict_limit(
        mnist.model, mnist.batches, steps=2 * STEPS, measure=False, epsilon=mnist.limit.epsilon, **OPTIONS
    )
    low, high = mnist.limit.interval
    assert low <= twice.sparsity <= high
    assert twice.sparsity != mnist.limit.sparsity


def test_the_command_writes_the_same_limit(mnist: Digits, tmp_path: Path) -> None:
    torch.save(mnist.model.state_dict(), tmp_path / "net.pt")
    numbers = {f"--{name}": str(value) for name, value in (OPTIONS | {"steps": STEPS}).items()}
    task = {"--model": "lenet-300-100", "--checkpoint": str(tmp_path / "net.pt"), "--dataset": str(mnist.file)}
    arguments = [word for pair in (task | numbers | {"--json": str(tmp_path / "limit.json")}).items() for word in pair]
    result = CliRunner().invoke(main, ["predict", *arguments])
    assert result.exit_code == 0, result.output
    told, known = json.loads((tmp_path / "limit.json").read_text()), json.loads(mnist.limit.to_json())
    for measured in ("seconds", "peak_memory"):
        told["evidence"]["cost"].pop(measured), known["evidence"]["cost"].pop(measured)
    origin, _ = told["evidence"].pop("origin"), known["evidence"].pop("origin")
    assert origin["model"] == "lenet-300-100"
    assert told == known
