"""The numbers of the README against the files that give them."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FORECAST = ROOT / "docs" / "results" / "forecast"
COLUMNS = ("one_shot", "retuned", "sparsity", ("low", "high"), "true", "bound", "formula")


def percent(row, key):
    if isinstance(key, tuple):
        low, high = (100 * row[name] for name in key)
        return f"{low:.1f} to {high:.1f} %"
    return "-" if row[key] is None else f"{100 * row[key]:.1f} %"


def test_the_table_of_truth_is_that_of_the_results():
    ladder = json.loads((FORECAST / "forecast-ladder.json").read_text())["rows"]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if "|" in line]
    rows = [cells for cells in lines if len(cells) == 10 and cells[0] not in {"network", "---"}]
    assert len(rows) == 10
    for model, data, _, *numbers in rows:
        (row,) = [row for row in ladder if (row["model"], row["dataset"]) == (model, data)]
        assert numbers == [percent(row, key) for key in COLUMNS], model


def test_counts_and_factors_are_those_of_the_results():
    ladder = json.loads((FORECAST / "forecast-ladder.json").read_text())["rows"]
    within = sum(row["within"] == "yes" for row in ladder)
    assert f"{within} of the {len(ladder)} true sparsities lie within the interval" in README
    fresh = json.loads((FORECAST / "fresh.json").read_text())["rows"]
    inside = sum(row["within"] == "yes" for row in fresh)
    assert f"{inside} of {len(fresh)} true sparsities of [nine fresh networks]" in README
    assert len({row["network"] for row in fresh}) == 9
    skill = json.loads((FORECAST / "forecast-skill.json").read_text())["rows"]
    (shipped,) = [row for row in skill if row["predictor"] == "re-tuned, one-shot"]
    assert f"within a factor of {shipped['within']:.1f} of" in README
    (times,) = re.findall(r"per round keeps ([\d.]+) times", (FORECAST / "forecast.md").read_text())
    assert re.search(rf"per round keeps\s+{times} times", README)


def test_the_demo_is_what_the_demo_prints():
    printed = (ROOT / "docs" / "results" / "demo.txt").read_text()
    (block,) = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines():
        assert line.rstrip(".)") in printed, line


def test_the_shipped_calibration_is_that_of_the_results():
    shipped = json.loads((ROOT / "pruning_limits" / "forecast.json").read_text())
    rules = json.loads((FORECAST / "forecast-skill.json").read_text())["rules"]
    names = ("features", "intercept", "slopes", "low", "high")
    assert [{name: rule[name] for name in names} for rule in rules] == shipped["rules"]
    assert shipped["version"] in (FORECAST / "fresh.md").read_text()
    assert shipped["version"] in (ROOT / "docs" / "results" / "demo.txt").read_text()
