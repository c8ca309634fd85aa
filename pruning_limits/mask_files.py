"""Export of masks to ``torch.nn.utils.prune`` and to safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.utils import prune

from estimators import UserError
from estimators.files import path_of, write_bytes


def attach(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Hand masks to ``torch.nn.utils.prune``, in place, as ``prune.custom_from_mask`` would.

    Args:
        model: Module whose parameters the masks name.
        masks: Bool masks by parameter name, as ``limit.mask`` returns them.

    Raises:
        UserError: The masks are those of another network.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> attach(model, {"weight": torch.tensor([[True, False]])})
        >>> bool((model.weight[:, 1] == 0).all())
        True
    """
    check_fit(model, masks)
    for name, mask in masks.items():
        path, _, parameter = name.rpartition(".")
        prune.custom_from_mask(model.get_submodule(path), parameter, mask)  # type: ignore[no-untyped-call]


def save_masks(masks: Mapping[str, Tensor], path: Path) -> None:
    """Write masks as a safetensors file, atomically.

    Args:
        masks: Bool masks by parameter name.
        path: File to write.
    """
    write_bytes(path_of("path", path), save({name: mask.contiguous() for name, mask in masks.items()}))


def load_masks(path: Path) -> dict[str, Tensor]:
    """Read masks written by ``save_masks``.

    Args:
        path: File to read.

    Raises:
        UserError: The file is missing, damaged or holds other tensors than bool masks.
    """
    try:
        masks = load_file(path_of("path", path))
    except Exception as error:
        raise UserError(f"masks: cannot read {path}: {str(error).splitlines()[0]}") from None
    wrong = [name for name, mask in masks.items() if mask.dtype != torch.bool]
    if wrong:
        raise UserError(f"masks: {path} holds {wrong[0]} of type {masks[wrong[0]].dtype}, expected bool masks")
    return masks


def check_fit(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Refuse masks of another network.

    Args:
        model: A network.
        masks: Masks by parameter name.

    Raises:
        UserError: A parameter is missing or has another shape.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for name, mask in masks.items():
        if shapes.get(name) != mask.shape:
            available = "no such parameter" if name not in shapes else f"a parameter of shape {tuple(shapes[name])}"
            raise UserError(f"masks: {name} has shape {tuple(mask.shape)}, the model has {available}")
