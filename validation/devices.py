"""Devices that networks are trained, pruned and measured on, by name."""

from __future__ import annotations

import torch

from estimators.errors import UserError


def chosen_device(name: str) -> torch.device:
    """Return a device by name, once it has added two numbers.

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or another kind of device that torch knows and that holds values.

    Raises:
        UserError: There is no such kind of device, or this machine cannot use it.

    Example:
        >>> chosen_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device: expected cpu, cuda or cuda:N, got {name!r}") from None
    try:
        float(torch.ones(2, device=device).sum())
    except (RuntimeError, AssertionError, ImportError) as error:  # each kind of device fails in its own way
        reason = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise UserError(f"device: cannot use {name!r} here ({reason}); take cpu") from None
    return device


def described(device: torch.device) -> str:
    """Return the kind of a device, and the name of a GPU.

    Example:
        >>> described(torch.device("cpu"))
        'cpu'
    """
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
