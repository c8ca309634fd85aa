"""The tables ``koopman-*`` on a tiny suite, and verdicts that follow the rows."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import seeded
from torch import nn

from estimators import UserError
from validation.data import ImageData
from validation.dmd import dmd
from validation.masks import overlap
from validation.pruners.magnitude import magnitude_masks
from validation.studies.koopman import cost as koopman_cost
from validation.studies.koopman import epochs as koopman_epochs
from validation.studies.koopman import equivalence as koopman_equivalence
from validation.studies.koopman import limit as koopman_limit
from validation.studies.koopman import recording
from validation.studies.koopman import spectrum as koopman_spectrum
from validation.studies.koopman.dmd_cost import by_full_svd, measured, synthetic
from validation.studies.koopman.recording import KoopmanSettings
from validation.tables.claims import judged, verdict
from validation.tables.discovery import tables
from validation.tables.kinds import averaged
from validation.tables.reading import load_suite
from validation.tables.runner import Run, run_table
from validation.tables.storage import load_tensors
from validation.tables.table import Bench
from validation.training import Course, train

Row = dict[str, Any]
NAMES = ("koopman-cost", "koopman-epochs", "koopman-equivalence", "koopman-limit", "koopman-spectrum")
SUITE = """
[limit]
samples = 64
steps = 4
probes = 1
[early]
samples = 64
steps = 4
[koopman]
epochs = [1, 2]
compressions = [1, 4]
batch_size = 140
share = 0.001
svd_share = 0.001
[[network]]
model = "fc3-tiny"
dataset = "digits"
seeds = [0, 1]
recipe = { epochs = 3, lr = 0.05, batch_size = 70 }
"""


@pytest.fixture(autouse=True)
def one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the cost of one of the paper's sizes only: every process takes seconds to start."""
    monkeypatch.setattr(koopman_cost, "PAPER", {"mnistnet": koopman_cost.PAPER["mnistnet"]})


# ------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("name", NAMES)
def test_every_table_writes_its_schema_and_resumes_to_the_same_bytes(name: str, runs: Path, suite_file: Path) -> None:
    suite = load_suite(str(suite_file))
    folder = run_table(name, suite, Run(runs, command="test"))
    written = {kind: (folder / f"{name}.{kind}").read_bytes() for kind in ("json", "md", "png")}
    plain = json.loads(written["json"])
    assert {"title", "rows", "environment"} <= set(plain)
    lines = written["md"].decode().splitlines()
    last = max(number for number, line in enumerate(lines) if line.startswith("|--"))
    assert len(lines[last + 1 :]) == len(plain["rows"])
    assert "reproduced**" in written["md"].decode()
    assert written["png"].startswith(b"\x89PNG")
    run_table(name, suite, Run(runs, command="test"))
    for kind in ("json", "md"):
        assert (folder / f"{name}.{kind}").read_bytes() == written[kind]


@pytest.mark.parametrize(
    ("name", "count"),
    [("koopman-equivalence", 6), ("koopman-spectrum", 3), ("koopman-epochs", 3), ("koopman-limit", 2)],
)
def test_seeds_are_averaged_and_every_epoch_has_its_rows(name: str, count: int, runs: Path, suite_file: Path) -> None:
    folder = run_table(name, load_suite(str(suite_file)), Run(runs, command="test"))
    rows = json.loads((folder / f"{name}.json").read_text())["rows"]
    assert len(rows) == count
    assert {row["seeds"] for row in rows} == {2}


def test_nothing_large_is_left_behind(runs: Path, suite_file: Path) -> None:
    for name in NAMES:
        run_table(name, load_suite(str(suite_file)), Run(runs, command="test"))
    left = {path.name for path in runs.glob("*/*") if path.is_file()}
    assert not any(name.endswith(".npy") or name.startswith(("branch", "recording")) for name in left)
    assert len(list(runs.glob("koopman-run-*"))) == 2


def test_an_unpruned_network_is_the_same_by_every_method(runs: Path, suite_file: Path) -> None:
    folder = run_table("koopman-equivalence", load_suite(str(suite_file)), Run(runs, command="test"))
    rows = json.loads((folder / "koopman-equivalence.json").read_text())["rows"]
    for row in rows:
        if row["compression"] == 1:
            assert row["kmp"] == row["gmp"] == row["lsp"]
            assert row["kmp_refined"] == row["gmp_refined"] == row["lsp_refined"]
            assert row["overlap"] == 1
        assert row["sparsity"] == pytest.approx(1 - 1 / row["compression"])


def test_a_reduced_study_refines_where_the_suite_says_and_trains_no_branch(
    runs: Path, suite_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "reduced.toml"
    path.write_text(
        suite_file.read_text().replace("[koopman]", '[koopman]\nrefined = ["1", "converged"]\nbranches = []')
    )
    suite = load_suite(str(path))
    folder = run_table("koopman-equivalence", suite, Run(runs, command="test"))
    for row in json.loads((folder / "koopman-equivalence.json").read_text())["rows"]:
        assert (row["kmp_refined"] is None) == (row["label"] == "2")
        assert row["kmp"] is not None
    text = (folder / "koopman-equivalence.md").read_text()
    assert "Refined at epoch 1, converged only." in text
    assert "converged, both beat LSP at every compression below 16" in text
    folder = run_table("koopman-epochs", suite, Run(runs, command="test"))
    plain = json.loads((folder / "koopman-epochs.json").read_text())
    assert plain["barriers"] == []
    assert len(plain["rows"]) == 3
    assert "K9" not in (folder / "koopman-epochs.md").read_text()
    folder = run_table("koopman-spectrum", suite, Run(runs, command="test"))
    pruned = json.loads((folder / "koopman-spectrum.json").read_text())["pruned"]
    assert all(row["jgp_refined"] is None for row in pruned)


def test_a_study_of_one_network_refines_nothing_and_branches_off_for_one_seed(
    runs: Path, suite_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "reduced.toml"
    path.write_text(suite_file.read_text().replace("[koopman]", "[koopman]\nrefined = []\nbranches = [1]"))
    suite = load_suite(str(path))
    folder = run_table("koopman-equivalence", suite, Run(runs, command="test"))
    rows = json.loads((folder / "koopman-equivalence.json").read_text())["rows"]
    assert all(row["kmp_refined"] is None for row in rows)
    text = (folder / "koopman-equivalence.md").read_text()
    assert "No network was refined." in text
    assert "K1" in text
    assert "K2" not in text
    folder = run_table("koopman-epochs", suite, Run(runs, command="test"))
    plain = json.loads((folder / "koopman-epochs.json").read_text())
    assert {row["seeds"] for row in plain["rows"]} == {2}
    assert {row["seeds"] for row in plain["barriers"]} == {1}
    assert "K9" in (folder / "koopman-epochs.md").read_text()


def test_accuracy_is_measured_where_the_suite_says(runs: Path, suite_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "reduced.toml"
    path.write_text(suite_file.read_text().replace("[koopman]", '[koopman]\nmeasured = ["2"]\nrefined = []'))
    folder = run_table("koopman-equivalence", load_suite(str(path)), Run(runs, command="test"))
    rows = json.loads((folder / "koopman-equivalence.json").read_text())["rows"]
    assert {row["label"] for row in rows} == {"1", "2", "converged"}
    assert all((row["kmp"] is None) == (row["label"] != "2") for row in rows)
    assert all(row["kmp_refined"] is None and row["overlap"] is not None for row in rows)
    first, *_ = koopman_equivalence.words(rows)
    assert "K1" in first
    assert "accuracies" not in first
    assert "Accuracy at epoch 2 only. No network was refined." in (folder / "koopman-equivalence.md").read_text()


# ------------------------------------------------------------------------------------------------- recording


def bench_of(suite_file: Path, out: Path, digits: ImageData) -> Bench:
    return Bench(load_suite(str(suite_file)), digits, out, out, False)


def test_recorded_epochs_lie_on_one_training_run(
    suite_file: Path, tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(suite_file, tmp_path, digits)
    network = bench.suite.networks[0]
    decompose, calls = recording.dmd, []

    def interrupted(snapshots: Any) -> Any:
        calls.append(np.array(snapshots))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return decompose(snapshots)

    monkeypatch.setattr(recording, "dmd", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recording.recording(network, bench)
    training = recording.recording(network, bench)
    assert (training.network.recipe.batch_size, training.network.recipe.lr) == (140, pytest.approx(0.1))
    assert [point.label for point in training.points] == ["1", "2", "converged"]
    assert [point.steps for point in training.points] == [10, 10, 10]
    states: dict[int, np.ndarray[Any, Any]] = {}
    model = recording.fresh_network(network, digits)

    def keep(step: int, model: nn.Module) -> None:
        states[step] = recording.flatten(list(recording.recorded_parameters(model).values())).numpy().copy()

    train(model, digits, training.network.recipe, network.seed, course=Course(on_step=keep))
    assert np.array_equal(calls[1], calls[2])
    for point, end in zip(training.points[:2], (10, 20), strict=True):
        assert np.array_equal(point.weights.numpy(), states[end])
    assert np.array_equal(calls[-1][0], states[10])
    assert np.array_equal(calls[-1][-1], states[20])
    assert np.array_equal(training.final_weights.numpy(), states[30])
    fixed = decompose(calls[0]).mode(0)
    assert training.points[0].fixed.numpy() == pytest.approx(fixed, rel=1e-5, abs=1e-6)


def test_a_branch_in_the_runs_own_order_ends_where_the_run_ends(
    suite_file: Path, tmp_path: Path, digits: ImageData
) -> None:
    bench = bench_of(suite_file, tmp_path, digits)
    network = bench.suite.networks[0]
    training = recording.recording(network, bench)
    same = recording.branch(training, bench, training.points[0], network.seed, tmp_path)
    shuffled = recording.branch(training, bench, training.points[1], network.seed + 1, tmp_path)
    final = training.final.state_dict()
    assert all(torch.equal(value, final[name]) for name, value in same.state_dict().items())
    assert not all(torch.equal(value, final[name]) for name, value in shuffled.state_dict().items())
    assert koopman_epochs.barrier(training.final, same, digits) == 0
    assert load_tensors(training.state(training.points[0]))["step"] == 10


def test_batch_norm_is_measured_at_every_point_of_a_line(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8, momentum=0.3), nn.Dropout()))
    model.float().eval()
    monkeypatch.setattr(koopman_epochs, "NORM_BATCHES", 2)
    monkeypatch.setattr(koopman_epochs, "NORM_BATCH", 100)
    order = digits.train_y.sort().indices  # as data are stored in some sets
    by_class = replace(digits, train_x=digits.train_x[order], train_y=digits.train_y[order])
    drawn = list(islice(by_class.batches("train", 100).shuffled(0, 0), 2))
    assert all(len(y.unique()) == 10 for _, y in drawn)
    koopman_epochs.measure_norms(model, by_class)
    parts = [model[:2](x) for x, _ in drawn]
    assert torch.allclose(model[2].running_mean, torch.stack(parts).mean((0, 1)), atol=1e-6)
    assert torch.allclose(model[2].running_var, torch.stack([part.var(0) for part in parts]).mean(0), rtol=1e-5)
    assert not any(module.training for module in model.modules())
    assert model[2].momentum == 0.3
    twin = copy.deepcopy(model)
    twin[2].running_mean.fill_(99.0)
    assert koopman_epochs.barrier(model, twin, digits) == 0


def test_the_recipe_keeps_its_batches_where_the_suite_says_nothing(suite_file: Path) -> None:
    suite = load_suite(str(suite_file))
    plain = suite.replaced(replace(suite.settings(KoopmanSettings), batch_size=None))
    assert recording.recipe_of(suite.networks[0], plain) == suite.networks[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("epochs = [0]", "koopman: epochs must be at least 1, got 0"),
        ("compressions = [0.5]", "koopman: compressions must be one or more numbers >= 1"),
        ("compressions = []", "koopman: compressions must be one or more numbers >= 1"),
        ("batch_size = 0", "koopman: batch_size must be at least 1"),
        ("share = 1.5", r"koopman: share and svd_share must be in \(0, 1\], got 1.5"),
        ("steps = 3", "unknown key 'steps'"),
    ],
)
def test_settings_out_of_range_are_refused(line: str, message: str, tmp_path: Path) -> None:
    head, tail = SUITE.split("[koopman]")
    path = tmp_path / "wrong.toml"
    path.write_text(f"{head}[koopman]\n{line}\n[[network]]{tail.split('[[network]]')[1]}")
    with pytest.raises(UserError, match=message):
        load_suite(str(path))


# ------------------------------------------------------------------------------------------------- cost


def test_both_methods_find_the_same_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "snapshots.npy"
    synthetic(path, 400, 12)
    snapshots = np.load(path, mmap_mode="r")
    full, streamed = by_full_svd(snapshots), dmd(snapshots).mode(0)
    cosine = abs(np.vdot(full, streamed)) / np.linalg.norm(full) / np.linalg.norm(streamed)
    assert cosine == pytest.approx(1, abs=1e-8)
    with pytest.raises(UserError, match="method: expected one of snapshots, svd, got 'qr'"):
        measured(path, "qr")
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(UserError, match=r"by svd failed: exit status 1, perhaps out of memory; lower the share"):
        measured(path, "svd")


# ------------------------------------------------------------------------------------------------- verdicts


def test_verdicts_count_conditions() -> None:
    assert judged("claim", [("a", True), ("b", False)]) == "claim: **partly reproduced**. a (holds); b (fails)."
    assert verdict([False, False]) == "not reproduced"


def test_averages_keep_points_apart() -> None:
    base = {"model": "m", "dataset": "d", "penalty": "none"}
    rows = [
        base | {"seed": s, "points": [{"label": "1", "x": x}, {"label": "2", "x": None}]} for s, x in ((0, 1), (1, 3))
    ]
    first, second = averaged(rows, ("label",))
    assert (first["label"], first["x"], first["seeds"]) == ("1", 2.0, 2)
    assert first["x_spread"] == pytest.approx(2**0.5)
    assert second["x"] is None


BASE: Row = {"model": "m", "dataset": "d", "penalty": "none"}


def equivalence(label: str, compression: float, **values: float) -> Row:
    accuracies = {key + suffix: 0.9 for key in ("kmp", "gmp", "lsp") for suffix in ("", "_refined")}
    return BASE | accuracies | {"label": label, "compression": compression, "overlap": 0.97} | values


def test_equivalence_follows_its_rows() -> None:
    good = [equivalence(label, c) for label in ("1", "5", "20", "converged") for c in (1, 4)]
    good = [row | ({"lsp_refined": 0.5} if row["label"] != "1" and row["compression"] > 1 else {}) for row in good]
    good = [row | ({"overlap": 0.8} if row["label"] == "20" else {}) for row in good]
    first, second, third = koopman_equivalence.words(good)
    assert "K1, m, d, none" in first
    assert "**reproduced**" in first
    assert "**reproduced**" in second
    assert "epoch 1 at none; epoch 5 at 4; epoch 20 at 4" in second
    assert "**partly reproduced**" in third  # the paper has no pattern for this network, so both are asked for
    assert "epoch 20 80.0%" in third
    bad = [row | ({"kmp": 0.5, "overlap": 0.5} if row["label"] == "converged" else {}) for row in good]
    first = koopman_equivalence.words(bad)[0]
    assert "**partly reproduced**" in first
    assert "before refining: at most 40.0 apart (fails)" in first


def overlaps(model: str, least: dict[str, float], spread: dict[str, float] | None = None) -> str:
    rows = [
        equivalence(label, c, overlap=value) | {"model": model, "overlap_spread": (spread or {}).get(label)}
        for label, value in least.items()
        for c in (1, 4)
    ]
    return next(line for line in koopman_equivalence.words(rows) if line.startswith("K3"))


def test_overlaps_are_judged_by_the_pattern_of_the_network_at_epoch_20() -> None:
    static = {"1": 0.97, "5": 0.98, "10": 0.96, "20": 0.8, "24": 0.7, "converged": 0.9}
    moving = {"1": 0.7, "5": 0.8, "10": 0.9, "20": 0.95, "converged": 0.99}
    line = overlaps("resnet20", static, {"1": 0.01, "5": 0.01, "10": 0.01, "20": 0.05})
    assert "**reproduced**" in line
    assert "by a deviation of 5.0 points, before by up to 1.0 (holds)" in line
    assert "MnistNet" not in line
    assert "**partly reproduced**" in overlaps("resnet20", static, {"1": 0.06, "20": 0.05})
    assert "least at epoch 20 (fails)" in overlaps("resnet20", moving)
    assert "**not reproduced**" in overlaps("resnet20", moving)
    assert "**reproduced**" in overlaps("mnistnet", moving)
    assert "**not reproduced**" in overlaps("mnistnet", static)
    assert "less at epoch 1 and 5 than at 20 (fails)" in overlaps("mnistnet", moving | {"20": 0.75})


def test_claims_on_epoch_20_stay_open_without_it() -> None:
    early = {"1": 0.97, "10": 0.96, "converged": 0.9}
    for model in ("resnet20", "mnistnet"):
        line = overlaps(model, early)
        assert "**open**. Epoch 20, of which it speaks, was not recorded; instead: " in line
    row = BASE | {"nearest": 1e-4, "modulus": 1.0, "rate": 0.1, "error": 1e-6, "fixed_error": 0.1, "motion": 0.2}
    rows = [row | {"fixed_distance": 0.1, "distance": 0.3, "label": label} for label in early]
    pruned = [BASE | {"label": label, "compression": 4, "floor": 0.25, "overlap": 0.7} for label in early]
    pruned = [row | {"kgp_refined": None, "jgp_refined": None} for row in pruned]
    spectrum, gradient, _ = koopman_spectrum.words(rows, pruned)
    assert "epoch 10, abs(lambda 1 - 1) below 0.001: 1.0e-04 (holds)" in spectrum
    assert all("**open**" in line for line in (spectrum, gradient))


def test_spectrum_is_judged_at_epoch_20_and_nowhere_else() -> None:
    good = BASE | {"nearest": 1e-4, "modulus": 1.0, "rate": 0.1, "error": 1e-6, "fixed_error": 0.1, "motion": 0.2}
    good |= {"fixed_distance": 0.1, "distance": 0.3}
    bad = good | {"nearest": 0.1, "rate": 0.9}
    pruned = [BASE | {"label": "20", "compression": 4, "floor": 0.25, "overlap": None}]
    labels = ("10", "20", "24", "converged")
    line = koopman_spectrum.words([(good if label == "20" else bad) | {"label": label} for label in labels], pruned)[0]
    assert "**reproduced**" in line
    line = koopman_spectrum.words([(bad if label == "20" else good) | {"label": label} for label in labels], pruned)[0]
    assert "**not reproduced**" in line


def test_spectrum_follows_its_rows() -> None:
    row = BASE | {"nearest": 1e-4, "modulus": 1.0, "rate": 0.1, "error": 1e-6, "fixed_error": 0.1, "motion": 0.2}
    row |= {"fixed_distance": 0.1, "distance": 0.3}
    rows = [row | {"label": label} for label in ("1", "20", "converged")]
    pruned = [
        BASE
        | {"label": label, "compression": c, "floor": 1 / c, "overlap": 3 / c, "kgp_refined": 0.9, "jgp_refined": 0.91}
        for label in ("1", "20", "converged")
        for c in (1, 4, 8)
    ]
    assert all("**reproduced**" in line for line in koopman_spectrum.words(rows, pruned))
    worse = [row | {"nearest": 0.1, "rate": None, "fixed_error": 1.0, "error": 1.0} for row in rows]
    none = [row | {"overlap": None} for row in pruned]
    assert all("**not reproduced**" in line for line in koopman_spectrum.words(worse, none))


def test_epochs_follow_their_rows() -> None:
    pairs = {("1", "5"): 0.8, ("1", "20"): 0.5, ("5", "20"): 0.6, ("1", "converged"): 0.3}
    table = [
        BASE | {"first": a, "second": b, "compression": 4, "floor": 0.25, "overlap": value}
        for (a, b), value in pairs.items()
    ]
    heights = [
        BASE | {"label": label, "barrier": height, "overlap": alike}
        for label, height, alike in (("1", 30.0, 0.99), ("5", 5.0, 0.95), ("20", 0.5, 0.8))
    ]
    falling, connected = koopman_epochs.words(table, heights)
    assert "**reproduced**" in falling
    assert "**reproduced**" in connected
    assert "by epoch 20" in connected
    flat = [row | {"overlap": 0.5} for row in table]
    still = [row | {"barrier": 0.0} for row in heights]
    assert all("**not reproduced**" in line for line in koopman_epochs.words(flat, still))


def test_the_bridge_follows_its_rows() -> None:
    sizes = {"fixed_size": 0.5, "fixed_size_same": 0.5, "raw_size": 3.0, "raw_size_same": 2.0, "known_size_same": 0.1}
    rows = [BASE | sizes | {"label": label} for label in ("1", "20")]
    assert "**reproduced**" in koopman_limit.words(rows)[0]
    worse = [row | {"fixed_size": 5.0, "fixed_size_same": 5.0} for row in rows]
    assert "**not reproduced**" in koopman_limit.words(worse)[0]


@pytest.mark.parametrize(("share", "sizes"), [(0.002, [0.002, 0.001, 0.001]), (0.001, [0.001, 0.001])])
def test_both_methods_decompose_the_size_that_a_full_svd_can(
    share: float, sizes: list[float], suite_file: Path
) -> None:
    suite = load_suite(str(suite_file))
    cells = koopman_cost.cells(suite.replaced(replace(suite.settings(KoopmanSettings), share=share, svd_share=0.001)))
    assert [cell.part["share"] for cell in cells] == sizes
    assert {cell.part["method"] for cell in cells if cell.part["share"] == 0.001} == {"snapshots", "svd"}


def test_cost_follows_its_rows() -> None:
    row = {"size": "mnistnet", "parameters": 100, "method": "method of snapshots", "seconds": 1.0, "peak": 0.1}
    row |= {"grown": None, "paper_seconds": 210.0, "paper_memory": 1.1}
    full = row | {"method": "full SVD", "seconds": 9.0, "peak": 0.9, "paper_seconds": None, "paper_memory": None}
    assert "**reproduced**" in koopman_cost.words([row, full])[0]
    assert "**not reproduced**" in koopman_cost.words([row | {"seconds": 300.0, "peak": 2.0}, full])[0]


def test_the_tables_are_found() -> None:
    assert set(NAMES) <= set(tables())


def test_masks_of_the_converged_network_are_those_of_its_mode(
    suite_file: Path, tmp_path: Path, digits: ImageData
) -> None:
    bench = bench_of(suite_file, tmp_path, digits)
    point = recording.recording(bench.suite.networks[0], bench).points[-1]
    masks = point.masks(4)
    kept = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    assert kept == pytest.approx(0.25, abs=1e-3)
    assert overlap(masks, magnitude_masks(point.model, 0.75)) > 0.25
