from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from estimators import UserError
from pruning_limits.magnitude import removed_count
from validation.masks import (
    Masks,
    attach,
    expected_shuffled_overlap,
    load_masks,
    overlap,
    overlap_above_chance,
    prunable,
    save_masks,
    select,
    shuffled,
    sparse_state_dict,
    sparsity_of,
)
from validation.models import build_model
from validation.training import apply_masks


def removed(masks: Masks) -> int:
    return sum(int((~mask).sum()) for mask in masks.values())


def random_masks(kept: int, sizes: tuple[int, ...] = (30, 50), seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = {str(number): torch.rand(size, generator=generator) for number, size in enumerate(sizes)}
    return select(scores, 1 - kept / sum(sizes))


@pytest.fixture
def resnet() -> nn.Module:
    return build_model("resnet8", (1, 8, 8), 10).eval()


# ------------------------------------------------------------------------------------------------- selection


@given(st.lists(st.integers(0, 2).map(float), min_size=2, max_size=60), st.floats(0, 0.999), st.booleans())
def test_counts_are_exact_with_ties(values: list[float], sparsity: float, layerwise: bool) -> None:
    cut = len(values) // 2
    scores = {"a": torch.tensor(values[:cut]), "b": torch.tensor(values[cut:]).view(1, -1)}
    masks = select(scores, sparsity, layerwise)
    if layerwise:
        assert all(int((~mask).sum()) == removed_count(sparsity, mask.numel()) for mask in masks.values())
    else:
        assert removed(masks) == removed_count(sparsity, len(values))
        kept = torch.cat([mask.flatten() for mask in masks.values()])
        flat = torch.tensor(values)
        if kept.any() and not kept.all():
            assert flat[~kept].max() <= flat[kept].min()


def test_zero_scores_of_half_of_the_weights_do_not_stop_the_count() -> None:
    scores = {"w": torch.cat([torch.zeros(500), torch.linspace(0.1, 1, 500)])}
    for count in (1, 200, 500, 501, 999):
        assert removed(select(scores, count / 1000)) == count


def test_masks_are_nested() -> None:
    scores = {"a": torch.randn(40, generator=torch.Generator().manual_seed(0)), "b": torch.ones(30)}
    before = select(scores, 0)
    for sparsity in np.linspace(0, 0.99, 21):
        masks = select(scores, float(sparsity))
        assert all(not (masks[name] & ~before[name]).any() for name in masks)
        before = masks


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_a_sparsity_out_of_range_is_refused(sparsity: float) -> None:
    with pytest.raises(UserError, match="sparsity: expected a number in"):
        select({"w": torch.ones(3)}, sparsity)


def test_scores_that_are_nan_are_refused() -> None:
    with pytest.raises(UserError, match="scores: some are NaN"):
        select({"w": torch.tensor([1.0, float("nan")])}, 0.5)


def test_prunable_are_the_weights_of_convolutions_and_linear_layers(resnet: nn.Module) -> None:
    names = set(prunable(resnet))
    layers = {n: m for n, m in resnet.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert names == {f"{name}.weight" for name in layers}
    before = copy.deepcopy(resnet.state_dict())
    apply_masks(resnet, select({name: weight.abs() for name, weight in prunable(resnet).items()}, 0.9))
    for name, value in resnet.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in names)
    assert sparsity_of({name: weight != 0 for name, weight in prunable(resnet).items()}) == pytest.approx(0.9, abs=1e-4)


# ------------------------------------------------------------------------------------------------- overlap


@given(st.integers(1, 79), st.integers(0, 1000))
def test_overlap_is_symmetric_and_in_range_and_1_for_equal_masks_only(kept: int, seed: int) -> None:
    first, second = random_masks(kept, seed=seed), random_masks(kept, seed=seed + 1)
    value = overlap(first, second)
    assert 0 <= value <= 1
    assert value == overlap(second, first)
    assert overlap(first, first) == 1
    assert (value == 1) == all(torch.equal(first[name], second[name]) for name in first)
    assert overlap_above_chance(first, first) == 1


def test_overlap_refuses_unequal_sparsity_and_other_names() -> None:
    with pytest.raises(UserError, match="overlap needs equal sparsity, got 20 and 21 kept weights"):
        overlap(random_masks(20), random_masks(21))
    with pytest.raises(UserError, match="cover different parameters"):
        overlap({"a": torch.ones(2, dtype=torch.bool)}, {"b": torch.ones(2, dtype=torch.bool)})


def test_random_masks_overlap_by_the_kept_fraction() -> None:
    values = [overlap(random_masks(250, (1000,), s), random_masks(250, (1000,), s + 1000)) for s in range(200)]
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values) - 0.25) < 4 * error
    above = [overlap_above_chance(random_masks(250, (1000,), 0), random_masks(250, (1000,), s)) for s in range(1, 200)]
    assert abs(np.mean(above)) < 4 * error / 0.75


def test_shuffles_keep_the_layers_counts_and_overlap_as_expected() -> None:
    scores = {"a": torch.rand(400), "b": torch.rand(20, 10) + 0.5}
    masks = select(scores, 0.6)
    values = []
    for seed in range(200):
        other = shuffled(masks, seed)
        assert all(other[name].sum() == masks[name].sum() for name in masks)
        assert all(other[name].shape == masks[name].shape for name in masks)
        values.append(overlap(masks, other))
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values) - expected_shuffled_overlap(masks)) < 4 * error
    assert expected_shuffled_overlap(masks) > 1 - sparsity_of(masks)


# ------------------------------------------------------------------------------------------------- export


def test_torch_prune_computes_what_the_pruned_network_computes(resnet: nn.Module) -> None:
    masks = select({name: weight.abs() for name, weight in prunable(resnet).items()}, 0.7)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    pruned = copy.deepcopy(resnet)
    apply_masks(pruned, masks)
    attach(resnet, masks)
    assert torch.equal(resnet(x), pruned(x))
    for name, mask in masks.items():
        layer = resnet.get_submodule(name.rpartition(".")[0])
        assert torch.equal(layer.weight_mask.bool(), mask)
        torch_prune.remove(layer, "weight")
    assert all(torch.equal(value, pruned.state_dict()[name]) for name, value in resnet.state_dict().items())


def test_a_sparse_state_dict_holds_the_kept_weights_only(resnet: nn.Module) -> None:
    masks = select({name: weight.abs() for name, weight in prunable(resnet).items()}, 0.95)
    dense = copy.deepcopy(resnet)
    state = sparse_state_dict(resnet, masks)
    apply_masks(resnet, masks)
    assert list(state) == list(resnet.state_dict())
    for name, value in resnet.state_dict().items():
        assert state[name].is_sparse == (name in masks)
        assert torch.equal(state[name].to_dense() if name in masks else state[name], value)
    assert sum(state[name]._nnz() for name in masks) == sum(int(mask.sum()) for mask in masks.values())
    dense.load_state_dict({name: value.to_dense() if value.is_sparse else value for name, value in state.items()})
    assert all(torch.equal(value, resnet.state_dict()[name]) for name, value in dense.state_dict().items())


def test_masks_survive_a_file(resnet: nn.Module, tmp_path: Path) -> None:
    masks = select({name: weight.abs() for name, weight in prunable(resnet).items()}, 0.7)
    save_masks(masks, tmp_path / "masks.safetensors")
    loaded = load_masks(tmp_path / "masks.safetensors")
    assert loaded.keys() == masks.keys()
    assert all(torch.equal(loaded[name], masks[name]) for name in masks)


def test_a_missing_damaged_or_wrong_mask_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="masks: cannot read"):
        load_masks(tmp_path / "none.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(UserError, match="masks: cannot read"):
        load_masks(tmp_path / "damaged.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "floats.safetensors")
    with pytest.raises(UserError, match=r"holds w of type torch\.float32, expected bool masks"):
        load_masks(tmp_path / "floats.safetensors")


def test_masks_of_another_model_are_refused(resnet: nn.Module) -> None:
    with pytest.raises(UserError, match=r"other\.weight has shape .* the model has no such parameter"):
        attach(resnet, {"other.weight": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(UserError, match=r"fc\.weight has shape \(2,\), the model has a parameter of shape \(10, 64\)"):
        sparse_state_dict(resnet, {"fc.weight": torch.ones(2, dtype=torch.bool)})
