from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from validation.studies.limits import meaning
from validation.studies.limits.actual import Trial, retrained_limit
from validation.tables.reading import load_suite
from validation.tables.runner import Run, run_table
from validation.tables.suite import Suite

SUITE = """
[limit]
steps = 4
probes = 1
[retrain]
epochs = 1
evaluations = 2
[[network]]
model = "fc5-mini"
dataset = "digits"
seeds = [0, 1]
recipe = { epochs = 2, lr = 0.05, l1 = 1e-3, l2 = 0.0 }
"""


def row(**values: Any) -> dict[str, Any]:
    base = {"model": "m", "dataset": "d", "penalty": "L1 0.001", "seed": 0, "parameters": 1000, "epsilon": 0.1}
    base |= {"isotropic": 0.9, "retrained": 0.95, "directional": 0.99, "one_shot": 0.9, "again": 0.95, "control": 0.94}
    return base | {"fall": -1.0, "above": "yes", "status": "converged"} | values


def objective(sparsity: float) -> Trial:
    """Rise linearly in the logarithm of the kept fraction."""
    return {"sparsity": sparsity, "objective": -math.log(1 - sparsity), "accuracy": 0.5}


@pytest.mark.parametrize("level", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("known", [[], [0.0], [0.0, 0.3, 0.999]])
def test_a_line_is_met_exactly_whatever_is_known(level: float, known: list[float]) -> None:
    found, trials = retrained_limit(objective, level, 0.0, 8, [objective(one) for one in known])
    assert len(trials) == 8
    assert found == pytest.approx(1 - math.exp(-level))


def test_known_trials_bracket_the_search() -> None:
    level = -math.log(1 - 0.9)
    _, trials = retrained_limit(objective, level, 0.0, 3, [objective(one) for one in (0.85, 0.92, 0.97)])
    assert all(0.85 < trial["sparsity"] < 0.92 for trial in trials)


def test_a_start_beyond_the_known_trials_counts() -> None:
    _, (trial,) = retrained_limit(objective, 5.0, 0.9, 1, [objective(0.5)])
    assert 1 - trial["sparsity"] == pytest.approx(0.1 / 3)


def test_nearest_is_the_least_mean_distance_in_kept_fractions() -> None:
    rows = [row(again=0.98), row(again=0.985)]
    key, distance = meaning.nearest(rows, "again")
    assert key == "directional"
    assert distance == pytest.approx((math.log(2) + math.log(1.5)) / 2)


def test_everything_removed_counts_as_one_weight_kept() -> None:
    assert meaning.distance(row(one_shot=1.0), "isotropic", "one_shot") == pytest.approx(math.log(100))


def test_words_follow_the_rows(tmp_path: Path) -> None:
    suite = load_suite(str(_file(tmp_path)))
    rows = [row(), row(seed=1), row(penalty="none", one_shot=0.95, again=0.9, above="no", fall=-3.0)]
    meaning.write(rows, suite, tmp_path, "test")
    text = (tmp_path / "meaning.md").read_text()
    assert "2 networks with L1, nearest prediction of each truth: one-shot: Hessian, isotropic (factor 1.00)" in text
    assert "1 networks without a penalty, nearest prediction of each truth: one-shot: GGN, isotropic" in text
    assert text.count("confirmed") == text.count("refuted") == 1
    assert "above everything achieved in 2 of 2" in text
    assert "above everything achieved in 0 of 1" in text
    assert "changes its objective by -3.00 epsilons" in text


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return load_suite(str(_file(tmp_path_factory.mktemp("suite"))))


def _file(folder: Path) -> Path:
    path = folder / "tiny.toml"
    path.write_text(SUITE)
    return path


def test_networks_are_compared_with_and_without_l1(suite: Suite) -> None:
    recipes = [(cell.network.recipe.l1, cell.network.recipe.l2, cell.network.seed) for cell in meaning.cells(suite)]
    assert recipes == [(1e-3, 0.0, 0), (1e-3, 0.0, 1), (0.0, 0.0, 0), (0.0, 0.0, 1)]


def test_the_control_is_the_dense_network_with_the_same_further_training(suite: Suite, tmp_path: Path) -> None:
    folder = run_table("meaning", suite.only("-0$"), Run(tmp_path, command="test"))
    rows = json.loads((folder / "meaning.json").read_text())["rows"]
    for found in [one for one in rows if one["seed"] == 0]:
        dense, *trials = found["trials"]
        assert dense["sparsity"] == 0
        assert found["fall"] == pytest.approx((dense["objective"] - found["objective"]) / found["epsilon"])
        assert len(trials) == 4
        level = dense["objective"] + found["epsilon"]
        passed = [0.0, *(one["sparsity"] for one in trials if one["objective"] <= level)]
        failed = [one["sparsity"] for one in trials if one["objective"] > level]
        last = max(passed)
        assert last <= found["control"] <= min([one for one in failed if one > last], default=1.0)
    stored = sorted(json.loads(file.read_text())["sparsity"] for file in tmp_path.glob("retrained-*/trial.json"))
    assert stored == sorted(one["sparsity"] for found in rows if found["seed"] == 0 for one in found["trials"])
