"""The table of splits: rows by hand, and what it says."""

import copy

import pytest
import torch

from estimators import Objective, UserError
from validation.studies.limits.splits import SPLITS, TABLE, SplitSettings, masks_of
from validation.tables.discovery import tables
from validation.tables.suite import Suite
from validation.tables.table import Bench
from validation.training import Network, Recipe, apply_masks, train

RECIPE = Recipe(epochs=1, lr=0.05, warmup=1)
SUITE = Suite("tiny", (Network("cnn-tiny", "digits", RECIPE, 0),), (SplitSettings(shares=(0.5,)),))


def test_rows_are_those_of_networks_that_are_pruned_and_trained_by_hand(tmp_path, digits):
    assert tables()["splits"] is TABLE
    bench = Bench(SUITE, digits, tmp_path, tmp_path, progress=False)
    rows = [TABLE.run(cell, bench) for cell in TABLE.cells(SUITE)]
    assert [row["budget"] for row in rows] == ["weights", "multiply-accumulates"]
    assert {row["model"] for row in rows} == {"cnn-tiny"}
    model = bench.model(SUITE.networks[0])
    objective = Objective(model, digits.batches("train", 1000))
    for row in rows:
        for key in SPLITS:
            masks = masks_of(objective, row["counts"][key])
            assert {name: int((~mask).sum()) for name, mask in masks.items()} == row["counts"][key]
            pruned = copy.deepcopy(model)
            apply_masks(pruned, masks)
            rise = Objective(pruned, digits.batches("train", 1000)).value() - objective.value()
            assert row[key] == pytest.approx(rise, abs=1e-6)
    counts = rows[0]["counts"]
    total = sum(weight.numel() for weight in objective.chosen.values())
    assert {sum(split.values()) for split in counts.values()} == {(total + 1) // 2}
    masks = masks_of(objective, counts["uniform"])
    pruned = copy.deepcopy(model)
    apply_masks(pruned, masks)
    train(pruned, digits, RECIPE, 1000, masks=masks)
    rise = Objective(pruned.eval(), digits.batches("train", 1000)).value() - objective.value()
    assert rows[0]["uniform_again"] == pytest.approx(rise, abs=1e-6)
    TABLE.write(rows, SUITE, tmp_path, "a command")
    text = (tmp_path / "splits.md").read_text()
    assert "After pruning the least rise has, ties included: " in text
    assert (tmp_path / "splits.png").exists()
    assert all(torch.isfinite(torch.tensor(row[key])) for row in rows for key in SPLITS)


def test_shares_are_checked():
    with pytest.raises(UserError, match=r"^splits: shares must be in \(0, 1\)"):
        SplitSettings(shares=(1.0,))
