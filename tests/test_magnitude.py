from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from estimators import UserError
from pruning_limits.magnitude import MagnitudeProfile, removed_count


@pytest.mark.parametrize(
    ("sparsity", "dimension", "count"),
    [
        (0.0, 10, 0),
        (1.0, 10, 10),
        (0.1, 10, 1),
        (0.3, 10, 3),
        (0.7, 10, 7),
        (0.101, 10, 2),
        (0.9, 3_883_000, 3_494_700),
    ],
)
def test_removed_count_is_the_ceiling_without_rounding_surprises(sparsity: float, dimension: int, count: int) -> None:
    assert removed_count(sparsity, dimension) == count


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_a_count_over_d_gives_that_count(count: int, dimension: int) -> None:
    count = min(count, dimension)
    assert removed_count(count / dimension, dimension) == count


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, math.nan])
def test_a_sparsity_outside_its_range_is_refused(sparsity: float) -> None:
    with pytest.raises(UserError, match="sparsity"):
        removed_count(sparsity, 10)


@given(st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=40).filter(any), st.floats(0, 1))
def test_masks_have_the_exact_count_also_with_ties(values: list[float], sparsity: float) -> None:
    cut = len(values) // 2
    profile = MagnitudeProfile({"a": torch.tensor(values[:cut]), "b": torch.tensor(values[cut:]).view(1, -1)})
    masks = profile.masks(sparsity)
    kept = torch.cat([mask.reshape(-1) for mask in masks.values()])
    assert int((~kept).sum()) == removed_count(sparsity, len(values))
    magnitudes = torch.tensor(values).abs()
    if kept.any() and not kept.all():
        assert magnitudes[~kept].max() <= magnitudes[kept].min()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_order_is_that_of_magnitudes(dtype: torch.dtype) -> None:
    small = torch.finfo(dtype).smallest_normal / 2  # subnormal
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).tolist()
    weights = torch.tensor([*values, 0.0, -0.0, small, -small, 1e4, -1e4, *values], dtype=dtype)
    expected = torch.sort(weights.double().abs(), stable=True).indices
    assert torch.equal(MagnitudeProfile({"w": weights}).order, expected)


def test_ties_are_removed_in_order_of_position() -> None:
    profile = MagnitudeProfile({"w": torch.ones(6)})
    assert profile.masks(0.5)["w"].tolist() == [False, False, False, True, True, True]


def test_masks_are_nested() -> None:
    profile = MagnitudeProfile({"w": torch.randn(300, generator=torch.Generator().manual_seed(1))})
    before = profile.masks(0.0)["w"]
    for sparsity in np.linspace(0, 1, 23):
        mask = profile.masks(float(sparsity))["w"]
        assert not (mask & ~before).any()
        before = mask


def test_removed_norm_and_threshold_match_a_direct_computation() -> None:
    weights = torch.randn(500, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    profile = MagnitudeProfile({"w": weights})
    ordered = weights.abs().sort().values
    for count in (0, 1, 77, 499, 500):
        sparsity = count / 500
        assert profile.removed_norm(sparsity) == pytest.approx(float(ordered[:count].norm()), rel=1e-12)
        assert profile.threshold(sparsity) == (float(ordered[count - 1]) if count else 0.0)
        assert torch.equal(profile.removed(sparsity), weights * ~profile.masks(sparsity)["w"])


def test_magnitude_pruning_has_the_smallest_r_of_all_masks() -> None:
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(200, generator=generator)
    profile = MagnitudeProfile({"w": weights})
    least = profile.removed_norm(0.4)
    others = [float(weights[torch.randperm(200, generator=generator)[:80]].norm()) for _ in range(200)]
    assert least < min(others)
    assert np.mean(np.square(others)) == pytest.approx(0.4 * float(weights.square().sum()), rel=0.02)


def test_the_profile_keeps_its_own_copy_of_the_weights() -> None:
    weights = torch.arange(1.0, 5.0)
    profile = MagnitudeProfile({"w": weights})
    weights.zero_()
    assert profile.removed_norm(1.0) == pytest.approx(30**0.5)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_weights_that_are_all_zero_or_not_finite_are_refused(value: float) -> None:
    with pytest.raises(UserError, match="model:"):
        MagnitudeProfile({"w": torch.full((3,), value)})
