"""Koopman pruning of trained networks; modes of planted and quadratic dynamics are in ``test_dmd.py``."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import random, same, snapshot
from numpy.typing import NDArray
from torch import nn

from estimators import UserError
from estimators.vectors import flatten
from validation.data import ImageData
from validation.dmd import Modes, dmd, record_snapshots, recorded_parameters
from validation.masks import overlap, overlap_above_chance, prunable, select
from validation.models import build_model
from validation.pruners import Problem, pruner
from validation.pruners.gradient import gradients
from validation.pruners.koopman import LR_FACTOR, gradient_mode, magnitude_mode, mode_scores, trained_further
from validation.pruners.magnitude import magnitude_masks
from validation.training import Recipe, train

Array = NDArray[np.floating]


@pytest.fixture(scope="module")
def settled(trained: nn.Module, digits: ImageData) -> Problem:
    """A network at the end of its training, with one epoch of 22 steps to spend."""
    return Problem("fc5-mini", digits, Recipe(10, 0.05, l1=1e-3, batch_size=64), 0, trained, 11)


@pytest.fixture(scope="module")
def further(settled: Problem) -> tuple[nn.Module, Modes]:
    return trained_further(settled)


# ------------------------------------------------------------------------------------------------- snapshots


def test_the_snapshots_run_from_the_dense_network_over_every_step_of_one_epoch_at_a_constant_rate(
    problem: Problem,
) -> None:
    before = snapshot(problem.dense)
    model, modes = trained_further(problem)
    assert same(snapshot(problem.dense), before)
    first, last = (flatten(list(recorded_parameters(network).values())).numpy() for network in (problem.dense, model))
    assert len(modes.snapshots) == 6
    assert np.array_equal(modes.snapshots[0], first)
    assert np.array_equal(modes.snapshots[-1], last)
    expected = problem.fresh()
    expected.load_state_dict(problem.dense.state_dict())
    recipe = replace(problem.recipe, epochs=1, lr=LR_FACTOR * 0.1, schedule="constant")
    train(expected, problem.data, recipe, problem.seed)
    assert same(dict(model.state_dict()), dict(expected.state_dict()))


@pytest.mark.filterwarnings("ignore:Input data condition number")
def test_modes_of_a_training_agree_with_pydmd() -> None:
    """Gradient descent on a linear regression of three outputs, whose weights follow a linear map exactly."""
    pydmd = pytest.importorskip("pydmd", reason="PyDMD is not installed")
    curvatures, rate = torch.tensor([0.1, 0.6, 1.2, 1.8], dtype=torch.float64), 0.5
    x = torch.linalg.qr(random(40, 4, seed=1)).Q * (40 * curvatures).sqrt()
    y, weights = random(40, 3, seed=2), [random(4, 3, seed=3)]
    for _ in range(9):
        weights.append(weights[-1] - rate * x.T @ (x @ weights[-1] - y) / 40)
    snapshots = torch.stack(weights).flatten(1).numpy()
    modes = dmd(snapshots)
    reference = pydmd.DMD(svd_rank=5, exact=True).fit(snapshots.T)
    assert modes.eigenvalues == pytest.approx([1, *(1 - rate * curvatures).tolist()], abs=1e-8)
    scaled = reference.modes * reference.amplitudes
    for number, eigenvalue in enumerate(modes.eigenvalues):
        index = int(np.argmin(np.abs(reference.eigs - eigenvalue)))
        assert abs(reference.eigs[index] - eigenvalue) < 1e-8
        assert modes.mode(number) == pytest.approx(scaled[:, index], abs=1e-7)
    for time, expected in enumerate(reference.reconstructed_data.T):
        assert modes.reconstruction(time) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("count", [0, 1])
def test_an_epoch_of_too_few_steps_is_refused(problem: Problem, count: int) -> None:
    snapshots, _ = record_snapshots(problem.dense, count)
    with pytest.raises(UserError, match=r"^snapshots: expected "):
        gradient_mode(dmd(snapshots))


# ------------------------------------------------------------------------------------------------- scores


def test_the_scores_are_moduli_also_of_complex_modes_and_biases_are_left_out() -> None:
    layer = nn.Linear(5, 4)
    rng = np.random.default_rng(0)
    fixed, real, imaginary = rng.standard_normal((3, 24))
    times = np.arange(9)[:, None]
    turning = 0.9**times * (np.cos(0.7 * times) * real + np.sin(0.7 * times) * imaginary)
    modes = dmd(fixed + turning)
    number = int(np.argmax(modes.eigenvalues.imag))
    assert modes.eigenvalues[number] == pytest.approx(0.9 * np.exp(0.7j))
    scores = mode_scores(modes, number, layer)
    assert list(scores) == ["weight"]
    expected = np.hypot(real, imaginary)[:20].reshape(4, 5) / 2
    assert scores["weight"].numpy() == pytest.approx(expected, abs=1e-8)
    still = mode_scores(modes, magnitude_mode(modes), layer)["weight"].numpy()
    assert still == pytest.approx(np.abs(fixed)[:20].reshape(4, 5), abs=1e-8)


def test_the_mode_that_stays_is_nearest_1_and_not_the_one_that_grows_or_is_largest() -> None:
    parts = np.random.default_rng(2).standard_normal((3, 40)) * np.array([[1.0], [3.0], [9.0]])
    modes = dmd(np.array([1.0, 1.2, 0.4]) ** np.arange(8)[:, None] @ parts)
    number = magnitude_mode(modes)
    assert modes.eigenvalues[number] == pytest.approx(1)
    assert modes.mode(number) == pytest.approx(parts[0], abs=1e-8)
    assert modes.mode(gradient_mode(modes)) == pytest.approx(parts[2], abs=1e-8)


def test_every_layer_is_scored_the_classifier_too_and_batch_norm_not(problem: Problem) -> None:
    model, modes = trained_further(problem)
    scores = mode_scores(modes, 0, model)
    assert list(scores) == list(prunable(model))
    assert {"conv1.weight", "fc.weight"} <= set(scores)
    flat = np.abs(modes.mode(0))
    assert scores["conv1.weight"].numpy().ravel() == pytest.approx(flat[:144])
    assert scores["fc.weight"].numpy().ravel() == pytest.approx(flat[-650:-10])


def test_one_decaying_mode_is_the_gradient_up_to_a_factor() -> None:
    """theta(t + 1) - theta(t) = (lambda - 1) lambda^t mode = -rate * gradient."""
    fixed, start = np.random.default_rng(1).standard_normal((2, 60))
    curvature, rate = 0.8, 0.5
    path = [start]
    for _ in range(10):
        path.append(path[-1] - rate * curvature * (path[-1] - fixed))
    modes = dmd(np.stack(path))
    number = gradient_mode(modes)
    eigenvalue = 1 - rate * curvature
    assert modes.eigenvalues[number] == pytest.approx(eigenvalue)
    for time in range(10):
        gradient = curvature * (path[time] - fixed)
        step = (eigenvalue - 1) * eigenvalue**time * modes.mode(number).real
        assert step == pytest.approx(-rate * gradient, abs=1e-9)


# ------------------------------------------------------------------------------------------------- trained networks


def test_at_the_end_of_training_the_mode_that_stays_ranks_like_magnitude(
    settled: Problem, further: tuple[nn.Module, Modes]
) -> None:
    model, modes = further
    number = magnitude_mode(modes)
    assert abs(modes.eigenvalues[number] - 1) < 1e-2
    for sparsity in (0.5, 0.75, 0.9):
        masks = select(mode_scores(modes, number, model), sparsity)
        assert overlap(masks, magnitude_masks(model, sparsity)) > 0.95
        assert same(masks, pruner("kmp")(replace(settled, epochs=10), sparsity).masks)


def test_the_gradient_mode_ranks_much_like_the_gradient_where_every_batch_is_the_same(digits: ImageData) -> None:
    single = replace(digits, train_x=digits.train_x[:1].repeat(24, 1, 1, 1), train_y=digits.train_y[:1].repeat(24))
    dense = build_model("fc5-mini", digits.shape, digits.classes, seed=0).eval()
    start = Problem("fc5-mini", single, Recipe(1, 0.02, batch_size=1), 0, dense, 2)
    by_gradient = {name: gradient.abs() for name, gradient in gradients(start).items()}
    for sparsity in (0.5, 0.75):
        masks = select(by_gradient, sparsity)
        assert overlap_above_chance(pruner("kgp")(start, sparsity).masks, masks) > 0.5
        assert overlap_above_chance(pruner("kmp")(start, sparsity).masks, masks) < 0.1


@pytest.mark.parametrize("name", ["kmp", "kgp"])
def test_nothing_of_one_network_is_left_for_the_next(
    name: str, problem: Problem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    alone = pruner(name)(problem, 0.6)
    slower = pruner(name)(replace(problem, recipe=replace(problem.recipe, lr=0.02)), 0.6)
    again = pruner(name)(problem, 0.6)
    assert same(alone.masks, again.masks)
    assert not same(alone.masks, slower.masks)
    assert not list(tmp_path.iterdir())


def test_a_single_step_an_epoch_has_no_mode_that_decays(problem: Problem) -> None:
    whole = replace(problem, recipe=replace(problem.recipe, batch_size=200))
    with pytest.raises(UserError, match=r"^snapshots: expected a second real positive eigenvalue, got none among 1;"):
        pruner("kgp")(whole, 0.5)
