"""The table of patterns: its cells, its truths by hand, and what it says."""

import copy
import json

import pytest
import torch
from torch import nn

from pruning_limits import PruningLimit
from validation.studies.limits.patterns import TABLE, PatternSettings, factor
from validation.studies.limits.predicted import LimitSettings
from validation.tables.discovery import tables
from validation.tables.suite import Suite
from validation.training import Network, Recipe, train

RECIPE = Recipe(epochs=2, lr=0.05, warmup=1)
SUITE = Suite(
    "tiny",
    (Network("cnn-tiny", "digits", RECIPE, 0),),
    (
        LimitSettings(samples=64, steps=4, probes=1, tolerance=0.1),
        PatternSettings(names=("unstructured", "2:4", "channels", "heads"), epsilon=0.1, evaluations=1),
    ),
)


def test_it_is_one_of_the_tables():
    assert tables()["patterns"] is TABLE


def test_a_ratio_of_kept_fractions_leaves_out_runs_and_what_is_missing():
    rows = [
        {"a": 0.8, "b": 0.9, "pattern": "channels"},
        {"a": 0.8, "b": 0.95, "pattern": "channels"},
        {"a": 0.1, "b": 0.9, "pattern": "2:4"},
        {"a": 1.0, "b": 0.9, "pattern": "channels"},
        {"a": None, "b": 0.9, "pattern": "channels"},
    ]
    mean, spread = factor(rows, "a", "b")
    assert mean == pytest.approx(8**0.5)
    assert spread == pytest.approx(2 ** (0.5**0.5))
    assert factor(rows[2:], "a", "b") is None
    assert factor([row | {"most": 0.95} for row in rows], "a", "b")[0] == pytest.approx(2)


def test_rows_are_those_of_networks_that_are_pruned_and_trained_by_hand(tmp_path, digits):
    from validation.tables.table import Bench

    rows = {}
    for cell in TABLE.cells(SUITE):
        bench = Bench(SUITE, digits, tmp_path, tmp_path, progress=False)
        rows[cell.part["pattern"]] = TABLE.run(cell, bench)
        model = bench.model(cell.network)
    assert rows["heads"]["reason"] == "no layer fits"
    row = rows["2:4"]
    weights = {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}
    masks = {}
    for name, weight in weights.items():
        if weight.shape[1] % 4:
            masks[name] = torch.ones_like(weight, dtype=torch.bool)
            continue
        runs = weight.movedim(1, -1).reshape(-1, 4)
        largest = runs.abs().argsort(dim=1, descending=True)[:, :2]
        kept = torch.zeros_like(runs, dtype=torch.bool).scatter_(1, largest, True)
        masks[name] = kept.reshape(weight.movedim(1, -1).shape).movedim(-1, 1)
    total = sum(weight.numel() for weight in weights.values())
    assert row["most"] == pytest.approx(1 - sum(int(mask.sum()) for mask in masks.values()) / total)
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            pruned.get_parameter(name).mul_(mask)

    def loss(network):
        x, y = (
            torch.cat([x for x, _ in digits.batches("train", 1000)]),
            torch.cat([y for _, y in digits.batches("train", 1000)]),
        )
        with torch.no_grad():
            return float(nn.functional.cross_entropy(network.eval()(x), y))

    dense = loss(model)
    assert row["one_shot_rise"] == pytest.approx(loss(pruned) - dense, abs=1e-5)
    limit = PruningLimit.from_json(next(tmp_path.glob("pattern-limit-*")) / "limit.json")
    tuned, _ = limit.for_pattern("2:4").retune(model, digits.batches("train", 1000))
    assert row["retuned_rise"] == pytest.approx(loss(tuned) - dense, abs=1e-5)
    assert row["retuned"] == (row["most"] if row["retuned_rise"] <= 0.1 else row["one_shot"])
    with torch.no_grad():
        right = torch.cat([model(x).argmax(1) == y for x, y in digits.batches("test", 1000)]).double().mean()
    assert (row["dense_loss"], row["dense_accuracy"]) == (pytest.approx(dense), pytest.approx(float(right)))
    train(pruned, digits, RECIPE, 1000, masks=masks)
    assert row["again_rise"] == pytest.approx(loss(pruned) - dense, abs=1e-5)
    assert row["again"] == (row["most"] if row["again_rise"] <= 0.1 else 0.0)
    for name in ("unstructured", "channels"):
        assert rows[name]["again"] >= rows[name]["one_shot"]
        assert rows[name]["one_shot"] <= rows[name]["retuned"] <= rows[name]["most"]
        assert len(rows[name]["trials"]) == 1
    TABLE.write(list(rows.values()), SUITE, tmp_path, "a command")
    text = (tmp_path / "patterns.md").read_text()
    assert "heads: fits no layer of these networks." in text
    assert "2:4: one-shot: holds in " in text
    assert f"cnn-tiny on digits, seed 0: {dense:.3g}, {float(right):.1%}." in text
    assert (tmp_path / "patterns.png").exists()
    stored = json.loads((tmp_path / "patterns.json").read_text())["rows"]
    assert [stored_row["pattern"] for stored_row in stored] == ["unstructured", "2:4", "channels", "heads"]


def test_unknown_patterns_are_refused():
    from estimators import UserError

    with pytest.raises(UserError, match=r"^pattern: expected unstructured"):
        PatternSettings(names=("rows",))
