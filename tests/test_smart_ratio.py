from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from estimators import UserError
from pruning_limits.magnitude import removed_count
from validation.models import build_model
from validation.pruners.smart_ratio import Form, kept_counts, kept_fractions, smart_ratio_masks

SIZES, LINEAR = [432, 2304, 4608, 640], [False, False, False, True]


def counts(fractions: list[float], sizes: list[int] = SIZES) -> list[int]:
    return [int(fraction * size) for fraction, size in zip(fractions, sizes, strict=True)]


@pytest.mark.parametrize(
    ("kept", "form", "golden"),
    [
        (0.1, "resnet", [81, 262, 262, 192]),
        (0.7, "resnet", [432, 2304, 2659, 192]),
        (0.1, "vgg", [281, 225, 100, 192]),
    ],
)
def test_counts_are_those_of_the_paper(kept: float, form: Form, golden: list[int]) -> None:
    assert counts(kept_fractions(SIZES, LINEAR, kept, form)) == golden


def test_gamma_and_overflow_are_those_of_the_paper() -> None:
    sparse = kept_fractions(SIZES, LINEAR, 0.1)
    assert sparse[0] / 20 == pytest.approx(0.00948448, rel=1e-6)
    assert kept_fractions(SIZES, LINEAR, 0.7) == pytest.approx([1, 1, 0.57720, 0.3], abs=5e-6)


@given(
    st.lists(st.integers(50, 5000), min_size=1, max_size=20),
    st.integers(50, 1000),
    st.floats(0.02, 1),
    st.sampled_from(["resnet", "vgg"]),
)
def test_fractions_fall_with_depth_and_meet_the_budget(convs: list[int], last: int, kept: float, form: Form) -> None:
    sizes, linear = [*convs, last], [*(False for _ in convs), True]
    if kept * sum(sizes) < 0.31 * last:
        return
    fractions = kept_fractions(sizes, linear, kept, form)
    assert all(0 < fraction <= 1 for fraction in fractions)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(fractions[:-1]))
    assert abs(sum(counts(fractions, sizes)) - kept * sum(sizes)) <= 2 * len(sizes)
    total = int(kept * sum(sizes))
    exact = kept_counts(fractions, sizes, total)
    assert sum(exact) == total
    assert all(0 <= count <= size for count, size in zip(exact, sizes, strict=True))


def test_what_the_convolutions_cannot_take_goes_to_the_linear_layers() -> None:
    fractions = kept_fractions([100, 1000], [False, True], 0.9)
    assert fractions == pytest.approx([1, 0.89])
    assert kept_counts(fractions, [100, 1000], 990) == [100, 890]


def test_in_a_network_of_linear_layers_only_the_last_is_fixed() -> None:
    fractions = kept_fractions([3000, 2000, 100], [True] * 3, 0.1)
    assert fractions[2] == 0.3
    assert fractions[0] == pytest.approx(2 * fractions[1])
    assert kept_fractions([3000, 2000, 100], [False, True, True], 0.3)[1:] == [0.3, 0.3]


def test_a_budget_below_that_of_the_linear_layers_is_refused() -> None:
    with pytest.raises(UserError, match=r"bears less than 0\.9760, got 0\.9800"):
        kept_fractions(SIZES, LINEAR, 0.02)
    with pytest.raises(UserError, match="at least one layer besides"):
        kept_fractions([10], [True], 0.5)


@pytest.mark.parametrize("name", ["resnet8", "fc5-mini", "small-cnn"])
@pytest.mark.parametrize("form", ["resnet", "vgg"])
def test_masks_have_the_exact_count_in_all(name: str, form: Form) -> None:
    model = build_model(name, (1, 8, 8), 10)
    for sparsity in (0.0, 0.333, 0.9):
        masks = smart_ratio_masks(model, sparsity, seed=0, form=form)
        total = sum(mask.numel() for mask in masks.values())
        assert total - sum(int(mask.sum()) for mask in masks.values()) == removed_count(sparsity, total)


def test_masks_depend_on_the_seed_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
    first, again, other = (smart_ratio_masks(model, 0.7, seed)["1.weight"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.sum() == other.sum()
