from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import nn

from estimators import GGN, L1, L2, Objective, UserError
from pruning_limits import MagnitudeProfile
from pruning_limits.directional import directional_limit
from pruning_limits.magnitude_curve import MagnitudeCurve
from pruning_limits.retuned import retune
from validation.models import MLP
from validation.studies.limits import oracle, truths
from validation.studies.limits.masked_optimum import loss_and_gradient, masked_optimum
from validation.studies.limits.subspaces import Quadratic
from validation.tables.reading import load_suite
from validation.tables.runner import Run, run_table, settings_of
from validation.tables.suite import Suite
from validation.training import Network, Recipe

Floats = NDArray[np.float64]


def semidefinite(size: int, rank: int, seed: int = 0) -> Floats:
    """A matrix of a given rank whose eigenvalues spread over three decades."""
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0][:, :rank]
    matrix: Floats = basis * np.geomspace(0.01, 10, rank) @ basis.T
    return (matrix + matrix.T) / 2


class Dense:
    """A dense matrix as operator."""

    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, matrix: Floats) -> None:
        self.matrix = torch.from_numpy(matrix)
        self.shape = tuple(matrix.shape)

    def matmat(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.matrix @ vectors


@pytest.fixture
def objective() -> Objective:
    """A small network in float64, trained a little, so that its gradient is not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        x = torch.randn(60, 6, dtype=torch.float64)
        y = torch.randint(0, 3, (60,))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return Objective(model, [(x[:40], y[:40]), (x[40:], y[40:])])


# ------------------------------------------------------------------------------------------------- quadratic model


@pytest.mark.parametrize("rank", [40, 17])
@pytest.mark.parametrize("tilt", [0.0, 0.3])
def test_the_lowest_point_is_that_of_conjugate_gradients_and_of_least_squares(rank: int, tilt: float) -> None:
    rng = np.random.default_rng(5)
    matrix = semidefinite(40, rank)
    d, g = rng.standard_normal(40), tilt * matrix @ rng.standard_normal(40)
    kept = rng.permutation(40)[:25]
    d[kept] = 0.0
    mask = torch.zeros(40, dtype=torch.bool)
    mask[kept] = True
    lowest = Quadratic(matrix, g).lowest(d, kept)
    retuned = retune(Dense(matrix), torch.from_numpy(d), mask, torch.from_numpy(g), tolerance=1e-11, steps=2000)
    pulled = (matrix @ d - g)[kept]
    change = np.linalg.lstsq(matrix[np.ix_(kept, kept)], pulled, rcond=1e-11)[0]
    x = -d
    x[kept] += change
    assert lowest == pytest.approx(0.5 * x @ matrix @ x + g @ x, abs=1e-9)
    assert lowest == pytest.approx(retuned.rise, abs=1e-7)
    assert lowest < Quadratic(matrix, g).rise(d)


def test_the_lowest_point_is_that_of_a_blind_minimiser() -> None:
    rng = np.random.default_rng(2)
    matrix, d, g = semidefinite(8, 8) + np.eye(8), rng.standard_normal(8), rng.standard_normal(8)
    model, moving = Quadratic(matrix, g), np.array([6, 1, 3])

    def rise(change: Floats) -> float:
        moved = d.copy()
        moved[moving] -= change
        return model.rise(moved)

    assert model.lowest(d, moving) == pytest.approx(minimize(rise, np.zeros(3), tol=1e-12).fun, abs=1e-9)
    assert model.lowest(d, np.array([], dtype=np.int64)) == model.rise(d)


def test_a_model_that_falls_without_end_has_no_lowest_point() -> None:
    bent = np.diag([1.0, 2.0, -0.1])
    model, d = Quadratic(bent, np.zeros(3)), np.ones(3)
    assert model.lowest(d, np.array([0, 1, 2])) is None
    assert model.lowest(d, np.array([2])) is None
    assert model.lowest(d, np.array([0, 1])) == pytest.approx(-0.05)
    hidden = Quadratic(np.array([[0.0, 1.0], [1.0, 0.0]]), np.zeros(2))
    assert hidden.lowest(np.ones(2), np.array([0, 1])) is None


def test_shapes_must_match() -> None:
    with pytest.raises(UserError, match=r"curvature: expected shape \(3, 3\), got \(2, 2\)"):
        Quadratic(np.eye(2), np.zeros(3))


def test_the_dense_model_of_an_operator_has_its_products(objective: Objective) -> None:
    ggn = GGN(objective)
    model = Quadratic.of(ggn, np.zeros(objective.dimension))
    vector = torch.arange(float(objective.dimension), dtype=torch.float64)
    np.testing.assert_allclose(model.curvature @ vector.numpy(), (ggn @ vector).numpy(), atol=1e-9)
    np.testing.assert_array_equal(model.curvature, model.curvature.T)
    np.testing.assert_allclose(model.measure.moment(1)[0], np.trace(model.curvature) / objective.dimension)


@pytest.mark.parametrize("rank", [60, 20])
def test_random_subspaces_are_those_of_the_normal_equations(rank: int) -> None:
    rng = np.random.default_rng(1)
    matrix = semidefinite(60, rank)
    removed, g = rng.standard_normal((60, 4)), matrix @ rng.standard_normal(60)
    model, kept = Quadratic(matrix, g), [0, 3, 15, 60]
    rises = model.on_random_subspaces(removed, kept, seed=7)
    vectors = model.eigen[1]
    frame = np.random.default_rng(7).standard_normal((rank, rank))
    span = vectors[:, 60 - rank :] @ frame
    for number, count in enumerate(kept[:3]):
        part, d = span[:, :count], removed[:, number]
        block, pulled = part.T @ matrix @ part, part.T @ (matrix @ d - g)
        fall = pulled @ np.linalg.solve(block, pulled) / 2 if count else 0.0
        assert rises[number] == pytest.approx(model.rise(d) - fall, abs=1e-7)
    assert rises[3] == pytest.approx(-g @ np.linalg.pinv(matrix, rcond=1e-10) @ g / 2, abs=1e-8)


def test_random_subspaces_cross_where_the_directional_limit_says() -> None:
    size, epsilon = 300, 0.05
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    matrix = basis * np.geomspace(1e-4, 10, size) @ basis.T
    model = Quadratic((matrix + matrix.T) / 2, np.zeros(size))
    profile = MagnitudeProfile({"w": torch.from_numpy(rng.standard_normal(size))})
    curve: MagnitudeCurve = profile.curve()
    limit = directional_limit(model.measure, lambda s: model.direction(truths.removed_part(profile, s)), curve, epsilon)
    crossed = truths._random_subspace(model, profile, epsilon, [])
    assert abs(crossed - limit.sparsity) < 3 * limit.deviation / truths.TRIALS**0.5
    assert 0.1 < crossed < 0.9


def test_random_coordinates_are_means_over_draws_of_coordinates() -> None:
    profile = MagnitudeProfile({"w": torch.arange(1.0, 9.0, dtype=torch.float64)})
    model = Quadratic(np.diag(np.arange(1.0, 9.0)), np.zeros(8))
    points: list[dict[str, Any]] = [{"sparsity": 0.5}]
    limit = truths._random_coordinates(model, profile, points, lambda rise: 0.5 if rise(0.5) > 0 else 0.75)
    d = truths.removed_part(profile, 0.5)
    rises = []
    for seed in range(truths.TRIALS):
        held = np.random.default_rng(seed).permutation(8)[:4]
        rises.append(sum((held + 1) * d[held] ** 2) / 2)
    assert points[0]["random_coordinates"] == pytest.approx(np.mean(rises))
    assert limit == pytest.approx(0.5)


# ------------------------------------------------------------------------------------------------ re-trained optimum


def test_loss_and_gradient_are_those_of_the_objective(objective: Objective) -> None:
    loss, gradient = loss_and_gradient(objective, objective.vector())
    assert loss == pytest.approx(objective.value(), abs=1e-12)
    torch.testing.assert_close(gradient, objective.gradient(), atol=1e-12, rtol=0)


def test_the_split_objective_starts_at_the_value_of_the_pruned_weights(objective: Objective) -> None:
    penalised = Objective(objective.model, objective.loader, penalty=L1(0.01))
    kept = torch.arange(penalised.dimension) % 3 != 0
    values: list[float] = []

    def record(function: Any, start: Floats, **options: Any) -> Any:
        values.append(function(start)[0])
        return minimize(function, start, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("validation.studies.limits.masked_optimum.minimize", record)
        end = masked_optimum(penalised, penalised.vector(), kept, 50)
    biases = sum(float(p.detach().abs().sum()) for name, p in penalised.model.named_parameters() if "bias" in name)
    assert values[0] + 0.01 * biases == pytest.approx(penalised.value(penalised.vector() * kept), abs=1e-12)
    assert end.objective == pytest.approx(penalised.value(end.weights), abs=1e-14)


@pytest.mark.parametrize("penalty", [None, L1(0.01)])
def test_the_optimum_is_one_and_leaves_removed_weights_zero(objective: Objective, penalty: L1 | None) -> None:
    own = Objective(objective.model, objective.loader, penalty=penalty)
    start = own.vector()
    before = {name: tensor.clone() for name, tensor in own.model.state_dict().items()}
    kept = torch.arange(own.dimension) % 4 != 1
    end = masked_optimum(own, start, kept, 3000, tolerance=1e-4)
    assert end.converged
    assert end.slope <= 1e-4
    assert end.objective < own.value(start * kept)
    assert not end.weights[~kept].any()
    assert all(torch.equal(before[name], tensor) for name, tensor in own.model.state_dict().items())
    gradient = loss_and_gradient(own, end.weights)[1][kept]
    weights = end.weights[kept]
    price = penalty.coefficient if penalty else 0.0
    moving = weights != 0
    assert (gradient[moving] + price * weights[moving].sign()).abs().max() < 1e-3
    assert not (~moving).any() or gradient[~moving].abs().max() <= price + 1e-3
    short = masked_optimum(own, start, kept, 2)
    assert end.objective < short.objective < own.value(start * kept)
    assert (short.iterations, short.converged) == (2, False)


def test_other_penalties_are_refused(objective: Objective) -> None:
    own = Objective(objective.model, objective.loader, penalty=L2(0.1))
    with pytest.raises(UserError, match="penalty: expected L1 or None, got L2"):
        masked_optimum(own, own.vector(), torch.ones(own.dimension, dtype=torch.bool), 2)


# ---------------------------------------------------------------------------------------------------------- crossing


def test_the_crossing_is_the_last_one() -> None:
    assert truths.crossing([(0.0, 0.0), (0.5, 2.0), (0.9, 0.5), (0.99, 1.5)], 1.0) == pytest.approx(1 - 10**-1.5)
    assert truths.crossing([(0.0, 0.0), (0.5, 0.5)], 1.0) == 0.5
    assert truths.crossing([(0.0, -3.0), (0.5, 5.0)], -3.0) == 0.0


def test_the_bracket_is_halved_in_the_logarithm_of_what_is_kept() -> None:
    asked: list[float] = []

    def rise(sparsity: float) -> float:
        asked.append(sparsity)
        return float(-np.log2(1 - sparsity)) ** 2

    limit = truths.refined_crossing(rise, {0.0: 0.0, 1 - 2**-8: 64.0}, 20.25, dimension=10**9)
    assert -np.log2(1 - np.array(asked)) == pytest.approx([4, 6], abs=1e-5)
    assert -np.log2(1 - limit) == pytest.approx(4 + 2 * 4.25 / 20, abs=1e-5)
    asked.clear()
    assert truths.refined_crossing(rise, {0.0: 0.0, 0.5: 1.0}, 2.0, dimension=100) == 0.5
    assert not asked


# -------------------------------------------------------------------------------------------------------------- table


@pytest.fixture
def suite() -> Suite:
    return load_suite("quick")


def test_cells_are_small_networks_of_the_tables_own(suite: Suite) -> None:
    cells = oracle.cells(suite)
    assert cells == oracle.cells(replace(load_suite("cpu"), networks=()))
    assert len(cells) == 12
    assert {cell.network.dataset for cell in cells} == {"digits"}
    assert {cell.network.recipe.l1 for cell in cells} == {0.0, 1e-3}
    assert settings_of(oracle.TABLE, suite, cells[0])["iterations"] == truths.ITERATIONS


def test_the_table_of_one_network_holds_together(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "MODELS", (f"{__name__}:little",))
    monkeypatch.setattr(oracle, "PENALTIES", (1e-3,))
    monkeypatch.setattr(oracle, "SEEDS", (0,))
    monkeypatch.setattr(oracle, "EPOCHS", 3)
    monkeypatch.setattr(truths, "KEPT", (0.5, 0.1, 0.03))
    monkeypatch.setattr(truths, "TRIALS", 1)
    monkeypatch.setattr(truths, "FINE", 20)
    monkeypatch.setattr(truths, "ITERATIONS", 15)
    monkeypatch.setattr("validation.tables.runner.load_data", few_digits)
    folder = run_table("oracle", suite, Run(tmp_path, command="test"))
    written = {end: (folder / f"oracle.{end}").read_bytes() for end in ("json", "md", "png")}
    (row,) = json.loads(written["json"])["rows"]
    assert written["md"].count(b"\n| ") == 2
    assert written["png"].startswith(b"\x89PNG")
    assert row["parameters"] == 64 * 4 + 4 * 10
    assert row["isotropic_ggn"] <= row["directional"] + 1e-6
    assert row["retrained"] >= row["retrained_control"]
    assert row["control_fall"] > 0
    assert row["runs"][0]["rise"] == pytest.approx(-row["control_fall"] * row["epsilon"])
    assert len(row["runs"]) > len(row["points"]) + 1
    for point in row["points"]:
        assert point["retrained"] <= point["one_shot"] + 1e-12
        assert point["schur"] >= -1e-9
        assert point["random_subspace"] >= -1e-9
    assert 0 < row["schur"] < 1
    run_table("oracle", suite, Run(tmp_path, command="test"))
    for end in ("json", "md"):
        assert (folder / f"oracle.{end}").read_bytes() == written[end]


def little(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A network whose exact Hessian takes a moment."""
    return MLP(shape, classes, (4,))


def few_digits(name: str, data_dir: Path | None) -> Any:
    """The first images of the digits, whose exact Hessian is cheaper."""
    from validation.data import load_data

    data = load_data(name, data_dir)
    return replace(data, train_x=data.train_x[:200], train_y=data.train_y[:200])


def synthetic(penalty: str, **values: float) -> dict[str, Any]:
    """A row in which every limit is 0.5 unless given."""
    keys = (*oracle.PREDICTIONS, *oracle.TRUTHS, *oracle.SUBSPACES)
    network = {"model": "m", "dataset": "d", "penalty": penalty, "seed": 0, "parameters": 1000, "accuracy": 0.9}
    point = {"sparsity": 0.5} | dict.fromkeys(oracle.CURVES, 0.01)
    rest = {"epsilon": 0.01, "control_fall": 2.0, "converged": 0.5, "definite_from": None, "points": [point]}
    rest["runs"] = [{"sparsity": 0.5, "rise": -0.02}]
    return network | dict.fromkeys(keys, 0.5) | rest | values


def test_the_words_follow_the_numbers(suite: Suite, tmp_path: Path) -> None:
    far = {"isotropic_hessian": 0.8, "isotropic_ggn": 0.9, "directional": 0.95}
    rows = [
        synthetic("L1 0.001", **far, one_shot=0.75, retrained=0.96, schur=0.9, random_subspace=0.8),
        synthetic("none", **far, one_shot=0.94, retrained=0.8, schur=0.8, random_subspace=0.9, random_coordinates=0.6),
    ]
    oracle.write(rows, suite, tmp_path, "test")
    first, second = (tmp_path / "oracle.md").read_text().split("**Without penalty.**")
    assert "* one-shot, measured: closest is isotropic, |Hessian| (off by a factor of 1.25, keeps 0.80 times" in first
    assert "* re-trained, F* + epsilon: closest is directional, GGN (off by a factor of 1.25, keeps 1.25 times" in first
    assert "* one-shot, measured: closest is directional, GGN (off by a factor of 1.20, keeps 0.83 times" in second
    assert "* re-trained, F* + epsilon: closest is isotropic, |Hessian| (off by a factor of 1.00" in second
    assert "kept coordinates of the mask reach further than a random subspace" in first
    assert "the latter needs 2.00 times as many dimensions" in first
    assert "kept coordinates of the mask fall short of a random subspace" in second
    assert "drawn at random need 2.00 times" in second
    assert "differ by a factor of 4.000 in kept fraction" in first
    assert "differ by a factor of 2.000 in kept fraction" in second
    equal = oracle._subspaces([synthetic("none")])
    assert "are as good as a random subspace" in equal
    assert "lowers the objective by 2.0 to 2.0 epsilons, and 50% of all its runs" in first


def test_a_factor_averages_over_networks() -> None:
    rows = [synthetic("none", directional=s, schur=0.5) for s in (0.75, 0.0)]
    assert "directional, GGN (off by a factor of 2.00, keeps 1.00 times" in oracle._closest(rows, "schur")


def test_a_row_of_a_network_needs_an_objective_that_it_can_minimise(objective: Objective) -> None:
    own = Objective(objective.model, objective.loader, penalty=L2(0.1))
    with pytest.raises(UserError, match="penalty"):
        truths.limits_and_truths(own)


def test_networks_are_told_apart_by_seed() -> None:
    own = {cell.network for cell in oracle.cells(load_suite("quick"))}
    assert Network("fc3-tiny", "digits", Recipe(oracle.EPOCHS, 0.05, warmup=1), 2) in own
