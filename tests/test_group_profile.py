"""Orders, counts and norms of groups against direct computations."""

import math

import numpy as np
import pytest
import torch
from helpers import random
from hypothesis import given
from hypothesis import strategies as st

from estimators import UserError
from pruning_limits import MagnitudeProfile
from pruning_limits.group_profile import GroupProfile
from pruning_limits.groups import NONE, Groups
from pruning_limits.pattern_names import parsed
from pruning_limits.patterns import Matrix, blocks, runs

CHANNELS = parsed("channels")


def coupled():
    """Two layers whose three hidden channels are rows of the first and columns of the second, and one dense column."""
    weights = {"a": random(3, 4, seed=1), "b": random(2, 4, seed=2)}
    rows = {"a": torch.tensor([[0], [1], [2]])}
    columns = {"b": torch.tensor([[0, 1, 2, NONE]])}
    bias = {"a.bias": torch.tensor([0, 1, 2])}
    return weights, Groups(CHANNELS, 3, (rows, columns), bias, torch.zeros(3, dtype=torch.int64))


def by_hand(weights, channels):
    squares = {c: weights["a"][c].square().sum() + weights["b"][:, c].square().sum() for c in channels}
    return math.fsum(float(value) for value in squares.values())


def test_groups_go_by_root_mean_square_and_the_last_of_a_family_stays():
    weights, groups = coupled()
    profile = GroupProfile(weights, groups)
    means = [by_hand(weights, [c]) / 6 for c in range(3)]
    assert profile.group_scores.tolist() == pytest.approx(means)
    first, second, _ = sorted(range(3), key=lambda c: means[c])
    assert profile.counts.tolist() == [0, 6, 12]
    assert profile.most == 12 / 20
    for sparsity, gone in ((0.0, []), (0.01, [first]), (0.3, [first]), (0.31, [first, second]), (0.6, [first, second])):
        masks = profile.masks(sparsity)
        assert (~masks["a"]).all(1).nonzero().flatten().tolist() == sorted(gone)
        assert (~masks["b"]).all(0).nonzero().flatten().tolist() == sorted(gone)
        assert sum(int((~mask).sum()) for mask in masks.values()) == 6 * len(gone)
        assert profile.removed_norm(sparsity) == pytest.approx(math.sqrt(by_hand(weights, gone)))
        assert profile.companions(sparsity)["a.bias"].tolist() == [c not in gone for c in range(3)]
        together = torch.cat([torch.where(mask, 0, weights[name]).flatten() for name, mask in masks.items()])
        assert torch.equal(profile.removed(sparsity), together)
    with pytest.raises(UserError, match=r"^sparsity: channels removes at most 0\.6000 of the weights here, got 0\.7$"):
        profile.masks(0.7)


def test_a_weight_between_two_channels_goes_with_the_first():
    weights = {"w": random(3, 3, seed=5)}
    groups = Groups(
        CHANNELS,
        6,
        ({"w": torch.arange(3)[:, None]}, {"w": 3 + torch.arange(3)[None]}),
        families=torch.tensor([0, 0, 0, 1, 1, 1]),
    )
    profile = GroupProfile(weights, groups)
    scores = [*weights["w"].square().mean(1).tolist(), *weights["w"].square().mean(0).tolist()]
    gone, removed, counts = set(), torch.zeros(3, 3, dtype=torch.bool), [0]
    for group in sorted(range(6), key=lambda g: scores[g]):
        family = set(range(3)) if group < 3 else set(range(3, 6))
        if len(family - gone) == 1:
            continue
        gone.add(group)
        removed[group if group < 3 else slice(None), slice(None) if group < 3 else group - 3] = True
        counts.append(int(removed.sum()))
        assert torch.equal(~profile.masks(counts[-1] / 9)["w"], removed)
        norm = float(weights["w"][removed].norm())
        assert profile.curve().squared_norm(counts[-1] / 9) == pytest.approx(norm**2)
    assert profile.counts.tolist() == counts


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4))
def test_counts_are_exact_and_norms_rise(seed, rows, columns):
    weights = {"w": random(7, 6, seed=seed), "v": random(3, 5, seed=seed + 1)}
    layers = dict.fromkeys(weights, Matrix(0, 1))
    profile = GroupProfile(weights, blocks(parsed(f"blocks:{rows}x{columns}"), weights, layers))
    assert profile.counts[-1] == 57
    for sparsity in np.linspace(0, 1, 14):
        removed = sum(int((~mask).sum()) for mask in profile.masks(float(sparsity)).values())
        assert removed == profile.count(float(sparsity)) >= sparsity * 57 - 1e-9
        assert removed - sparsity * 57 < rows * columns
    curve = profile.curve()
    assert (np.diff(curve.squared) >= 0).all()
    assert curve.squared[-1] == pytest.approx(float(sum(w.square().sum() for w in weights.values())))
    single = MagnitudeProfile(weights).curve()
    for sparsity, squared in zip(curve.sparsity, curve.squared, strict=True):
        assert squared >= single.squared_norm(float(sparsity)) - 1e-9  # single weights have the least R


def test_of_n_to_m_the_curve_is_one_number():
    weights = {"w": random(4, 8, seed=3)}
    profile = GroupProfile(weights, runs(parsed("2:4"), weights, {"w": Matrix(0, 1)}))
    least = weights["w"].reshape(-1, 4).square().sort(dim=1).values[:, :2].sum()
    assert profile.curve().squared.tolist() == pytest.approx([float(least)] * 2)
    assert (profile.most, profile.count(0.2), profile.count(0.0)) == (0.5, 16, 0)
    assert profile.threshold(0.5) == float(profile.removed(0.5).abs().max())


def test_knots_are_thinned():
    weights = {"w": random(40, 40)}
    profile = GroupProfile(weights, blocks(parsed("blocks:2x1"), weights, {"w": Matrix(0, 1)}))
    assert len(profile.curve().sparsity) == 801
    thin = profile.curve(50)
    assert len(thin.sparsity) == 50
    assert (thin.sparsity[0], thin.sparsity[-1]) == (0, 1)


def test_groups_that_are_zero_are_removed_already():
    weights = {"w": random(4, 4)}
    weights["w"][:2] = 0
    weights["w"][2, 0] = 0
    profile = GroupProfile(weights, blocks(parsed("blocks:1x4"), weights, {"w": Matrix(0, 1)}))
    assert profile.zeros == 8
    assert profile.count(0.5) == 8


def test_other_scores_give_another_order():
    weights, groups = coupled()
    scores = {"a": torch.tensor([[3.0], [1.0], [2.0]]).expand(3, 4), "b": torch.ones(2, 4)}
    profile = GroupProfile(weights, groups, scores)
    assert (~profile.masks(0.3)["a"]).all(1).tolist() == [False, True, False]
    with pytest.raises(UserError, match=r"^scores: expected b of shape \(2, 4\), as the weights, got nothing$"):
        GroupProfile(weights, groups, {"a": scores["a"]})
    with pytest.raises(UserError, match=r"^scores: expected numbers of at least 0 for a"):
        GroupProfile(weights, groups, {"a": -scores["a"], "b": scores["b"]})
    weights = {"w": torch.tensor([[3.0, -1.0, 2.0, 0.5]])}
    groups = runs(parsed("1:2"), weights, {"w": Matrix(0, 1)})
    other = GroupProfile(weights, groups, {"w": torch.tensor([[1.0, 2.0, 2.0, 1.0]])})
    assert other.masks(0.5)["w"].tolist() == [[False, True, True, False]]
