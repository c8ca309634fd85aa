"""Try groups of weights on a few samples: copies of the network and their outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from estimators.batches import copied, leaves
from estimators.parameters import pruning_masks
from estimators.user_code import Draws, plain_modes
from pruning_limits.masking import detached_copy

if TYPE_CHECKING:
    from estimators import Objective

SAMPLES = 4


class Trial:
    """A small batch, and what copies of a network put out for it.

    Args:
        objective: Network and data.

    Attributes:
        objective: Network and data.
        batch: A batch of a few samples.
        stored: Names under which the network stores parameters that a mask of ``torch.nn.utils.prune`` multiplies, by
            the names that they have without it.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        with plain_modes():
            part = objective.subset(SAMPLES)
            self.batch: Any = (next(iter(part.batches()), None) or next(iter(objective.batches())))[0]
        self.stored = {name.removesuffix("_orig"): name for name in pruning_masks(objective.model)}
        self._draws = Draws()

    def copied(self, model: nn.Module) -> nn.Module:
        """Return a copy in evaluation mode whose masks of ``torch.nn.utils.prune`` are made permanent."""
        result = detached_copy(model).eval()
        for name in pruning_masks(result):
            path, _, last = name.removesuffix("_orig").rpartition(".")
            prune.remove(result.get_submodule(path), last)  # type: ignore[no-untyped-call]
        return result

    def outputs(self, model: nn.Module, batch: Any) -> list[Tensor]:
        """Return the losses of a network on a batch, and before them its first output where the loss calls it whole."""
        outputs: list[Any] = []
        hook = model.register_forward_hook(lambda module, arguments, output: outputs.append(output))
        with hook, plain_modes(), self._draws.on():
            losses = self.objective.loss_fn(model, copied(batch))
        tensors = [leaf for leaf in leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        return [*tensors[:1], losses]

    def traced(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the first of ``outputs``, for those who follow its graph."""
        return self.outputs(model, batch)[0]

    @torch.no_grad()
    def results(self, model: nn.Module) -> list[Tensor]:
        """Return what a network puts out for the batch, see ``outputs``."""
        return self.outputs(model, self.batch)


def masked(trial: Trial, masks: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of the network with zeros where masks by stored parameter name are False."""
    result = trial.copied(trial.objective.model)
    plain = {stored: name for name, stored in trial.stored.items()}
    with torch.no_grad():
        for name, mask in masks.items():
            parameter = result.get_parameter(plain.get(name, name))
            parameter.mul_(mask.to(parameter.device))
    return result


def same_outputs(first: Sequence[Tensor], second: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Tell whether two networks put out the same, up to half the digits of a type.

    Example:
        >>> same_outputs([torch.ones(2)], [torch.ones(2) + 1e-6], torch.float32)
        True
    """
    if [tensor.shape for tensor in first] != [tensor.shape for tensor in second]:
        return False
    near = torch.finfo(dtype).eps ** 0.5
    return all(
        bool((a.double() - b.double()).abs().max() <= near * max(1e-30, float(b.double().abs().max())))
        for a, b in zip(first, second, strict=True)
        if a.numel()
    )
