from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from estimators import UserError
from estimators.vectors import flatten
from validation.data import ImageData
from validation.dmd import dmd, gram, loss_and_gradient, record_snapshots, recorded_parameters
from validation.masks import overlap, prunable, select
from validation.models import build_model
from validation.pruners.koopman import gradient_mode, magnitude_mode, mode_scores
from validation.pruners.magnitude import magnitude_masks
from validation.training import Course, Recipe, train

Array = NDArray[np.floating]
RATES = np.array([1.0, 0.9, 0.5, 0.075])


def planted(size: int = 600, steps: int = 20) -> tuple[Array, Array]:
    """Snapshots of a fixed point and three decaying modes, and those four vectors."""
    parts = np.random.default_rng(0).standard_normal((4, size))
    return RATES ** np.arange(steps + 1)[:, None] @ parts, parts


def by_svd(snapshots: Array, rank: int) -> tuple[Array, Array, Array, Array]:
    """Q, A, eigenvalues nearest 1 first and scaled modes, straight from the snapshots."""
    x, y = snapshots[:-1].T, snapshots[1:].T
    q, sigma, vh = np.linalg.svd(x, full_matrices=False)
    q, inverse = q[:, :rank], vh[:rank].T / sigma[:rank]
    matrix = q.T @ y @ inverse
    eigenvalues, omega = np.linalg.eig(matrix)
    order = np.argsort(np.abs(eigenvalues - 1))
    phi = (y @ inverse @ omega / eigenvalues)[:, order]
    amplitudes = np.linalg.lstsq(phi, x[:, 0].astype(complex), rcond=None)[0]
    return q, matrix, eigenvalues[order], phi * amplitudes


def walk(size: int = 300, steps: int = 12) -> Array:
    """Snapshots of full rank with complex eigenvalues, as stochastic training gives them."""
    moves = np.random.default_rng(1).standard_normal((steps + 1, size))
    return 3 + np.cumsum(moves, axis=0)


def test_planted_modes_are_found_with_their_rank() -> None:
    snapshots, parts = planted()
    modes = dmd(snapshots)
    assert len(modes.eigenvalues) == 4
    assert np.abs(modes.eigenvalues - RATES).max() < 1e-8
    for number, part in enumerate(parts):
        assert np.linalg.norm(modes.mode(number) - part) / np.linalg.norm(part) < 1e-8
    assert modes.norms == pytest.approx(np.linalg.norm(parts, axis=1))


def test_every_snapshot_is_reconstructed() -> None:
    snapshots, _ = planted()
    modes = dmd(snapshots)
    for time, snapshot in enumerate(snapshots):
        assert modes.reconstruction(time) == pytest.approx(snapshot, abs=1e-8)


@pytest.mark.parametrize(("snapshots", "rank"), [(planted()[0], 4), (walk(), 12)])
def test_modes_agree_with_the_full_svd_and_solve_its_eigenproblem(snapshots: Array, rank: int) -> None:
    q, matrix, eigenvalues, scaled = by_svd(snapshots, rank)
    modes = dmd(snapshots)
    assert len(modes.eigenvalues) == rank
    vectors = np.stack([modes.mode(number) for number in range(rank)], axis=1)
    for eigenvalue, mode in zip(eigenvalues, scaled.T, strict=True):  # conjugates may come in either order
        number = np.argmin(np.abs(modes.eigenvalues - eigenvalue))
        assert abs(modes.eigenvalues[number] - eigenvalue) < 1e-8
        assert np.linalg.norm(vectors[:, number] - mode) / np.linalg.norm(mode) < 1e-6
    omega = q.T @ (vectors / modes.amplitudes)  # Q* Phi = omega
    assert np.abs(matrix @ omega - omega * modes.eigenvalues).max() < 1e-8
    assert np.linalg.norm(omega, axis=0) == pytest.approx(1)
    assert modes.norms == pytest.approx(np.linalg.norm(vectors, axis=0))


@pytest.mark.filterwarnings("ignore:Input data condition number")  # the rank is known and given
def test_modes_agree_with_pydmd() -> None:
    pydmd = pytest.importorskip("pydmd")
    snapshots, _ = planted(steps=10)
    reference = pydmd.DMD(svd_rank=4, exact=True).fit(snapshots.T)
    order = np.argsort(np.abs(reference.eigs - 1))
    modes = dmd(snapshots)
    assert modes.eigenvalues == pytest.approx(reference.eigs[order], abs=1e-8)
    for number, index in enumerate(order):
        assert modes.mode(number) == pytest.approx(reference.modes[:, index] * reference.amplitudes[index], abs=1e-6)


@pytest.mark.parametrize(("dtype", "tol", "error"), [(np.float64, 1e-7, 1e-8), (np.float32, 1e-6, 1e-4)])
def test_oscillating_and_decaying_modes_are_found_in_either_precision(
    dtype: type[np.floating], tol: float, error: float
) -> None:
    fixed, real, imaginary, decaying = np.random.default_rng(7).standard_normal((4, 500))
    times = np.arange(15)[:, None]
    turning = 0.9**times * (np.cos(0.7 * times) * real - np.sin(0.7 * times) * imaginary)
    snapshots = (fixed + turning + 0.5**times * decaying).astype(dtype)
    modes = dmd(snapshots, tol)
    assert len(modes.eigenvalues) == 4
    pair = 0.9 * np.exp(np.array([0.7j, -0.7j]))
    for eigenvalue, mode in zip((1, 0.5, *pair), (fixed, decaying, None, None), strict=True):
        number = int(np.argmin(np.abs(modes.eigenvalues - eigenvalue)))
        assert abs(modes.eigenvalues[number] - eigenvalue) < error
        if mode is not None:
            assert np.linalg.norm(modes.mode(number) - mode) / np.linalg.norm(mode) < 10 * error
    assert modes.errors().max() < 10 * error


def test_the_fixed_point_survives_noise() -> None:
    snapshots, parts = planted(size=2000, steps=30)
    noisy = snapshots + 1e-4 * np.random.default_rng(8).standard_normal(snapshots.shape)
    modes = dmd(noisy, tol=1e-3)
    assert abs(modes.eigenvalues[0] - 1) < 1e-3
    assert np.linalg.norm(modes.mode(0) - parts[0]) / np.linalg.norm(parts[0]) < 1e-2


def test_errors_and_motion_are_those_of_the_snapshots() -> None:
    snapshots = walk()
    modes = dmd(snapshots, tol=0.05)
    expected = [
        np.linalg.norm(modes.reconstruction(time) - snapshot) / np.linalg.norm(snapshot)
        for time, snapshot in enumerate(snapshots)
    ]
    assert modes.errors().max() > 1e-3
    assert modes.errors() == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert modes.motion() == pytest.approx(np.linalg.norm(snapshots - snapshots[0], axis=1).max(), rel=1e-6)


def test_directions_without_motion_are_truncated() -> None:
    snapshots, _ = planted()
    noisy = snapshots + 1e-9 * np.random.default_rng(2).standard_normal(snapshots.shape)
    modes = dmd(noisy)
    assert np.abs(modes.eigenvalues).max() < 1 + 1e-6
    assert abs(modes.eigenvalues[0] - 1) < 1e-6
    assert len(dmd(snapshots, tol=0.5).eigenvalues) < 4


def test_a_mode_that_is_gone_after_one_step_is_kept() -> None:
    snapshots = np.zeros((4, 5))
    snapshots[:, 0], snapshots[0, 1] = 2.0, 1.0
    modes = dmd(snapshots)
    assert modes.eigenvalues == pytest.approx([1, 0], abs=1e-12)
    assert modes.mode(1) == pytest.approx([0, 1, 0, 0, 0], abs=1e-12)


def test_two_snapshots_are_enough() -> None:
    modes = dmd(np.array([[1.0, 2.0], [0.5, 1.0]]))
    assert modes.eigenvalues == pytest.approx([0.5])
    assert modes.mode(0) == pytest.approx([1.0, 2.0])


@pytest.mark.parametrize(
    ("snapshots", "message"),
    [
        (np.ones((1, 3)), r"^snapshots: expected at least two rows \[tau \+ 1, N\], got shape \(1, 3\)$"),
        (np.ones(3), r"^snapshots: expected at least two rows"),
        (np.array([[1.0, 2.0], [np.nan, 1.0], [1.0, 1.0]]), "^snapshots: expected finite weights, got .* in 1 of 3$"),
        (np.array([[1.0, np.inf], [-np.inf, 1.0]]), "^snapshots: expected finite weights, got .* in 2 of 2$"),
        (np.zeros((3, 2)), "^snapshots: expected weights, got zeros only$"),
    ],
)
def test_unusable_snapshots_are_refused(snapshots: Array, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dmd(snapshots)


@pytest.mark.parametrize("tol", [1e-8, 1.0, float("nan")])
def test_a_tolerance_that_the_gram_matrix_cannot_resolve_is_refused(tol: float) -> None:
    with pytest.raises(UserError, match="tol: expected a number in"):
        dmd(np.ones((2, 2)), tol)


def test_the_gram_matrix_is_summed_in_float64_over_chunks(tmp_path: Path) -> None:
    snapshots = np.random.default_rng(3).standard_normal((5, 1003)).astype(np.float32)
    path = tmp_path / "snapshots.npy"
    np.save(path, snapshots)
    exact = snapshots.astype(np.float64) @ snapshots.astype(np.float64).T
    summed = gram(np.load(path, mmap_mode="r"), chunk=50)
    assert summed.dtype == np.float64
    assert summed == pytest.approx(exact, rel=1e-12)
    mapped = np.load(path, mmap_mode="c")
    mapped[0, 0] = 7.0
    assert gram(mapped, chunk=50)[0, 0] == pytest.approx(exact[0, 0] - float(snapshots[0, 0]) ** 2 + 49)
    assert mapped[0, 0] == 7.0
    assert dmd(np.load(path, mmap_mode="r")).mode(2) == pytest.approx(dmd(snapshots).mode(2))


# ------------------------------------------------------------------------------------------------- recorder


@pytest.mark.parametrize("name", ["fc5-mini", "resnet8", "small-cnn"])
def test_weights_and_biases_are_recorded_whatever_their_names_and_batch_norm_is_not(name: str) -> None:
    model = build_model(name, (1, 8, 8), 10)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    expected = sum(m.weight.numel() + (0 if m.bias is None else m.bias.numel()) for m in layers)
    assert sum(parameter.numel() for parameter in recorded_parameters(model).values()) == expected


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_recorder_writes_the_weights_before_and_after_every_step(
    digits: ImageData, tmp_path: Path, on_disk: bool
) -> None:
    model = build_model("resnet8", digits.shape, digits.classes)
    path = tmp_path / "snapshots.npy" if on_disk else None
    recorded = [flatten(list(recorded_parameters(model).values())).numpy().copy()]
    snapshots, record = record_snapshots(model, 3, path)

    def both(step: int, model: nn.Module) -> None:
        recorded.append(flatten(list(recorded_parameters(model).values())).numpy().copy())
        record(step, model)

    train(model, digits, Recipe(epochs=1, lr=0.01), seed=0, course=Course(last=3, on_step=both))
    assert snapshots.dtype == np.float32
    assert isinstance(snapshots, np.memmap) == on_disk
    assert np.array_equal(snapshots, np.stack(recorded))
    if path is not None:
        assert path.stat().st_size >= snapshots.nbytes


def test_loss_and_gradient_are_recorded_behind_the_weights_and_leave_the_scores_alone(digits: ImageData) -> None:
    model = build_model("fc3-tiny", digits.shape, digits.classes)
    batch = (torch.rand(20, *digits.shape), digits.train_y[:20])
    snapshots, record = record_snapshots(model, 3, observable=loss_and_gradient([batch]))
    train(model, digits, Recipe(epochs=1, lr=0.01), seed=0, course=Course(last=3, on_step=record))
    weights = sum(parameter.numel() for parameter in recorded_parameters(model).values())
    assert snapshots.shape[1] == weights + 1 + sum(weight.numel() for weight in prunable(model).values())
    model.zero_grad()
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    gradient = flatten([model.get_parameter(name).grad for name in prunable(model)])
    assert snapshots[-1, weights] == pytest.approx(loss.item(), rel=1e-5)
    assert snapshots[-1, weights + 1 :] == pytest.approx(gradient.numpy(), abs=1e-6)
    modes = dmd(snapshots)
    scores = mode_scores(modes, 0, model)
    assert list(scores) == list(prunable(model))
    name = next(iter(scores))
    assert scores[name].flatten().numpy() == pytest.approx(np.abs(modes.mode(0)[: scores[name].numel()]))


# ------------------------------------------------------------------------------------------------- pruning


class Quadratic(nn.Module):
    """The loss half (w - target)' H (w - target) of a linear layer's weights, with its bias idle."""

    def __init__(self, curvatures: torch.Tensor, target: torch.Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(*reversed(target.shape))
        self.register_buffer("curvatures", curvatures)
        self.register_buffer("target", target)

    def gradient(self) -> torch.Tensor:
        return self.curvatures * (self.layer.weight.detach() - self.target)

    def descend(self, rate: float) -> None:
        with torch.no_grad():
            self.layer.weight -= rate * self.gradient()


def quadratic(curvatures: torch.Tensor) -> Quadratic:
    generator = torch.Generator().manual_seed(4)
    model = Quadratic(curvatures, torch.randn(20, 30, generator=generator))
    with torch.no_grad():
        model.layer.weight.copy_(torch.randn(20, 30, generator=generator))
    return model


def test_koopman_magnitude_pruning_of_a_converged_quadratic_is_magnitude_pruning() -> None:
    model = quadratic(torch.linspace(0.5, 1.5, 600).view(20, 30))
    for _ in range(100):
        model.descend(0.5)
    snapshots, record = record_snapshots(model, 10)
    for step in range(1, 11):
        model.descend(0.5)
        record(step, model)
    modes = dmd(snapshots)
    assert modes.eigenvalues[magnitude_mode(modes)] == pytest.approx(1, abs=1e-6)
    masks = select(mode_scores(modes, magnitude_mode(modes), model), 0.8)
    assert list(masks) == ["layer.weight"]
    assert overlap(masks, magnitude_masks(model, 0.8)) == 1


def test_koopman_gradient_pruning_of_one_decaying_mode_is_gradient_pruning() -> None:
    model = quadratic(torch.full((20, 30), 0.8))
    snapshots, record = record_snapshots(model, 12)
    gradient = model.gradient().abs()
    for step in range(1, 13):
        model.descend(0.5)
        record(step, model)
    modes = dmd(snapshots, tol=1e-5)
    assert modes.eigenvalues == pytest.approx([1, 0.6], abs=1e-5)
    for sparsity in (0.3, 0.8):
        masks = select(mode_scores(modes, gradient_mode(modes), model), sparsity)
        assert overlap(masks, select({"layer.weight": gradient}, sparsity)) == 1
        assert overlap(masks, select({"layer.weight": prunable(model)["layer.weight"].abs()}, sparsity)) < 1


def test_the_gradient_mode_is_the_largest_real_decaying_one_and_not_the_nearest_to_1() -> None:
    parts = np.random.default_rng(5).standard_normal((4, 50))
    sizes, rates = np.array([5.0, 0.1, 2.0, 4.0]), np.array([1.0, 0.9, 0.3, -0.5])
    modes = dmd(rates ** np.arange(12)[:, None] @ (sizes[:, None] * parts))
    assert modes.eigenvalues[gradient_mode(modes)] == pytest.approx(0.3)


def test_dynamics_without_a_second_real_positive_eigenvalue_are_refused() -> None:
    angles = np.arange(9)[:, None] * 0.7
    vectors = np.random.default_rng(6).standard_normal((3, 40))
    spiral = vectors[0] + 0.9 ** np.arange(9)[:, None] * (np.cos(angles) * vectors[1] + np.sin(angles) * vectors[2])
    with pytest.raises(UserError, match="snapshots: expected a second real positive eigenvalue, got none among 3"):
        gradient_mode(dmd(spiral))
