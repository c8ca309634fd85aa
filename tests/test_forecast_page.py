from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.forecast_bench import MODELS, planted_cases
from validation.studies.limits.calibration import Case, calibrated
from validation.studies.limits.forecast_page import SHOWN, Skill, write_skill
from validation.studies.limits.forecast_skill import PREDICTORS, RULES, covered, skill_rows


def skill_of(cases: list[Case]) -> Skill:
    rules = [calibrated(cases, features) for features in RULES]
    return Skill(cases, skill_rows(cases), rules, [covered(cases, features) for features in RULES])


@pytest.fixture(scope="module")
def skill() -> Skill:
    return skill_of(planted_cases("re-tuned"))


@pytest.fixture(scope="module")
def folder(skill: Skill, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_skill(folder, "the command", skill)
    return folder


def test_the_page_lists_every_predictor_the_best_one_first(folder: Path) -> None:
    lines = (folder / "forecast-skill.md").read_text().splitlines()
    table = [line.split(" | ") for line in lines if line.startswith("| ")][1:]
    assert sorted(cells[0].strip("| ") for cells in table) == sorted(predictor.name for predictor in PREDICTORS)
    assert [float(cells[2]) for cells in table] == sorted(float(cells[2]) for cells in table)
    assert "re-tuned" in table[0][0]
    assert "re-tuned" not in table[-1][0]
    kinds = {cells[0].strip("| "): cells[1] for cells in table}
    assert kinds == {predictor.name: "baseline" if predictor.baseline else "curvature" for predictor in PREDICTORS}


def test_the_page_tells_rules_coverage_and_families(folder: Path, skill: Skill) -> None:
    text = (folder / "forecast-skill.md").read_text()
    assert "Made by `the command`." in text
    assert "32 networks, 96 cases that all predictors know." in text
    for rule, coverage in zip(skill.rules, skill.coverage, strict=True):
        (line,) = (line for line in text.splitlines() if line.startswith(f"Rule of {', '.join(rule.features)}:"))
        assert f"{coverage.share:.1%} of the cases end within (nominal 90 %)" in line
        assert f"the interval is {np.exp(rule.low):.2f} to {np.exp(rule.high):.2f} times what is told" in line
        assert "On vision transformer and recurrent networks, by the other families alone: rms" in line
    (families,) = (line for line in text.splitlines() if line.startswith("By family that was left out"))
    assert all(f"{family} " in families for family in MODELS)
    assert families.count("4 networks") == len(MODELS)


def test_the_page_says_what_curvature_adds(folder: Path, skill: Skill) -> None:
    text = (folder / "forecast-skill.md").read_text()
    by_name = {row["predictor"]: row["rms"] for row in skill.rows}
    without, beside = by_name["one-shot alone"], by_name["one-shot, Hessian"]
    assert f"one-shot alone: {without:.3f}, with the Hessian {beside:.3f}" in text
    assert "re-tuned alone, 2,048 samples: " in text


def test_numbers_beside_the_page_are_complete(folder: Path) -> None:
    plain = json.loads((folder / "forecast-skill.json").read_text())
    assert len(plain["rows"]) == len(PREDICTORS)
    assert [tuple(rule["features"]) for rule in plain["rules"]] == list(RULES)
    assert all({"intercept", "slopes", "low", "high", "share", "factor"} <= set(rule) for rule in plain["rules"])
    assert {row["family"] for row in plain["families"]} == set(MODELS)
    assert set(plain["aside"]) == {", ".join(features) for features in RULES}
    assert all(row["rms"] > 1 for row in plain["aside"].values())


def test_the_figure_shows_every_family_in_four_panels(folder: Path) -> None:
    assert len(SHOWN) == 4
    assert all(isinstance(features, tuple) for features in SHOWN)
    with Image.open(folder / "forecast-skill.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    height, width, _ = pixels.shape
    assert min(height, width) > 1000
    colours = [(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167)]  # of the first families
    for rows in (slice(0, height // 2), slice(height // 2, height)):
        for columns in (slice(0, width // 2), slice(width // 2, width)):
            panel = pixels[rows, columns]
            for colour in colours:
                assert (np.abs(panel - colour).sum(-1) < 30).sum() > 100


def test_the_same_cases_give_the_same_bytes(folder: Path, skill: Skill, tmp_path: Path) -> None:
    write_skill(tmp_path, "the command", skill)
    for kind in ("json", "md", "png"):
        name = f"forecast-skill.{kind}"
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_page_without_families_kept_aside_is_silent_about_them(tmp_path: Path) -> None:
    write_skill(tmp_path, "the command", skill_of(planted_cases(families=6)))
    text = (tmp_path / "forecast-skill.md").read_text()
    assert "vision transformer" not in text
    assert "24 networks" in text
    assert set(json.loads((tmp_path / "forecast-skill.json").read_text())["aside"].values()) == {None}
