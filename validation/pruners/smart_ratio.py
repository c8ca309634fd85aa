"""Smart-Ratio: random masks before training, with layer-wise counts from a fixed formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from estimators import UserError
from pruning_limits.magnitude import removed_count
from validation.masks import prunable
from validation.pruners import Problem, Pruned, register
from validation.pruners.budget import stretched
from validation.pruners.random_masks import mask_seed
from validation.training import train

LINEAR_KEPT = 0.3
Form = Literal["resnet", "vgg"]


def kept_fractions(sizes: Sequence[int], linear: Sequence[bool], kept: float, form: Form = "resnet") -> list[float]:
    r"""Kept fraction of every layer: 0.3 in linear layers and :math:`\gamma p_l` in the others.

    :math:`p_l = (L-l+1)^2 + (L-l+1)`, for the VGG form divided by :math:`l^2`, l = 1 nearest the input; gamma meets the
    budget. Where a layer would keep more than all of its weights, the excess, in whole weights, passes to the next
    layers that are not linear, and what they cannot take to the linear layers. In a network of linear layers only the
    last one is fixed at 0.3.

    Args:
        sizes: Number of weights of every layer, input first.
        linear: Which layers are linear.
        kept: Kept fraction of all weights in (0, 1].
        form: ``"resnet"`` or ``"vgg"``.

    Returns:
        A fraction in [0, 1] per layer; the paper's counts are ``int(fraction * size)``.

    Raises:
        UserError: The linear layers alone take the whole budget, or there is no layer to share the rest.

    Source: Su et al., Sanity-checking pruning methods: random tickets can win the jackpot, NeurIPS 2020.

    Example:
        >>> fractions = kept_fractions([432, 2304, 4608, 640], [False, False, False, True], 0.1)
        >>> [int(fraction * size) for fraction, size in zip(fractions, [432, 2304, 4608, 640])]
        [81, 262, 262, 192]
    """
    depth = len(sizes)
    fixed = [is_linear and (layer == depth - 1 or not all(linear)) for layer, is_linear in enumerate(linear)]
    shared = [layer for layer in range(depth) if not fixed[layer]]
    if not shared:
        raise UserError("model: smart-ratio needs at least one layer besides the classifier")
    ratios = [(depth - layer) ** 2 + (depth - layer) for layer in range(depth)]
    parts = [ratio / (layer + 1) ** 2 if form == "vgg" else float(ratio) for layer, ratio in enumerate(ratios)]
    reserved = LINEAR_KEPT * sum(size for size, is_fixed in zip(sizes, fixed, strict=True) if is_fixed)
    gamma = (kept * sum(sizes) - reserved) / sum(sizes[layer] * parts[layer] for layer in shared)
    if gamma <= 0:
        most = 1 - reserved / sum(sizes)
        raise UserError(
            f"sparsity: smart-ratio keeps {LINEAR_KEPT:.0%} of linear layers, so this network bears less than "
            f"{most:.4f}, got {1 - kept:.4f}"
        )
    fractions = [LINEAR_KEPT if is_fixed else gamma * part for is_fixed, part in zip(fixed, parts, strict=True)]
    extra = 0
    for layer in [*shared, *(layer for layer in range(depth) if fixed[layer])]:
        wanted = fractions[layer] + extra / sizes[layer]
        fractions[layer] = min(1.0, wanted)
        extra = int((wanted - fractions[layer]) * sizes[layer])
    return fractions


def kept_counts(fractions: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """Round fractions to counts that sum to a total: down first, then what is missing by the largest remainder.

    Args:
        fractions: Kept fraction of every layer.
        sizes: Number of weights of every layer.
        total: Kept weights of all layers, between 0 and the sum of the sizes.

    Returns:
        Counts per layer, each between 0 and its size.

    Example:
        >>> kept_counts([0.5, 0.37, 0.33], [10, 10, 10], 12)
        [5, 4, 3]
    """
    counts = [int(fraction * size) for fraction, size in zip(fractions, sizes, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda layer: counts[layer] - fractions[layer] * sizes[layer])
    while (missing := total - sum(counts)) != 0:
        step = 1 if missing > 0 else -1
        for layer in [index for index in by_remainder if 0 <= counts[index] + step <= sizes[index]][: abs(missing)]:
            counts[layer] += step
    return counts


def smart_ratio_masks(model: nn.Module, sparsity: float, seed: int, form: Form = "resnet") -> dict[str, Tensor]:
    """Random masks with Smart-Ratio's counts per layer and exactly the requested count in all.

    Args:
        model: Any module with convolution or linear layers.
        sparsity: Removed fraction in [0, 1).
        seed: Seed of the positions.
        form: ``"resnet"`` or ``"vgg"``.

    Returns:
        Bool masks by name, True where kept.
    """
    weights = prunable(model)
    sizes = [weight.numel() for weight in weights.values()]
    linear = [isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear) for name in weights]
    kept = sum(sizes) - removed_count(sparsity, sum(sizes))
    counts = kept_counts(kept_fractions(sizes, linear, kept / sum(sizes), form), sizes, kept)
    generator = torch.Generator().manual_seed(mask_seed(seed))
    masks = {}
    for (name, weight), count in zip(weights.items(), counts, strict=True):
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        mask[torch.randperm(weight.numel(), generator=generator)[:count]] = True
        masks[name] = mask.view(weight.shape).to(weight.device)
    return masks


def _trained(problem: Problem, sparsity: float, form: Form) -> Pruned:
    model = problem.fresh()
    masks = smart_ratio_masks(model, sparsity, problem.seed, form)
    train(model, problem.data, stretched(problem.recipe, problem.epochs), problem.seed, masks=masks)
    return Pruned(model.eval(), masks, problem.epochs)


@register("smart-ratio")
def smart_ratio(problem: Problem, sparsity: float) -> Pruned:
    """Draw a mask by the ResNet formula and train new weights under it for the whole budget.

    Args:
        problem: Budget, recipe and seed; the dense network is not used.
        sparsity: Removed fraction in [0, 1).

    Returns:
        The trained sparse network.

    Raises:
        UserError: Smart-Ratio cannot reach the sparsity, see ``kept_fractions``.

    Source: Su et al., Sanity-checking pruning methods: random tickets can win the jackpot, NeurIPS 2020.
    """
    return _trained(problem, sparsity, "resnet")


@register("smart-ratio-vgg")
def smart_ratio_vgg(problem: Problem, sparsity: float) -> Pruned:
    """Draw a mask by the VGG formula and train new weights under it for the whole budget.

    Args:
        problem: Budget, recipe and seed; the dense network is not used.
        sparsity: Removed fraction in [0, 1).

    Returns:
        The trained sparse network.

    Raises:
        UserError: Smart-Ratio cannot reach the sparsity, see ``kept_fractions``.

    Source: Su et al., Sanity-checking pruning methods: random tickets can win the jackpot, NeurIPS 2020.
    """
    return _trained(problem, sparsity, "vgg")
