"""The loss of re-tuning for classifiers: the divergence from the class probabilities of the dense network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from estimators import Objective
from estimators.default_loss import logits_of
from estimators.user_code import plain_modes
from pruning_limits.stage_sample import Place, StageSample

TEMPERATURE = 4.0
KEPT_BYTES = 1 << 30


@dataclass(frozen=True)
class Matched:
    """A batch ``(x, y)`` and the scores that the dense network gives it."""

    batch: Any
    scores: Tensor


def matching(model: nn.Module, matched: Matched) -> Tensor:
    r"""Per-sample divergence of softened class probabilities, :math:`\tau^2 \operatorname{KL}(p_0^\tau \| p^\tau)`.

    The temperature :math:`\tau = 4` divides the scores, so that the many small probabilities count, too: they tell more
    of what the dense network has learnt than a label does.

    Args:
        model: The network.
        matched: A batch with the scores ``[n, C, ...]`` of the dense network; further dimensions are averaged.

    Returns:
        Divergences ``[n]``, zero where the scores are those of the dense network.

    Source: Hinton, Vinyals and Dean, Distilling the knowledge in a neural network, 2015.

    Example:
        >>> scores = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
        >>> matching(nn.Identity(), Matched((scores, None), scores))
        tensor([0., 0.])
    """
    aim = (matched.scores / TEMPERATURE).log_softmax(1)
    present = (logits_of(model(matched.batch[0])) / TEMPERATURE).log_softmax(1)
    divergence = TEMPERATURE**2 * (aim.exp() * (aim - present)).sum(1)
    return divergence.flatten(1).mean(1) if divergence.dim() > 1 else divergence


class DenseScores:
    """Scores of the dense network for the training samples of a stage, kept where they fit into 1 GiB.

    All samples are passed once, in their order.

    Args:
        objective: The objective at the dense network's weights.
        sample: The samples of the stage.
    """

    def __init__(self, objective: Objective, sample: StageSample) -> None:
        self.objective = objective
        self._weights = {name: weight.detach() for name, weight in objective.chosen.items()}
        kept, fits = list[Tensor](), True
        for group in sample.groups():
            parts = list[Tensor]()
            for batch, size in group:
                scores = self._scores(batch)
                fits = fits and scores.nbytes // size * sample.size <= KEPT_BYTES
                parts = [*parts, scores] if fits else []
            kept = [*kept, torch.cat(parts)] if fits else []
        self._kept = kept if fits else None

    def of(self, place: Place, batch: Any) -> Matched:
        """Return a mini-batch with the scores of the dense network."""
        if self._kept is None:
            return Matched(batch, self._scores(batch))
        return Matched(batch, self._kept[place.number][place.rows.to(self.objective.device)])

    @plain_modes()
    def _scores(self, batch: Any) -> Tensor:
        outputs, _ = self.objective.outputs_and_losses(self._weights, batch)
        return logits_of(outputs[0]).detach()
