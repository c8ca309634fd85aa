"""Masks with exact counts, their overlap, and their export."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from estimators import UserError
from estimators.parameters import choose_parameters
from estimators.vectors import flatten, named
from pruning_limits.magnitude import removed_count
from pruning_limits.mask_files import attach as attach
from pruning_limits.mask_files import check_fit
from pruning_limits.mask_files import load_masks as load_masks
from pruning_limits.mask_files import save_masks as save_masks

Masks = Mapping[str, Tensor]


def select(scores: Mapping[str, Tensor], sparsity: float, layerwise: bool = False) -> dict[str, Tensor]:
    """Keep the weights with the highest scores, an exact number of them.

    Args:
        scores: Score of every prunable weight by parameter name; a higher score is kept longer.
        sparsity: Removed fraction in [0, 1).
        layerwise: Remove the same fraction of every tensor instead of ranking all weights together.

    Returns:
        Bool masks by name, True where kept. ``ceil(sparsity * n)`` entries are False, equal scores removed in order
        of position.

    Raises:
        UserError: The sparsity is out of range or a score is NaN.

    Example:
        >>> select({"w": torch.tensor([3.0, 1.0, 1.0, 2.0])}, 0.5)["w"].tolist()
        [True, False, False, True]
    """
    check_sparsity(sparsity)
    if layerwise:
        return {name: select({name: score}, sparsity)[name] for name, score in scores.items()}
    vector = flatten(list(scores.values()))
    if vector.isnan().any():
        raise UserError("scores: some are NaN, so the weights cannot be ranked")
    kept = torch.ones(len(vector), dtype=torch.bool, device=vector.device)
    order = torch.sort(vector, stable=True).indices
    kept[order[: removed_count(sparsity, len(vector))]] = False
    return named(kept, scores)


def check_sparsity(sparsity: float) -> None:
    """Refuse a removed fraction outside [0, 1).

    Raises:
        UserError: The sparsity is out of range.
    """
    if not 0 <= sparsity < 1:
        raise UserError(f"sparsity: expected a number in [0, 1) (the removed fraction), got {sparsity}")


def prunable(model: nn.Module) -> dict[str, Tensor]:
    """Weights of convolution and linear layers by name, detached and sharing memory with the model."""
    return {name: weight.detach() for name, weight in choose_parameters(model).items()}


def sparsity_of(masks: Masks) -> float:
    """Removed fraction of all masked weights."""
    return 1 - sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def shuffled(masks: Masks, seed: int) -> dict[str, Tensor]:
    """Permute every mask within its tensor, which keeps the number of kept weights per layer.

    Args:
        masks: Bool masks by name.
        seed: Seed of the permutations.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=generator).to(mask.device)].view_as(mask)
        for name, mask in masks.items()
    }


def overlap(first: Masks, second: Masks) -> float:
    r"""Share of kept weights that two masks have in common, :math:`\sum m^A m^B / \sum m^A`.

    Args:
        first: Bool masks by name.
        second: Masks of the same names, shapes and number of kept weights.

    Returns:
        A number in [0, 1]; independent random masks give the kept fraction, see ``overlap_above_chance``.

    Raises:
        UserError: Names differ, or the numbers of kept weights differ.

    Source: Redman et al., An operator theoretic view on pruning deep neural networks, ICLR 2022, eq. 8.

    Example:
        >>> overlap({"w": torch.tensor([True, True, False])}, {"w": torch.tensor([True, False, True])})
        0.5
    """
    if first.keys() != second.keys():
        raise UserError("masks: the two sets of masks cover different parameters")
    kept, other = (sum(int(mask.sum()) for mask in masks.values()) for masks in (first, second))
    if kept != other:
        raise UserError(f"masks: overlap needs equal sparsity, got {kept} and {other} kept weights")
    common = sum(int((first[name] & second[name]).sum()) for name in first)
    return common / kept if kept else 1.0


def overlap_above_chance(first: Masks, second: Masks) -> float:
    """Overlap rescaled so that random masks give 0 and equal masks give 1."""
    kept = 1 - sparsity_of(first)
    return (overlap(first, second) - kept) / (1 - kept) if kept < 1 else 1.0


def expected_shuffled_overlap(masks: Masks) -> float:
    r"""Mean overlap of a mask with its layer-wise shuffles, :math:`\sum_l k_l^2/n_l / \sum_l k_l`."""
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    total = sum(kept.values())
    return sum(count**2 / masks[name].numel() for name, count in kept.items()) / total if total else 1.0


def sparse_state_dict(model: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """State dict whose masked weights are sparse COO tensors that hold the kept weights only.

    Args:
        model: The pruned module; it is not changed.
        masks: Bool masks by parameter name.
    """
    check_fit(model, masks)
    state = {}
    for name, value in model.state_dict().items():
        mask = masks.get(name)
        if mask is None:
            state[name] = value.clone()
        else:
            index = mask.nonzero().T
            state[name] = torch.sparse_coo_tensor(
                index, value[mask], value.shape, check_invariants=True, is_coalesced=True
            )
    return state
