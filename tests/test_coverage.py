"""The stated interval of the Hessian's limit contains the truth, on spectra known beforehand."""

import numpy as np
import pytest
import torch
from torch import nn

from estimators import Objective, SpectralMeasure
from pruning_limits.bounds import isotropic_limit
from pruning_limits.losses import all_losses
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.settings import Settings
from pruning_limits.spectra import Spectra

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
