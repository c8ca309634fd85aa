"""Models whose parameters ``torch.distributed.fsdp.fully_shard`` has spread over ranks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def fully_sharded(model: nn.Module) -> bool:
    """Tell whether ``fully_shard`` was applied to a model or to a part of it."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    return any(kind.__name__ == "FSDPModule" and _of_fsdp(kind) for kind in kinds)


def spread_once(tensor: Tensor) -> bool:
    """Tell whether a tensor is split along one dimension of its mesh at most, its copies along the others."""
    placements: Any = getattr(tensor, "placements", ())
    return sum(not placement.is_replicate() for placement in placements) <= 1


def whole(tensor: Tensor) -> Tensor:
    """Return a detached copy of a parameter of a sharded model, gathered from all ranks, which all ask together.

    Args:
        tensor: A parameter; a plain tensor is copied, since its memory may be freed when the model is sharded again.
    """
    part: Any = tensor.detach()
    gathered: Tensor = part.full_tensor() if hasattr(part, "full_tensor") else part
    return gathered.clone()


def gathers(hook: Any) -> bool:
    """Tell whether a forward hook is one of ``fully_shard``, which gathers and frees the parameters of a module."""
    return _of_fsdp(hook)


def _of_fsdp(definition: Any) -> bool:
    """Tell whether a class or a function was defined in one of the places where ``fully_shard`` has lived."""
    place = str(getattr(definition, "__module__", ""))
    return place.startswith("torch.distributed.") and "fsdp" in place
