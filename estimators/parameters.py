"""Which weights of a model are looked at, and how they lie in one flat vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from estimators.errors import UserError

ALIGNMENT = 64
WEIGHTED = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
LINEAR_ELSEWHERE = ("transformers.pytorch_utils.Conv1D",)


def choose_parameters(model: nn.Module, patterns: str | Sequence[str] | None = None) -> dict[str, nn.Parameter]:
    """Choose parameters of a model, in the model's own order.

    Args:
        model: Any module.
        patterns: Shell-style patterns of parameter names such as ``"layers.*.weight"``; None chooses the weights of
            all convolution and linear layers, the input projections of attention among them (no biases, no
            normalisation, no embedding, no recurrent layers). The weight behind a mask of ``torch.nn.utils.prune``
            is called ``weight_orig``.

    Returns:
        Chosen parameters by name; a tied parameter appears once.

    Raises:
        UserError: Nothing matches, the weight of a layer is computed from other parameters, or the chosen parameters
            are not real floating point numbers on one device.

    Example:
        >>> list(choose_parameters(nn.Sequential(nn.Linear(3, 2), nn.ReLU())))
        ['0.weight']
    """
    named = dict(model.named_parameters())
    if patterns is None:
        weights = {id(weight) for path, module in model.named_modules() for weight in _weights(path, module)}
        chosen = {name: parameter for name, parameter in named.items() if id(parameter) in weights}
        if not chosen:
            raise UserError("model: has no convolution or linear layers; name the weights to prune with parameters=")
    else:
        wanted = [patterns] if isinstance(patterns, str) else list(patterns)
        chosen = {name: p for name, p in named.items() if any(fnmatchcase(name, one) for one in wanted)}
        if not chosen:
            known = ", ".join(list(named)[:8]) + (", ..." if len(named) > 8 else "")
            raise UserError(f"parameters: {wanted} matches none of the model's parameters ({known})")
    devices = sorted({str(parameter.device) for parameter in named.values()})
    if len(devices) > 1:
        raise UserError(f"model: its parameters lie on {', '.join(devices)}; move the model to one device")
    if devices == ["meta"]:
        raise UserError("model: lies on the meta device, which holds no numbers; load it onto a real one")
    kinds = {parameter.dtype for parameter in chosen.values()}
    if len(kinds) > 1 or not next(iter(kinds)).is_floating_point:
        raise UserError(
            f"model: chosen parameters must share one floating point type, got {sorted(map(str, kinds))}; "
            "convert the model (complex and quantised weights have none), or choose others with parameters="
        )
    return chosen


def left_out(model: nn.Module, chosen: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Return the parameters of two or more dimensions that are not chosen, by name."""
    return {name: p for name, p in model.named_parameters() if p.dim() > 1 and name not in chosen}


def pruning_masks(model: nn.Module) -> dict[str, Tensor]:
    """Find the masks of ``torch.nn.utils.prune``.

    Args:
        model: Any module.

    Returns:
        Masks by the name of the parameter that they multiply, which ends in ``_orig``.
    """
    return {
        f"{path}.{name}_orig" if path else f"{name}_orig": module._buffers[f"{name}_mask"]
        for path, module in model.named_modules()
        for name in _masked(module)
    }


def _masked(module: nn.Module) -> list[str]:
    names = (name.removesuffix("_orig") for name in module._parameters if name.endswith("_orig"))
    return [name for name in names if module._buffers.get(f"{name}_mask") is not None]


def _weights(path: str, module: nn.Module) -> list[nn.Parameter | None]:
    """Return the weights of one convolution, linear or attention layer."""
    if isinstance(module, nn.MultiheadAttention):
        names = [name for name in PROJECTIONS if getattr(module, name, None) is not None]
    elif isinstance(module, WEIGHTED) or any(
        f"{kind.__module__}.{kind.__qualname__}" in LINEAR_ELSEWHERE for kind in type(module).__mro__
    ):
        names = ["weight"]
    else:
        return []
    masked = _masked(module)
    stored = [f"{name}_orig" if name in masked else name for name in names]
    if any(name not in module._parameters for name in stored):
        raise UserError(
            f"model: the weight of layer {path!r} is computed by a parametrisation; fix it with "
            "torch.nn.utils.parametrize.remove_parametrizations, or name the parameters behind it with parameters="
        )
    return [module._parameters[name] for name in stored]


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors into one vector ``[D]``."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Split a vector ``[D]`` into tensors shaped like ``like``; the inverse of ``flatten``."""
    parts = torch.split(vector, [tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


def aligned_rows(count: int, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make an empty matrix whose rows each start where an allocation of their own could.

    Sums over a vector depend in their last bits on where it starts in memory; so results are the same for one vector
    alone and for several in company.

    Args:
        count: Number of rows.
        length: Length of a row.
        dtype: Type of the entries.
        device: Where the matrix lies.

    Returns:
        Uninitialised rows ``[count, length]``, each contiguous.
    """
    step = ALIGNMENT // dtype.itemsize
    return torch.empty(count, -(-length // step) * step, dtype=dtype, device=device)[:, :length]


def columns(matrix: Tensor) -> list[Tensor]:
    """Return the columns of a matrix ``[D, K]`` as contiguous vectors, copied where they are not such already."""
    return [one if _lies_well(one) else one.clone(memory_format=torch.contiguous_format) for one in matrix.unbind(1)]


def _lies_well(vector: Tensor) -> bool:
    return vector.is_contiguous() and vector.data_ptr() % ALIGNMENT == 0


def named(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split a vector ``[D]`` by parameter name."""
    return dict(zip(like, unflatten(vector, list(like.values())), strict=True))
