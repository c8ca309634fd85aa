"""Steps whose length is a share of the weights' norm."""

import math

import pytest
import torch
from helpers import assert_close, random

from pruning_limits.descent import GENTLER, MEMORY, MOMENTUM, RATE, Descent


def path(weights, slopes, descent):
    weights = weights.clone()
    for step, slope in enumerate(slopes):
        descent.step(weights, slope, step / len(slopes))
    return weights


def test_it_is_sgd_with_momentum_at_the_stated_rate():
    weights, counted = random(8), torch.arange(8) < 6
    slopes = [random(8, seed=seed) for seed in range(1, 6)]
    expected = torch.nn.Parameter(weights.clone())
    optimiser = torch.optim.SGD([expected], lr=1.0, momentum=MOMENTUM)
    squares, share = 0.0, 0.0
    for step, slope in enumerate(slopes):
        square = float(slope[:6].square().sum())
        squares, share = MEMORY * squares + (1 - MEMORY) * square, MEMORY * share + (1 - MEMORY)
        decay = 0.5 * (1 + math.cos(math.pi * step / len(slopes)))
        optimiser.param_groups[0]["lr"] = RATE * decay * float(weights[:6].norm()) / max(squares / share, square) ** 0.5
        expected.grad = slope.clone()
        optimiser.step()
    assert_close(path(weights, slopes, Descent(counted)), expected)


@pytest.mark.parametrize(("of_loss", "of_weights"), [(1e6, 1.0), (1e-6, 1.0), (1.0, 1e3)])
def test_scaled_losses_and_weights_take_the_same_way(of_loss, of_weights):
    weights, everything = random(8), torch.ones(8, dtype=torch.bool)
    slopes = [random(8, seed=seed) for seed in range(1, 6)]
    scaled = [slope * of_loss / of_weights for slope in slopes]
    scaled_path = path(weights * of_weights, scaled, Descent(everything)) / of_weights
    assert_close(scaled_path, path(weights, slopes, Descent(everything)))


def test_without_a_slope_nothing_moves():
    weights = random(4)
    assert torch.equal(path(weights, [torch.zeros(4)] * 2, Descent(torch.ones(4, dtype=torch.bool))), weights)


def test_gentler_steps_forget_the_momentum():
    weights, slope, everything = random(4), random(4, seed=1), torch.ones(4, dtype=torch.bool)
    descent = Descent(everything)
    first = weights.clone()
    descent.step(first, slope, 0.0)
    descent.gentler()
    second = weights.clone()
    descent.step(second, slope, 0.0)
    assert_close(second - weights, GENTLER * (first - weights))
