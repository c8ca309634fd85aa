from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from estimators import UserError
from pruning_limits.cones import Circular
from pruning_limits.kinematics import subspace_crossing
from pruning_limits.kinematics_monte_carlo import half_point, sublevel_crossings
from validation.studies.limits import kinematics
from validation.tables import runner as runner_module
from validation.tables.reading import load_suite
from validation.tables.runner import Run, run_table, settings_of
from validation.tables.suite import Suite
from validation.tables.table import Bench

SIZE, TRIALS = 60, 80


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Suite:
    """The quick suite with small random subspaces, in a process that must not touch any data set."""

    def refuse(*_: object) -> None:
        raise AssertionError("a table without networks loads no data")

    monkeypatch.setattr(kinematics, "TRIALS", {SIZE: TRIALS})
    monkeypatch.setattr(runner_module, "load_data", refuse)
    return load_suite("quick")


# ---------------------------------------------------------------------------------------------- Monte Carlo


@pytest.mark.parametrize("tilt", [0.0, 0.2])
@pytest.mark.parametrize("epsilon", [0.01, 0.3])
def test_crossings_are_those_of_the_normal_equations_in_every_subspace(tilt: float, epsilon: float) -> None:
    rng = np.random.default_rng(3)
    size, trials = 25, 20
    x, d = np.geomspace(0.01, 5, size), rng.standard_normal(size)
    g = tilt * x * rng.standard_normal(size)
    counts = sublevel_crossings(x, d, epsilon, trials, gradient=g, seed=9)
    frames = np.random.default_rng(9)
    rise, slope = x @ d**2 / 2 - g @ d, g - x * d
    for count in counts:
        frame = frames.standard_normal((size, size))
        lowest = [rise]
        for k in range(1, size + 1):
            part = frame[:, :k]
            lowest.append(rise - (part.T @ slope) @ np.linalg.solve(part.T * x @ part, part.T @ slope) / 2)
        assert count == int((np.array(lowest) <= epsilon).argmax())
    assert len(set(counts.tolist())) > 3


def test_a_ball_is_met_with_the_exact_probability_of_its_circular_cone() -> None:
    size, distance, epsilon, trials = 20, 2.0, 0.5, 4000
    counts = sublevel_crossings(np.ones(size), distance * np.eye(size)[4], epsilon, trials, seed=1)
    kept = np.arange(size + 1)
    expected = subspace_crossing(Circular(size, math.asin(math.sqrt(2 * epsilon) / distance)), kept).probability
    error = np.sqrt(np.maximum(expected * (1 - expected), 1 / trials) / trials)
    assert (np.abs((counts[:, None] <= kept).mean(0) - expected) <= 4 * error).all()


def test_directions_without_curvature_count_for_nothing() -> None:
    x, d = np.concatenate([np.zeros(10), np.linspace(1, 2, 30)]), np.ones(40)
    moved = d + np.concatenate([5 * np.ones(10), np.zeros(30)])
    counts = sublevel_crossings(x, d, 0.5, 50)
    np.testing.assert_array_equal(counts, sublevel_crossings(x, moved, 0.5, 50))
    assert counts.max() <= 30


def test_the_half_point_by_hand() -> None:
    assert half_point([7] * 100) == (6.5, pytest.approx(0.05))
    assert half_point([0] * 9) == (0.0, 0.0)
    assert half_point([2, 4, 4, 4])[0] == pytest.approx(2 + 2 / 3)


@pytest.mark.parametrize("deviation", [1.5, 8.0])
def test_the_half_point_has_no_bias_and_its_error_covers_the_spread(deviation: float) -> None:
    rng = np.random.default_rng(4)
    points = [half_point(np.ceil(50.3 + deviation * rng.standard_normal(200)).astype(int)) for _ in range(400)]
    values, errors = np.array(points).T
    assert abs(values.mean() - 50.3) < 4 * values.std() / 20
    assert 0.85 < np.sqrt(np.mean(((values - 50.3) / errors) ** 2)) < 1.15


# ---------------------------------------------------------------------------------------------------- table


def test_cells_need_no_network_and_do_not_depend_on_those_of_the_suite(suite: Suite, tmp_path: Path) -> None:
    cells = kinematics.cells(suite)
    assert len(cells) == len(kinematics.SPECTRA) * 2 * 3
    assert {cell.start for cell in cells} == {None}
    assert "network" not in settings_of(kinematics.TABLE, suite, cells[0])
    assert len({json.dumps(settings_of(kinematics.TABLE, suite, cell), sort_keys=True) for cell in cells}) == len(cells)
    with pytest.raises(TypeError, match="a cell without a network"):
        _ = cells[0].network
    with pytest.raises(TypeError, match="a cell without a network"):
        _ = Bench(suite, None, tmp_path, tmp_path, False).data


def test_removed_weights_have_the_norm_and_lie_where_they_are_said_to() -> None:
    eigenvalues = kinematics.SPECTRA["log-uniform"](100)
    removed = {kind: kinematics.removed_weights(eigenvalues, kind, 3.0) for kind in kinematics.STYLES}
    for d in removed.values():
        assert np.linalg.norm(d) == pytest.approx(3.0)
    assert np.flatnonzero(removed["sharp"]).tolist() == list(range(90, 100))
    assert np.flatnonzero(removed["flat"]).tolist() == list(range(50))
    assert np.count_nonzero(removed["random"]) == 100


def test_the_table_says_what_its_numbers_say_and_resumes_to_the_same_bytes(suite: Suite, tmp_path: Path) -> None:
    folder = run_table("kinematics", suite, Run(tmp_path, command="test"))
    written = {kind: (folder / f"kinematics.{kind}").read_bytes() for kind in ("json", "md", "png")}
    rows = json.loads(written["json"])["rows"]
    assert written["md"].count(b"\n| ") == len(rows) + 1
    assert written["png"].startswith(b"\x89PNG")
    for row in rows:
        point, error = half_point(row["counts"])
        assert (row["measured"], row["error"]) == (point, error)
        assert len(row["counts"]) == TRIALS
        assert row["directional_excess"] == pytest.approx(100 * (row["directional"] - point) / SIZE)
        assert row["isotropic_excess"] == pytest.approx(100 * (row["isotropic"] - point) / SIZE)
        assert row["within"] == ("yes" if abs(row["directional_excess"]) <= 2 else "no")
        assert abs(row["directional"] - point) <= 1 + 4 * error
        assert row["directional"] <= row["isotropic"] + 1e-9
    for key in ("directional", "isotropic"):
        good = sum(abs(row[f"{key}_excess"]) <= 2 for row in rows)
        assert f"{key.capitalize()} k* within 2% of D of the Monte Carlo 50 % point: {good} of {len(rows)}" in str(
            written["md"], "utf-8"
        )
    isotropic, directional = (
        np.mean([abs(row[f"{key}_excess"]) for row in rows]) for key in ("isotropic", "directional")
    )
    assert isotropic > 5 * directional
    run_table("kinematics", suite, Run(tmp_path, command="test"))
    for kind in ("json", "md"):
        assert (folder / f"kinematics.{kind}").read_bytes() == written[kind]


def test_a_prediction_that_is_off_is_said_to_be(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        kept = 0.5 * SIZE

    monkeypatch.setattr(kinematics, "predicted", lambda case: Wrong())
    cell = next(cell for cell in kinematics.cells(suite) if cell.part["spectrum"] == "uniform")
    row = kinematics.run(cell, Bench(suite, None, tmp_path, tmp_path, False))
    assert row["measured"] > 0.6 * SIZE
    assert row["within"] == "no"
    assert row["directional_excess"] < -10


def draw(**changes: Any) -> Callable[[], object]:
    given = {"eigenvalues": np.ones(3), "removed": np.ones(3), "epsilon": 0.1, "trials": 2} | changes
    return lambda: sublevel_crossings(**given)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (draw(removed=np.ones(2)), r"removed: expected components like the \(3,\) eigenvalues, got \(2,\)"),
        (draw(gradient=np.ones(4)), "removed: expected components"),
        (draw(eigenvalues=np.array([1.0, -1.0, 1.0])), "eigenvalues: expected numbers >= 0, got -1"),
        (draw(eigenvalues=np.array([1.0, 0.0, 1.0]), gradient=np.ones(3)), "gradient: expected zeros where"),
        (draw(epsilon=0.0), "epsilon: expected a positive"),
        (draw(epsilon=math.inf), "epsilon: expected a positive"),
        (draw(trials=0), "trials: expected at least 1"),
        (lambda: half_point([3]), "counts: expected at least 2"),
        (lambda: half_point([]), "counts: expected at least 2"),
    ],
)
def test_bad_input_is_told_in_one_line(build: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
