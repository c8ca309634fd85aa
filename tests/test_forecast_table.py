from __future__ import annotations

import dataclasses
import json
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pruning_limits.forecast import RANGED, Forecast, Rule
from tests.forecast_bench import planted_rows
from validation.studies.limits import forecast, forecast_truths
from validation.studies.limits.calibration import calibrated, fitted, left_out
from validation.studies.limits.forecast import ForecastSettings
from validation.studies.limits.forecast_curves import Level, crossing
from validation.studies.limits.forecast_page import LEVEL
from validation.studies.limits.forecast_skill import ASIDE, RULES, cases_of, family_of, network_name
from validation.tables.reading import load_suite
from validation.tables.runner import Run, run_table
from validation.tables.suite import Suite

Row = dict[str, Any]
MODELS = """
from torch import nn

def small(shape, classes):
    return nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, classes))

def deep(shape, classes):
    layers = [nn.Linear(16, 10), nn.Tanh(), nn.Linear(10, 9), nn.Tanh(), nn.Linear(9, classes)]
    return nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), *layers)
"""
SUITE = """
[forecast]
rises = [0.1, 0.5]
drops = [0.1]
runs = 2
retuned = [64]
iterative = 2
optimised = 200
[[network]]
model = "{models}:small"
dataset = "digits-120"
recipe = {{ epochs = 8, lr = 0.2, batch_size = 40, l2 = 1e-3 }}
[[network]]
model = "{models}:deep"
dataset = "digits-120"
recipe = {{ epochs = 8, lr = 0.05, batch_size = 40, optimizer = "adamw", decay = 0.01 }}
"""
FILES = [f"little/{name}.{kind}" for name in ("forecast", "forecast-skill") for kind in ("json", "md")]
SOME = Forecast("some", 30, 5, 0.9, (), (Rule(("hessian",), 0.0, (1.0,), -0.1, 0.1),))
OTHER = dataclasses.replace(SOME, version="other", rules=(Rule(("hessian",), -1.0, (0.5,), -1.0, 1.0),))


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    folder = tmp_path_factory.mktemp("suites")
    (folder / "nets.py").write_text(MODELS)
    (folder / "little.toml").write_text(SUITE.format(models=folder / "nets.py"))
    return load_suite(str(folder / "little.toml"))


@pytest.fixture(scope="module", autouse=True)
def quick(one_thread: None) -> Iterator[None]:
    """A calibration that the package does not ship, so that nothing depends on the one that it does; a short search."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forecast, "shipped", lambda: SOME)
        patch.setattr(forecast_truths, "ITERATIONS", 8)
        yield


def run(suite: Suite, out: Path) -> None:
    """Run the table in a process of its own, with another calibration."""
    torch.set_num_threads(1)
    Forecast.shipped = lambda: OTHER  # type: ignore[method-assign]
    forecast_truths.ITERATIONS = 8
    run_table("forecast", suite, Run(out, command="test"))


@pytest.fixture(scope="module")
def whole(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of runs that nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    assert run_table("forecast", suite, Run(out, command="test")) == out / "little"
    return out


@pytest.fixture(scope="module")
def rows(whole: Path) -> list[Row]:
    files = whole.glob("forecast-*/row.json")
    return sorted((json.loads(file.read_text()) for file in files), key=lambda row: row["parameters"])


# ------------------------------------------------------------------------------------------------- a small suite


def test_every_level_of_every_network_is_told_by_every_curve(rows: list[Row]) -> None:
    assert [row["parameters"] for row in rows] == [156, 340]
    for row in rows:
        assert [(level["key"], level["allowed"]) for level in row["levels"]][1:] == [
            ("rise", 0.1),
            ("rise", 0.5),
            ("drop", 0.1),
            ("held_out_drop", 0.1),
        ]
        curves = {"alone", "again-0", "again-1", "retuned-64"}
        assert row["curves"].keys() == curves | ({"iterative", "optimised"} if row["parameters"] == 156 else set())
        for level in row["levels"]:
            for name, points in row["curves"].items():
                assert level[name] == crossing(points, Level(level["name"], level["key"], level["allowed"]))
        ends = [level for level in row["levels"] if level["again-0"] is not None and level["again-1"] is not None]
        assert len(ends) >= 2
    assert rows[0]["recipe"].startswith("epochs 8, lr 0.2, momentum 0.9, l2 0.001, batch_size 40")
    assert rows[1]["recipe"].endswith("optimizer adamw, decay 0.01")


def test_every_level_has_what_spectra_tell(rows: list[Row]) -> None:
    for row in rows:
        for level in row["levels"]:
            assert all(0 < level[key] < 1 for key in ("hessian", "hessian_clipped", "ggn", "ggn_fitted", "directional"))
            assert level["hessian_clipped"] < level["hessian"]
            assert (level["hessian_objective"] != level["hessian"]) is (row["parameters"] == 156)
            assert ("schur" in level) is (row["parameters"] == 156)
        rises = sorted(row["levels"][:3], key=lambda level: level["allowed"])
        for key in ("hessian", "ggn", "directional"):
            kept = [level[key] for level in rises]
            assert kept == sorted(kept, reverse=True)


def test_the_page_lists_the_networks_and_says_that_there_are_too_few(whole: Path, suite: Suite) -> None:
    folder = whole / "little"
    text = (folder / "forecast.md").read_text()
    assert "2 networks, 2 families" in text
    assert "Truth is the geometric mean of 2 such runs" in text
    assert "| kept at batch-std: one-shot |" in text  # the suite has no level of three hundredths
    for model, weights in zip((network.model for network in suite.networks), (156, 340), strict=True):
        assert f"| {model} | {model} | digits-120 | {weights} |" in text  # a family of its own
    skill = (folder / "forecast-skill.md").read_text()
    assert "No calibration: forecast: needs networks of two families at least, got ." in skill
    assert not (folder / "calibration.json").exists()
    assert not (folder / "forecast-skill.png").exists()
    levels = json.loads((folder / "forecast.json").read_text())["levels"]
    assert [row["parameters"] for row in levels] == [156, 340]
    assert not any("curves" in row for row in levels)


def killed(suite: Suite, out: Path, forking: Any, pattern: str) -> bool:
    """Begin or go on in a process of its own, and kill it when a file is there."""
    process = forking.Process(target=run, args=(suite, out))
    process.start()
    deadline = time.monotonic() + 240
    while not list(out.glob(pattern)) and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.join()
    return bool(process.exitcode == -signal.SIGKILL)


def test_a_bench_that_is_killed_twice_ends_in_the_same_bytes(
    suite: Suite, whole: Path, forking: Any, tmp_path: Path
) -> None:
    assert killed(suite, tmp_path, forking, "forecast-*/again-1.json")
    assert not list(tmp_path.glob("forecast-*/row.json"))
    assert killed(suite, tmp_path, forking, "forecast-*/row.json")
    assert not (tmp_path / FILES[0]).exists()
    run_table("forecast", suite, Run(tmp_path, command="test"))
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize(("often", "wanted"), [(0, []), (1, [0, 1, 2, 3, 4]), (3, [0, 3])])
def test_one_of_so_many_networks_is_pruned_iteratively(suite: Suite, often: int, wanted: list[int]) -> None:
    networks = tuple(dataclasses.replace(suite.networks[0], seed=seed) for seed in range(5))
    settings = dataclasses.replace(suite.settings(ForecastSettings), iterative=often)
    cells = forecast.cells(dataclasses.replace(suite, networks=networks).replaced(settings))
    assert [cell.network for cell in cells] == list(networks)
    assert [number for number, cell in enumerate(cells) if cell.part["iterative"]] == wanted


# ------------------------------------------------------------------------------------------------- a calibration


@pytest.fixture(scope="module")
def planted() -> list[Row]:
    return planted_rows("one-shot")


@pytest.fixture(scope="module")
def written(planted: list[Row], suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    forecast.write(planted, suite, folder, "the command")
    return folder


def test_enough_networks_make_a_calibration_that_the_package_reads(written: Path, planted: list[Row]) -> None:
    calibration, cases = Forecast.read(written / "calibration.json"), cases_of(planted)
    assert (calibration.networks, calibration.families, calibration.coverage) == (32, 8, 0.9)
    assert calibration.rules == tuple(calibrated(cases, features) for features in RULES)
    for name, low, high in calibration.ranges:
        values = [case.features[name] for case in cases]
        assert (low, high) == (min(values), max(values))
    assert tuple(name for name, _, _ in calibration.ranges) == RANGED
    for case in cases[:9]:
        told = calibration.of(case.features)
        assert told is not None
        assert told.kept == pytest.approx(0.6 * case.features["one-shot"] ** 0.8, rel=0.15)
        assert told.outside == ()


def test_the_rows_of_a_calibration_are_its_cases_with_the_residuals_of_families_left_out(
    written: Path, planted: list[Row]
) -> None:
    plain, cases = json.loads((written / "calibration.json").read_text()), cases_of(planted)
    residuals = left_out(cases, lambda part: fitted(part, RULES[0]))
    assert [row["residual"] for row in plain["rows"]] == pytest.approx(residuals, rel=1e-4)
    assert [row["kept"] for row in plain["rows"]] == pytest.approx([case.kept for case in cases], rel=1e-4)
    assert [row["network"] for row in plain["rows"]] == [case.network for case in cases]
    told = [row["hessian"] for row in plain["rows"]]
    assert told == pytest.approx([case.features["hessian"] for case in cases], rel=1e-4)


def test_the_version_names_the_calibration(
    written: Path, planted: list[Row], suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("skill_rows", "covered", "write_skill", "ladder_rows", "write_ladder"):
        monkeypatch.setattr(forecast, name, lambda *_: None)
    forecast.write(planted, suite, tmp_path / "again", "another command")
    same, first = (folder / "calibration.json" for folder in (tmp_path / "again", written))
    assert same.read_bytes() == first.read_bytes()
    changed = json.loads(json.dumps(planted))
    changed[0]["levels"][0]["again-0"] *= 1.01
    forecast.write(changed, suite, tmp_path / "changed", "the command")
    versions = {Forecast.read(file).version for file in (first, tmp_path / "changed" / "calibration.json")}
    assert len(versions) == 2
    assert all(len(version) == 8 for version in versions)


def test_a_suite_that_trains_nothing_again_has_no_cells(suite: Suite) -> None:
    assert forecast.cells(suite.replaced(ForecastSettings())) == []


def test_the_table_stands_beside_the_calibration(written: Path) -> None:
    pages = ("forecast", "forecast-ladder", "forecast-skill")
    names = ["calibration.json", "forecast-skill.png", *(f"{page}.{kind}" for page in pages for kind in ("json", "md"))]
    assert sorted(file.name for file in written.iterdir()) == sorted(names)
    plain = json.loads((written / "forecast.json").read_text())
    assert len(plain["rows"]) == len(plain["levels"]) == 32
    assert "Made by `the command`." in (written / "forecast-skill.md").read_text()
    text = (written / "forecast.md").read_text()
    assert "32 networks, 8 families, 96 of 96 levels end within the grid" in text
    assert "times the one-step truth, spread x" in text


def test_the_list_shows_what_is_kept_at_a_rise_of_three_hundredths(written: Path, planted: list[Row]) -> None:
    rows = json.loads((written / "forecast.json").read_text())["rows"]
    for line, row in zip(rows, planted, strict=True):
        level = next(level for level in row["levels"] if level["allowed"] == 0.03)
        assert line["again"] == pytest.approx(math.sqrt(level["again-0"] * level["again-1"]))
        assert (line["alone"], line["hessian"]) == (level["alone"], level["hessian"])
    assert "| kept at loss +0.03: one-shot |" in (written / "forecast.md").read_text()


def test_the_ladder_is_told_by_rules_of_other_families(written: Path, planted: list[Row]) -> None:
    lines = json.loads((written / "forecast-ladder.json").read_text())["rows"]
    cases = cases_of(planted)
    assert len(lines) == len(planted) == 32
    for line, row in zip(lines, planted, strict=True):
        (case,) = (c for c in cases if (c.level, c.network) == (LEVEL, network_name(row)))
        rule = calibrated([c for c in cases if c.family != case.family], RULES[0])
        told = [min(1.0, math.exp(rule.logarithm(case.features) + end)) for end in (rule.high, 0.0, rule.low)]
        assert [1 - line[key] for key in ("low", "sparsity", "high")] == pytest.approx(told)
        assert line["true"] == pytest.approx(1 - case.kept)
        assert line["within"] == ("yes" if told[2] <= case.kept <= told[0] else "no")
    within = sum(line["within"] == "yes" for line in lines)
    assert within > 24
    assert f"{within} of 32 ends lie within its interval" in (written / "forecast-ladder.md").read_text()


def test_too_few_networks_say_how_many_are_needed(suite: Suite, tmp_path: Path) -> None:
    rows = planted_rows(each=1)
    for row in rows:
        for level in row["levels"]:
            del level["again-1"]  # one run, which has no spread
    forecast.write(rows, suite, tmp_path, "the command")
    text = (tmp_path / "forecast-skill.md").read_text()
    assert "No calibration: forecast: 8 networks are too few for an interval of 90%; at least 9 are needed." in text
    assert not (tmp_path / "calibration.json").exists()
    text = (tmp_path / "forecast.md").read_text()
    assert "8 networks, 8 families, 24 of 24 levels end within the grid." in text
    assert "nan" not in text


def test_networks_kept_aside_may_be_too_many_for_a_rule_of_the_others(suite: Suite, tmp_path: Path) -> None:
    rows = [row for row in planted_rows() if family_of(row["model"]) in ASIDE or row["seed"] == 0]
    assert len(rows) == 14  # six without those kept aside
    forecast.write(rows, suite, tmp_path, "the command")
    assert Forecast.read(tmp_path / "calibration.json").networks == 14
    assert "by the other families alone" not in (tmp_path / "forecast-skill.md").read_text()
