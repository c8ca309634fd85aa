"""Recurrences go on from their states to the same bits, and what is read off their matrices encloses the truth."""

import math

import pytest
import torch
from helpers import CASES, Dense, assert_close, random, with_spectrum

from estimators import Lanczos, Objective, SpectralMeasure
from pruning_limits.isotropic import isotropic_limit
from pruning_limits.losses import all_losses
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.recurrences import Plan, Reader, Recurrences, estimate_of
from pruning_limits.settings import Settings
from pruning_limits.states import States
from pruning_limits.stopping import STOPPING, Stopping
from pruning_limits.subsamples import Subsamples

EPSILON = 0.01
OPERATOR, STARTS = Dense(with_spectrum(torch.linspace(-1, 2, 30))), random(30, 2)
EIGENVALUES = 10.0 / torch.arange(1, 36).double() ** 1.5
PLAN = Plan("a key", "a stage", most=12, pace=lambda steps: 4, known=[(0.5, 0.25)])


def small_subsamples(stopping=STOPPING, **options):
    case = CASES["ragged"]
    losses = all_losses(Objective(case.model(), case.loader(), case.loss_fn))
    return Subsamples(losses, Settings(**options), stopping=stopping)


def recurrences(path=None, progress=False):
    return Recurrences(small_subsamples(), States(path, "print"), progress)


def at_the_end(matrices, ended):
    return matrices if ended else None


# ------------------------------------------------------------------------------------------------------- advance


def test_steps_are_taken_at_the_pace_until_the_most_and_told():
    told, sizes = [], []
    plan = Plan("a key", "a stage", most=11, pace=lambda steps: 4 if steps else 2, known=[])

    def read(matrices, ended):
        sizes.append([matrix.steps for matrix in matrices])
        return at_the_end(matrices, ended)

    matrices = recurrences(progress=lambda *told_now: told.append(told_now)).advance(plan, OPERATOR, STARTS, read)
    assert told == [("a stage", steps, 11) for steps in (0, 2, 6, 10, 11)]
    assert sizes == [[steps, steps] for steps in (2, 6, 10, 11)]
    run = Lanczos(OPERATOR, STARTS)
    run.advance(11)
    for mine, whole in zip(matrices, run.tridiagonals(), strict=True):
        assert (mine.alpha == whole.alpha).all()
        assert (mine.beta == whole.beta).all()


def test_a_reading_that_is_enough_ends_it():
    steps = recurrences().advance(PLAN, OPERATOR, STARTS, lambda matrices, ended: matrices[0].steps)
    assert steps == 4


def test_a_start_in_few_eigenvectors_ends_early():
    operator = Dense(torch.arange(1.0, 31.0).double())
    starts = (torch.arange(30) < 3).double()[:, None]
    (matrix,) = recurrences().advance(PLAN, operator, starts, at_the_end)
    assert (matrix.steps, matrix.exhausted) == (3, True)


def test_first_products_that_are_known_are_not_taken():
    operator = Dense(OPERATOR.matrix)
    recurrences().advance(PLAN, operator, STARTS, at_the_end, images=OPERATOR.matmat(STARTS))
    assert operator.calls == 11


def test_a_stopped_recurrence_continues_to_the_same_bits(tmp_path):
    class StoppedError(Exception):
        pass

    def stop(stage, done, total):
        if done == 8:
            raise StoppedError

    path, told = tmp_path / "states.pt", []
    with pytest.raises(StoppedError):
        recurrences(path, stop).advance(PLAN, OPERATOR, STARTS, at_the_end)
    again = recurrences(path, lambda stage, done, total: told.append(done))
    assert again.states.known("a key") == PLAN.known
    matrices = again.advance(PLAN, OPERATOR, STARTS, at_the_end)
    assert told[0] > 0
    assert told[-1] == 12
    whole = recurrences().advance(PLAN, OPERATOR, STARTS, at_the_end)
    for mine, other in zip(matrices, whole, strict=True):
        assert (mine.alpha == other.alpha).all()
        assert (mine.beta == other.beta).all()
    operator = Dense(OPERATOR.matrix)  # a finished one takes no product
    recurrences(path).advance(PLAN, operator, STARTS, at_the_end)
    assert operator.calls == 0


def test_the_basis_is_given_up_where_it_does_not_fit():
    assert recurrences().basis(10, 1) == "full"
    assert recurrences().basis(1 << 40, 1) == "none"  # more than any machine holds
    assert recurrences().basis(10, 1 << 40) == "none"
    for memory, expected in ((35 * 10 * 8, "full"), (35 * 10 * 8 - 1, "none")):
        few = Recurrences(small_subsamples(Stopping(basis_memory=memory)), States(None, "print"))
        assert few.basis(10, 1) == expected


# -------------------------------------------------------------------------------------------------------- reading


def matrices_of(steps, eigenvalues=EIGENVALUES, start=None):
    """Matrices of a run that starts with the same share in every eigenvector, or elsewhere."""
    run = Lanczos(Dense(eigenvalues), torch.ones(len(eigenvalues), 1).double() if start is None else start)
    run.advance(steps)
    return run.tridiagonals(vectors=False)


def mean_resolvent(measure):
    """A limit that is easy to read off."""
    return measure.integrate(lambda x: 1 / (1 + abs(x)))[0]


@pytest.mark.parametrize(("kind", "negative"), [("hessian", "abs"), ("hessian", "clip"), ("ggn", "abs")])
def test_a_krylov_space_that_is_exhausted_leaves_no_step_error(kind, negative):
    start = (torch.arange(35) < 3).double()[:, None]
    reader = Reader(small_subsamples(negative=negative), mean_resolvent, kind, 9, known=[(2.0, 0.5)])
    estimate = reader.estimate(matrices_of(10, start=start))
    assert (estimate.steps, estimate.step_error, estimate.samples) == (3, 0.0, 9)
    expected = 0.5 * float((1 / (1 + EIGENVALUES[:3])).mean()) + 0.5 / 3
    assert estimate.limit(mean_resolvent) == pytest.approx(expected, rel=1e-9)


def test_without_a_bracket_the_error_is_twice_the_largest_change_since_a_third_of_the_steps():
    matrices = matrices_of(22, torch.linspace(-1, 1, 35).double())
    estimate = Reader(small_subsamples(negative="clip"), mean_resolvent, "hessian", 9, []).estimate(matrices)
    heads = [matrices[0].head(steps) for steps in (8, 12, 16, 20)]
    limits = [mean_resolvent(estimate_of("hessian", [head], 35, 9).measure) for head in heads]
    assert estimate.step_error == 2 * max(abs(limit - estimate.limit(mean_resolvent)) for limit in limits) > 0


@pytest.mark.parametrize(("fewest", "slow", "expected"), [(96, 0.0, True), (96, 1e9, False), (95, 0.0, False)])
def test_steps_slow_down_only_where_they_are_dear(fewest, slow, expected):
    stopping = Stopping(fewest_at_most=fewest, most_numbers=96 * 35, slow=slow)
    reader = Reader(small_subsamples(stopping), mean_resolvent, "ggn", 9, [])
    matrices = matrices_of(8)
    assert reader.slowed(matrices, reader.estimate(matrices)) is expected


def test_measures_of_the_ggn_lie_on_both_sides_of_the_limit():
    eigenvalues = 10.0 / torch.arange(1, 301).double() ** 1.5
    operator = Dense(eigenvalues)
    curve = MagnitudeProfile({"weights": random(300)}).curve()
    truth = isotropic_limit(SpectralMeasure.from_eigenvalues(eigenvalues.numpy()), curve, EPSILON).sparsity
    run = Lanczos(operator, torch.ones(300, 1).double())  # a start in which every eigenvector has the same share
    for steps in (4, 4, 8, 16):
        run.advance(steps)
        estimated = estimate_of("ggn", run.tridiagonals(), 300, 1)
        ends = [isotropic_limit(measure, curve, EPSILON).sparsity for measure in estimated.measures]
        assert ends[0] - 1e-9 <= truth <= ends[1] + 1e-9


@pytest.mark.parametrize("negative", ["abs", "clip"])
def test_the_absolute_value_of_the_hessian_has_a_bracket_and_the_clipped_one_has_none(negative):
    estimated = estimate_of("hessian", matrices_of(8), 35, 9, negative=negative)
    assert (estimated.bracket is None) == (negative == "clip")
    assert (estimated.above, estimated.step_error, estimated.steps) == (None, math.inf, 8)
    assert_close(estimated.measure.integrate(lambda x: x)[0], EIGENVALUES.mean())
