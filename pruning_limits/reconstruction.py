"""Layer-wise pruning by the optimal brain surgeon: kept weights are adjusted to restore the outputs of their layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from estimators.errors import UserError

DAMPING = 0.01  # of the mean diagonal of the moments, as in SparseGPT
MOST_FEATURES = 4096  # whose moments fit into 128 MiB
IMAGES, PLACES = 4, 32  # every so many images of a convolution, and most places of a sample, that moments are taken of


def columns(module: nn.Module, inputs: Tensor) -> Tensor | None:
    """Return what the rows of a layer's weight are multiplied with, one column each, and a last row of ones.

    Args:
        module: A linear layer, a convolution without groups, or self-attention, whose input projections it is about.
        inputs: Its input.

    Returns:
        Columns ``[features + 1, positions]``; None of other layers.

    Example:
        >>> columns(nn.Conv2d(1, 1, 2), torch.arange(9.0).view(1, 1, 3, 3))[:, 0]
        tensor([0., 1., 3., 4., 1.])
    """
    if isinstance(module, nn.Linear | nn.MultiheadAttention):
        flat = inputs.reshape(-1, inputs.shape[-1]).T
    elif isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros":
        if isinstance(module.padding, str):
            return None
        unfolded = nn.functional.unfold(inputs, module.kernel_size, module.dilation, module.padding, module.stride)
        flat = unfolded.transpose(0, 1).flatten(1)
    else:
        return None
    return torch.cat([flat, flat.new_ones(1, flat.shape[1])])


def damped(moments: Tensor) -> Tensor:
    """Return second moments with a hundredth of their mean diagonal added, in float64."""
    moments = moments.double()
    if not moments.isfinite().all():
        raise UserError("loader: what reaches a layer is NaN or infinite; check the data")
    size = torch.eye(len(moments), dtype=moments.dtype, device=moments.device)
    return moments + DAMPING * float(moments.diagonal().mean()) * size


def saliencies(weight: Tensor, moments: Tensor) -> Tensor:
    r"""Rise of a layer's squared output error where a weight alone is removed and its row makes up for it.

    :math:`w_q^2 / [H^{-1}]_{qq}` with second moments H.

    Args:
        weight: Weight ``[rows, features]``.
        moments: Second moments H of the inputs, positive definite ``[features, features]``.

    Returns:
        Scores ``[rows, features]``, float64.

    Source: Hassibi and Stork, Second order derivatives for network pruning, NeurIPS 1992.
    """
    inverse: Tensor = torch.cholesky_inverse(torch.linalg.cholesky(moments.double()))
    scores: Tensor = weight.double().square() / inverse.diagonal()
    return scores


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


def layers_of(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Return the layers of weights by the weight's name, in the model's order, where a weight has one layer only."""
    wanted = set(names)
    homes: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            homes.setdefault(id(parameter), []).append((f"{path}.{key}" if path else key, module))
    return {
        name: module
        for (name, module), *others in homes.values()
        if name in wanted and not others and name.rpartition(".")[2] in ("weight", "in_proj_weight")
    }


@contextmanager
def watched(layers: Mapping[str, nn.Module], sums: dict[str, tuple[Tensor, int]]) -> Iterator[None]:
    """Add up the second moments of what reaches layers while the model is called, at some places of each sample.

    Args:
        layers: Layers by the name of their weights.
        sums: Where sums ``[features + 1, features + 1]`` and numbers of columns are put by name.
    """

    def adding(name: str) -> Any:
        def add(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            given = arguments[0] if arguments else keywords.get("query", keywords.get("input"))
            features = _thinned(module, given.detach()) if isinstance(given, Tensor) and len(given) else None
            if features is not None:
                total, count = sums.get(name, (torch.zeros((), dtype=torch.float64, device=features.device), 0))
                sums[name] = total + (features @ features.T).double(), count + features.shape[1]

        return add

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_pre_hook(adding(name), with_kwargs=True))
        yield


def _thinned(module: nn.Module, inputs: Tensor) -> Tensor | None:
    """Return about ``PLACES`` columns per sample, of every fourth image only, at places that differ."""
    inputs = inputs[::IMAGES] if isinstance(module, nn.Conv2d) and len(inputs) > IMAGES else inputs
    features = columns(module, inputs)
    step = 1 if features is None else features.shape[1] // (PLACES * len(inputs))
    return features if features is None or step <= 1 else features[:, :: step | 1]


@dataclass(frozen=True)
class Moments:
    r"""Second moments of what reaches layers.

    Attributes:
        of: :math:`\frac1p \sum z z^\top`, float64 ``[features + 1, features + 1]``, the last row that of the constant
            one, by the name of the layer's weight. Layers that are of another kind, or not called as modules, are
            missing.
        operations: Floating point operations that they took.
    """

    of: Mapping[str, Tensor]
    operations: float


def moments_of(layers: Mapping[str, nn.Module], passes: Callable[[], object]) -> Moments:
    """Return the second moments of what reaches layers while their model is called.

    Args:
        layers: Layers by the name of their weights.
        passes: Passes batches through the model.
    """
    sums: dict[str, tuple[Tensor, int]] = {}
    with watched(layers, sums), torch.enable_grad():  # with gradients attention calls its layers one by one
        passes()
    operations = sum(2.0 * len(total) ** 2 * count for total, count in sums.values())
    return Moments({name: total / count for name, (total, count) in sums.items()}, operations)


def solving_cost(kept: Tensor) -> float:
    r"""Return about how many operations it takes to select and to reconstruct a layer's weights.

    :math:`2 f^3` to invert the moments of f features, :math:`k^3/3 + k^2` to solve for a row's k kept weights.

    Args:
        kept: Which of them are kept, bool ``[rows, features]``.

    Example:
        >>> round(solving_cost(torch.tensor([[True, True, True], [False, True, False]])), 2)
        73.33
    """
    each = kept.sum(1).double()
    return 2.0 * kept.shape[1] ** 3 + float((each**3 / 3 + each**2).sum())
