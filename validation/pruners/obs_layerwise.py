"""Optimal brain surgeon layer by layer: what is kept makes up for what is removed in each layer's outputs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from validation.layer_inputs import input_moments, layers
from validation.masks import prunable, select
from validation.pruners import Problem, Pruned, register
from validation.pruners.calibration import calibration_images, normalised_anew

DAMPING = 0.01  # of the mean diagonal of the moments, as in SparseGPT


def saliencies(weight: Tensor, moments: Tensor) -> Tensor:
    r"""Rise of a layer's squared output error where a weight alone is removed and its row makes up for it.

    :math:`w_q^2 / [H^{-1}]_{qq}` with the damped moments H.

    Args:
        weight: Weight ``[rows, features]``.
        moments: Second moments of the inputs ``[features, features]``.

    Returns:
        Scores ``[rows, features]``, float64.

    Source: Hassibi and Stork, Second order derivatives for network pruning, NeurIPS 1992.
    """
    inverse: Tensor = torch.linalg.inv(damped(moments))
    scores: Tensor = weight.double().square() / inverse.diagonal()
    return scores


def damped(moments: Tensor) -> Tensor:
    """Return second moments with a hundredth of their mean diagonal added."""
    size = len(moments)
    return moments + DAMPING * float(moments.diagonal().mean()) * torch.eye(size, dtype=moments.dtype)


def reconstructed(weight: Tensor, kept: Tensor, moments: Tensor) -> Tensor:
    r"""Kept weights that reproduce a layer's outputs best.

    Row by row the minimum of :math:`(v - w)^\top H (v - w)` over all v that are zero where removed:
    :math:`H_{kk} v_k = (H w)_k`.

    Args:
        weight: Weight ``[rows, features]``.
        kept: Mask of the same shape, True where kept.
        moments: Second moments H of the inputs, positive definite ``[features, features]``.

    Returns:
        The new weight, float64 ``[rows, features]``, exactly zero where removed.

    Source: Frantar and Alistarh, SparseGPT, ICML 2023, whose objective this solves exactly.

    Example:
        >>> moments = torch.tensor([[1.0, 1.0], [1.0, 1.0]]) + 1e-6 * torch.eye(2)
        >>> reconstructed(torch.tensor([[1.0, 2.0]]), torch.tensor([[False, True]]), moments).round(decimals=4)
        tensor([[0., 3.]], dtype=torch.float64)
    """
    h, w = moments.double(), weight.double()
    pulled, result = w @ h, torch.zeros_like(w)
    for row, keep in enumerate(kept):
        places = keep.nonzero().squeeze(1)
        if len(places):
            factor = torch.linalg.cholesky(h[places][:, places])
            result[row, places] = torch.cholesky_solve(pulled[row, places, None], factor).squeeze(1)
    return result


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
    masks = {}
    for name, module in layers(model).items():
        stored = dict(model.named_parameters())[name]
        weight = stored.flatten(1)
        moments = input_moments(model, x, [name]).get(name) if counts[name] else None
        scores = weight.abs() if moments is None else saliencies(weight, moments[:-1, :-1])
        mask = select({name: scores}, counts[name] / scores.numel())[name]
        masks[name] = mask.view_as(stored)
        if moments is None:
            stored.mul_(masks[name])
            continue
        bias = getattr(module, "bias", None) if not isinstance(module, nn.MultiheadAttention) else None
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
    masks = select({name: weight.abs() for name, weight in prunable(model).items()}, sparsity)
    return {name: int((~mask).sum()) for name, mask in masks.items()}


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
