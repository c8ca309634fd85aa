from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from estimators import Objective, UserError
from pruning_limits import MagnitudeProfile
from validation import training
from validation.data import ImageData
from validation.masks import prunable, sparsity_of
from validation.studies.limits import forecast_truths, protocols, theory_vs_actual
from validation.studies.limits.actual import (
    RetrainSettings,
    Trial,
    pruned,
    retrained,
    retrained_limit,
    retraining_recipe,
)
from validation.tables.runner import Run, run_table
from validation.tables.suite import Suite
from validation.training import Recipe, accuracy, train

Row = dict[str, Any]
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
dataset = "digits-200"
seeds = [0, 1]
recipe = { epochs = 3, lr = 0.05, l1 = 1e-4, batch_size = 50 }
"""


@pytest.fixture(scope="module")
def profile(trained: nn.Module) -> MagnitudeProfile:
    return MagnitudeProfile(prunable(trained))


# ------------------------------------------------------------------------------------------------- re-training


def test_pruning_copies_the_model(trained: nn.Module, profile: MagnitudeProfile) -> None:
    masks = profile.masks(0.7)
    result = pruned(trained, masks)
    for name, weight in trained.named_parameters():
        assert torch.equal(result.get_parameter(name), weight * masks[name] if name in masks else weight)
    assert all(weight.count_nonzero() > 0.9 * weight.numel() for weight in prunable(trained).values())


def search(model: nn.Module, data: ImageData, level: float, settings: RetrainSettings) -> tuple[float, list[Trial]]:
    def retrain(sparsity: float) -> Trial:
        return retrained(model, data, RECIPE, 0, sparsity, settings)

    return retrained_limit(retrain, level, START, settings.evaluations)


def test_retraining_keeps_everything_but_length_rate_and_schedule() -> None:
    recipe = Recipe(9, 0.1, momentum=0.8, l2=1e-3, batch_size=32, schedule="multistep", milestones=(3,), warmup=2)
    assert retraining_recipe(recipe, RetrainSettings(3, 0.5)) == Recipe(3, 0.05, momentum=0.8, l2=1e-3, batch_size=32)
    shifted = retraining_recipe(dataclasses.replace(recipe, augment=True, nesterov=True), RetrainSettings(3, 0.5))
    assert (shifted.augment, shifted.nesterov) == (True, True)


def test_a_network_of_adamw_is_retrained_by_adamw(
    trained: nn.Module, digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, made = Recipe(4, 0.01, optimizer="adamw", decay=0.1, batch_size=500), []
    real = torch.optim.AdamW

    def noted(parameters: Any, rate: float, weight_decay: float) -> torch.optim.AdamW:
        made.append((rate, weight_decay))
        return real(parameters, rate, weight_decay=weight_decay)

    monkeypatch.setattr(torch.optim, "AdamW", noted)
    retrained(trained, digits, recipe, 0, 0.5, RetrainSettings(1, 0.2))
    assert made == [(pytest.approx(0.002), 0.1)]


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


def objective(sparsity: float) -> Trial:
    """Rise linearly in the logarithm of the kept fraction."""
    return {"sparsity": sparsity, "objective": -math.log(1 - sparsity), "accuracy": 0.5}


@pytest.mark.parametrize("level", [0.5, 2.0, 5.0])
def test_a_line_is_met_exactly(level: float) -> None:
    sparsity, trials = retrained_limit(objective, level, 0.0, 8)
    assert len(trials) == 8
    assert sparsity == pytest.approx(1 - math.exp(-level))


# ------------------------------------------------------------------------------------------------- the table


@pytest.fixture(scope="module")
def out(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one finished run."""
    folder = tmp_path_factory.mktemp("runs")
    assert run_table(NAME, suite, Run(folder, command="make little")) == folder / "little"
    return folder


def written(out: Path) -> dict[str, bytes]:
    return {kind: (out / "little" / f"{NAME}.{kind}").read_bytes() for kind in ("json", "md")}


def numbers(out: Path) -> list[Row]:
    networks: list[Row] = json.loads((out / "little" / f"{NAME}.json").read_text())["networks"]
    return networks


def cells(out: Path) -> list[Path]:
    return sorted(out.glob(f"{NAME}-*/row.json"))


def test_the_table_has_a_line_for_every_question_and_says_whose_it_is(out: Path) -> None:
    assert sorted(file.name for file in (out / "little").iterdir()) == [
        f"{NAME}.{kind}" for kind in ("json", "md", "png")
    ]
    lines = json.loads((out / "little" / f"{NAME}.json").read_text())["rows"]
    assert [line["protocol"] for line in lines] == ["paper"] * 3 + ["user"] * 8
    first, second = numbers(out)
    assert [row["seed"] for row in (first, second)] == [0, 1]
    for line, *cases in zip(lines, first["cases"], second["cases"], strict=True):
        assert (line["model"], line["dataset"], line["seeds"]) == ("fc5-mini", "digits-200", 2)
        for key in ("predicted", "low", "high", "actual"):
            known = [case[key] for case in cases if case[key] is not None]
            assert line[key] == (pytest.approx(sum(known) / len(known)) if known else None)
    text = (out / "little" / f"{NAME}.md").read_text()
    assert "Made by `make little`." in text
    assert "samples 64, Lanczos steps 4, probes 1" in text
    assert text.count("| fc5-mini | digits-200 |") == 11
    assert text.count("| paper | formula, ") == 3
    assert text.count("| user | forecast, by ") == 2


def test_nothing_but_results_is_left_in_the_folders_of_runs(out: Path) -> None:
    left = {file.name for file in out.rglob("*") if file.is_file() and file.parent.name != "little"}
    curves = {"again-0.json", "again-1.json", "one-shot.json"}
    assert left == curves | {"limit.json", "row.json", "settings.json", "training.json", "trial.json", "weights.pt"}


def case(holds: bool | None = True, **values: Any) -> Row:
    base = {"protocol": "user", "by": "loss", "rung": "re-trained", "truth": "whole recipe", "level": "loss"}
    return base | {"predicted": 0.8, "low": 0.7, "high": 0.9, "actual": 0.9, "holds": holds} | values


def network(*cases: Row, model: str = "m", seed: int = 0) -> Row:
    base: Row = {"model": model, "dataset": "d", "penalty": "none", "seed": seed, "parameters": 1000}
    return base | {"cases": list(cases), "dense": {"held_out": 0.9}, "epsilon": {"loss": 0.1}}


def test_lines_average_seeds_of_one_kind_and_count_what_holds() -> None:
    rows = [network(case()), network(case(False, actual=0.975, low=0.5), seed=1), network(case(), model="other")]
    first, second = theory_vs_actual.lines(rows)
    assert (first["seeds"], first["held"], second["seeds"], second["held"]) == (2, "1 of 2", 1, "1 of 1")
    assert (first["actual"], first["low"]) == (pytest.approx(0.9375), pytest.approx(0.6))
    assert first["factor"] == pytest.approx(4.0)  # twice and eight times as many as are kept
    assert first["spread"] == pytest.approx(7.5 / 2**0.5)
    assert second["spread"] is None


def test_what_is_unknown_counts_neither_way() -> None:
    unknown = case(None, actual=None)
    (line,) = theory_vs_actual.lines([network(unknown), network(case(), seed=1)])
    assert (line["held"], line["factor"]) == ("1 of 1", pytest.approx(2.0))
    (line,) = theory_vs_actual.lines([network(unknown)])
    assert (line["held"], line["factor"], line["actual"]) == (None, None, None)


def test_the_verdict_counts_cases_of_either_protocol() -> None:
    paper = {"protocol": "paper", "rung": "formula"}
    cases = [case(**paper), case(False, **paper), case(rung="one-shot"), case(False), case(), case(None, rung="bound")]
    text = theory_vs_actual.verdict([network(*cases)])
    assert text == (
        "The paper's formulas hold the truth in 1 of 2, by the user's criteria measurements do in 1 of 1, forecasts in "
        "1 of 2, bounds in no known case, the formula in no known case"
    )


def test_noise_is_the_spread_between_orders_of_the_data() -> None:
    def curve(kept: float) -> list[Row]:
        return [{"kept": kept * f, "rise": rise, "held_out_drop": 0.0} for f, rise in ((1.01, 0.0), (0.99, 0.2))]

    row = network(case()) | {"curves": {"alone": [], "again-0": curve(0.1), "again-1": curve(0.2)}}
    text = theory_vs_actual.noise([row], 0.01)
    factor = math.exp(math.log(2) / 2**0.5)  # standard deviation of two values
    assert f"by a factor {factor:.2f} by loss and an unknown one by accuracy" in text


def test_finished_cells_are_not_computed_again(out: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written(out)
    monkeypatch.delattr(training, "train")
    monkeypatch.delattr(protocols, "one_shot")
    run_table(NAME, suite, Run(out, command="make little"))
    assert written(out) == before


def test_a_lost_cell_is_computed_again_to_the_same_bytes(out: Path, suite: Suite) -> None:
    before = written(out)
    rows = {file: file.read_bytes() for file in cells(out)}
    assert len(rows) == 2
    cells(out)[0].unlink()
    run_table(NAME, suite, Run(out, command="make little"))
    assert {file: file.read_bytes() for file in cells(out)} == rows
    assert written(out) == before


def test_a_run_that_was_killed_in_the_middle_of_a_cell_ends_with_the_same_numbers(
    out: Path, suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = (("train", training, 1), ("train", forecast_truths, 3), ("retrained_limit", protocols, 0))
    for number, (stage, module, last) in enumerate(stages):
        real = getattr(module, stage)
        calls = iter(range(10))

        def stopped(
            *args: Any, real: Any = real, calls: Iterator[int] = calls, last: int = last, **options: Any
        ) -> Any:
            if next(calls) == last:
                raise KeyboardInterrupt
            return real(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(module, stage, stopped)
            with pytest.raises(KeyboardInterrupt):
                run_table(NAME, suite, Run(tmp_path))
        assert not (tmp_path / "little").exists()
        if number == 0:
            assert len(cells(tmp_path)) == 1
            cells(tmp_path)[0].unlink()
    run_table(NAME, suite, Run(tmp_path))
    assert numbers(tmp_path) == numbers(out)


@pytest.mark.usefixtures("forked_workers")
def test_two_jobs_give_the_same_numbers(
    out: Path, suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)  # one thread for each of the two workers
    run_table(NAME, suite, Run(tmp_path, jobs=2))
    assert numbers(tmp_path) == numbers(out)


def test_only_keeps_matching_networks(out: Path, suite: Suite, tmp_path: Path) -> None:
    for folder in out.iterdir():
        if folder.name != "little":
            (tmp_path / folder.name).symlink_to(folder)
    run_table(NAME, suite.only("fc5-mini-digits-200-1"), Run(tmp_path))
    (row,) = numbers(tmp_path)
    assert row == numbers(out)[1]


def test_only_refuses_what_matches_nothing(suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"only: no network of suite little .*'fc12'"):
        run_table(NAME, suite.only("fc12"), Run(tmp_path))
    assert not list(tmp_path.iterdir())


def test_fresh_computes_cells_again_with_the_trained_networks(
    out: Path, suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def noted(*_: Any) -> None:
        asked.append(True)
        raise UserError("asked")

    monkeypatch.setattr(protocols, "one_shot", noted)
    for folder in out.glob("*-*"):
        target = tmp_path / folder.name
        target.mkdir()
        for file in folder.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="asked"):
        run_table(NAME, suite, Run(tmp_path, resume=False))
    assert asked == [True]
    assert not cells(tmp_path)
