"""Choose the prunable weights of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from estimators.errors import UserError

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.Linear)
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
LINEAR_ELSEWHERE = ("transformers.pytorch_utils.Conv1D",)


def choose_parameters(model: nn.Module, patterns: str | Sequence[str] | None = None) -> dict[str, nn.Parameter]:
    """Choose parameters of a model, in the model's own order.

    Args:
        model: Any module.
        patterns: Shell-style patterns of parameter names such as ``"layers.*.weight"``; None chooses the weights of
            all convolution and linear layers, the input projections of attention among them (no biases, no
            normalisation, no embedding, no recurrent layers). Weights without entries, of layers of width zero, are
            never chosen. The weight behind a mask of ``torch.nn.utils.prune`` is called ``weight_orig``.

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
        chosen = {name: p for name, p in named.items() if id(p) in weights and p.numel()}
        if not chosen:
            raise UserError("model: has no convolution or linear layers; name the weights to prune with parameters=")
    else:
        patterns = [patterns] if isinstance(patterns, str) else patterns
        named_ones = isinstance(patterns, Iterable) and not isinstance(patterns, bytes | Mapping)
        if not named_ones or not all(isinstance(pattern, str) for pattern in patterns):
            raise UserError(
                f"parameters: expected name patterns as text, such as 'encoder.*', or several of them, got {patterns!r}"
            )
        patterns = list(patterns)
        matching = [name for name in named if any(fnmatchcase(name, pattern) for pattern in patterns)]
        chosen = {name: named[name] for name in matching if named[name].numel()}
        if not chosen:
            known = ", ".join(list(named)[:8]) + (", ..." if len(named) > 8 else "")
            raise UserError(f"parameters: {patterns} matches none of the model's parameters ({known})")
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


def linear_elsewhere(module: nn.Module) -> bool:
    """Tell whether a module is a linear layer of another package, whose weight lies the other way round."""
    return any(f"{kind.__module__}.{kind.__qualname__}" in LINEAR_ELSEWHERE for kind in type(module).__mro__)


def _masked(module: nn.Module) -> list[str]:
    names = (name.removesuffix("_orig") for name in module._parameters if name.endswith("_orig"))
    return [name for name in names if module._buffers.get(f"{name}_mask") is not None]


def _remedy(module: nn.Module, names: Sequence[str]) -> str:
    """Return the function that takes a parametrisation away, of which the old ones live in hooks."""
    if any(f"{name}_g" in module._parameters for name in names):
        return "torch.nn.utils.remove_weight_norm"
    if any(f"{name}_u" in module._buffers for name in names):
        return "torch.nn.utils.remove_spectral_norm"
    return "torch.nn.utils.parametrize.remove_parametrizations"


def _weights(path: str, module: nn.Module) -> list[nn.Parameter | None]:
    """Return the weights of one convolution, linear or attention layer."""
    if isinstance(module, nn.MultiheadAttention):
        names = [name for name in PROJECTIONS if getattr(module, name, None) is not None]
    elif isinstance(module, WEIGHTED) or linear_elsewhere(module):
        names = ["weight"]
    else:
        return []
    masked = _masked(module)
    stored = [f"{name}_orig" if name in masked else name for name in names]
    if any(name not in module._parameters for name in stored):
        raise UserError(
            f"model: the weight of layer {path!r} is computed by a parametrisation; fix it with "
            f"{_remedy(module, names)}, or name the parameters behind it with parameters="
        )
    return [module._parameters[name] for name in stored]
