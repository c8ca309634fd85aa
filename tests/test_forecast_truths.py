from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning_limits import MagnitudeProfile
from tests.helpers import same, snapshot
from validation.data import ImageData, drawn
from validation.masks import prunable
from validation.models import build_model
from validation.studies.limits import forecast_truths
from validation.studies.limits.forecast_curves import COARSE, QUARTERS, Level, Measured, kept_fraction
from validation.studies.limits.forecast_truths import SEEDS, Truths
from validation.training import Network, Recipe, apply_masks, train

RECIPE = Recipe(3, 0.1, batch_size=50)
NETWORK = Network("fc3-tiny", "digits-200", RECIPE, 3)
LEVELS = [Level("a little", "rise", 0.05), Level("more", "rise", 0.3)]


@pytest.fixture(scope="module")
def few(digits: ImageData) -> ImageData:
    return drawn(digits, 200)


@pytest.fixture(scope="module")
def model(few: ImageData) -> nn.Module:
    model = build_model(NETWORK.model, few.shape, few.classes, NETWORK.seed)
    train(model, few, dataclasses.replace(RECIPE, epochs=12), NETWORK.seed)
    return model.eval()


@pytest.fixture
def truths(model: nn.Module, few: ImageData, tmp_path: Path) -> Truths:
    return Truths(NETWORK, model, few, LEVELS, Measured.of(model, few), tmp_path)


@dataclasses.dataclass(frozen=True)
class Training:
    """What a training with masks was given, and what came out."""

    masks: dict[str, Tensor]
    seed: int
    recipe: Recipe
    before: dict[str, Tensor]
    after: dict[str, Tensor]

    @property
    def kept(self) -> int:
        return sum(int(mask.sum()) for mask in self.masks.values())


@contextmanager
def noted() -> Iterator[list[Training]]:
    """Note all trainings with masks, in their order."""
    runs: list[Training] = []

    def noting(model: nn.Module, data: ImageData, recipe: Recipe, seed: int, *, masks: dict[str, Tensor]) -> float:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        seconds = train(model, data, recipe, seed, masks=masks)
        after = {name: value.clone() for name, value in model.state_dict().items()}
        runs.append(Training(dict(masks), seed, recipe, before, after))
        return seconds

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forecast_truths, "train", noting)
        yield runs


def kept_count(place: int, dimension: int = 2352) -> int:
    """Count the weights that are kept: as many as can be without keeping more than the place's fraction."""
    return math.floor(2 ** (-place / 4) * dimension + 1e-9)


def places_of(points: list[dict[str, Any]]) -> list[int]:
    counts = [kept_count(place) for place in range(33)]
    return [counts.index(counted(point)) for point in points]


def counted(point: dict[str, Any], dimension: int = 2352) -> int:
    """Return the number of kept weights of a point, which must be whole."""
    count = round(point["kept"] * dimension)
    assert point["kept"] == pytest.approx(count / dimension, rel=1e-12)
    return count


def assert_lost(point: dict[str, Any], state: dict[str, Tensor], truths: Truths) -> None:
    """Measure a network anew and compare."""
    model = copy.deepcopy(truths.model)
    model.load_state_dict(state)
    assert point == truths.dense.lost(Measured.of(model, truths.data), point["kept"])


# ------------------------------------------------------------------------------------------------- pruned alone


def test_networks_pruned_alone_are_those_of_magnitude_masks(truths: Truths) -> None:
    before, points = snapshot(truths.model), truths.alone()
    assert same(before, snapshot(truths.model))
    assert truths.dimension == 2352
    assert places_of(points) == list(range(1, len(points) + 1))
    profile = MagnitudeProfile(prunable(truths.model))
    for place, point in enumerate(points, 1):
        pruned = copy.deepcopy(truths.model)
        apply_masks(pruned, profile.masks(1 - 2 ** (-place / 4)))
        assert sum(int(weight.count_nonzero()) for weight in prunable(pruned).values()) == kept_count(place)
        assert_lost(point, pruned.state_dict(), truths)
    assert len(points) < 32
    assert [point["rise"] > 0.3 for point in points[-2:]] == [True, True]
    assert min(point["rise"] for point in points[-4:-2]) <= 0.3


# ------------------------------------------------------------------------------------------------- trained again


def test_removed_weights_stay_zero_and_counts_are_exact(truths: Truths) -> None:
    with noted() as trainings:
        points = truths.again(0)
    assert len(trainings) == len(points) > 5
    by_count = {counted(point): point for point in points}
    assert sorted(run.kept for run in trainings) == sorted(kept_count(place) for place in places_of(points))
    profile, dense = MagnitudeProfile(prunable(truths.model)), truths.model.state_dict()
    for run in trainings:
        masks = profile.masks(1 - run.kept / 2352)
        for name, mask in run.masks.items():
            assert torch.equal(mask, masks[name])
            assert torch.equal(run.before[name], dense[name] * mask)
            assert not run.after[name][~mask].any()
            assert (run.after[name][mask] != dense[name][mask]).any()
        assert (run.recipe, run.seed) == (RECIPE, NETWORK.seed + SEEDS)
        assert_lost(by_count[run.kept], run.after, truths)


def test_equal_seeds_give_equal_bits_and_other_seeds_others(truths: Truths, tmp_path: Path) -> None:
    alone = {point["kept"]: point["rise"] for point in truths.alone()}
    again = [point for point in truths.again(0) if alone.get(point["kept"], 0.0) > 0.3]
    assert again
    assert all(point["rise"] < alone[point["kept"]] for point in again)
    truths.again(1)
    dataclasses.replace(truths, folder=tmp_path / "other").again(0)
    first, second = (tmp_path / f"again-{run}.json" for run in (0, 1))
    assert first.read_bytes() == (tmp_path / "other" / "again-0.json").read_bytes()
    runs = [json.loads(file.read_text()) for file in (first, second)]
    common = runs[0].keys() & runs[1].keys()
    assert len(common) > 5
    assert all(runs[0][place]["kept"] == runs[1][place]["kept"] for place in common)
    assert all(runs[0][place]["rise"] != runs[1][place]["rise"] for place in common)


# ------------------------------------------------------------------------------------------------- iterative


def test_iterative_masks_are_nested_and_every_round_begins_with_the_last(truths: Truths) -> None:
    with noted() as trainings:
        points = truths.iterative()
    assert places_of(points) == list(range(COARSE, COARSE * len(points) + 1, COARSE))
    assert [run.kept for run in trainings] == [kept_count(place) for place in places_of(points)]
    for former, latter in pairwise(trainings):
        threshold = -1.0
        for name, mask in latter.masks.items():
            assert not (mask & ~former.masks[name]).any()
            assert torch.equal(latter.before[name], former.after[name] * mask)
            threshold = max(threshold, float((former.after[name] * ~mask).abs().max()))
        left = torch.cat([latter.before[name][mask] for name, mask in latter.masks.items()])
        assert threshold <= float(left.abs().min())
        for name in latter.before.keys() - latter.masks.keys():
            assert torch.equal(latter.before[name], former.after[name])
    assert not all(
        torch.equal(mask, MagnitudeProfile(prunable(truths.model)).masks(1 - trainings[-1].kept / 2352)[name])
        for name, mask in trainings[-1].masks.items()
    )


@pytest.mark.parametrize("name", ["iterative", "retuned-64"])
def test_a_killed_curve_of_rounds_ends_in_the_same_bytes(truths: Truths, tmp_path: Path, name: str) -> None:
    def curve(of: Truths) -> list[dict[str, Any]]:
        return of.iterative() if name == "iterative" else of.retuned(64)

    points = curve(truths)
    whole = tmp_path / f"{name}.json"
    saved = json.loads(whole.read_text())
    assert len(saved) > 3
    other = tmp_path / "killed" / f"{name}.json"
    other.parent.mkdir()
    begun = dict(sorted(saved.items(), key=lambda item: int(item[0]))[: len(saved) // 2])
    other.write_text(json.dumps(begun))
    assert curve(dataclasses.replace(truths, folder=other.parent)) == points
    assert other.read_bytes() == whole.read_bytes()


# ------------------------------------------------------------------------------------------------- re-tuned


def test_re_tuned_networks_keep_exact_counts_and_lose_less_than_pruned_ones(truths: Truths) -> None:
    before, points = snapshot(truths.model), truths.retuned(200)
    assert same(before, snapshot(truths.model))
    places = places_of(points)
    assert places == sorted(places)
    assert {place % QUARTERS for place in places} == {0, COARSE}
    alone = {point["kept"]: point["rise"] for point in truths.alone()}
    compared = [(point["rise"], alone[point["kept"]]) for point in points if point["kept"] in alone]
    assert len(compared) > 2
    assert all(tuned < pruned for tuned, pruned in compared)


# ------------------------------------------------------------------------------------------------- optimised


def test_the_optimum_on_a_mask_is_never_above_the_pruned_network(
    truths: Truths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast_truths, "ITERATIONS", 4)
    before, points = snapshot(truths.model), truths.optimised()
    assert same(before, snapshot(truths.model))
    assert len(points) > 5
    profile = MagnitudeProfile(prunable(truths.model))
    for point, place in zip(points, places_of(points), strict=True):
        pruned = copy.deepcopy(truths.model)
        apply_masks(pruned, profile.masks(1 - 2 ** (-place / 4)))
        assert point["rise"] < Measured.of(pruned, truths.data).loss - truths.dense.loss


def test_the_optimum_of_a_convex_problem_is_that_of_another_minimiser(
    few: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single layer, whose loss over the kept weights has one minimum; its biases stay as they are."""
    monkeypatch.setattr(forecast_truths, "ITERATIONS", 400)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    torch.nn.init.normal_(model[1].weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model[1].bias, generator=torch.Generator().manual_seed(1))
    dense = Measured.of(model, few)
    known = {place: {"kept": kept_fraction(place), "rise": -dense.loss} for place in (8, 10, 12, 14, 15)}
    known[18] = {"kept": kept_fraction(18), "rise": 0.0}  # so that nothing but place 16 is left to search
    (tmp_path / "optimised.json").write_text(json.dumps(known))
    point = Truths(NETWORK, model, few, [Level("all", "rise", -dense.loss)], dense, tmp_path).optimised()[-2]
    assert counted(point, 640) == kept_count(16, 640)
    mask = MagnitudeProfile(prunable(model)).masks(1 - point["kept"])["1.weight"]
    x, y = (torch.cat(parts) for parts in zip(*few.batches("train"), strict=True))
    weights = torch.zeros(10, 64, dtype=torch.float64, requires_grad=True)
    minimiser = torch.optim.LBFGS([weights], max_iter=400, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        minimiser.zero_grad()
        value = nn.functional.cross_entropy(x.flatten(1).double() @ (weights * mask).T + model[1].bias.double(), y)
        value.backward()
        return value

    minimiser.step(loss)
    assert point["rise"] == pytest.approx(loss().item() - dense.loss, abs=1e-5)
