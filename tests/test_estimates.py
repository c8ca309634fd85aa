"""Estimates of one prediction: intervals that hold on known spectra, samples and probes that follow."""

import numpy as np
import pytest
import torch
from helpers import CASES, assert_close, random, reference, seeded
from test_predict import wide_problem
from torch import nn

from estimators import Objective, SpectralMeasure
from pruning_limits import compute_budget
from pruning_limits.compute_budget import ComputeBudget
from pruning_limits.estimates import Estimates
from pruning_limits.extrapolation import saturation, settling
from pruning_limits.isotropic import isotropic_limit
from pruning_limits.losses import all_losses
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.settings import Settings
from pruning_limits.stopping import STOPPING, Stopping
from pruning_limits.subsamples import Subsamples

D, EPSILON = 800, 0.01
generator = np.random.default_rng(1)
OUTLIERS = 10 / np.arange(1, 51)
SPECTRA = {
    "spiked": np.concatenate([50 * generator.uniform(0.5, 1.5, 30), 0.02 * generator.uniform(0.5, 1.5, D - 30)]),
    "power law": 10 / np.arange(1, D + 1) ** 1.5,
    "two-sided bulk": np.concatenate([OUTLIERS, 0.003 * generator.standard_normal(D - 50)]),
    "mostly zeros": np.concatenate([OUTLIERS, 0.01 * generator.standard_normal(250), np.zeros(D - 300)]),
    "two scales": np.concatenate(
        [OUTLIERS[:30] / 2, 0.03 * generator.standard_normal(350), 0.0005 * generator.standard_normal(D - 380)]
    ),
    "log-uniform": 10 ** generator.uniform(-6, 0.5, D) * generator.choice([1, 1, -1], D),
}
WEIGHTS = torch.from_numpy(generator.laplace(size=D) * 0.05)
SEEDS = 3


def estimate(eigenvalues, seed, **settings):
    """Return the limit, its stated half-width and the truth for a quadratic objective with these eigenvalues."""
    model = nn.Linear(D, 1, bias=False).double()
    values = torch.from_numpy(eigenvalues)
    objective = Objective(model, [torch.zeros(1)], lambda model, batch: 0.5 * (values * model.weight[0] ** 2).sum())
    curve = MagnitudeProfile({"weights": WEIGHTS}).curve()
    asked = Settings(seed=seed, **{"probes": 1} | settings)
    estimated = Estimates(Subsamples(all_losses(objective), asked), curve, EPSILON, progress=False).estimate("hessian")

    def solve(measure):
        return isotropic_limit(measure, curve, EPSILON).sparsity

    half = estimated.half_width(isotropic_limit(estimated.measure, curve, EPSILON).standard_error)
    return estimated.limit(solve), half, solve(SpectralMeasure.from_eigenvalues(eigenvalues)), estimated


@pytest.mark.parametrize("steps", [6, 12, 24, 48, 96])
def test_at_least_95_percent_of_the_intervals_hold_at_any_number_of_steps(steps):
    hits = []
    for eigenvalues in SPECTRA.values():
        for seed in range(SEEDS):
            limit, half, truth, _ = estimate(eigenvalues, seed, steps=steps)
            hits.append(abs(limit - truth) <= half)
    assert np.mean(hits) >= 0.95


def test_the_engine_stops_where_the_interval_is_narrow_and_holds():
    halves, hits = [], []
    for eigenvalues in SPECTRA.values():
        for seed in range(2):
            limit, half, truth, estimated = estimate(eigenvalues, seed)
            assert estimated.step_error <= 0.005 / 4 or estimated.steps == 256
            halves.append(estimated.step_error)
            hits.append(abs(limit - truth) <= half)
    assert np.mean(hits) >= 0.9
    assert np.median(halves) <= 0.00125


@pytest.mark.parametrize("name", SPECTRA)
def test_the_bracket_holds_for_the_probe_drawn(name):
    curve = MagnitudeProfile({"weights": WEIGHTS}).curve()
    brackets = []
    for steps in (8, 16, 32, 64, 200):
        _, _, _, estimated = estimate(SPECTRA[name], 0, steps=steps)
        brackets.append([isotropic_limit(measure, curve, EPSILON).sparsity for measure in estimated.bracket])
    lowest, highest = brackets.pop()
    assert all(low <= lowest + 1e-9 and highest <= high + 1e-9 for low, high in brackets)


def test_clipped_negative_eigenvalues_have_no_bracket():
    _, half, _, estimated = estimate(SPECTRA["two-sided bulk"], 0, steps=16, negative="clip")
    assert estimated.bracket is None
    assert 0 < estimated.step_error < half


def small_estimates(mask=None, stopping=STOPPING, budget=None, **options):
    """Estimates of a network of 35 weights and 9 samples."""
    case = CASES["ragged"]
    objective = Objective(case.model(), case.loader(), case.loss_fn)
    subsamples = Subsamples(all_losses(objective), Settings(**{"probes": 1} | options), mask, stopping, budget)
    return Estimates(subsamples, MagnitudeProfile(objective.chosen).curve(), EPSILON, progress=False)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_a_small_matrix_is_diagonalised(kind):
    estimated = small_estimates().estimate(kind)
    eigenvalues = torch.linalg.eigvalsh(reference("ragged", torch.float64)[kind == "ggn"])
    assert_close(estimated.measure.nodes, eigenvalues)
    assert (estimated.step_error, estimated.sample_error, estimated.samples, estimated.growth) == (0.0, 0.0, 9, 1.0)


def test_removed_weights_have_no_curvature():
    mask = torch.arange(35) % 3 > 0
    hessian = reference("ragged", torch.float64)[0]
    masked = torch.where(mask[:, None] & mask, hessian, 0.0)
    assert_close(small_estimates(mask).estimate("hessian").measure.nodes, torch.linalg.eigvalsh(masked))


# ------------------------------------------------------------------------------------- samples, carried to all data


def passes_for(kind, samples):
    """The passes of a budget of which a spectrum may take so many samples."""
    share, steps, recurrences = {"ggn": (0.35, 24, 4 / 3 + 2), "hessian": (0.25, 48, 4 / 3)}[kind]
    return (samples + 0.5) * 4 * steps * recurrences / share


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize(
    ("affordable", "changes", "expected"),
    [(3, {}, 3), (5, {}, 5), (6, {}, 9), (5, {"most_samples": 4}, 4), (6, {"most_samples": 4}, 9)],
)
def test_the_sub_sample_is_what_the_budget_allows(monkeypatch, kind, affordable, changes, expected):
    monkeypatch.setattr(compute_budget, "FEWEST", 1)
    allowed = ComputeBudget(passes_for(kind, affordable), 9)
    estimated = small_estimates(stopping=Stopping(**changes), budget=allowed).estimate(kind)
    assert estimated.samples == expected
    assert (estimated.sample_error > 0) == (expected < 9)


def test_few_samples_are_taken_whatever_the_budget():
    assert small_estimates(budget=ComputeBudget(1.0, 9)).estimate("ggn").samples == 9


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_samples_that_were_asked_for_are_taken(kind):
    assert small_estimates(samples=3).estimate(kind).samples == 3


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_a_single_sample_tells_nothing_of_all_data(kind):
    assert small_estimates(samples=1).estimate(kind).sample_error == 1.0


def carried_estimates(**options):
    """Estimates of a network of 92 weights and 96 samples that it fits."""
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)))
    x = random(96, 8, seed=1)
    objective = Objective(model, [(x, (3 * model(x)).argmax(1))])
    subsamples = Subsamples(all_losses(objective), Settings(**options))
    return Estimates(subsamples, MagnitudeProfile(objective.chosen).curve(), EPSILON, progress=False)


def kept(estimates, kind, samples):
    """The kept fraction of the matrix of a sub-sample."""
    operator = estimates.subsamples.operator(kind, samples)
    matrix = operator.matmat(torch.eye(operator.shape[0]).double())
    measure = SpectralMeasure.from_eigenvalues(torch.linalg.eigvalsh(matrix).numpy())
    return 1 - isotropic_limit(measure, estimates.curve, EPSILON).sparsity


@pytest.mark.parametrize("samples", [32, 8])
def test_the_ggn_is_carried_from_a_quarter_by_what_it_covers(samples):
    estimates = carried_estimates(samples=samples)
    estimated = estimates.estimate("ggn")
    sizes = (samples // 4, samples)
    fractions = tuple(kept(estimates, "ggn", size) for size in sizes)
    expected = saturation(fractions, tuple(estimates.subsamples.coverage(size) for size in sizes))
    assert (estimated.growth, estimated.sample_error) == pytest.approx(expected, rel=1e-8)
    assert estimated.growth > 1


@pytest.mark.parametrize("samples", [32, 96])
def test_another_limit_of_the_ggn_is_carried_as_the_isotropic_one_is(samples):
    estimates = carried_estimates(samples=samples)
    ggn = estimates.estimate("ggn")
    growth, spread = estimates.carried(ggn, estimates._isotropic)
    assert growth == pytest.approx(ggn.growth, rel=1e-9)
    assert (growth > 1) == (samples < 96)
    assert spread == pytest.approx(growth - 1, abs=1e-9)


def test_the_hessian_is_carried_from_a_quarter_by_the_root_of_the_samples():
    estimates = carried_estimates(samples=32)
    estimated = estimates.estimate("hessian")
    expected = settling((kept(estimates, "hessian", 8), kept(estimates, "hessian", 32)), (8, 32), 96)
    assert (estimated.growth, estimated.sample_error) == pytest.approx(expected, rel=1e-8)
    assert estimated.sample_error > 0


def test_smaller_sub_samples_of_the_ggn_take_its_steps():
    told = []
    model, x, y = wide_problem()
    objective = Objective(model, [(x, y)])
    subsamples = Subsamples(all_losses(objective), Settings(samples=64, tolerance=1e-5))
    curve = MagnitudeProfile(objective.chosen).curve()
    estimates = Estimates(subsamples, curve, 0.02, progress=lambda *arguments: told.append(arguments))
    steps = estimates.estimate("ggn").steps
    last = {stage: (done, total) for stage, done, total in told}
    assert {last[f"ggn spectrum, {samples} samples"] for samples in (16, 64)} == {(steps, steps)}
    assert steps > STOPPING.ggn_steps


def test_a_spectrum_of_many_steps_takes_few_probes():
    model, x, y = wide_problem()
    objective = Objective(model, [(x, y)])
    curve = MagnitudeProfile(objective.chosen).curve()
    for most, expected in ((350, 3), (STOPPING.most_products, 2)):
        subsamples = Subsamples(
            all_losses(objective), Settings(steps=100, tolerance=1e-4), stopping=Stopping(most_products=most)
        )
        estimated = Estimates(subsamples, curve, 0.02, progress=False).estimate("hessian")
        assert estimated.measure.probes == expected
        assert subsamples.products == 100 * expected


def test_a_loss_that_is_linear_in_the_outputs_has_no_estimate_of_the_ggn():
    case = CASES["ragged"]
    data = [(x, nn.functional.one_hot(y, 3).double()) for x, y in case.loader()]
    objective = Objective(case.model(), data, lambda model, batch: (model(batch[0]) - batch[1]).abs().mean(1))
    subsamples = Subsamples(all_losses(objective), Settings())
    estimates = Estimates(subsamples, MagnitudeProfile(objective.chosen).curve(), EPSILON, progress=False)
    estimate, reason = estimates.retuning()
    assert estimate is None
    assert reason.startswith("the GGN is zero")
    assert small_estimates().retuning()[1] == ""
