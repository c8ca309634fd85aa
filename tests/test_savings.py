"""Savings against the sizes of real tensors in each format, and of physically smaller networks."""

import math

import pytest
import torch
from helpers import random, seeded
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from estimators import Objective, UserError
from pruning_limits import MagnitudeProfile
from pruning_limits.channels import smaller_network
from pruning_limits.group_profile import GroupProfile
from pruning_limits.savings import savings_of, sparsity_for
from pruning_limits.structure import structure_of
from pruning_limits.trials import Trial

PATTERNS = ("unstructured", "2:4", "1:8", "blocks:4x2", "channels")


def network():
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6 * 16, 10),
        )
    )
    return model.float().eval()


@pytest.fixture(scope="module")
def objective():
    return Objective(network(), [(random(5, 4, 6, 6).float(), torch.arange(5))])


@pytest.fixture(scope="module")
def structure(objective):
    return structure_of(objective, PATTERNS)


def profile_of(objective, structure, pattern):
    weights = objective.chosen
    profile = (
        MagnitudeProfile(weights) if pattern == "unstructured" else GroupProfile(weights, structure.groups[pattern])
    )
    profile.structure = structure
    return profile


@pytest.mark.parametrize("pattern", PATTERNS)
def test_parameters_and_macs_are_those_of_the_masked_network(objective, structure, pattern):
    profile = profile_of(objective, structure, pattern)
    for row in savings_of(profile):
        masks = profile.masks(row.sparsity)
        uses = {"0.weight": 36, "3.weight": 16, "6.weight": 1}
        assert row.macs == sum(uses[name] * int(mask.sum()) for name, mask in masks.items())
        gone = sum(int((~mask).sum()) for mask in (profile.companions(row.sparsity)).values())
        kept = sum(int(mask.sum()) for mask in masks.values())
        assert row.parameters == kept + structure.others - gone
        assert row.sparsity == pytest.approx(1 - kept / objective.dimension)


def test_macs_and_bytes_of_channels_are_those_of_the_smaller_network(objective, structure):
    profile, trial = profile_of(objective, structure, "channels"), Trial(objective)
    for row in savings_of(profile, profile.counts.tolist()[::3]):
        gone = profile.gone(row.sparsity)
        removed = {root: gone[ids].nonzero().flatten().tolist() for root, ids in profile.groups.roots.items()}
        smaller = smaller_network(objective.model, trial, removed)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            smaller(objective.loader[0][0][:1])
        assert counter.get_total_flops() == 2 * row.macs
        assert row.bytes == row.dense_bytes == sum(4 * p.numel() for p in smaller.parameters())
        assert row.parameters == row.bytes / 4


def masked_weights(profile, sparsity):
    return {name: profile.weights[name] * mask for name, mask in profile.masks(sparsity).items()}


@pytest.mark.filterwarnings("ignore:Sparse")
def test_compressed_rows_have_the_size_of_those_of_torch(objective, structure):
    profile = profile_of(objective, structure, "unstructured")
    for row in savings_of(profile)[1:-1]:
        size = structure.other_bytes
        for weight in masked_weights(profile, row.sparsity).values():
            sparse = weight.flatten(1).to_sparse_csr()
            size += sparse.values().numel() * 4
            size += 4 * (sparse.crow_indices().numel() + sparse.col_indices().numel())
        assert row.bytes == row.csr_bytes == size
        assert row.dense_bytes == 4 * objective.dimension + structure.other_bytes


@pytest.mark.filterwarnings("ignore:Sparse")
def test_blocks_have_the_size_of_those_of_torch(objective, structure):
    profile = profile_of(objective, structure, "blocks:4x2")
    for row in savings_of(profile)[1:-1]:
        size = structure.other_bytes
        for weight in masked_weights(profile, row.sparsity).values():
            matrix = (
                weight.reshape(len(weight), weight.shape[1], -1).transpose(1, 2).flatten(1)
            )  # inputs are neighbours
            padded = nn.functional.pad(matrix, (0, 0, 0, -len(matrix) % 4))
            sparse = padded.to_sparse_bsr((4, 2))
            size += 4 * (sparse.values().numel() + sparse.crow_indices().numel() + sparse.col_indices().numel())
        assert row.bytes == size


def test_runs_keep_values_and_places(objective, structure):
    rows = savings_of(profile_of(objective, structure, "2:4"))
    assert [row.sparsity for row in rows] == [0.0, 0.5]
    half = objective.dimension // 2
    assert rows[1].bytes == 4 * half + half * 2 / 8 + structure.other_bytes
    (_, row) = savings_of(profile_of(objective, structure, "1:8"))
    first, *fitting = 4 * 8 * 9, 8 * 6 * 9, 96 * 10  # four inputs are no multiple of eight
    places = sum(math.ceil(3 * size / 8 / 8) for size in fitting)  # three bits each
    assert row.bytes == 4 * (first + sum(fitting) // 8) + places + structure.other_bytes


@pytest.mark.parametrize("pattern", ["unstructured", "blocks:4x2", "channels"])
@pytest.mark.parametrize("quantity", ["parameters", "macs", "bytes"])
def test_the_sparsity_of_a_budget_is_the_least(objective, structure, pattern, quantity):
    profile = profile_of(objective, structure, pattern)
    sparsity = sparsity_for(profile, quantity, 0.55)
    counts = profile.counts.tolist() if pattern != "unstructured" else list(range(profile.dimension + 1))
    place = counts.index(round(sparsity * profile.dimension))
    before, at = savings_of(profile, [counts[place - 1], counts[place]])
    (dense,) = savings_of(profile, [0])
    whole = dense.dense_bytes if quantity == "bytes" else getattr(dense, quantity)
    assert getattr(at, quantity) <= 0.55 * whole < getattr(before, quantity)


def test_a_pattern_of_one_sparsity_meets_a_budget_or_not(objective, structure):
    profile = profile_of(objective, structure, "2:4")
    assert sparsity_for(profile, "macs", 0.5) == sparsity_for(profile, "macs", 0.9) == 0.5
    with pytest.raises(UserError, match=r"the nearest is macs=0\.5000$"):
        sparsity_for(profile, "macs", 0.4)


def test_unknown_uses_leave_macs_unknown(objective):
    rows = savings_of(MagnitudeProfile(objective.chosen))
    assert {row.macs for row in rows} == {None}
