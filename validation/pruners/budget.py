"""Split the training budget of a pruner over its trainings, and count the weights that each round keeps."""

from __future__ import annotations

from dataclasses import replace

from estimators import UserError
from pruning_limits.magnitude import removed_count
from validation.training import Recipe


def shares(epochs: int, trainings: int) -> list[int]:
    """Share epochs out as evenly as whole numbers allow, later trainings getting the remainder.

    Args:
        epochs: Epochs in all.
        trainings: Number of trainings, each of at least one epoch.

    Returns:
        Epochs of every training; they sum to ``epochs``.

    Raises:
        UserError: There are more trainings than epochs.

    Example:
        >>> shares(8, 3)
        [2, 3, 3]
    """
    if epochs < trainings:
        raise UserError(f"epochs: expected at least {trainings}, one per training, got {epochs}")
    each, rest = divmod(epochs, trainings)
    return [each + (number >= trainings - rest) for number in range(trainings)]


def stretched(recipe: Recipe, epochs: int) -> Recipe:
    """Return the recipe over another number of epochs: milestones keep their relative place, warm-up its length.

    Args:
        recipe: Recipe of a whole training.
        epochs: New number of epochs; warm-up takes at most half of them.
    """
    milestones = tuple(round(milestone * epochs / recipe.epochs) for milestone in recipe.milestones)
    return replace(recipe, epochs=epochs, milestones=milestones, warmup=min(recipe.warmup, epochs // 2))


def alive_counts(total: int, kept: int, rate: float, most: int) -> list[int]:
    r"""Numbers of weights alive before and after every round, :math:`a \leftarrow a - \lceil r a \rceil`.

    Where rounds at rate r would be more than allowed, there are ``most`` of them at a larger equal rate. The last round
    removes whatever is left to remove.

    Args:
        total: Number of weights at the start.
        kept: Number of weights that remain in the end, at most ``total``.
        rate: Removed fraction r of the weights alive, in (0, 1].
        most: Largest number of rounds, at least 1.

    Returns:
        Counts from ``total`` to exactly ``kept``; ``[total]`` where nothing is to be removed.

    Example:
        >>> alive_counts(1000, 512, 0.2, most=10), alive_counts(1000, 10, 0.2, most=2)
        ([1000, 800, 640, 512], [1000, 100, 10])
    """

    def recursion(rate: float, rounds: int) -> list[int]:
        counts = [total]
        while counts[-1] > kept and len(counts) <= rounds:
            counts.append(max(kept, counts[-1] - removed_count(rate, counts[-1])))
        return counts

    counts = recursion(rate, most)
    if counts[-1] > kept:
        counts = recursion(1 - (kept / total) ** (1 / most), most)
    return [*counts[:-1], kept]
