"""The share of correctly classified samples of any batches that hold class labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from estimators.batches import described, move
from estimators.user_code import Draws, next_batches, run

MOST_SAMPLES = 10_000


@dataclass(frozen=True)
class Accuracy:
    """A share of samples.

    Attributes:
        share: Correctly classified, in [0, 1]; of pixels or tokens where these have labels.
        samples: Number of samples that it was measured on.
    """

    share: float
    samples: int


def sampled_accuracy(model: nn.Module, loader: Iterable[Any], most: int = MOST_SAMPLES) -> Accuracy | None:
    """Measure the accuracy of a model on the first batches of a loader.

    Args:
        model: The network, in the mode that it is to be measured in.
        loader: Batches.
        most: No batch is read once as many samples were seen.

    Returns:
        The accuracy; None where a batch is no pair (x, y) or y holds no class labels of the outputs.

    Raises:
        UserError: The loader or the model fails on a batch.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    correct, labels, samples, draws = 0, 0, 0, Draws()
    for number, batch in enumerate(next_batches(loader, draws)):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            return None
        x, y = move(batch, device)
        if not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex():
            return None
        with torch.no_grad():
            output = run(
                lambda x=x: model(x),  # type: ignore[misc]
                lambda n=number, b=batch: f"model: failed on batch {n} ({described(b)})",  # type: ignore[misc]
                draws,
            )
        output = getattr(output, "logits", output)
        if not isinstance(output, Tensor) or output.dim() < 2 or y.shape != output.shape[:1] + output.shape[2:]:
            return None
        correct += int((output.argmax(1) == y).sum())
        labels += y.numel()
        samples += len(y)
        if samples >= most:
            break
    return Accuracy(correct / labels, samples) if labels else None
