from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from estimators import Objective, UserError
from pruning_limits import MagnitudeProfile
from validation import training
from validation.data import ImageData
from validation.masks import prunable, sparsity_of
from validation.studies.limits import theory_vs_actual
from validation.studies.limits.actual import (
    KEPT_GRID,
    RetrainSettings,
    Trial,
    one_shot_accuracies,
    pruned,
    retrained,
    retrained_limit,
    retraining_recipe,
    sustained,
)
from validation.tables.reading import load_suite
from validation.tables.runner import Run, run_table
from validation.tables.suite import Suite
from validation.training import Recipe, accuracy, train

pytestmark = pytest.mark.usefixtures("one_thread")

NAME = "theory-vs-actual"
RECIPE = Recipe(epochs=10, lr=0.05, l1=1e-3)
START = 0.4
SUITE = """\
[limit]
samples = 64
steps = 4
probes = 1

[retrain]
epochs = 1
evaluations = 2

[[network]]
model = "fc5-mini"
dataset = "digits"
seeds = [0, 1]
recipe = { epochs = 2, lr = 0.05, l1 = 1e-4, batch_size = 16 }
"""


@pytest.fixture(scope="module")
def profile(trained: nn.Module) -> MagnitudeProfile:
    return MagnitudeProfile(prunable(trained))


# ------------------------------------------------------------------------------------------------- one-shot


@pytest.mark.parametrize(
    ("values", "least", "last"),
    [
        ([0.9, 0.91, 0.8, 0.95], 0.9, 0.1),
        ([0.9, 0.9, 0.9, 0.9], 0.9, 0.3),
        ([0.9, 0.95, 0.97, 0.5], 0.9, 0.2),
        ([0.9, 0.1, 0.1, 0.1], 0.9, 0.0),
        ([0.8, 0.95, 0.95, 0.95], 0.9, 0.0),
        ([], 0.9, 0.0),
    ],
)
def test_sustained_stops_at_the_first_value_below(values: list[float], least: float, last: float) -> None:
    assert sustained([(number / 10, value) for number, value in enumerate(values)], least) == pytest.approx(last)


def test_the_grid_falls_evenly_in_the_logarithm() -> None:
    assert (len(KEPT_GRID), KEPT_GRID[0], KEPT_GRID[-1]) == (48, 1.0, pytest.approx(0.004))
    factors = [a / b for a, b in pairwise(KEPT_GRID)]
    assert factors == [pytest.approx(factors[0])] * 47


def test_one_shot_accuracies_agree_with_pruning_by_hand(
    trained: nn.Module, digits: ImageData, profile: MagnitudeProfile
) -> None:
    before = copy.deepcopy(trained.state_dict())
    grid = (1.0, 0.5, 0.1, 0.02)
    found = one_shot_accuracies(trained, digits, profile, grid)
    assert [sparsity for sparsity, _ in found] == [1 - kept for kept in grid]
    ((x, y),) = digits.batches("test", 397)
    names = [name for name, weight in trained.named_parameters() if weight.dim() > 1]
    magnitudes = torch.cat([trained.get_parameter(name).detach().abs().flatten() for name in names])
    for sparsity, value in found:
        removed = math.ceil(sparsity * len(magnitudes) - 1e-6)
        model = copy.deepcopy(trained)
        if removed:
            threshold = magnitudes.sort().values[removed - 1]
            for name in names:
                weight = model.get_parameter(name).data
                weight[weight.abs() <= threshold] = 0
        with torch.no_grad():
            assert value == int((model(x).argmax(1) == y).sum()) / 397
    assert found[0][1] == accuracy(trained, digits)
    assert all(torch.equal(before[key], value) for key, value in trained.state_dict().items())


def test_pruning_copies_the_model(trained: nn.Module, profile: MagnitudeProfile) -> None:
    masks = profile.masks(0.7)
    result = pruned(trained, masks)
    for name, weight in trained.named_parameters():
        assert torch.equal(result.get_parameter(name), weight * masks[name] if name in masks else weight)
    assert all(weight.count_nonzero() > 0.9 * weight.numel() for weight in prunable(trained).values())


# ------------------------------------------------------------------------------------------------- re-training


def search(model: nn.Module, data: ImageData, level: float, settings: RetrainSettings) -> tuple[float, list[Trial]]:
    def retrain(sparsity: float) -> Trial:
        return retrained(model, data, RECIPE, 0, sparsity, settings)

    return retrained_limit(retrain, level, START, settings.evaluations)


def test_retraining_keeps_objective_batches_and_momentum() -> None:
    recipe = Recipe(9, 0.1, momentum=0.8, l2=1e-3, batch_size=32, schedule="multistep", warmup=2, augment=True)
    assert retraining_recipe(recipe, RetrainSettings(3, 0.5)) == Recipe(
        3, 0.05, momentum=0.8, l2=1e-3, batch_size=32, augment=True
    )


def test_where_every_trial_passes_the_last_one_is_the_answer(
    trained: nn.Module, digits: ImageData, profile: MagnitudeProfile
) -> None:
    limit, trials = search(trained, digits, math.inf, RetrainSettings(1, 0.2, 3))
    kept = [1 - trial["sparsity"] for trial in trials]
    assert kept == [pytest.approx((1 - START) / 3**n) for n in (1, 2, 3)]
    assert limit == pytest.approx(trials[-1]["sparsity"])


def test_where_every_trial_fails_the_start_is_the_answer(
    trained: nn.Module, digits: ImageData, profile: MagnitudeProfile
) -> None:
    limit, trials = search(trained, digits, -math.inf, RetrainSettings(1, 0.2, 3))
    kept = [math.log((1 - trial["sparsity"]) / (1 - START), 3) for trial in trials]
    assert kept == [pytest.approx(-1), pytest.approx(-1 / 2), pytest.approx(-1 / 4)]
    assert limit == pytest.approx(START)


def test_the_answer_lies_where_the_line_through_the_bracket_meets_the_level(
    trained: nn.Module, digits: ImageData, profile: MagnitudeProfile
) -> None:
    before = copy.deepcopy(trained.state_dict())
    settings = RetrainSettings(1, 0.2, 4)
    dense = Objective(trained, digits.batches("train", 1000), penalty=RECIPE.penalty).value()
    level = dense + 0.1
    limit, trials = search(trained, digits, level, settings)
    passed = [trial for trial in trials if trial["objective"] <= level]
    failed = [trial for trial in trials if trial["objective"] > level]
    assert len(trials) == 4
    assert passed
    assert failed
    low = max(passed, key=lambda trial: trial["sparsity"])
    high = min(failed, key=lambda trial: trial["sparsity"])
    assert low["sparsity"] <= limit <= high["sparsity"]
    share = (level - low["objective"]) / (high["objective"] - low["objective"])
    kept = [math.log(1 - trial["sparsity"]) for trial in (low, high)]
    assert math.log(1 - limit) == pytest.approx(kept[0] + share * (kept[1] - kept[0]))
    ordered = sorted(trials, key=lambda trial: trial["sparsity"])
    assert ordered == [*sorted(passed, key=lambda t: t["sparsity"]), *sorted(failed, key=lambda t: t["sparsity"])]
    assert all(torch.equal(before[key], value) for key, value in trained.state_dict().items())


def test_a_trial_is_a_short_training_of_the_kept_weights(
    trained: nn.Module, digits: ImageData, profile: MagnitudeProfile
) -> None:
    settings = RetrainSettings(1, 0.2, 1)
    _, (trial,) = search(trained, digits, 0.0, settings)
    masks = profile.masks(trial["sparsity"])
    assert sparsity_of(masks) == pytest.approx(trial["sparsity"], abs=1 / profile.dimension)
    model = copy.deepcopy(trained)
    train(model, digits, retraining_recipe(RECIPE, settings), 0, masks=masks)
    with torch.no_grad():
        logits = model.eval()(torch.cat([x for x, _ in digits.batches("train")]))
        objective = float(nn.functional.cross_entropy(logits, digits.train_y))
        objective += 1e-3 * sum(float(weight.abs().sum()) for weight in model.parameters())
    assert trial["objective"] == pytest.approx(objective, rel=1e-5)
    assert trial["accuracy"] == accuracy(model, digits)


# ------------------------------------------------------------------------------------------------- the table


@pytest.fixture(scope="module")
def tiny_suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    path = tmp_path_factory.mktemp("suites") / "little.toml"
    path.write_text(SUITE)
    return load_suite(str(path))


@pytest.fixture(scope="module")
def out(tiny_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one finished run, made without a clock."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        stop_clock(patch)
        assert run_table(NAME, tiny_suite, Run(folder, command="make little")) == folder / "little"
    return folder


def stop_clock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(theory_vs_actual, "time", SimpleNamespace(perf_counter=lambda: 0.0))


def written(out: Path) -> dict[str, bytes]:
    return {kind: (out / "little" / f"{NAME}.{kind}").read_bytes() for kind in ("json", "md")}


def numbers(out: Path) -> list[dict[str, Any]]:
    """Rows of the table without the times."""
    rows = json.loads((out / "little" / f"{NAME}.json").read_text())["rows"]
    for row in rows:
        for part in (row, row.get("spread", {})):
            part.pop("seconds", None)
            part.pop("predict_seconds", None)
    return rows


def cells(out: Path) -> list[Path]:
    return sorted(out.glob(f"{NAME}-*/row.json"))


def test_the_table_has_a_row_for_every_network_and_their_mean(out: Path) -> None:
    assert sorted(file.name for file in (out / "little").iterdir()) == [
        f"{NAME}.{kind}" for kind in ("json", "md", "png")
    ]
    first, second, mean = numbers(out)
    assert [row["seed"] for row in (first, second, mean)] == [0, 1, "mean of 2"]
    for row in (first, second):
        assert (row["model"], row["dataset"], row["parameters"]) == ("fc5-mini", "digits", 15_000)
        assert row["low"] <= row["isotropic"] <= row["high"]
        assert 0 <= row["actual_a"] <= row["upper"] <= 1
        assert row["actual_b0"] <= row["actual_b05"]
        assert row["epsilon"] > 0
        assert len(row["trials"]) == 2
        assert len(row["accuracies"]) == 48
        assert row["difference_a"] == pytest.approx(100 * (row["isotropic"] - row["actual_a"]))
        assert row["factor_a"] == pytest.approx((1 - row["isotropic"]) / (1 - row["actual_a"]))
        assert row["difference_c"] == pytest.approx(100 * (row["retrained"] - row["actual_c"]))
        assert row["factor_c"] == pytest.approx((1 - row["retrained"]) / (1 - row["actual_c"]))
    assert mean["isotropic"] == pytest.approx((first["isotropic"] + second["isotropic"]) / 2)
    text = (out / "little" / f"{NAME}.md").read_text()
    assert "Made by `make little`." in text
    assert "samples 64, Lanczos steps 4, probes 1" in text
    assert text.count("| fc5-mini | digits |") == 2


def test_nothing_but_results_is_left_in_the_folders_of_runs(out: Path) -> None:
    left = sorted({file.name for file in out.rglob("*") if file.is_file() and file.parent.name != "little"})
    assert left == ["limit.json", "row.json", "settings.json", "training.json", "trial.json", "weights.pt"]


def test_finished_cells_are_not_computed_again(out: Path, tiny_suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written(out)
    monkeypatch.delattr(training, "train")
    monkeypatch.delattr(theory_vs_actual, "one_shot_accuracies")
    run_table(NAME, tiny_suite, Run(out, command="make little"))
    assert written(out) == before


def test_a_lost_cell_is_computed_again_to_the_same_bytes(
    out: Path, tiny_suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = written(out)
    rows = {file: file.read_bytes() for file in cells(out)}
    assert len(rows) == 2
    cells(out)[0].unlink()
    stop_clock(monkeypatch)
    run_table(NAME, tiny_suite, Run(out, command="make little"))
    assert {file: file.read_bytes() for file in cells(out)} == rows
    assert written(out) == before


def test_a_run_that_was_killed_in_the_middle_of_a_cell_ends_with_the_same_numbers(
    out: Path, tiny_suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = ("train", "retrained_limit")
    for stage, module in zip(stages, (training, theory_vs_actual), strict=True):
        real = getattr(module, stage)
        calls = iter(range(10))

        def stopped(*args: Any, real: Any = real, calls: Iterator[int] = calls, **options: Any) -> Any:
            if next(calls) == 1:
                raise KeyboardInterrupt
            return real(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(module, stage, stopped)
            with pytest.raises(KeyboardInterrupt):
                run_table(NAME, tiny_suite, Run(tmp_path))
        assert not (tmp_path / "little").exists()
        if stage == "train":
            assert len(cells(tmp_path)) == 1
            cells(tmp_path)[0].unlink()
    run_table(NAME, tiny_suite, Run(tmp_path))
    assert numbers(tmp_path) == numbers(out)


@pytest.mark.usefixtures("forked_workers")
def test_two_jobs_give_the_same_numbers(
    out: Path, tiny_suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)  # one thread for each of the two workers
    run_table(NAME, tiny_suite, Run(tmp_path, jobs=2))
    assert numbers(tmp_path) == numbers(out)


def test_only_keeps_matching_networks(out: Path, tiny_suite: Suite, tmp_path: Path) -> None:
    for folder in out.iterdir():
        if folder.name != "little":
            (tmp_path / folder.name).symlink_to(folder)
    run_table(NAME, tiny_suite.only("fc5-mini-digits-1"), Run(tmp_path))
    (row,) = numbers(tmp_path)
    assert row == numbers(out)[1]


def test_only_refuses_what_matches_nothing(tiny_suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"only: no network of suite little .*'fc12'"):
        run_table(NAME, tiny_suite.only("fc12"), Run(tmp_path))
    assert not list(tmp_path.iterdir())


def test_fresh_computes_cells_again_with_the_trained_networks(
    out: Path, tiny_suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def noted(*_: Any) -> float:
        asked.append(True)
        raise UserError("asked")

    monkeypatch.setattr(theory_vs_actual, "accuracy", noted)
    for folder in out.glob("*-*"):
        target = tmp_path / folder.name
        target.mkdir()
        for file in folder.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="asked"):
        run_table(NAME, tiny_suite, Run(tmp_path, resume=False))
    assert asked == [True]
    assert not cells(tmp_path)
