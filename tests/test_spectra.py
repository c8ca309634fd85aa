"""The stated interval of the Hessian's limit contains the truth, on spectra known beforehand."""

import numpy as np
import pytest
import torch
from helpers import CASES, Dense, assert_close, random, reference
from torch import nn

from estimators import Lanczos, Objective, SpectralMeasure
from pruning_limits.bounds import isotropic_limit
from pruning_limits.losses import all_losses
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.settings import Settings
from pruning_limits.spectra import Spectra, estimate_of

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
    spectra = Spectra(all_losses(objective), curve, EPSILON, asked, False, None)
    found = spectra.estimate("hessian")

    def solve(measure):
        return isotropic_limit(measure, curve, EPSILON).sparsity

    half = found.half_width(isotropic_limit(found.measure, curve, EPSILON).standard_error)
    return found.limit(solve), half, solve(SpectralMeasure.from_eigenvalues(eigenvalues)), found


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
            limit, half, truth, found = estimate(eigenvalues, seed)
            assert found.step_error <= 0.005 / 4 or found.steps == 512
            halves.append(found.step_error)
            hits.append(abs(limit - truth) <= half)
    assert np.mean(hits) >= 0.9
    assert np.median(halves) <= 0.00125


@pytest.mark.parametrize("name", SPECTRA)
def test_the_bracket_holds_for_the_probe_drawn(name):
    curve = MagnitudeProfile({"weights": WEIGHTS}).curve()
    brackets = []
    for steps in (8, 16, 32, 64, 200):
        _, _, _, found = estimate(SPECTRA[name], 0, steps=steps)
        brackets.append([isotropic_limit(one, curve, EPSILON).sparsity for one in found.bracket])
    lowest, highest = brackets.pop()
    assert all(low <= lowest + 1e-9 and highest <= high + 1e-9 for low, high in brackets)


def test_clipped_negative_eigenvalues_have_no_bracket():
    _, half, _, found = estimate(SPECTRA["two-sided bulk"], 0, steps=16, negative="clip")
    assert found.bracket is None
    assert 0 < found.step_error < half


def small_spectra(mask=None, **options):
    case = CASES["ragged"]
    objective = Objective(case.model(), case.loader(), case.loss_fn)
    settings = Settings(**{"probes": 1} | options)
    curve = MagnitudeProfile(objective.chosen).curve()
    return Spectra(all_losses(objective), curve, EPSILON, settings, False, None, mask)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_a_small_matrix_is_diagonalised(kind):
    found = small_spectra().estimate(kind)
    eigenvalues = torch.linalg.eigvalsh(reference("ragged", torch.float64)[kind == "ggn"])
    assert_close(found.measure.nodes, eigenvalues)
    assert (found.step_error, found.sample_error, found.samples, found.growth) == (0.0, 0.0, 9, 1.0)


def test_removed_weights_have_no_curvature():
    mask = torch.arange(35) % 3 > 0
    spectra = small_spectra(mask)
    hessian = reference("ragged", torch.float64)[0]
    masked = torch.where(mask[:, None] & mask, hessian, 0.0)
    assert_close(spectra.operator("hessian", 9).matmat(torch.eye(35).double()), masked)
    assert_close(spectra.estimate("hessian").measure.nodes, torch.linalg.eigvalsh(masked))


def test_sub_samples_operators_and_products_are_shared_and_counted():
    spectra = small_spectra()
    assert spectra.subset(5) is spectra.subset(5)
    assert spectra.subset(100) is spectra.subset(9)
    operator = spectra.operator("ggn", 5)
    assert operator is spectra.operator("ggn", 5)
    assert operator.forwards is spectra.operator("hessian", 5).forwards
    operator.matmat(random(35, 3))
    spectra.operator("hessian", 9).matmat(random(35, 2))
    assert spectra.products() == 5
    assert spectra.samples_seen() == 3 * 5 + 2 * 9


def test_the_basis_is_given_up_where_it_does_not_fit():
    spectra = small_spectra()
    assert spectra._basis(10, 1) == "full"
    assert spectra._basis(1 << 40, 1) == "none"  # more than any machine holds
    assert spectra._basis(10, 1 << 40) == "none"


def test_measures_of_the_ggn_lie_on_both_sides_of_the_limit():
    eigenvalues = 10.0 / torch.arange(1, 301).double() ** 1.5
    operator = Dense(eigenvalues)
    curve = MagnitudeProfile({"weights": random(300)}).curve()
    truth = isotropic_limit(SpectralMeasure.from_eigenvalues(eigenvalues.numpy()), curve, EPSILON).sparsity
    run = Lanczos(operator, torch.ones(300, 1).double())  # a start in which every eigenvector has the same share
    for steps in (4, 4, 8, 16):
        run.advance(steps)
        found = estimate_of("ggn", run.tridiagonals(), 300, 1)
        ends = [isotropic_limit(measure, curve, EPSILON).sparsity for measure in found.measures]
        assert ends[0] - 1e-9 <= truth <= ends[1] + 1e-9
