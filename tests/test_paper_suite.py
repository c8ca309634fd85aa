"""The eight pairs of network and data of the suite ``paper``, each for two steps, one pruning and one measurement.

Images are random and of the right size, and few: what is asked is whether the pairs run, on any device. They run on a
pretended device, which refuses what a GPU would refuse.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from pretended import pretending

from estimators import Objective
from pruning_limits import MagnitudeProfile
from pruning_limits.magnitude import removed_count
from validation.data import ImageData
from validation.masks import prunable
from validation.tables.reading import load_suite
from validation.training import Course, Network, accuracy, apply_masks, fresh_network, train

SIZES = {"cifar10": (32, 10), "cifar100": (32, 100), "tiny-imagenet-200": (64, 200)}
SUITE = load_suite("paper")
PAIRS = {f"{network.model}-{network.dataset}": network for network in reversed(SUITE.networks)}
SPARSITY = 0.9
DEVICES = ["pretended", pytest.param("cuda", marks=pytest.mark.cuda)]


def random_images(dataset: str) -> ImageData:
    side, classes = SIZES[dataset]
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> torch.Tensor:
        return torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)

    def labels(count: int) -> torch.Tensor:
        return torch.randint(classes, (count,), generator=generator)

    return ImageData(dataset, images(4), labels(4), images(2), labels(2), classes)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, one_thread: None) -> Iterator[torch.device]:
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("there is no CUDA device")
        yield torch.device("cuda")
    else:
        with pretending() as there:
            yield there


def test_the_suite_has_eight_pairs_of_three_seeds() -> None:
    assert len(PAIRS) == 8
    assert len(SUITE.networks) == 24


@pytest.mark.parametrize("pair", PAIRS)
def test_every_pair_trains_prunes_and_measures(pair: str, device: torch.device) -> None:
    network: Network = replace(PAIRS[pair], recipe=replace(PAIRS[pair].recipe, batch_size=2))
    data = random_images(network.dataset).to(device)
    model = fresh_network(network, data)
    assert train(model, data, network.recipe, network.seed, course=Course(last=2)) > 0
    profile = MagnitudeProfile(prunable(model))
    apply_masks(model.eval(), profile.masks(SPARSITY))
    weights = prunable(model)
    assert all(weight.device == device for weight in weights.values())
    removed = sum(int((weight == 0).sum()) for weight in weights.values())
    assert removed == removed_count(SPARSITY, profile.dimension)
    assert accuracy(model, data) in (0.0, 0.5, 1.0)
    assert 0 < Objective(model, data.batches("test"), penalty=network.recipe.penalty).value() < float("inf")
