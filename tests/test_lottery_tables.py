from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from validation.data import ImageData
from validation.masks import sparsity_of
from validation.models import build_model
from validation.pruners import Problem
from validation.pruners.imp import levels
from validation.studies.limits.algorithms import CompareSettings
from validation.studies.lottery import accuracy as lottery_accuracy
from validation.studies.lottery import compute as lottery_compute
from validation.studies.lottery import measures as lottery_measures
from validation.studies.lottery import neurons as lottery_neurons
from validation.studies.lottery import sizes as lottery_sizes
from validation.studies.lottery import spectrum as lottery_spectrum
from validation.studies.lottery import theory as lottery_theory
from validation.studies.lottery import tickets as lottery_tickets
from validation.studies.lottery.exponents import PowerLaw
from validation.studies.lottery.feature_mixture import Mixture, draw_samples, forward, gradient, train
from validation.tables.discovery import tables
from validation.tables.reading import load_suite
from validation.tables.runner import Run, run_table
from validation.tables.writing import Row
from validation.training import accuracy

SUITE = """
[limit]
samples = 64
steps = 4
probes = 1
[compare]
epochs = 1
magnitude = ["gmp", "imp"]
[[network]]
model = "cnn-tiny"
dataset = "digits"
seeds = [0, 1]
recipe = { epochs = 1, lr = 0.05 }
"""
MODULES: dict[str, ModuleType] = {
    "lottery-accuracy": lottery_accuracy,
    "lottery-compute": lottery_compute,
    "lottery-neurons": lottery_neurons,
    "lottery-sizes": lottery_sizes,
    "lottery-spectrum": lottery_spectrum,
    "lottery-theory": lottery_theory,
    "lottery-tickets": lottery_tickets,
}


VERDICT = r"^(S\d+|Part \d+)\b.*: \**((partly|not) )?reproduced\b"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A suite of one tiny network, and lottery tables of few and small cells."""
    theory = {"KEPT": (3, 6), "MORE_KEPT": (4, 8), "SAMPLES": (200, 400), "FIXED": 200, "SPARSITIES": (0.0, 0.6, 0.95)}
    theory |= {"TEACHER": 3, "TRIALS": dict.fromkeys(lottery_theory.TRIALS, 2)}
    for name, value in theory.items():
        monkeypatch.setattr(lottery_theory, name, value)
    monkeypatch.setattr(lottery_theory, "FACTORS", (0.5, 4.0))
    monkeypatch.setattr(
        lottery_theory, "CLAIMS", tuple(claim for claim in lottery_theory.CLAIMS if claim.claim != "S6")
    )
    monkeypatch.setattr(lottery_measures, "INPUTS", 15)
    monkeypatch.setattr(lottery_measures, "NEURONS", 2)
    monkeypatch.setattr(lottery_neurons, "SAMPLES", (60, 120, 240))
    monkeypatch.setattr(lottery_neurons, "TRIALS", 2)
    monkeypatch.setattr(lottery_neurons, "MIXTURE", Mixture(irrelevant=4, inputs=8, neurons=40))
    monkeypatch.setattr(lottery_sizes, "PUBLISHED", lottery_sizes.PUBLISHED[::4])
    monkeypatch.setattr(lottery_compute, "SPARSITIES", (0.8, 0.9))
    monkeypatch.setattr(lottery_accuracy, "RATIOS", (0.8, 0.9))
    monkeypatch.setattr(lottery_spectrum, "SPARSITIES", (0.0, 0.8))
    monkeypatch.setattr(lottery_tickets, "ROUNDS", 3)
    monkeypatch.setattr(lottery_tickets, "COMPARED", (1, 3))
    path = tmp_path / "small.toml"
    path.write_text(SUITE)
    return path


def test_the_tables_are_found() -> None:
    assert set(tables()) >= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_a_small_table_has_the_schema_and_resumes_to_the_same_bytes(name: str, small: Path, runs: Path) -> None:
    suite = load_suite(str(small))
    folder = run_table(name, suite, Run(runs, command="test"))
    written = {kind: (folder / f"{name}.{kind}").read_bytes() for kind in ("json", "md", "png")}
    stored = json.loads(written["json"])
    assert {"title", "rows", "environment"} <= set(stored)
    columns = {column.key for column in MODULES[name].COLUMNS}
    assert columns <= {key for row in stored["rows"] for key in row}
    headings = "| " + " | ".join(column.heading.replace("|", "\\|") for column in MODULES[name].COLUMNS) + " |"
    lines = written["md"].decode().splitlines()
    start = lines.index(headings)
    assert len(lines[start + 2 :]) == len(stored["rows"])
    assert written["png"].startswith(b"\x89PNG")
    assert re.search(VERDICT, written["md"].decode(), re.MULTILINE)
    run_table(name, suite, Run(runs, command="test"))
    for kind in ("json", "md"):
        assert (folder / f"{name}.{kind}").read_bytes() == written[kind]


# --------------------------------------------------------------------------------------------------- theory


def theory_rows(power: float = 0.5, **changes: Any) -> list[Row]:
    """Rows that follow every claim, with the exponent of S8 and S9 planted."""
    rows: list[Row] = []
    for kept in (5, 10, 20, 40):
        for samples in (500, 1000, 2000, 4000):
            x = kept / samples
            base = {"kept": kept, "samples": samples}
            rows.append(
                base
                | {"measure": "landscape", "radius_ratio": 1.1 - 2 * x**0.5, "turned_ratio": 1 - 2 * x**0.5}
                | {"least_ratio": 1 - 2 * x**0.5}
            )
            rows.append(base | {"measure": "objective", "gradient_gap": x**power, "objective_gap": x**power})
            rows.append(base | {"measure": "noisy", "distance": x**power, "root_error": 3 * x**power})
        rows.append({"measure": "speed", "kept": kept, "samples": 1, "iterations": 50 * kept**0.5})
        rows[-1]["speed_ratio"] = 1 - 0.05 * kept**0.5
        for factor, share in ((2, 0.0), (6, 0.4), (8, 0.6), (9, 1.0)):
            rows.append({"measure": "recovery", "kept": kept, "samples": factor * kept, "recovered": share})
    for sparsity, iterations, reached, good in ((0.0, 100, 1, 1), (0.8, 40, 1, 1), (0.95, None, 0, 0.5)):
        row = {"measure": "pruned", "sparsity": sparsity, "iterations": iterations, "reached": reached}
        rows.append(row | {"good_kept": good})
    return [row | changes if row["measure"] == "pruned" and row["sparsity"] == 0.8 else row for row in rows]


def test_rows_that_follow_the_claims_reproduce_them() -> None:
    table = lottery_theory.verdicts(theory_rows())
    assert [row["claim"] for row in table] == [*(claim.claim for claim in lottery_theory.CLAIMS), "S12"]
    against = {row["against"]: row for row in table if row["claim"] == "S8" and "objective" in row["quantity"]}
    assert {row["verdict"] for row in table if row is not against["1/N"]} == {"reproduced"}
    for row in table[:-1]:
        if row is not against["1/N"]:
            assert row["exponent"] == pytest.approx(row["claimed"], abs=0.02)
    needed = next(row for row in table if row["claim"] == "S6")
    assert needed["numbers"] == "35 at r = 5, 280 at 40"


@pytest.mark.parametrize(("power", "word"), [(0.55, "reproduced"), (0.8, "partly"), (-0.5, "not"), (0.0, "not")])
def test_verdicts_follow_the_exponent(power: float, word: str) -> None:
    table = lottery_theory.verdicts(theory_rows(power))
    assert {row["verdict"] for row in table if row["claim"] == "S9"} == {word}


@pytest.mark.parametrize(
    ("low", "exponent", "high", "scale", "word"),
    [
        (0.4, 0.65, 0.85, 1.0, "reproduced"),
        (0.1, 0.8, 1.5, 1.0, "partly"),
        (0.7, 0.8, 0.9, 1.0, "partly"),
        (-0.1, 0.5, 1.1, 1.0, "not"),
        (0.4, 0.5, 0.6, -1.0, "not"),
    ],
)
def test_an_exponent_that_is_not_known_decides_nothing(
    low: float, exponent: float, high: float, scale: float, word: str
) -> None:
    assert lottery_theory.verdict(0.5, PowerLaw(exponent, low, high, scale, None, 1.0)) == word


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "reproduced"),
        ({"iterations": 95}, "not"),
        ({"reached": 0.5}, "not"),
        ({"good_kept": 0.9}, "reproduced"),
    ],
)
def test_the_verdict_of_pruning_follows_the_iterations(changes: Row, word: str) -> None:
    row = lottery_theory.pruning_row(theory_rows(**changes))
    assert row is not None
    assert row["verdict"] == word


def test_no_recovery_at_any_size_gives_no_point() -> None:
    rows = [{"kept": 3, "samples": n, "recovered": 0.2} for n in (10, 20)]
    assert lottery_theory.needed(rows) == []


# -------------------------------------------------------------------------------------------------- neurons


def test_a_sample_holds_the_relevant_feature_of_its_class_and_all_others() -> None:
    mixture = Mixture(irrelevant=3, inputs=6, noise=0.0)
    x, y = draw_samples(mixture, 20, np.random.default_rng(0))
    np.testing.assert_array_equal(x[:, 0].argmax(-1), np.where(y > 0, 0, 1))
    np.testing.assert_array_equal(x[:, 1:].argmax(-1), np.tile([2, 3, 4], (20, 1)))
    assert set(y.tolist()) == {-1.0, 1.0}


def test_the_gradient_of_the_hinge_loss_is_a_difference() -> None:
    mixture, rng = Mixture(irrelevant=3, inputs=6, neurons=4), np.random.default_rng(0)
    x, y = draw_samples(mixture, 15, rng)
    signs, weights, step = np.array([1.0, -1.0, 1.0, -1.0]), rng.standard_normal((4, 6)), 1e-6

    def loss(w: np.ndarray) -> float:
        return float(np.maximum(1 - y * forward(w, signs, x)[0], 0).mean())

    expected = np.zeros_like(weights)
    for place in np.ndindex(*weights.shape):
        shift = np.zeros_like(weights)
        shift[place] = step
        expected[place] = (loss(weights + shift) - loss(weights - shift)) / (2 * step)
    np.testing.assert_allclose(gradient(weights, signs, x, y), expected, atol=1e-8)


def test_good_neurons_grow_and_stay_good() -> None:
    training = train(Mixture(neurons=80), 400, np.random.default_rng(1))
    good = training.good[0]
    moved = np.linalg.norm(training.weights - training.start, axis=1)
    assert training.good[:, good].all()
    assert moved[good].min() > 3 * np.median(moved[~good])
    assert training.accuracy > 0.9


def neuron_rows(power: float, retained: float, separated: float) -> list[Row]:
    keys = {"retained": retained, "separated": separated, "turned": 0.1}
    return [{"samples": n, "moved": n**power, "moved_all": 0.3 * n**-0.1} | keys for n in (100, 400, 1600)]


def test_words_on_neurons_follow_the_rows() -> None:
    good = lottery_neurons.verdicts(neuron_rows(-0.5, 1.0, 0.99))
    assert [line.split(": ")[1].split(";")[0] for line in good] == [
        "reproduced",
        "partly reproduced",
        "reproduced",
        "reproduced",
    ]
    bad = lottery_neurons.verdicts(neuron_rows(0.2, 0.5, 0.6))
    assert [line.split(": ")[1].split(";")[0] for line in bad] == [
        "not reproduced",
        "partly reproduced",
        "not reproduced",
        "not reproduced",
    ]
    middle = lottery_neurons.verdicts(neuron_rows(-0.9, 0.95, 0.9))
    assert all(": partly reproduced; " in line for line in middle)


# ---------------------------------------------------------------------------------------------------- sizes


def test_words_on_sizes_follow_the_rows() -> None:
    alexnet, vgg = lottery_sizes.PUBLISHED[:2]
    right = lottery_sizes.compared({"model": "alexnet", "parameters": 61_100_840}, alexnet)
    wrong = lottery_sizes.compared({"model": "vgg16", "parameters": 138_357_544}, vgg)
    small = lottery_sizes.compared({"model": "vgg16", "parameters": 100_000_000}, vgg)
    assert (right["size"], right["arithmetic"]) == ("yes", "yes")
    assert (wrong["size"], wrong["arithmetic"]) == ("yes", "no")
    assert wrong["stated_factor"] == pytest.approx(13.4, abs=0.01)
    assert lottery_sizes.verdict([right]).startswith("S1: reproduced; the number of parameters agrees in 1 of 1")
    assert "partly reproduced" in lottery_sizes.verdict([right, wrong])
    assert "vgg16 13.4 instead of 12" in lottery_sizes.verdict([right, wrong])
    assert "not reproduced" in lottery_sizes.verdict([small, small])


# -------------------------------------------------------------------------------------------------- compute


def compute_rows(magnitude: float, random: float, macs: float) -> list[Row]:
    """Two seeds whose dense networks have 90 and 92 %, and differences in points at every sparsity."""
    rows: list[Row] = []
    for seed, dense in enumerate((0.9, 0.92)):
        base = {"model": "m", "dataset": "d", "penalty": "none", "seed": seed, "dense_macs": 1000}
        rows.append(base | {"pruner": "dense", "sparsity": 0.0, "accuracy": dense, "macs": 1000})
        for name, gain in (("gmp", magnitude), ("random", random)):
            for sparsity in lottery_compute.SPARSITIES:
                row = {"pruner": name, "sparsity": sparsity, "accuracy": dense + (gain + 0.1 * seed) / 100}
                rows.append(base | row | {"macs": macs})
    return rows


@pytest.mark.parametrize(
    ("magnitude", "macs", "words"),
    [
        (0.5, 150, ("reproduced", "reproduced")),
        (-0.06, 300, ("partly reproduced", "partly reproduced")),
        (-2.0, 300, ("not reproduced", "not reproduced")),
    ],
)
def test_words_on_pruned_networks_follow_the_rows(magnitude: float, macs: float, words: tuple[str, ...]) -> None:
    table = lottery_compute.averaged(compute_rows(magnitude, -3.0, macs))
    lines = lottery_compute.verdicts(table, tolerance=0.5)
    assert [line.split(": ")[1].split(";")[0] for line in lines] == list(words)
    best = next(row for row in table if row["pruner"] == "gmp")
    assert best["gain"] == pytest.approx(magnitude + 0.05)
    assert best["gain_error"] == pytest.approx(0.05)
    assert best["factor"] == pytest.approx(1000 / macs)


def test_pruned_networks_are_held_against_the_better_dense_one() -> None:
    rows = compute_rows(0.5, -3.0, 150)
    dense = {row["seed"]: row for row in rows if row["pruner"] == "dense"}
    rows += [dense[seed] | {"pruner": "dense-short", "accuracy": dense[seed]["accuracy"] + 0.02} for seed in (0, 1)]
    line = lottery_compute.verdicts(lottery_compute.averaged(rows), tolerance=0.5)[0]
    assert line.split(": ")[1].startswith("not reproduced")
    assert "is -1.45 points" in line
    assert "short training" in line


def test_a_briefly_trained_dense_network_stands_beside_iterative_pruning(small: Path) -> None:
    suite = load_suite(str(small))
    once = suite.replaced(replace(suite.settings(CompareSettings), magnitude=("gmp",)))
    pruners = [
        [cell.part["pruner"] for cell in lottery_compute.cells(chosen)].count("dense-short") for chosen in (suite, once)
    ]
    assert pruners == [len(suite.networks), 0]


@pytest.mark.parametrize(("magnitude", "word"), [(0.7, "reproduced"), (0.3, "partly reproduced"), (-0.7, "not")])
def test_one_seed_must_differ_by_the_tolerance(magnitude: float, word: str) -> None:
    rows = [row for row in compute_rows(magnitude, -3.0, 150) if row["seed"] == 0]
    line = lottery_compute.verdicts(lottery_compute.averaged(rows), tolerance=0.5)[0]
    assert line.split(": ")[1].startswith(word)
    assert "(one seed)" in line


# ----------------------------------------------------------------------------------------------- accuracy


def accuracy_rows(magnitude: float, random: float) -> list[Row]:
    """Two seeds with the same differences to dense, in points, at every ratio."""
    rows: list[Row] = []
    for seed in (0, 1):
        base = {"model": "m", "dataset": "d", "penalty": "none", "seed": seed, "dense_macs": 10, "macs": 1}
        rows.append(base | {"pruner": "dense", "sparsity": 0.0, "accuracy": 0.9})
        for name, gain in ((lottery_accuracy.MAGNITUDE, magnitude), (lottery_accuracy.RANDOM, random)):
            for ratio in lottery_accuracy.RATIOS:
                row = {"pruner": name, "sparsity": ratio, "accuracy": 0.9 + (gain + 0.02 * seed) / 100}
                rows.append(base | row)
    return rows


@pytest.mark.parametrize(
    ("magnitude", "random", "word", "kept"),
    [
        (0.3, -3.0, "**reproduced**", "95%"),
        (-0.3, -3.0, "**partly reproduced**", "95%"),
        (-1.0, -0.5, "**not reproduced**", "0%"),
        (0.3, 0.1, "**partly reproduced**", "95%"),
    ],
)
def test_words_on_magnitude_and_chance_follow_the_rows(magnitude: float, random: float, word: str, kept: str) -> None:
    table = lottery_compute.averaged(accuracy_rows(magnitude, random))
    (line,) = lottery_accuracy.words(table, tolerance=0.5)
    assert word in line
    assert f"and so up to {kept}" in line


def test_words_on_one_seed_assume_the_tolerance_as_its_error() -> None:
    rows = [row for row in accuracy_rows(0.3, -0.4) if row["seed"] == 0]
    (line,) = lottery_accuracy.words(lottery_accuracy.averaged(rows), tolerance=0.5)
    assert "best +0.30 points (one seed, an error of 0.5 assumed) at 20% (fails)" in line
    assert "at every ratio: 20% -0.40, 50% -0.40, 80% -0.40, 90% -0.40, 95% -0.40 (fails)" in line
    assert "**partly reproduced**" in line


# ------------------------------------------------------------------------------------------------ tickets


def ticket_rows(ticket: float, controls: float, arrival: int, late: int | None) -> list[Row]:
    """Two seeds with a ticket and both controls at 84 and 95 % removed; accuracies in points against dense."""
    rows: list[Row] = []
    for seed in (0, 1):
        dense = {"kind": lottery_tickets.DENSE, "sparsity": 0.0, "gain": 0.0, "epochs": 5}
        points: list[Row] = [dense]
        for sparsity in (0.84, 0.95):
            points.append({"kind": lottery_tickets.TICKET, "sparsity": sparsity, "gain": ticket, "epochs": arrival})
            for kind in lottery_tickets.CONTROLS:
                points.append({"kind": kind, "sparsity": sparsity, "gain": controls + 0.02 * seed, "epochs": late})
        points = [{"accuracy": 0.9 + point["gain"] / 100, "lowest": 0.1} | point for point in points]
        rows.append({"model": "m", "dataset": "d", "penalty": "none", "seed": seed, "points": points})
    return rows


@pytest.mark.parametrize(
    ("ticket", "controls", "arrival", "late", "word"),
    [
        (0.2, -3.0, 3, None, "**reproduced**"),
        (0.2, -3.0, 3, 4, "**reproduced**"),
        (0.2, -3.0, 6, 4, "**partly reproduced**"),
        (0.2, 0.3, 3, 4, "**partly reproduced**"),
        (-2.0, -1.0, 6, 4, "**not reproduced**"),
    ],
)
def test_words_on_tickets_follow_the_rows(
    ticket: float, controls: float, arrival: int, late: int | None, word: str
) -> None:
    table = lottery_tickets.averaged(ticket_rows(ticket, controls, arrival, late))
    (line,) = lottery_tickets.words(table, tolerance=0.5)
    assert word in line
    assert ("re-initialised never" in line) == (late is None)
    assert table[0]["arrived"] == 2


def test_tickets_are_those_of_the_pruner_and_controls_keep_as_many_weights(
    small: Path, runs: Path, digits: ImageData
) -> None:
    suite = load_suite(str(small))
    folder = run_table("lottery-tickets", suite, Run(runs, command="test"))
    cell = json.loads((folder / "lottery-tickets.json").read_text())["cells"][0]
    network = suite.networks[0]
    model = build_model(network.model, digits.shape, digits.classes, network.seed)
    problem = Problem(network.model, digits, network.recipe, network.seed, model, 4)
    reached = list(levels(problem, lottery_tickets.SPARSITY, rewind=0, rounds=3))
    tickets = [point for point in cell["points"] if point["kind"] not in lottery_tickets.CONTROLS]
    assert [point["sparsity"] for point in tickets] == [sparsity_of(level.masks) for level in reached]
    assert [point["accuracy"] for point in tickets] == [accuracy(level.model, digits) for level in reached]
    assert len(cell["points"]) == 4 + 2 * 2
    assert all(len(point["losses"]) == network.recipe.epochs for point in cell["points"])


# ----------------------------------------------------------------------------------------------- spectrum


def spectrum_rows(sign: float) -> list[Row]:
    base = {"model": "m", "dataset": "d", "penalty": "none", "top": 2.0, "trace": 9.0, "effective": 50.0, "left": 0.3}
    return [
        base
        | {"sparsity": s, "smallest": -1 + sign * s, "mean": 1 + sign * s, "negative": 0.2 - sign * s / 10}
        | {"limit": 0.5 + sign * s / 10}
        for s in (0.0, 0.5, 0.9)
    ]


def test_words_on_the_landscape_follow_the_rows() -> None:
    (line,) = lottery_spectrum.words(spectrum_rows(1.0))
    assert "**reproduced**" in line
    assert "beyond that of the dense network at 50%, 90% removed" in line
    (line,) = lottery_spectrum.words(spectrum_rows(-1.0))
    assert "**not reproduced**" in line
    assert "beyond that of the dense network at none removed" in line


def test_limits_of_kept_weights_are_counted_from_all(small: Path, runs: Path) -> None:
    folder = run_table("lottery-spectrum", load_suite(str(small)), Run(runs, command="test"))
    stored = json.loads((folder / "lottery-spectrum.json").read_text())
    dense, pruned = stored["rows"]
    assert dense["kept"] == 644
    assert pruned["kept"] == 128
    assert dense["limit"] == dense["left"]
    assert pruned["limit"] == pytest.approx(0.8 + 0.2 * pruned["left"])
    for cell in stored["cells"]:
        assert len({point["epsilon"] for point in cell["points"]}) == 1
