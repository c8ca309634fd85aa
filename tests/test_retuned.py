"""Re-tuning of the kept weights in the quadratic model against dense float64 Schur complements."""

import math

import pytest
import torch
from helpers import MASKED, Dense, masked_problem, random, schur_complement, with_spectrum
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from estimators import GGN, L2, Objective, UserError
from estimators.trace import diagonal
from estimators.vectors import flatten
from pruning_limits import MagnitudeProfile
from pruning_limits.retuned import preconditioner, retune, retuned_weights


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([5, 20, MASKED]), st.floats(0.0, 1.0), st.booleans())
def test_the_minimum_is_the_schur_complement(seed: int, rank: int, kept: float, scaled: bool) -> None:
    matrix, weights, mask = masked_problem(seed, rank, kept)
    diagonal = preconditioner(Dense(matrix), 4, seed) if scaled else None
    retuned = retune(Dense(matrix), weights, mask, diagonal=diagonal, tolerance=1e-9)
    minimum, _ = schur_complement(matrix, weights, mask)
    assert retuned.status == "converged"
    assert retuned.rise == pytest.approx(minimum, abs=1e-8 * retuned.before + 1e-12)
    assert retuned.rise <= retuned.before * (1 + 1e-12)
    assert retuned.before == pytest.approx(float(0.5 * (weights * ~mask) @ matrix @ (weights * ~mask)))
    assert not retuned.change[~mask].any()


@pytest.mark.parametrize("damping", [0.0, 1e-2])
def test_a_gradient_in_the_range_moves_the_minimum(damping: float) -> None:
    matrix, weights, mask = masked_problem(3, rank=25)
    gradient = matrix @ random(MASKED, seed=8)
    retuned = retune(Dense(matrix), weights, mask, gradient, damping=damping, tolerance=1e-9)
    minimum, change = schur_complement(matrix, weights, mask, gradient, damping)
    assert retuned.rise == pytest.approx(minimum, abs=1e-6)
    assert minimum < 0
    assert retuned.ground == -math.inf
    if damping:
        torch.testing.assert_close(retuned.change[mask], change, rtol=1e-5, atol=1e-6)


def test_all_kept_costs_nothing_and_none_kept_costs_everything() -> None:
    matrix, weights, _ = masked_problem(1)
    everything, nothing = (torch.full((MASKED,), kept) for kept in (True, False))
    assert retune(Dense(matrix), weights, everything).rise == 0.0
    pruned = retune(Dense(matrix), weights, nothing)
    assert (pruned.rise, pruned.steps, pruned.status) == (pruned.before, 0, "converged")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12), st.sampled_from([0.0, 1e-2, 0.5]), st.booleans(), st.booleans())
def test_the_bracket_holds_after_any_number_of_steps(
    seed: int, steps: int, damping: float, scaled: bool, moved: bool
) -> None:
    matrix, weights, mask = masked_problem(seed)
    matrix = matrix + 0.05 * torch.eye(MASKED, dtype=torch.float64)
    gradient = random(MASKED, seed=seed + 2) if moved else None
    diagonal = preconditioner(Dense(matrix), 4, seed) if scaled else None
    retuned = retune(
        Dense(matrix), weights, mask, gradient, damping, floor=0.05, diagonal=diagonal, tolerance=0.0, steps=steps
    )
    minimum, _ = schur_complement(matrix, weights, mask, gradient)
    damped, change = schur_complement(matrix, weights, mask, gradient, damping)
    least = damped + 0.5 * damping * float(change @ change)
    missing = retuned.rise + 0.5 * damping * float(retuned.change @ retuned.change) - least
    slack = 1e-12 * abs(retuned.before)
    assert -slack <= missing <= retuned.error * (1 + 1e-9) + slack
    assert retuned.lower() <= minimum + slack
    reach = float(schur_complement(matrix, weights, mask, gradient)[1].norm())
    assert retuned.lower(reach) <= minimum + slack <= retuned.rise + 2 * slack
    if not damping:
        assert retuned.lower() == pytest.approx(max(retuned.ground, retuned.rise - retuned.error))


def test_the_bracket_closes_and_the_estimate_from_below_stays_below() -> None:
    matrix, weights, mask = masked_problem(5)
    matrix = matrix + 0.05 * torch.eye(MASKED, dtype=torch.float64)
    minimum, _ = schur_complement(matrix, weights, mask)
    runs = [retune(Dense(matrix), weights, mask, floor=0.05, tolerance=0.0, steps=k) for k in range(4, 15)]
    for earlier, later in zip(runs, runs[4:], strict=False):
        assert later.recent == pytest.approx(earlier.rise - later.rise)
        assert later.recent <= earlier.rise - minimum
    assert runs[-1].error < 0.05 * (runs[0].rise - minimum)


def test_without_a_floor_a_reach_bounds_the_minimum() -> None:
    matrix, weights, mask = masked_problem(4, rank=15)
    gradient = matrix @ random(MASKED, seed=9)
    minimum, change = schur_complement(matrix, weights, mask, gradient)
    retuned = retune(Dense(matrix), weights, mask, gradient, tolerance=1e-6)
    assert retuned.error == math.inf
    assert retuned.lower() == -math.inf
    assert minimum - 1e-3 < retuned.lower(float(change.norm())) <= minimum + 1e-12


def test_a_target_ends_the_search_as_soon_as_the_side_is_known() -> None:
    matrix, weights, mask = masked_problem(6)
    matrix = matrix + 0.05 * torch.eye(MASKED, dtype=torch.float64)
    whole = retune(Dense(matrix), weights, mask, floor=0.05, tolerance=1e-10)
    above = retune(Dense(matrix), weights, mask, floor=0.05, tolerance=1e-10, target=0.9 * whole.rise)
    below = retune(Dense(matrix), weights, mask, floor=0.05, tolerance=1e-10, target=0.5 * (whole.before + whole.rise))
    assert (above.status, below.status) == ("above target", "below target")
    assert above.rise > 0.9 * whole.rise
    assert below.rise <= 0.5 * (whole.before + whole.rise)
    assert max(above.steps, below.steps) < whole.steps


def test_descent_without_end_is_reported() -> None:
    mask = torch.tensor([True, True, False])
    weights = torch.ones(3, dtype=torch.float64)
    saddle = torch.tensor([[-1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 3.0]], dtype=torch.float64)
    negative = retune(Dense(saddle), weights, mask, tolerance=1e-9)
    assert negative.status.startswith("unbounded: curvature")
    assert negative.lower() == -math.inf
    valley = torch.diag(torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64))
    sloped = retune(Dense(valley), weights, mask, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    assert sloped.status.startswith("unbounded: curvature 0 along a direction of descent after 0 steps")
    damped = retune(Dense(saddle), weights, mask, damping=2.0, tolerance=1e-9)
    assert damped.status == "converged"
    torch.testing.assert_close(damped.change, torch.tensor([1.0, 1 / 3, 0.0], dtype=torch.float64))


def test_too_few_steps_are_reported() -> None:
    matrix, weights, mask = masked_problem(2)
    retuned = retune(Dense(matrix), weights, mask, tolerance=1e-8, steps=3)
    assert retuned.status.startswith("unresolved: relative residual ")
    assert retuned.steps == 3


def test_the_preconditioner_saves_steps_where_the_diagonal_says_something() -> None:
    scales = torch.logspace(0, 3, MASKED, dtype=torch.float64)
    matrix = scales[:, None].sqrt() * with_spectrum(torch.linspace(1, 2, MASKED), 3) * scales.sqrt()
    _, weights, mask = masked_problem(3)
    plain = retune(Dense(matrix), weights, mask, tolerance=1e-8)
    scaled = retune(Dense(matrix), weights, mask, diagonal=preconditioner(Dense(matrix), 64), tolerance=1e-8)
    assert scaled.rise == pytest.approx(plain.rise, rel=1e-8)
    assert scaled.steps < 0.8 * plain.steps
    with pytest.raises(UserError, match="expected a positive trace"):
        preconditioner(Dense(-matrix))


def test_the_diagonal_is_unbiased_with_an_honest_error() -> None:
    matrix = with_spectrum(torch.linspace(-1, 3, MASKED), 1)
    estimate, error = diagonal(Dense(matrix), probes=400, seed=1)
    assert float(((estimate - matrix.diag()) / error).abs().max()) < 4
    spread = (matrix.square().sum(1) - matrix.diag().square()).sqrt() / 20
    assert float((error / spread - 1).abs().max()) < 0.2
    with pytest.raises(UserError, match="probes: expected at least 2"):
        diagonal(Dense(matrix), probes=1)


# -------------------------------------------------------------------------------------------------- networks


def test_a_small_network_against_its_dense_ggn(tiny: tuple[nn.Module, list[tuple[Tensor, Tensor]]]) -> None:
    objective = Objective(*tiny, penalty=L2(0.1))
    operator, profile = GGN(objective), MagnitudeProfile(objective.chosen)
    matrix = operator @ torch.eye(profile.dimension, dtype=torch.float64)
    kept = flatten(list(profile.masks(0.6).values()))
    gradient = objective.gradient()
    retuned = retune(operator, profile.vector, kept, gradient, floor=0.1, tolerance=1e-10)
    minimum, change = schur_complement(matrix, profile.vector, kept, gradient)
    assert retuned.rise == pytest.approx(minimum, rel=1e-8)
    assert retuned.lower() == pytest.approx(minimum, abs=1e-8)
    torch.testing.assert_close(retuned.change[kept], change, rtol=1e-6, atol=1e-8)
    weights = retuned_weights(profile.vector, kept, retuned)
    assert not weights[~kept].any()
    start = objective.value()
    one_shot = objective.value(profile.vector * kept) - start
    assert objective.value(weights) - start < one_shot


def test_the_model_predicts_what_a_forward_pass_measures_near_the_weights(
    tiny: tuple[nn.Module, list[tuple[Tensor, Tensor]]],
) -> None:
    _, batches = tiny

    def squared(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]) - batch[1]).square().sum(1)

    linear = nn.Linear(6, 3, bias=False).double()
    with torch.no_grad():
        linear.weight.copy_(random(3, 6, seed=4))
    data = [(x, nn.functional.one_hot(y, 3).double()) for x, y in batches]
    objective = Objective(linear, data, squared)
    profile = MagnitudeProfile(objective.chosen)
    kept = flatten(list(profile.masks(0.5).values()))
    retuned = retune(GGN(objective), profile.vector, kept, objective.gradient(), tolerance=1e-10)
    measured = objective.value(retuned_weights(profile.vector, kept, retuned)) - objective.value()
    assert measured == pytest.approx(retuned.rise, rel=1e-10)  # the objective is its quadratic model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": torch.ones(3)}, r"weights: expected shape \(40,\), got \(3,\)"),
        ({"kept": torch.ones(40)}, "kept: expected a bool mask"),
        ({"gradient": torch.ones(39)}, "gradient: expected shape"),
        ({"diagonal": torch.zeros(40)}, "diagonal: expected positive entries"),
        ({"damping": -1.0}, "damping: expected a number >= 0"),
        ({"floor": math.nan}, "floor: expected a number >= 0"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, object], message: str) -> None:
    matrix, weights, mask = masked_problem(0)
    with pytest.raises(UserError, match=message):
        retune(Dense(matrix), **({"weights": weights, "kept": mask} | change))
