"""Directions of removed weights of a linear regression, whose GGN is known, against its eigenvectors."""

import dataclasses
import math

import pytest
import torch
from helpers import random
from torch import nn

from estimators import Objective
from pruning_limits.estimates import Estimates
from pruning_limits.isotropic import isotropic_limit
from pruning_limits.losses import all_losses
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.removed_directions import removed_directions
from pruning_limits.settings import Settings
from pruning_limits.stopping import STOPPING, Stopping
from pruning_limits.subsamples import Subsamples

D, EPSILON = 60, 0.3
INPUTS = random(200, D) * torch.logspace(-1.5, 1, D).double()
GGN = INPUTS.T @ INPUTS / len(INPUTS)
WEIGHTS = random(D, seed=1)
SLOPE = 0.02 * random(D, seed=2)


def squares(model, batch):
    return 0.5 * (model(batch[0]) - batch[1])[:, 0] ** 2


def problem(stopping=STOPPING, progress=False, **options):
    """Estimates and magnitudes of a regression at its minimum, whose GGN is X^T X / n."""
    model = nn.Linear(D, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(WEIGHTS[None])
    noise = random(len(INPUTS), 1, seed=3)
    noise -= INPUTS @ torch.linalg.lstsq(INPUTS, noise).solution  # the gradient at the weights is zero
    objective = Objective(model, [(INPUTS, INPUTS @ WEIGHTS[:, None] + noise)], squares)
    profile = MagnitudeProfile(objective.chosen)
    settings = Settings(epsilon=EPSILON, **options)
    subsamples = Subsamples(all_losses(objective), settings, stopping=stopping)
    return Estimates(subsamples, profile.curve(), EPSILON, progress), profile


def model_at(profile, sparsity, gradient):
    """Rise and gradient of the quadratic model where the smallest weights are removed."""
    d = profile.removed(sparsity)
    g = torch.zeros(D).double() if gradient is None else gradient
    return float(0.5 * d @ GGN @ d - g @ d), g - GGN @ d


@pytest.mark.parametrize("gradient", [None, SLOPE])
def test_knots_hold_rise_and_spectral_measure_of_the_gradient_at_pruned_weights(gradient):
    estimates, profile = problem(Stopping(knot_distance=0.0, directions=-1.0))  # no bracket is so narrow: all steps
    directions = removed_directions(estimates, estimates.estimate("ggn"), profile, gradient)
    assert len(directions.sparsities) == STOPPING.most_knots
    for knot, (nodes, weights), rise, squared in zip(
        directions.sparsities, directions.rules, directions.rises, directions.squared, strict=True
    ):
        expected, q = model_at(profile, knot, gradient)
        assert rise == pytest.approx(expected, rel=1e-9)
        assert squared == pytest.approx(float(profile.removed(knot).square().sum()))
        for c in (0.01, 0.1, 1.0):
            damped = GGN + c * torch.eye(D).double()
            assert float((weights / (c + nodes)).sum()) == pytest.approx(float(q @ torch.linalg.solve(damped, q)))


@pytest.mark.parametrize("gradient", [None, SLOPE])
@pytest.mark.parametrize("tolerance", [0.1, 0.01])
def test_the_limit_is_that_of_the_exact_measures_within_the_step_error(gradient, tolerance):
    estimates, profile = problem(tolerance=tolerance)
    ggn = estimates.estimate("ggn")
    directions = removed_directions(estimates, ggn, profile, gradient)
    eigenvalues, vectors = torch.linalg.eigh(GGN)
    rules = []
    for knot in directions.sparsities:
        _, q = model_at(profile, knot, gradient)
        rules.append((eigenvalues.numpy(), (vectors.T @ q).square().numpy()))
    exact = dataclasses.replace(directions, rules=tuple(rules))
    high, truth = (removed.limit(ggn.measure, estimates.curve, EPSILON).sparsity for removed in (directions, exact))
    assert 0 < directions.step_error <= tolerance / 2
    assert 0 <= high - truth <= directions.step_error


def test_knots_begin_at_the_isotropic_limit_and_end_near_the_directional_one():
    estimates, profile = problem()
    ggn = estimates.estimate("ggn")
    first = isotropic_limit(ggn.measure, estimates.curve, EPSILON).sparsity
    two = removed_directions(problem(Stopping(most_knots=2))[0], ggn, profile, None)
    assert two.sparsities == pytest.approx((first, 1 - (1 - first) / 5))
    near = removed_directions(problem(Stopping(knot_distance=0.05))[0], ggn, profile, None)
    root = near.limit(ggn.measure, estimates.curve, EPSILON).sparsity
    assert set(two.sparsities) < set(near.sparsities)
    assert min(abs(math.log((1 - root) / (1 - knot))) for knot in near.sparsities) < 0.05


def test_directions_take_the_samples_of_the_spectrum():
    stages = []
    estimates, profile = problem(progress=lambda stage, *_: stages.append(stage))
    ggn = estimates.estimate("ggn")
    stages.clear()
    removed_directions(estimates, ggn, profile, None)
    assert set(stages) == {f"directions, {ggn.samples} samples"}


@pytest.mark.parametrize("tolerance", [0.5, 1e-6])
def test_steps_go_on_until_the_bracket_is_a_small_part_of_what_is_kept(tolerance):
    estimates, profile = problem(tolerance=tolerance)
    ggn = estimates.estimate("ggn")
    directions = removed_directions(estimates, ggn, profile, None)
    kept = 1 - directions.limit(ggn.measure, estimates.curve, EPSILON).sparsity
    assert directions.step_error <= 0.11 * kept
