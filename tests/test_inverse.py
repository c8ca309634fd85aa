"""The limit asked backwards: the answer, put back into the equation, gives the wanted sparsity."""

import math

import numpy as np
import pytest
import torch
from helpers import random, seeded
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from estimators import SpectralMeasure, UserError
from pruning_limits import MagnitudeProfile, PruningLimit, predict_limit
from pruning_limits.inverse import epsilon_for, scale_for
from pruning_limits.isotropic import isotropic_limit, removable_fraction


@pytest.fixture(scope="module", params=["abs", "clip"])
def limit(request: pytest.FixtureRequest) -> PruningLimit:
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)))
    x = random(60, 6, seed=1)
    y = (model(x) + 0.3 * random(60, 3, seed=2)).argmax(1)
    return predict_limit(model, [(x, y)], epsilon=0.02, negative=request.param)


def flat_share(limit: PruningLimit) -> float:
    measure = limit.evidence.hessian.measure
    nodes = np.abs(measure.nodes) if limit.settings.negative == "abs" else np.maximum(measure.nodes, 0.0)
    return float(measure.weights[nodes == 0].sum())


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 0.995))
def test_what_if_returns_the_target(limit: PruningLimit, target: float) -> None:
    assume(target > flat_share(limit) + 1e-3)
    epsilon = limit.epsilon_for(target)
    weight, curvature = limit.weight_scale_for(target), limit.curvature_scale_for(target)
    assert limit.what_if(epsilon=epsilon).sparsity == pytest.approx(target, abs=1e-8)
    assert limit.what_if(weight_scale=weight).sparsity == pytest.approx(target, abs=1e-8)
    assert limit.what_if(curvature_scale=curvature).sparsity == pytest.approx(target, abs=1e-8)
    assert weight**2 == pytest.approx(curvature, rel=1e-12)
    assert limit.epsilon / epsilon == pytest.approx(curvature, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.02, 0.99), st.sampled_from(["abs", "clip"]))
def test_the_scale_solves_its_equation_for_any_spectrum(seed: int, target: float, negative: str) -> None:
    generator = np.random.default_rng(seed)
    nodes = generator.standard_normal(50) * 10.0 ** generator.uniform(-12, 4, 50)
    measure = SpectralMeasure.from_eigenvalues(nodes)
    flat = 0.0 if negative == "abs" else float((nodes <= 0).mean())
    assume(target > flat + 1e-6)
    value, _ = removable_fraction(measure, scale_for(measure, target, negative), negative)
    assert value == pytest.approx(target, abs=1e-12)


def test_the_present_limit_needs_no_change(limit: PruningLimit) -> None:
    assert limit.epsilon_for(limit.sparsity) == pytest.approx(limit.epsilon, rel=1e-9)
    assert limit.weight_scale_for(limit.sparsity) == pytest.approx(1.0, rel=1e-9)
    assert limit.curvature_scale_for(limit.sparsity) == pytest.approx(1.0, rel=1e-9)


def test_more_sparsity_needs_more_epsilon_smaller_weights_and_a_flatter_valley(limit: PruningLimit) -> None:
    targets = np.linspace(flat_share(limit) + 0.01, 0.99, 30)
    assert (np.diff([limit.epsilon_for(target) for target in targets]) > 0).all()
    assert (np.diff([limit.weight_scale_for(target) for target in targets]) < 0).all()
    assert (np.diff([limit.curvature_scale_for(target) for target in targets]) < 0).all()


def test_equal_weights_on_identity_curvature_by_hand() -> None:
    # s = c/(c + a), so c = a s/(1 - s), and R^2 = s D w^2
    a, w, d, target = 3.0, 0.5, 400, 0.8
    measure = SpectralMeasure.from_eigenvalues(np.full(d, a))
    curve = MagnitudeProfile({"w": torch.full((d,), w, dtype=torch.float64)}).curve()
    scale, squared = a * target / (1 - target), target * d * w**2
    assert scale_for(measure, target) == pytest.approx(scale)
    assert epsilon_for(measure, curve, target) == pytest.approx(scale * squared / 2)


def test_targets_out_of_reach_are_refused_with_the_reason() -> None:
    measure = SpectralMeasure.from_eigenvalues([0.0, 0.0, 1.0, 2.0])
    weights = torch.zeros(10, dtype=torch.float64)
    weights[:2] = 1.0
    curve = MagnitudeProfile({"w": weights}).curve()
    dense = MagnitudeProfile({"w": torch.ones(4)}).curve()
    for target in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(UserError, match=r"sparsity: expected a number in \(0, 1\)"):
            epsilon_for(measure, dense, target)
    with pytest.raises(UserError, match=r"directions without curvature make up 0\.5 of all"):
        epsilon_for(measure, dense, 0.5)
    with pytest.raises(UserError, match="so many weights are zero already"):
        epsilon_for(measure, curve, 0.75)
    with pytest.raises(UserError, match="directions without curvature make up 1 of all"):
        scale_for(SpectralMeasure.from_eigenvalues([-1.0, 0.0]), 0.9, "clip")
    with pytest.raises(UserError, match="within the range of floating point numbers"):
        scale_for(SpectralMeasure.from_eigenvalues([1e-306, 1e-306]), 0.5)
    for epsilon in (1e-12, 1e-3, 1e3):  # what the messages say: no epsilon brings the limit down to the target
        assert isotropic_limit(measure, dense, epsilon).sparsity > 0.5
        assert isotropic_limit(SpectralMeasure.from_eigenvalues(np.ones(10)), curve, epsilon).sparsity > 0.79


def test_targets_between_the_flat_shares_of_two_measures_have_an_epsilon() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 8)))
    x = random(60, 12, seed=1)
    limit = predict_limit(model, [(x, model(x).argmax(1))], epsilon=0.02, samples=20, steps=4, curvature="ggn")
    ((nodes, _),) = limit.evidence.hessian.above.rules
    assert nodes[0] == 0
    assert nodes[1] > 1e-12
    flat = [float(measure.weights[measure.nodes <= 0].sum()) for measure in limit.evidence.hessian.measures]
    reached = [limit.what_if(epsilon=epsilon).sparsity for epsilon in np.geomspace(1e-12, 1e-7, 5)]
    assert flat[0] == 0
    assert limit.evidence.hessian.on_samples(reached[0]) < flat[1]
    for target in reached:
        assert limit.what_if(epsilon=limit.epsilon_for(target)).sparsity == pytest.approx(target, abs=1e-8)
    with pytest.raises(UserError, match="is below the limit under any condition"):
        limit.epsilon_for(0.01 * reached[0])
