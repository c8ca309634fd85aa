"""Optimal brain surgeon, layer by layer: kept weights are adjusted to restore the outputs of their layer."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pruning_limits.reconstruction import damped, layers_of, reconstructed, saliencies
from validation.masks import prunable, select
from validation.pruners import Problem, Pruned, register
from validation.pruners.calibration import calibration_images, normalised_anew
from validation.pruners.layer_inputs import input_moments
from validation.pruners.magnitude import magnitude_masks


@torch.no_grad()
def reconstruct(model: nn.Module, x: Tensor, counts: dict[str, int]) -> dict[str, Tensor]:
    """Prune a network in place, layer after layer, each on what reaches it from the pruned layers before.

    Args:
        model: The network in evaluation mode.
        x: Inputs that it is calibrated with ``[n, ...]``.
        counts: Number of weights that each layer loses, by the weight's name. Layers whose inputs cannot be seen are
            pruned by magnitude and keep their values.

    Returns:
        Bool masks by name, True where kept.
    """
    masks, layers = {}, layers_of(model, prunable(model))
    for name in prunable(model):
        stored = dict(model.named_parameters())[name]
        weight = stored.flatten(1)
        moments = input_moments(model, x, [name]).get(name) if counts[name] else None
        scores = weight.abs() if moments is None else saliencies(weight, damped(moments[:-1, :-1]))
        mask = select({name: scores}, counts[name] / scores.numel())[name]
        masks[name] = mask.view_as(stored)
        if moments is None:
            stored.mul_(masks[name])
            continue
        bias = getattr(layers[name], "bias", None)
        if bias is None:
            stored.copy_(reconstructed(weight, mask, damped(moments[:-1, :-1])).view_as(stored))
            continue
        joined = torch.cat([weight, bias[:, None]], 1)
        always = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        solved = reconstructed(joined, always, damped(moments))
        stored.copy_(solved[:, :-1].view_as(stored))
        bias.copy_(solved[:, -1])
    return masks


def magnitude_counts(model: nn.Module, sparsity: float) -> dict[str, int]:
    """Return how many weights of each layer global magnitude pruning removes."""
    return {name: int((~mask).sum()) for name, mask in magnitude_masks(model, sparsity).items()}


@register("obs-layerwise")
def obs_layerwise(problem: Problem, sparsity: float) -> Pruned:
    """Remove what each layer's outputs miss least, and let its kept weights and bias reproduce them.

    Every layer loses as many weights as by global magnitude; which ones, the saliencies of the optimal brain surgeon
    say. Statistics of batch normalisation are measured anew. 2,048 training images, no training.

    Args:
        problem: The trained network.
        sparsity: Removed fraction in [0, 1).

    Returns:
        The pruned network; the budget beyond the dense training stays unspent.

    Source: Frantar and Alistarh, SparseGPT, ICML 2023; Hassibi and Stork, NeurIPS 1992.
    """
    model = copy.deepcopy(problem.dense).eval()
    x = calibration_images(problem)
    masks = reconstruct(model, x, magnitude_counts(model, sparsity))
    normalised_anew(model, x)
    return Pruned(model.eval(), masks, problem.recipe.epochs)
