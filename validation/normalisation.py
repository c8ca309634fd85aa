"""Normalise images of 0..255 to the inputs that a network was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from estimators.errors import UserError


class Normalisation(Protocol):
    """What turns images into inputs, and says how."""

    @property
    def text(self) -> str:
        """How, in a few words."""

    def __call__(self, images: Tensor) -> Tensor:
        """Map uint8 ``[n, c, h, w]`` to float32 inputs, also of another height and width."""


@dataclass(frozen=True)
class Affine:
    r"""The inputs :math:`(x / \mathrm{divisor} - \mathrm{mean}) / \mathrm{std}`, channel by channel.

    Args:
        mean: Subtracted, one value per channel or one for all.
        std: Divided by, likewise, > 0.
        divisor: First divisor; 255 brings the values into [0, 1].
        text: How, in a few words.

    Raises:
        UserError: Numbers that are not finite, a std that is not positive, or numbers of different count.

    Example:
        >>> Affine((0.5,), (0.5,))(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)).item()
        1.0
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    divisor: float = 255.0
    text: str = ""

    @classmethod
    def standardising(cls, mean: Sequence[float], std: Sequence[float], whose: str = "") -> Affine:
        """Return x / 255, minus a mean, divided by a standard deviation."""
        return cls(tuple(mean), tuple(std), text=f"x / 255, minus {_listed(mean)}, by {_listed(std)}{whose}")

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise UserError(f"mean, std: expected as many values, got {len(self.mean)} and {len(self.std)}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not all(math.isfinite(value) and (name == "mean" or value > 0) for value in values):
                kind = "finite" if name == "mean" else "positive"
                raise UserError(f"{name}: expected {kind} numbers, got {_listed(values)}")

    def __call__(self, images: Tensor) -> Tensor:
        """Map uint8 ``[n, c, h, w]`` to float32 ``[n, c, h, w]``."""
        inputs = images.float()
        if self.divisor != 1:
            inputs.div_(self.divisor)
        if not self.mean:
            return inputs
        if len(self.mean) not in (1, images.shape[1]):
            raise UserError(f"mean, std: expected 1 or {images.shape[1]} values, one per channel, got {len(self.mean)}")
        mean, std = (
            torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1).to(images.device)
            for values in (self.mean, self.std)
        )
        return inputs.sub_(mean).div_(std)


SCALED = Affine(text="x / 255")
UNCHANGED = Affine(divisor=1.0, text="values from 0 to 255 as they are")


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
