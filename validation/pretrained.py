"""The weights and transforms of torchvision's classification networks, from local files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from estimators.errors import UserError


def names_weights(text: str) -> bool:
    """Tell whether a text has the form of an entry of a torchvision enum, such as ``ResNet18_Weights.DEFAULT``."""
    return re.fullmatch(r"\w+_Weights\.\w+", text) is not None


@dataclass(frozen=True)
class Pretrained:
    """An entry of a torchvision enum of weights; nothing is downloaded.

    Args:
        name: The entry, such as ``ResNet18_Weights.IMAGENET1K_V1``.

    Raises:
        UserError: torchvision knows no such weights.
    """

    name: str

    def __post_init__(self) -> None:
        self._entry()

    def _entry(self) -> Any:
        from torchvision import models

        try:
            return models.get_weight(self.name)
        except (ValueError, KeyError, AttributeError):
            raise UserError(
                f"weights: torchvision has no {self.name!r}; expected such as ResNet18_Weights.IMAGENET1K_V1"
            ) from None

    @property
    def classes(self) -> int:
        """Number of classes of the network with these weights."""
        return len(self._entry().meta["categories"])

    @property
    def file(self) -> Path:
        """The file of the weights, where torchvision keeps what it has downloaded.

        Raises:
            UserError: It is not there.
        """
        url = str(self._entry().url)
        path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        if not path.is_file():
            raise UserError(f"weights: {path} does not exist; download {url} there")
        return path

    @property
    def text(self) -> str:
        """How the transforms turn images into inputs, in a few words."""
        return f"the transforms of {self.name}"

    def __call__(self, images: Tensor) -> Tensor:
        """Apply the transforms to uint8 images ``[n, 3, h, w]``."""
        inputs: Tensor = self._entry().transforms()(images)
        return inputs
