"""The Lanczos recurrence: identities, edges, lockstep and continuation."""

import copy

import numpy as np
import pytest
import torch
from helpers import CASES, Dense, assert_close, random, tolerance, with_spectrum

from estimators import Hessian, Lanczos, Objective, UserError, gauss, lanczos, measure_of

SPECTRA = {
    "uniform": torch.linspace(-1, 1, 30, dtype=torch.float64),
    "power law": torch.arange(1, 31, dtype=torch.float64) ** -2.0,
    "outliers": torch.cat([torch.linspace(-0.1, 0.1, 27, dtype=torch.float64), torch.tensor([5.0, 30.0, 100.0])]),
    "negative": -torch.linspace(1, 3, 30, dtype=torch.float64),
    "tiny": 1e-150 * torch.linspace(1, 3, 30, dtype=torch.float64),
    "huge": 1e150 * torch.linspace(1, 3, 30, dtype=torch.float64),
}
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
modes = pytest.mark.parametrize("mode", ["full", "none"])
spectra = pytest.mark.parametrize("name", SPECTRA)


def matrix(tridiagonal):
    return np.diag(tridiagonal.alpha) + np.diag(tridiagonal.beta, 1) + np.diag(tridiagonal.beta, -1)


def equal(a, b):
    same = np.array_equal(a.alpha, b.alpha) and np.array_equal(a.beta, b.beta)
    basis = (a.basis is None and b.basis is None) or torch.equal(a.basis, b.basis)
    return same and basis and (a.residual, a.exhausted) == (b.residual, b.exhausted)


# ----------------------------------------------------------------------------------------------- identities


@dtypes
@pytest.mark.parametrize("steps", [1, 2, 7, 29, 30])
@pytest.mark.parametrize("name", ["uniform", "power law", "outliers", "negative"])
def test_recurrence(name, steps, dtype):
    a = with_spectrum(SPECTRA[name]).to(dtype)
    run = lanczos(Dense(a), random(30, seed=1).to(dtype), steps)
    q, t = run.basis.double(), torch.from_numpy(matrix(run))
    norm = float(SPECTRA[name].abs().max())
    remainder = a.double() @ q.T - q.T @ t
    assert_close(remainder[:, :-1], torch.zeros(30, run.steps - 1), dtype, scale=norm)
    assert_close(remainder[:, -1].norm(), run.residual, dtype, scale=norm)
    assert_close(q @ remainder, torch.zeros(run.steps, run.steps), dtype, scale=norm)


@dtypes
@spectra
def test_basis_is_orthonormal_and_starts_with_the_start(name, dtype):
    if dtype == torch.float32 and name in ("tiny", "huge"):
        pytest.skip("outside the range of float32")
    start = 1e3 * random(30, seed=2).to(dtype)
    run = lanczos(Dense(with_spectrum(SPECTRA[name]).to(dtype)), start, 30)
    assert run.basis.dtype == dtype
    assert run.alpha.dtype == run.beta.dtype == np.float64
    assert_close(run.basis.double() @ run.basis.double().T, torch.eye(run.steps, dtype=torch.float64), dtype)
    assert_close(run.basis[0], start / start.norm(), dtype)
    assert (run.beta > 0).all()


@spectra
def test_exact_at_full_dimension(name):
    run = lanczos(Dense(with_spectrum(SPECTRA[name])), random(30, seed=3), 30)
    assert run.steps == 30
    assert run.exhausted
    assert run.residual == 0.0
    assert_close(np.linalg.eigvalsh(matrix(run)), SPECTRA[name].sort().values)


def test_first_entries_by_hand():
    a, v = with_spectrum(SPECTRA["uniform"]), random(30, seed=4)
    v = v / v.norm()
    run = lanczos(Dense(a), 7 * v, 2)
    assert_close(run.alpha[0], v @ a @ v, scale=1.0)
    assert_close(run.beta[0], (a @ v - (v @ a @ v) * v).norm(), scale=1.0)


def test_shift_and_scale():
    a, v = with_spectrum(SPECTRA["uniform"]), random(30)
    plain = lanczos(Dense(a), v, 12)
    moved = lanczos(Dense(3 * a + 2 * torch.eye(30, dtype=torch.float64)), -5 * v, 12)
    assert_close(moved.alpha, 3 * plain.alpha + 2)
    assert_close(moved.beta, 3 * plain.beta)
    assert_close(moved.residual, 3 * plain.residual)


def test_head_is_a_shorter_run():
    operator, v = Dense(with_spectrum(SPECTRA["outliers"])), random(30)
    long = lanczos(operator, v, 30)
    for steps in (1, 2, 10, 29):
        assert equal(long.head(steps), lanczos(operator, v, steps))
    assert long.head(30) is long
    assert long.head(31) is long
    for steps in (0, -1):
        with pytest.raises(UserError, match="steps"):
            long.head(steps)


# ------------------------------------------------------------------------------------------------ breakdown


@dtypes
@modes
@pytest.mark.parametrize(
    ("eigenvalues", "distinct"),
    [
        ([0.0] * 20, 1),
        ([1.0] * 20, 1),
        ([-3e3] * 20, 1),
        ([1e-6] * 20, 1),
        ([0.0] * 19 + [2.0], 2),
        ([0.0] * 17 + [1.0, 2.0, -3.0], 4),
        ([1.0, -1.0] * 10, 2),
    ],
)
def test_breakdown_on_few_distinct_eigenvalues(eigenvalues, distinct, mode, dtype):
    diagonal = torch.tensor(eigenvalues, dtype=dtype)
    run = lanczos(Dense(diagonal), random(20, seed=5).to(dtype), 15, mode)
    assert np.isfinite(matrix(run)).all()
    assert np.isfinite(run.residual)
    nodes, weights = gauss(run)
    v = random(20, seed=5).to(dtype).double()
    v = v / v.norm()
    norm = max(map(abs, eigenvalues))
    for power in range(4):
        truth = float((v * v * diagonal.double() ** power).sum())
        assert_close(weights @ nodes**power, truth, dtype, scale=max(norm**power, 1e-300))
    if mode == "full" and distinct <= 2:
        assert run.exhausted
        assert run.steps == distinct
        assert run.residual == 0.0


@modes
def test_start_in_an_invariant_subspace(mode):
    diagonal = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64)
    for size in (1, 2):
        run = lanczos(Dense(diagonal), torch.tensor([1.0] * size + [0.0] * (5 - size)).double(), 5, mode)
        assert run.exhausted
        assert run.steps == size
        assert_close(np.linalg.eigvalsh(matrix(run)), diagonal[:size])


@modes
def test_one_dimension(mode):
    run = lanczos(Dense(torch.tensor([[-2.5]])), torch.tensor([3.0]), 1, mode)
    assert (run.alpha.tolist(), run.beta.tolist(), run.exhausted) == ([-2.5], [], True)


# -------------------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize("steps", [0, -1, 31])
def test_steps_out_of_range(steps):
    with pytest.raises(UserError, match=f"steps: expected 1 to 30, got {steps}"):
        lanczos(Dense(SPECTRA["uniform"]), random(30), steps)


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_start_is_zero_or_undefined(value):
    with pytest.raises(UserError, match="finite and non-zero"):
        lanczos(Dense(SPECTRA["uniform"]), torch.full((30,), value).double(), 3)
    starts = random(30, 3)
    starts[:, 1] = value
    with pytest.raises(UserError, match="every start vector"):
        Lanczos(Dense(SPECTRA["uniform"]), starts)


@pytest.mark.parametrize("shape", [(29,), (31,), (30, 1), (1, 30), ()])
def test_start_of_wrong_shape(shape):
    with pytest.raises(UserError, match=r"starts?: expected shape \(30,"):
        lanczos(Dense(SPECTRA["uniform"]), torch.ones(shape), 3)


@pytest.mark.parametrize("shape", [(30,), (29, 2), (2, 30)])
def test_starts_of_wrong_shape(shape):
    with pytest.raises(UserError, match=r"starts: expected shape \(30, K\)"):
        Lanczos(Dense(SPECTRA["uniform"]), torch.ones(shape))


@pytest.mark.parametrize("mode", ["partial", "", None, True])
def test_unknown_reorthogonalisation(mode):
    with pytest.raises(UserError, match="expected 'full' or 'none'"):
        lanczos(Dense(SPECTRA["uniform"]), random(30), 3, mode)


# ----------------------------------------------------------------------------- without reorthogonalisation


def test_without_reorthogonalisation_ghosts_appear_but_integrals_stay():
    spectrum = torch.cat([torch.linspace(0, 1, 196, dtype=torch.float64), torch.tensor([20.0, 50.0, 90.0, 100.0])])
    operator, v = Dense(spectrum), random(200, seed=6)
    weight = (v / v.norm()) ** 2
    full, none = (lanczos(operator, v, 60, mode) for mode in ("full", "none"))
    assert none.basis is None
    ghosts = np.isclose(np.linalg.eigvalsh(matrix(none)), 100.0).sum()
    assert ghosts > 1 == np.isclose(np.linalg.eigvalsh(matrix(full)), 100.0).sum()
    for function in (lambda x: 1 / (1 + x), lambda x: x, lambda x: np.sqrt(1 + x)):
        truth = float(weight @ torch.from_numpy(function(spectrum.numpy())))
        for run in (full, none):
            nodes, weights = gauss(run)
            assert_close(weights.sum(), 1.0)
            assert_close(weights @ function(nodes), truth)


def test_without_reorthogonalisation_the_full_dimension_is_not_a_breakdown():
    spectrum = torch.cat([torch.linspace(0, 1, 60, dtype=torch.float64), torch.tensor([50.0, 100.0, 1000.0])])
    run = lanczos(Dense(spectrum), random(63), 63, "none")
    assert np.abs(np.linalg.eigvalsh(matrix(run)) - spectrum.numpy()).max() > 0.1
    assert not run.exhausted
    assert run.residual > 0


def test_the_basis_is_all_that_distinguishes_the_first_steps():
    operator, v = Dense(with_spectrum(SPECTRA["uniform"])), random(30)
    full, none = (lanczos(operator, v, 5, mode) for mode in ("full", "none"))
    assert_close(full.alpha, none.alpha)
    assert_close(full.beta, none.beta)


# ------------------------------------------------------------------------------------ lockstep, continuation


@modes
def test_several_starts_equal_single_runs(mode):
    case = CASES["ragged"]
    operator = Hessian(Objective(case.model(), case.loader()))
    starts = random(35, 4)
    together = Lanczos(operator, starts, mode)
    together.advance(9)
    assert operator.passes == 9
    assert operator.products == 36
    for start, run in zip(starts.unbind(1), together.tridiagonals(), strict=True):
        assert equal(run, lanczos(operator, start, 9, mode))


@modes
def test_known_images_of_the_start_vectors_save_the_first_product(mode):
    operator, starts = Dense(with_spectrum(SPECTRA["outliers"])), 3 * random(30, 2)
    plain, told = Lanczos(operator, starts, mode), Lanczos(operator, starts, mode, operator.matmat(starts))
    plain.advance(6)
    calls = operator.calls
    told.advance(2)
    told.advance(4)
    assert operator.calls == calls + 5
    for a, b in zip(plain.tridiagonals(), told.tridiagonals(), strict=True):
        np.testing.assert_allclose(a.alpha, b.alpha, rtol=1e-9)
        np.testing.assert_allclose(a.beta, b.beta, rtol=1e-9)


@modes
def test_one_run_stops_while_others_go_on(mode):
    operator = Dense(torch.arange(1.0, 13.0).double())
    starts = random(12, 3)
    starts[:, 1] = torch.eye(12)[3]
    run = Lanczos(operator, starts, mode)
    run.advance(6)
    assert [tridiagonal.steps for tridiagonal in run.tridiagonals()] == [6, 1, 6]
    assert [tridiagonal.exhausted for tridiagonal in run.tridiagonals()] == [False, True, False]
    for k, tridiagonal in enumerate(run.tridiagonals()):
        assert equal(tridiagonal, lanczos(operator, starts[:, k], 6, mode))


def test_nothing_is_multiplied_once_all_runs_have_stopped():
    operator = Dense(torch.ones(6).double())
    run = Lanczos(operator, random(6, 2))
    run.advance(4)
    assert run.steps == operator.calls == 1
    run.advance(4)
    assert run.steps == operator.calls == 1
    assert len(measure_of(run.tridiagonals(), 6).nodes) == 2


def test_advancing_in_parts_equals_one_go():
    operator, starts = Dense(with_spectrum(SPECTRA["outliers"])), random(30, 2)
    whole, parts = Lanczos(operator, starts), Lanczos(operator, starts)
    whole.advance(12)
    for steps in (0, 1, 4, 7):
        parts.advance(steps)
    assert whole.steps == parts.steps == 12
    assert all(equal(*pair) for pair in zip(whole.tridiagonals(), parts.tridiagonals(), strict=True))


@modes
@dtypes
def test_state_continues_to_the_same_bits(mode, dtype, tmp_path):
    operator = Dense(with_spectrum(SPECTRA["outliers"]).to(dtype))
    starts = random(30, 3).to(dtype)
    whole, first = Lanczos(operator, starts, mode), Lanczos(operator, starts, mode)
    whole.advance(15)
    first.advance(6)
    torch.save(first.state(), tmp_path / "state.pt")
    first.advance(3)
    second = Lanczos(operator, torch.ones(30, 3).to(dtype), mode)
    second.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.steps == 6
    second.advance(9)
    assert all(equal(*pair) for pair in zip(whole.tridiagonals(), second.tridiagonals(), strict=True))


def test_state_is_a_copy():
    operator, starts = Dense(with_spectrum(SPECTRA["uniform"])), random(30, 2)
    run = Lanczos(operator, starts)
    run.advance(3)
    state = run.state()
    before = copy.deepcopy(state)
    other = Lanczos(operator, starts)
    other.load_state(state)
    run.advance(3)
    other.advance(2)
    assert all(torch.equal(*pair) for pair in zip(before["current"], state["current"], strict=True))
    assert (before["alpha"], before["beta"], before["steps"]) == (state["alpha"], state["beta"], state["steps"])
    assert [len(basis) for basis in state["basis"]] == [3, 3]


def test_state_of_an_exhausted_run():
    operator = Dense(torch.arange(1.0, 7.0).double())
    starts = torch.stack([torch.eye(6)[0], torch.ones(6)], dim=1).double()
    run, again = Lanczos(operator, starts), Lanczos(operator, starts)
    run.advance(2)
    again.load_state(run.state())
    run.advance(10)
    again.advance(10)
    assert [tridiagonal.steps for tridiagonal in again.tridiagonals()] == [1, 6]
    assert all(equal(*pair) for pair in zip(run.tridiagonals(), again.tridiagonals(), strict=True))


def test_start_vectors_are_left_alone():
    starts = random(30, 2)
    before = starts.clone()
    Lanczos(Dense(SPECTRA["uniform"]), starts).advance(5)
    assert torch.equal(starts, before)


def test_no_steps_taken_yet():
    (run,) = Lanczos(Dense(SPECTRA["uniform"]), random(30, 1)).tridiagonals()
    assert run.steps == len(run.beta) == 0
    assert run.basis is None
    assert not run.exhausted


def test_accuracy_of_float32():
    a, v = with_spectrum(SPECTRA["outliers"]).float(), random(30).float()
    low, high = lanczos(Dense(a), v, 4), lanczos(Dense(a.double()), v.double(), 4)
    assert_close(low.alpha, high.alpha, torch.float32)
    assert np.abs(low.alpha - high.alpha).max() > tolerance(torch.float64)
