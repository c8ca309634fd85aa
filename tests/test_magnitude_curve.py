"""The curve of removed norms between its knots."""

import numpy as np
import pytest
import torch

from estimators import UserError
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.magnitude_curve import MagnitudeCurve


def test_curve_is_exact_on_all_counts_of_a_small_model_and_close_for_a_large_one() -> None:
    generator = torch.Generator().manual_seed(4)
    small = MagnitudeProfile({"w": torch.randn(50, generator=generator)})
    assert np.array_equal(small.curve().squared, small.squares)
    large = MagnitudeProfile({"w": torch.randn(200_000, generator=generator) ** 3})
    curve = large.curve()
    exact = np.interp(np.linspace(0, 1, 200_001), curve.sparsity, curve.squared)
    assert np.max(np.abs(exact - large.squares) / np.maximum(large.squares, 1e-3 * large.squares[-1])) < 1e-3
    assert curve.scaled(3.0).squared_norm(0.5) == pytest.approx(9 * curve.squared_norm(0.5))


def test_between_knots_it_is_linear_and_beyond_them_constant() -> None:
    curve = MagnitudeCurve(np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.0, 5.0]))
    assert [curve.squared_norm(sparsity) for sparsity in (0.0, 0.25, 0.75, 1.0)] == [0.0, 0.5, 3.0, 5.0]


def test_a_norm_beyond_floating_point_is_refused() -> None:
    curve = MagnitudeCurve(np.array([0.0, 1.0]), np.array([0.0, 1e300]))
    with np.errstate(over="ignore"), pytest.raises(UserError, match="weight_scale: 10000000000"):
        curve.scaled(1e10)
