from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from pruning_limits import MagnitudeProfile, predict_limit
from validation import training
from validation.data import ImageData, load_data
from validation.masks import prunable
from validation.studies.limits import one_shot
from validation.studies.limits.actual import RetrainSettings, pruned
from validation.studies.limits.predicted import LimitSettings
from validation.studies.limits.protocols import ACCURACY, ALONE, LOSS, OBJECTIVE, TruthSettings
from validation.tables.runner import Run, run_table
from validation.tables.suite import Suite
from validation.training import accuracy, trained_network

Row = dict[str, Any]
pytestmark = pytest.mark.usefixtures("one_thread")

SUITE = """\
[limit]
samples = 64
steps = 4
probes = 1

[truths]
drop = 0.05

[[network]]
model = "fc5-mini"
dataset = "digits-200"
seeds = [0, 1]
recipe = { epochs = 3, lr = 0.05, l1 = 1e-4, batch_size = 50 }
"""


@pytest.fixture(scope="module")
def out(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two trained networks and the table, made without any training but theirs."""
    folder = tmp_path_factory.mktemp("runs")
    data = load_data("digits-200")
    for network in suite.networks:
        trained_network(network, data, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train", None)
        run_table(one_shot.NAME, suite, Run(folder, command="make little"))
    return folder


@pytest.fixture(scope="module")
def written(out: Path) -> Row:
    result: Row = json.loads((out / "little" / "one-shot.json").read_text())
    return result


def test_every_case_is_of_one_shot_pruning_and_both_protocols_ask() -> None:
    asked = [(question.protocol, question.rung, question.level) for question in one_shot.QUESTIONS]
    assert {question.truth for question in one_shot.QUESTIONS} == {ALONE}
    assert asked == [
        ("paper", "formula", OBJECTIVE),
        ("paper", "formula", ACCURACY),
        ("user", "one-shot", LOSS),
        ("user", "formula", LOSS),
        ("user", "one-shot", ACCURACY),
        ("user", "formula", ACCURACY),
    ]


def test_the_table_has_a_line_for_every_case(out: Path, written: Row) -> None:
    page = (out / "little" / "one-shot.md").read_text()
    assert page.count("\n| fc5-mini | digits-200 | L1 0.0001 | 2 |") == len(one_shot.QUESTIONS) == len(written["rows"])
    assert "where 5 points of it is lost" in page
    assert one_shot.finding(written["networks"]) in page
    assert (out / "little" / "one-shot.png").read_bytes().startswith(b"\x89PNG")


def test_finished_cells_are_kept(out: Path, suite: Suite, written: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_shot.Alone, "of", None)
    run_table(one_shot.NAME, suite, Run(out, command="make little"))
    assert json.loads((out / "little" / "one-shot.json").read_text()) == written


def test_what_is_predicted_is_what_each_protocol_says(out: Path, suite: Suite, written: Row) -> None:
    """The paper's formula by the objective with the suite's settings, and the defaults with the loss alone."""
    network, row = suite.networks[0], written["networks"][0]
    data = load_data(network.dataset)
    model, batches = trained_network(network, data, out), data.batches("train", 1000)
    options: Row = {"penalty": network.recipe.penalty, "criterion": "objective", "progress": False}
    paper = predict_limit(model, batches, samples=64, steps=4, probes=1, **options)
    user = predict_limit(model, batches, progress=False)
    by = {(case["protocol"], case["rung"], case["level"]): case for case in row["cases"]}
    assert by["paper", "formula", OBJECTIVE]["predicted"] == pytest.approx(paper.sparsity)
    assert by["paper", "formula", ACCURACY]["predicted"] == by["paper", "formula", OBJECTIVE]["predicted"]
    assert by["user", "formula", LOSS]["predicted"] == pytest.approx(user.sparsity)
    assert by["user", "one-shot", LOSS]["predicted"] == pytest.approx(user.answer("one-shot").sparsity)
    assert row["allowed"] == {OBJECTIVE: paper.epsilon, LOSS: user.epsilon, ACCURACY: 0.05}


def fall(model: nn.Module, data: ImageData, sparsity: float) -> float:
    """Return the fall of the accuracy at a sparsity."""
    masks = MagnitudeProfile(prunable(model)).masks(sparsity)
    return accuracy(model, data) - accuracy(pruned(model, masks), data)


def test_the_knee_is_where_accuracy_has_fallen_by_what_is_allowed(out: Path, suite: Suite, written: Row) -> None:
    for network, row in zip(suite.networks, written["networks"], strict=True):
        data = load_data(network.dataset)
        model = trained_network(network, data, out)
        knee = next(case["actual"] for case in row["cases"] if case["level"] == ACCURACY)
        before, after = (fall(model, data, knee + step) for step in (-0.005, 0.005))
        assert before <= 0.05 + 1e-9
        assert after >= 0.05 - 1e-9  # five of 100 images


def made(level: str, rung: str, predicted: float | None, actual: float | None, holds: bool | None) -> Row:
    protocol = "paper" if level == OBJECTIVE else "user"
    return {
        "protocol": protocol,
        "rung": rung,
        "level": level,
        "predicted": predicted,
        "actual": actual,
        "holds": holds,
    }


def test_the_finding_follows_the_rows() -> None:
    near = [made(OBJECTIVE, "formula", 0.9, 0.92, True), made(LOSS, "formula", 0.7, 0.6, False)]
    far = [made(OBJECTIVE, "formula", 0.9, 0.8, False), made(LOSS, "formula", 0.7, None, None)]
    rows = [{"cases": [*near, made(LOSS, "one-shot", 0.6, 0.6, True)]}, {"cases": far}]
    assert one_shot.misses(rows, "paper", OBJECTIVE) == [pytest.approx(2), pytest.approx(10)]
    assert one_shot.finding(rows) == (
        "The formula misses one-shot pruning by 2.0 to 10.0 points of sparsity by the paper's protocol and by 10.0 by "
        "the user's loss; intervals of measured one-shot pruning hold in 1 of 1"
    )
    assert one_shot.finding(rows[1:]).endswith(
        "by - by the user's loss; intervals of measured one-shot pruning hold in no known case"
    )


def test_a_row_depends_on_what_is_allowed_and_on_nothing_of_re_training(suite: Suite) -> None:
    same = suite.replaced(RetrainSettings(epochs=7)).replaced(TruthSettings(drop=0.05, runs=9, epochs=2))
    assert (
        one_shot.settings(same) == one_shot.settings(suite) == suite.plain(LimitSettings) | {"truths": {"drop": 0.05}}
    )
    other = suite.replaced(dataclasses.replace(suite.settings(TruthSettings), drop=0.02))
    assert one_shot.settings(other) != one_shot.settings(suite)
