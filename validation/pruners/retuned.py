"""Re-tuned: magnitude pruning in stages with brief fine-tuning on few samples, as in the rung of that name."""

from __future__ import annotations

import math

from pruning_limits.dense_network import Subject
from pruning_limits.retuned_copy import retuned_copy
from pruning_limits.settings import Retuning, Settings
from pruning_limits.tuned_points import stages_to
from validation.masks import prunable
from validation.pruners import Problem, Pruned, register

BATCH = 1000


@register("retuned")
def retuned(problem: Problem, sparsity: float) -> Pruned:
    """Remove the smallest weights in stages, each of which is followed by brief fine-tuning on 2,048 fresh samples.

    Args:
        problem: The trained network.
        sparsity: Removed fraction in [0, 1).

    Returns:
        The pruned and re-tuned network; its epochs are those of its samples, whatever the budget.

    Source: This library, see ``pruning_limits.fine_tuning``.
    """
    retuning, total = Retuning(), len(problem.data.train_y)
    subject = Subject(problem.dense, problem.data.batches("train", BATCH), None, None, None, None, None)
    way = stages_to((), sparsity, alone=0.0, start=0.0)
    model, _ = retuned_copy(subject, Settings(seed=problem.seed, retune=retuning), way, progress=False)
    masks = {name: weight != 0 for name, weight in prunable(model).items()}
    trained = len(way) * retuning.passes * min(retuning.samples, total)
    return Pruned(model.eval(), masks, problem.recipe.epochs + math.ceil(trained / total))
