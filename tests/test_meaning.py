from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pruning_limits import predict_limit
from validation.studies.limits import meaning, predicted
from validation.studies.limits.meaning import TRUTHS, constant, distances, factors, nearest
from validation.studies.limits.protocols import ALONE, LOSS, OBJECTIVE, QUESTIONS, WHOLE
from validation.tables.runner import Run, run_table
from validation.tables.suite import Suite

Row = dict[str, Any]
SUITE = """
[limit]
samples = 64
steps = 4
probes = 1
[retrain]
epochs = 1
evaluations = 2
[truths]
epochs = 2
runs = 1
[[network]]
model = "fc3-tiny"
dataset = "digits-200"
seeds = [0, 1]
recipe = { epochs = 5, lr = 0.05, l1 = 1e-3, l2 = 0.0, batch_size = 50 }
[[network]]
model = "fc-narrow"
dataset = "digits-200"
recipe = { epochs = 2, lr = 0.05, batch_size = 50 }
"""
COLUMN = f"{ALONE}, {LOSS}, L1"


def row(model: str = "m", penalty: str = "L1 0.001", actual: float | None = 0.9, **predicted: float | None) -> Row:
    known: dict[str, float | None] = dict.fromkeys(("hessian", "ggn", "directional", "forecast", "alone"), 0.9)
    cases = [{"truth": truth, "level": level, "actual": actual} for truth, level in TRUTHS]
    predictions = dict.fromkeys((OBJECTIVE, LOSS), known | predicted)
    base = {"model": model, "dataset": "d", "penalty": penalty, "seed": 0, "parameters": 1000}
    return base | {"cases": cases, "predictions": predictions, "epsilon": {LOSS: 0.1}}


def of(lines: list[Row], key: str) -> Row:
    return next(line for line in lines if line["key"] == key)


# ------------------------------------------------------------------------------------------------- the numbers


def test_every_truth_is_asked_for_by_both_protocols_questions() -> None:
    assert set(TRUTHS) <= {(question.truth, question.level) for question in QUESTIONS}


def test_factors_are_geometric_means_of_kept_fractions() -> None:
    rows = [row(hessian=0.8), row(hessian=0.95), row(penalty="none", hessian=0.9)]
    lines = factors(distances(rows))
    assert of(lines, "hessian")[COLUMN] == pytest.approx(2.0)  # twice too many and half of it
    assert of(lines, "hessian")[f"{ALONE}, {LOSS}, none"] == pytest.approx(1.0)
    assert of(lines, "hessian")[f"{ALONE}, {LOSS}, all"] == pytest.approx(4 ** (1 / 3))
    assert of(lines, "ggn")[COLUMN] == pytest.approx(1.0)


def test_everything_removed_counts_as_one_weight_kept() -> None:
    lines = factors(distances([row(ggn=1.0)]))
    assert of(lines, "ggn")[COLUMN] == pytest.approx(100)


def test_what_is_unknown_is_left_out() -> None:
    lines = factors(distances([row(forecast=None, alone=0.8), row(actual=None, alone=0.1)]))
    assert of(lines, "forecast")[COLUMN] is None
    assert of(lines, "alone")[COLUMN] == pytest.approx(2.0)
    assert of(lines, "constant")[COLUMN] is None


def test_the_constant_comes_from_other_kinds_of_network_only() -> None:
    rows = [row("a", actual=0.5), row("b", actual=0.9), row("b", "none", actual=0.6), row("c", actual=None)]
    for truth, level in TRUTHS:
        assert constant(rows, rows[0], truth, level) == pytest.approx(1 - math.sqrt(0.1 * 0.4))
        assert constant(rows, rows[1], truth, level) == pytest.approx(0.5)
    assert constant(rows[:1], rows[0], *TRUTHS[0]) is None
    pairs = [pair for pair in distances(rows) if pair["prediction"] == "constant"]
    assert len(pairs) == 3 * len(TRUTHS)


def test_the_nearest_is_no_constant() -> None:
    lines = [{"key": "hessian", "x": 2.0}, {"key": "ggn", "x": None}, {"key": "constant", "x": 1.0}]
    assert nearest(lines, "x") == lines[0]
    assert nearest(lines[1:], "x") is None


def test_the_finding_names_the_nearest_prediction_of_the_whole_recipe() -> None:
    column = f"{WHOLE}, {LOSS}"
    ggn = {"key": "ggn", "prediction": "GGN", f"{column}, L1": 1.5, f"{column}, none": 3.0, f"{column}, all": 2.0}
    naive = {"key": "constant", "prediction": "c", f"{column}, L1": 1.1, f"{column}, none": None, f"{column}, all": 4.0}
    assert meaning.finding([ggn, naive]) == (
        "Whole recipe, by loss, nearest: one rule for all networks, GGN x2.00 (a constant x4.00); "
        "with L1, GGN x1.50 (a constant x1.10); without, GGN x3.00"
    )


def test_words_follow_the_rows(tmp_path: Path, suite: Suite) -> None:
    rows = [row("a", ggn=0.8, hessian=0.95, directional=0.99, forecast=0.99, alone=0.5), row("b", "none", actual=0.8)]
    meaning.write(rows, suite, tmp_path, "test")
    text = (tmp_path / "meaning.md").read_text()
    assert "Nearest, 1 network with L1: one-shot by objective: formula, Hessian (2.00, a constant 2.00)" in text
    assert "Nearest, 1 network without: one-shot by objective: formula, Hessian (2.00, a constant 2.00)" in text
    assert "cut to 2 epochs" in text
    assert (tmp_path / "meaning.png").read_bytes().startswith(b"\x89PNG")


# ------------------------------------------------------------------------------------------------- end to end


def test_networks_are_compared_with_and_without_l1(suite: Suite) -> None:
    networks = [cell.network for cell in meaning.cells(suite)]
    recipes = [(n.model, n.recipe.l1, n.recipe.l2, n.seed, n.recipe.epochs) for n in networks]
    tiny = [("fc3-tiny", l1, 0.0, seed, 2) for l1 in (1e-3, 0.0) for seed in (0, 1)]
    assert recipes == [*tiny, ("fc-narrow", 5e-5, 0.0, 0, 2), ("fc-narrow", 0.0, 0.0, 0, 2)]


def test_both_tables_have_their_rows_in_common(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicted, "predict_limit", partial(predict_limit, samples=64, steps=4, probes=1))
    suite = suite.only("fc3-tiny.*-0$")
    folder = run_table("meaning", suite, Run(tmp_path, command="test"))
    plain = json.loads((folder / "meaning.json").read_text())
    assert [line["key"] for line in plain["rows"]] == list(meaning.PREDICTIONS)
    assert [network["penalty"] for network in plain["networks"]] == ["L1 0.001", "none"]
    for network in plain["networks"]:
        actual = {(case["truth"], case["level"]): case["actual"] for case in network["cases"]}
        trained = [case["actual"] for case in network["cases"] if case["truth"] == WHOLE]
        assert all(value is None or 0 < value < 1 for value in trained)
        if network["penalty"] == "none":  # the objective is the loss
            assert actual[ALONE, OBJECTIVE] == pytest.approx(actual[ALONE, LOSS])
    known = [line[column] for line in plain["rows"] for column in line if column.endswith((", L1", ", none", ", all"))]
    assert all(value is None or value >= 1 for value in known)
    before = sorted(file.stat().st_mtime_ns for file in tmp_path.glob("*/row.json"))
    folder = run_table("theory-vs-actual", suite, Run(tmp_path, command="test"))
    assert sorted(file.stat().st_mtime_ns for file in tmp_path.glob("*/row.json")) == before
    own = json.loads((folder / "theory-vs-actual.json").read_text())["networks"]
    short = [{key: value for key, value in network.items() if key not in ("curves", "trials")} for network in own]
    assert all(network in plain["networks"] for network in short)
    assert [network["penalty"] for network in own] == ["L1 0.001"]
    written = (folder / "meaning.json").read_bytes()
    run_table("meaning", suite, Run(tmp_path, command="test"))
    assert (folder / "meaning.json").read_bytes() == written
