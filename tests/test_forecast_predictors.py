from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from estimators import L2, Hessian, Objective, SpectralMeasure
from pruning_limits import MagnitudeProfile, PruningLimit, predict_limit
from pruning_limits.isotropic import isotropic_limit
from pruning_limits.parts import Estimate
from tests.helpers import assert_close, random, seeded, with_spectrum
from validation.studies.limits.forecast_curves import Measured
from validation.studies.limits.forecast_predictors import (
    fitted_epsilon,
    levels_of,
    predicted,
    rise_at,
    schur,
    shifted,
    spectral,
)

Floats = NDArray[np.float64]
Row = dict[str, Any]
CALIBRATION = {
    "format": "pruning-forecast/1",
    "version": "made",
    "networks": 1,
    "families": 1,
    "coverage": 0.9,
    "ranges": [],
    "rules": [{"features": ["hessian"], "intercept": 0.0, "slopes": [1.0], "low": 0.0, "high": 0.0}],
}


# ------------------------------------------------------------------------------------------------- fitted networks


@pytest.mark.parametrize(("epsilon", "loss"), [(0.01, 1.0), (0.03, 0.1), (0.1, 0.01), (0.1, 0.0005), (2.0, 0.3)])
@pytest.mark.parametrize("kappa", [0.2, 5.0])
def test_a_curvature_that_grows_with_the_loss_is_integrated(epsilon: float, loss: float, kappa: float) -> None:
    """The way to the allowed rise, by an integrator; a constant curvature would rise by what the formula says."""

    def risen(_: float, state: Floats) -> float:
        return float(state[0] - loss - epsilon)

    risen.terminal = True  # type: ignore[attr-defined]

    def moved(_: float, state: Floats) -> list[float]:
        return [state[1], kappa * state[0]]

    way = solve_ivp(moved, (0, 1e3), [loss, 0.0], events=risen, rtol=1e-10, atol=1e-14)
    (length,) = way.t_events[0]
    assert fitted_epsilon(epsilon, loss) == pytest.approx(0.5 * kappa * loss * length**2, rel=1e-6)
    assert fitted_epsilon(epsilon, loss) < epsilon


def test_a_network_without_loss_has_a_finite_allowance() -> None:
    assert fitted_epsilon(0.1, 0.0) == fitted_epsilon(0.1, 1e-9)
    assert 0 < fitted_epsilon(0.1, 0.0) < 1e-6


# ------------------------------------------------------------------------------------------------- shifted spectra


@pytest.mark.parametrize("above", [False, True])
def test_a_shifted_spectrum_is_that_of_the_matrix_with_a_multiple_of_the_identity(above: bool) -> None:
    matrix = with_spectrum(torch.linspace(-0.4, 3.0, 30, dtype=torch.float64))
    upper = with_spectrum(torch.linspace(-0.2, 4.0, 30, dtype=torch.float64))
    measure, other = (SpectralMeasure.from_eigenvalues(np.linalg.eigvalsh(m)) for m in (matrix, upper))
    estimate = Estimate(measure, 10, 30, 0.01, 0.02, 1.5, other if above else None, (measure, measure))
    moved = shifted(estimate, 0.3)
    assert_close(np.sort(moved.measure.nodes), np.linalg.eigvalsh(matrix.numpy() + 0.3 * np.eye(30)))
    assert (moved.growth, moved.samples, moved.bracket) == (1.5, 10, None)
    assert (moved.above is not None) is above
    if moved.above is not None:
        assert_close(np.sort(moved.above.nodes), np.linalg.eigvalsh(upper.numpy() + 0.3 * np.eye(30)))
    assert_close(estimate.measure.nodes, measure.nodes)


def test_the_shift_of_a_penalty_is_its_coefficient(tiny: tuple[nn.Module, list[tuple[Tensor, Tensor]]]) -> None:
    plain, penalised = (Hessian(Objective(*tiny, penalty=penalty)) for penalty in (None, L2(0.07)))
    identity = torch.eye(plain.shape[0], dtype=torch.float64)
    assert_close(penalised.matmat(identity), plain.matmat(identity) + 0.07 * identity)


# ------------------------------------------------------------------------------------------------- one-shot curves


def test_the_rise_at_a_kept_fraction_is_read_off_the_curve() -> None:
    points = [{"kept": math.exp(-place), "rise": place**2} for place in range(1, 6)]
    assert rise_at(points, math.exp(-3)) == pytest.approx(9)
    assert rise_at(points, math.exp(-2.25)) == pytest.approx(0.75 * 4 + 0.25 * 9)
    assert rise_at(points, math.exp(-0.5)) == pytest.approx(0.5)  # the dense network lost nothing
    assert rise_at(points, math.exp(-7)) == pytest.approx(25)


def test_a_curve_that_falls_counts_by_what_was_lost_before() -> None:
    points = [{"kept": 0.5, "rise": -0.1}, {"kept": 0.25, "rise": 0.4}, {"kept": 0.125, "rise": 0.2}]
    assert rise_at(points, 0.125) == pytest.approx(0.4)
    assert rise_at(points, 0.5) is None
    assert rise_at(points, 1.0) is None
    assert rise_at(points, math.sqrt(0.125)) == pytest.approx(0.2)


def test_where_the_loss_is_infinite_no_rise_is_known() -> None:
    points = [{"kept": 0.5, "rise": 0.1}, {"kept": 0.25, "rise": math.inf}]
    assert rise_at(points, 0.25) is None
    assert rise_at(points, 0.3) is None
    assert rise_at(points, 0.7) == pytest.approx(0.1 * math.log(0.7) / math.log(0.5))


def test_levels_are_the_fluctuation_rises_and_falls() -> None:
    levels = levels_of(Measured(0.1, 0.9, 0.8), 0.017, (0.01, 0.1), (0.005, 0.02))
    assert [(level.name, level.key, level.allowed) for level in levels] == [
        ("batch-std", "rise", 0.017),
        ("loss +0.01", "rise", 0.01),
        ("loss +0.1", "rise", 0.1),
        ("training accuracy -0.5 points", "drop", 0.005),
        ("training accuracy -2 points", "drop", 0.02),
        ("held-out accuracy -0.5 points", "held_out_drop", 0.005),
        ("held-out accuracy -2 points", "held_out_drop", 0.02),
    ]


def test_measured_curves_tell_kept_fractions_and_the_rise_that_belongs_to_them() -> None:
    grid = range(1, 10)
    alone = [{"kept": math.exp(-p), "rise": 0.1 * p, "drop": 0.02 * p} for p in grid]
    again = [{"kept": math.exp(-p), "rise": 0.05 * p, "drop": 0.0} for p in grid]
    levels = levels_of(Measured(0.1, 0.9, 0.8), 0.3, (), (0.05,))[:2]
    rise, drop = (predicted({"alone": alone, "again-0": again}, level) for level in levels)
    assert rise == pytest.approx({"alone": math.exp(-3), "again-0": math.exp(-6), "epsilon": 0.3})
    assert drop["alone"] == pytest.approx(math.exp(-2.5))
    assert drop["epsilon"] == pytest.approx(0.25)
    assert drop["again-0"] is None
    assert predicted({"alone": again}, levels[1]) == {"alone": None, "epsilon": None}


# ------------------------------------------------------------------------------------------------- spectra


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """A network of 108 weights, small enough for exact spectra, trained to a loss of about a half."""
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)))
    x = random(80, 6, seed=1)
    y = (model(x) + 0.3 * random(80, 3, seed=2)).argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), x, y


def dense(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Floats, Floats, Floats, Floats]:
    """Hessian and GGN of the mean loss over the matrices of weights, its gradient, and the weights, by autograd."""
    chosen = {name: value.detach() for name, value in model.named_parameters() if value.dim() == 2}
    vector = torch.cat([value.flatten() for value in chosen.values()])

    def outputs(weights: Tensor) -> Tensor:
        parts = weights.split([value.numel() for value in chosen.values()])
        state = {name: part.view_as(chosen[name]) for name, part in zip(chosen, parts, strict=True)}
        return torch.func.functional_call(model, state, (x,))

    def loss(weights: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs(weights), y)

    hessian = torch.autograd.functional.hessian(loss, vector)
    jacobian = torch.autograd.functional.jacobian(outputs, vector)
    chances = outputs(vector).softmax(1).detach()
    inner = torch.diag_embed(chances) - chances[:, :, None] * chances[:, None]
    ggn = torch.einsum("nci,ncd,ndj->ij", jacobian, inner, jacobian) / len(x)
    gradient = jacobian.transpose(1, 2) @ (chances - nn.functional.one_hot(y, chances.shape[1]))[:, :, None]
    return tuple(part.numpy() for part in (hessian, ggn, gradient[:, :, 0].mean(0), vector))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def limit(tmp_path_factory: pytest.TempPathFactory) -> PruningLimit:
    file = tmp_path_factory.mktemp("calibration") / "made.json"
    file.write_text(json.dumps(CALIBRATION))
    model, x, y = problem()
    return predict_limit(model, [(x[:50], y[:50]), (x[50:], y[50:])], epsilon=0.02, measure=False, forecast=file)


@pytest.mark.parametrize("epsilon", [0.004, 0.02, 0.3])
def test_spectra_give_the_isotropic_limits_of_dense_matrices(limit: PruningLimit, epsilon: float) -> None:
    model, x, y = problem()
    hessian, ggn, _, vector = dense(model, x, y)
    loss, shift = float(nn.functional.cross_entropy(model(x), y).detach()), 0.02
    row = spectral(limit, epsilon, loss, shift)
    curve = MagnitudeProfile({"w": torch.from_numpy(vector)}).curve()

    def kept(matrix: Floats, negative: Any, allowed: float = epsilon) -> float:
        measure = SpectralMeasure.from_eigenvalues(np.linalg.eigvalsh(matrix))
        return 1 - isotropic_limit(measure, curve, allowed, negative).sparsity

    moved = shift * np.eye(len(vector))
    wanted = {
        "hessian": kept(hessian, "abs"),
        "hessian_clipped": kept(hessian, "clip"),
        "hessian_objective": kept(hessian + moved, "abs"),
        "ggn": kept(ggn, "clip"),
        "ggn_objective": kept(ggn + moved, "clip"),
        "ggn_fitted": kept(ggn, "clip", loss * math.acosh(1 + epsilon / loss) ** 2 / 2),
    }
    assert {key: row[key] for key in wanted} == pytest.approx(wanted, rel=1e-6)
    assert row.keys() - wanted.keys() == {"hessian_error", "ggn_error", "directional", "bound"}
    assert 0 <= row["hessian_error"] < 1e-6  # all eigenvalues of all data
    along = limit.what_if(epsilon=epsilon).directional
    assert along is not None
    assert row["directional"] == pytest.approx(1 - along)
    assert len({round(value, 6) for value in wanted.values()}) == 6


def test_without_a_ggn_the_hessian_is_left(limit: PruningLimit) -> None:
    bare = dataclasses.replace(limit, evidence=dataclasses.replace(limit.evidence, ggn=None, directions=None))
    row = spectral(bare, 0.02, 0.4, 0.0)
    assert row.keys() == {"hessian", "hessian_error", "hessian_clipped", "hessian_objective"}
    assert row["hessian"] == row["hessian_objective"]


# ------------------------------------------------------------------------------------------------- Schur optimum


def test_the_best_weights_on_a_mask_are_those_of_least_squares() -> None:
    model, x, y = problem()
    _, ggn, gradient, vector = dense(model, x, y)
    order, size = np.argsort(np.abs(vector)), len(vector)
    rises = []
    counts = np.unique(np.geomspace(1, size, 60).round().astype(int))[::-1][1:]
    for count in counts:
        kept = order[size - count :]
        moved = -vector.copy()
        moved[kept] = 0.0
        change = np.linalg.lstsq(ggn[np.ix_(kept, kept)], -(gradient + ggn @ moved)[kept], rcond=1e-11)[0]
        moved[kept] += change
        rises.append(gradient @ moved + 0.5 * moved @ ggn @ moved)
    for epsilon, fraction in zip((0.01, 0.05, 0.2), schur(Objective(model, [(x, y)]), (0.01, 0.05, 0.2)), strict=True):
        first = next(n for n in range(len(counts)) if rises[n] > epsilon)
        assert rises[first + 1] > epsilon
        ends = np.log(counts[first - 1 : first + 1] / size)
        wanted = np.interp(epsilon, rises[first - 1 : first + 1], ends)
        assert math.log(fraction) == pytest.approx(wanted, abs=1e-6)


def test_what_is_never_lost_keeps_one_weight() -> None:
    model, x, y = problem()
    assert schur(Objective(model, [(x, y)]), [1e9]) == [1 / 108]
