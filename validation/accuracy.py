"""The mean accuracy of a model on the first batches of a loader."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from estimators.batches import described, move
from estimators.user_code import Draws, next_batches, run
from pruning_limits.metrics import NoAccuracyError, accuracy

MOST_SAMPLES = 10_000


@dataclass(frozen=True)
class Accuracy:
    """A mean over samples.

    Attributes:
        share: Mean of ``pruning_limits.metrics.accuracy``, in [0, 1].
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
        The accuracy; None where a batch has none.

    Raises:
        UserError: The loader or the model fails on a batch.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    right, samples, draws = 0.0, 0, Draws()
    for number, batch in enumerate(next_batches(loader, draws)):
        moved = move(batch, device)
        try:
            with torch.no_grad():
                values = run(
                    lambda moved=moved: accuracy(model, moved),  # type: ignore[misc]
                    lambda n=number, b=batch: f"model: failed on batch {n} ({described(b)})",  # type: ignore[misc]
                    draws,
                )
        except NoAccuracyError:
            return None
        right += float(values.sum())
        samples += len(values)
        if samples >= most:
            break
    return Accuracy(right / samples, samples) if samples else None
