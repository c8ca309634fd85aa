from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from estimators import L1, Objective, UserError
from pruning_limits.answers import Answer
from validation.data import ImageData
from validation.studies.limits.forecast_curves import Level, Measured
from validation.studies.limits.forecast_truths import Truths
from validation.studies.limits.protocols import (
    ACCURACY,
    ALONE,
    LOSS,
    OBJECTIVE,
    TruthSettings,
    holds,
    one_shot,
    settings,
    shortened,
)
from validation.tables.suite import Suite
from validation.training import Network, Recipe

NETWORK = Network("fc5-mini", "digits", Recipe(epochs=10, lr=0.05, l1=1e-3), 0)
LEVELS = [Level(OBJECTIVE, OBJECTIVE, 0.01), Level(LOSS, "rise", 0.01), Level(ACCURACY, "held_out_drop", 0.02)]


def by_hand(model: nn.Module, count: int) -> nn.Module:
    """Set the smallest weights of the matrices to zero, so many in all."""
    pruned = copy.deepcopy(model)
    matrices = [weight for weight in pruned.parameters() if weight.dim() > 1]
    threshold = torch.cat([weight.detach().abs().flatten() for weight in matrices]).sort().values[count - 1]
    with torch.no_grad():
        for weight in matrices:
            weight[weight.abs() <= threshold] = 0
    return pruned


@pytest.mark.parametrize("penalised", [True, False])
def test_pruning_alone_ends_where_networks_pruned_by_hand_pass_a_level(
    trained: nn.Module, digits: ImageData, tmp_path: Path, penalised: bool
) -> None:
    recipe = NETWORK.recipe if penalised else dataclasses.replace(NETWORK.recipe, l1=0.0)
    network = dataclasses.replace(NETWORK, recipe=recipe)
    dense = Measured.of(trained, digits)
    truths = Truths(network, trained, digits, LEVELS[1:], dense, tmp_path)
    before = copy.deepcopy(trained.state_dict())
    ends, points = one_shot(truths, LEVELS)
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in before.items())
    penalty = L1(1e-3) if penalised else None
    batches = digits.batches("train", 1347)

    def lost(count: int, level: str) -> float:
        pruned = by_hand(trained, count)
        if level == ACCURACY:
            return dense.held_out - Measured.of(pruned, digits).held_out
        taken = penalty if level == OBJECTIVE else None
        return Objective(pruned, batches, penalty=taken).value() - Objective(trained, batches, penalty=taken).value()

    for level in LEVELS:
        end = ends[ALONE, level.name]
        assert end is not None
        count = round(end * truths.dimension)
        around = [lost(count + step, level.name) for step in (-8, 8)]  # a sixteenth of a point to both sides
        assert min(around) <= level.allowed <= max(around)
    if penalised:
        assert ends[ALONE, OBJECTIVE] > ends[ALONE, LOSS]  # type: ignore[operator]
    else:
        assert ends[ALONE, OBJECTIVE] == ends[ALONE, LOSS]
    assert [point["kept"] for point in points] == sorted((point["kept"] for point in points), reverse=True)
    assert all(point[OBJECTIVE] > 0.01 and point["held_out_drop"] > 0.02 for point in points[-2:])


def test_a_level_that_is_never_passed_has_no_end(trained: nn.Module, digits: ImageData, tmp_path: Path) -> None:
    truths = Truths(NETWORK, trained, digits, LEVELS[1:], Measured.of(trained, digits), tmp_path)
    ends, points = one_shot(truths, [Level(LOSS, "rise", math.inf)])
    assert ends == {(ALONE, LOSS): None}
    assert len(points) == 32


@pytest.mark.parametrize(
    ("rung", "actual", "expected"),
    [
        ("one-shot", 0.75, True),
        ("one-shot", 0.699, True),
        ("one-shot", 0.69, False),
        ("one-shot", 0.811, False),
        ("bound", 0.1, True),
        ("bound", 0.82, False),
        ("bound", None, None),
    ],
)
def test_an_interval_holds_what_lies_in_it_and_a_bound_what_lies_below(
    rung: str, actual: float | None, expected: bool | None
) -> None:
    answer = Answer(rung, 0.75, 0.7, 0.8, "measured", None, "")  # type: ignore[arg-type]
    assert holds(answer, actual, 0.002) is expected
    unknown = dataclasses.replace(answer, sparsity=None, low=None, high=None)
    assert holds(unknown, actual, 0.002) is None


def test_only_recipes_that_are_longer_are_cut() -> None:
    networks = [dataclasses.replace(NETWORK, recipe=Recipe(epochs=epochs, lr=0.1)) for epochs in (3, 10)]
    suite = Suite("s", tuple(networks))
    assert shortened(suite) == suite
    cut = shortened(suite.replaced(TruthSettings(epochs=4)))
    assert [network.recipe for network in cut.networks] == [Recipe(epochs=3, lr=0.1), Recipe(epochs=4, lr=0.1)]


def test_a_row_depends_on_what_is_allowed_and_on_runs() -> None:
    suite = Suite("s", (), (TruthSettings(drop=0.02, runs=3, epochs=7),))
    assert settings(suite)["truths"] == {"drop": 0.02, "runs": 3}
    assert set(settings(suite)) == {"limit", "retrain", "truths"}


@pytest.mark.parametrize(("name", "value"), [("drop", 0.0), ("drop", 1.0), ("runs", 0), ("epochs", -1)])
def test_settings_are_checked(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"truths: {name} must .*got {value}"):
        TruthSettings(**{name: value})  # type: ignore[arg-type]
