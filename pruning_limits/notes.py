"""Notes on the weights that are counted: which act without a derivative, and which are the same twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
from torch import Tensor

from estimators import Objective


def note_untrue(names: Sequence[str]) -> tuple[str, ...]:
    """Say which parameters are left out because their gradient is not that of the loss.

    Args:
        names: Their names.

    Returns:
        One note, or none.
    """
    if not names:
        return ()
    return (
        f"left out: {_listed(names)}; the loss moves with these weights otherwise than their gradient says "
        "(torch.no_grad, detach, a gate or a straight-through estimator), so that their curvature is unknown",
    )


def note_doubles(objective: Objective) -> tuple[str, ...]:
    """Say which chosen tensors hold the same numbers, as those of two layers that were tied in training.

    Args:
        objective: The objective.

    Returns:
        One note, or none; a tensor of one value throughout has no double.
    """
    pairs = [f"{name} and {other}" for name, other in _doubles(objective)]
    if not pairs:
        return ()
    return (
        f"the same numbers twice: {_listed(pairs)}; D counts both. If the network was trained with tied weights, tie "
        "them again (load_state_dict without assign=True, or model.tie_weights())",
    )


def _doubles(objective: Objective) -> Iterator[tuple[str, str]]:
    parameters = dict(objective.model.named_parameters())
    groups: dict[tuple[int, float], list[str]] = {}
    for name in objective.names:
        tensor = parameters[name].detach()
        groups.setdefault((tensor.numel(), float(tensor.double().abs().sum())), []).append(name)
    for names in groups.values():
        for pair in combinations(names, 2):
            if _equal(*(parameters[name].detach() for name in pair)):
                yield pair


def _equal(tensor: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors hold the same numbers, also transposed, and not the same number throughout."""
    if bool((tensor == tensor.flatten()[0]).all()):
        return False
    if tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr():
        return int(tensor.storage_offset()) == int(other.storage_offset())
    turned = (tensor, tensor.T) if tensor.dim() == 2 else (tensor,)
    return any(torch.equal(side, other) for side in turned)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
