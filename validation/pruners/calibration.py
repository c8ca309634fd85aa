"""Calibration images for pruners without training, and batch normalisation on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from estimators import Objective
from pruning_limits.batch_statistics import ByBatch, measured_statistics, normalising
from validation.pruners import Problem

SAMPLES, BATCH = 2048, 256


def calibration_images(problem: Problem) -> Tensor:
    """Return the first 2,048 training images of the seed's first epoch, without augmentation."""
    x: Tensor = next(iter(problem.data.batches("train", SAMPLES).shuffled(problem.seed, 0)))[0]
    return x.to(next(problem.dense.parameters()).device)


@torch.no_grad()
def normalised_anew(model: nn.Module, x: Tensor) -> None:
    """Measure the statistics of batch normalisation on some inputs, in place; networks without it stay as they are."""
    layers = normalising(model)
    if not layers:
        return
    batches = [(part, torch.zeros(len(part), dtype=torch.long)) for part in torch.split(x, BATCH)]
    objective = Objective(model, batches)
    objective.loss_fn = ByBatch(objective.loss_fn, layers.values())
    statistics = measured_statistics(objective, objective.chosen, [(batch, len(batch[0])) for batch in batches])
    for name, buffer in model.named_buffers():
        if name in statistics:
            buffer.copy_(statistics[name])
