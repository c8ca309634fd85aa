"""The training samples of one stage of re-tuning and the samples that decide when to stop, equal on every rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from estimators import Objective, UserError
from estimators.batches import move
from estimators.default_loss import cross_entropy, logits_of
from estimators.distributed import Shard, gathered
from estimators.layouts import Layout

STOPPING_SHARE = 0.2  # of the drawn samples: they are not trained on and tell when to stop
EVALUATED = 256  # samples that are passed at once where nothing is trained
Batch = tuple[Any, int]


@dataclass(frozen=True)
class Place:
    """Where the samples of a mini-batch come from.

    Attributes:
        number: Number of the group of samples.
        rows: Their places in it ``[k]``.
    """

    number: int
    rows: Tensor


def drawn_count(samples: int) -> int:
    """Return how many samples are drawn so that so many are trained on.

    Example:
        >>> drawn_count(2048)
        2560
    """
    return round(samples / (1 - STOPPING_SHARE))


class StageSample:
    """Training samples and stopping samples of one stage.

    Where there are too few samples, all of them are taken, and a fifth of them tell when to stop. Batches that cannot
    be cut stay whole.

    Args:
        objective: The objective on all its data; all ranks call this together.
        samples: Number of training samples, or more than there are.
        seed: Seed of the draw.

    Attributes:
        size: Number of training samples.

    Raises:
        UserError: There is one sample or batch only; or, of the default loss, the samples are of one class or fewer
            than classes.

    Example:
        >>> data = [(torch.eye(10), torch.arange(10) % 2)]
        >>> sample = StageSample(Objective(torch.nn.Linear(10, 2), data), 64, 0)
        >>> sample.size, [size for _, size in sample.stopping]
        (8, [2])
    """

    def __init__(self, objective: Objective, samples: int, seed: int) -> None:
        part = objective.subset(drawn_count(samples), seed)
        layout, self._device = part.data.layout, objective.device
        batches = _on_all_ranks(part)
        generator = torch.Generator().manual_seed(seed)
        self._layout = layout if layout is not None and layout.cuttable and not part.data.separate else None
        training, stopping = (
            _split_batches(batches, generator)
            if self._layout is None
            else _split_rows(self._layout, [batch for batch, _ in batches], generator)
        )
        self._training = training
        self.stopping = list(self._cut(stopping, EVALUATED))
        self.size = sum(size for _, size in training)
        if not self.size or not self.stopping:
            raise UserError(
                "loader: re-tuning needs samples to train on and others to stop by, got a single sample or batch"
            )
        if objective.loss_fn is cross_entropy:
            few, _ = next(self._cut(training, 1))
            _refuse_few_classes(objective, [batch for batch, _ in training], few, self.size)

    def shuffled(self, width: int, generator: torch.Generator) -> Iterator[tuple[Place, Any, int]]:
        """Yield the training samples once, in mini-batches of about equal size and in random order, and their places.

        Args:
            width: Most samples of a mini-batch; whole batches may be larger.
            generator: Where the order is drawn from.
        """
        places = []
        for number, (_, size) in enumerate(self._training):
            order = torch.randperm(size, generator=generator, device="cpu")
            parts = [order] if self._layout is None else order.tensor_split(-(-size // width))
            places += [Place(number, rows) for rows in parts]
        for turn in torch.randperm(len(places), generator=generator, device="cpu").tolist():
            place = places[turn]
            batch, _ = self._training[place.number]
            part = batch if self._layout is None else self._layout.cut(batch, place.rows)
            yield place, move(part, self._device), len(place.rows)

    def groups(self) -> Iterator[Iterator[Batch]]:
        """Yield the training samples group by group, in batches."""
        for group in self._training:
            yield self._cut([group], EVALUATED)

    @property
    def training(self) -> Iterator[Batch]:
        """The training samples in batches, in the order of the draw."""
        yield from self._cut(self._training, EVALUATED)

    def _cut(self, batches: Sequence[Batch], width: int) -> Iterator[Batch]:
        for batch, size in batches:
            if self._layout is None:
                yield move(batch, self._device), size
                continue
            for rows in torch.arange(size, device="cpu").tensor_split(-(-size // width)):
                yield move(self._layout.cut(batch, rows), self._device), len(rows)


def _on_all_ranks(part: Objective) -> list[Batch]:
    """Collect the batches of all ranks in loader order."""
    own = [(move(batch, torch.device("cpu")), size) for batch, size in part.batches()]
    ranks = gathered(own)
    turns = ranks if isinstance(part.data.loader, Shard) else zip_longest(*ranks)
    return [entry for turn in turns for entry in turn if entry is not None]


def _split_rows(layout: Layout, batches: Sequence[Any], generator: torch.Generator) -> tuple[list[Batch], list[Batch]]:
    """Split the samples of batches that can be cut: join those of one kind, and take a share of each for stopping."""
    total = sum(layout.size(batch) or 0 for batch in batches)
    training, stopping = list[Batch](), list[Batch]()
    for group in layout.joined(batches, max(1, total)):
        size = layout.size(group) or 0
        order = torch.randperm(size, generator=generator, device="cpu")
        few = round(STOPPING_SHARE * size) if size > 1 else 0
        few = max(few, 1) if size > 1 and not stopping else few
        for rows, side in ((order[few:], training), (order[:few], stopping)):
            if len(rows):
                side.append((layout.cut(group, rows), len(rows)))
    if not stopping and len(training) > 1:  # samples of which no two can be joined
        return _split_batches(training, generator)
    return training, stopping


def _split_batches(batches: Sequence[Batch], generator: torch.Generator) -> tuple[list[Batch], list[Batch]]:
    """Split batches that stay whole."""
    order = torch.randperm(len(batches), generator=generator, device="cpu").tolist()
    few = max(1, round(STOPPING_SHARE * len(batches))) if len(batches) > 1 else 0
    return [batches[place] for place in order[few:]], [batches[place] for place in order[:few]]


def _refuse_few_classes(objective: Objective, batches: Sequence[Any], few: Any, size: int) -> None:
    """Refuse samples of one class, and fewer samples than the network tells classes apart, as it puts out for few."""
    labels = torch.cat([batch[1].reshape(-1).cpu() for batch in batches])
    values = torch.unique(labels)
    if len(values) == 1:
        raise UserError(
            f"loader: the {size:,} samples drawn for re-tuning are all of class {int(values)}; give data of all classes"
        )
    if len(labels) > size:  # several labels in a sample
        return
    outputs, _ = objective.outputs_and_losses(objective.chosen, few)
    classes = logits_of(outputs[0]).shape[1]
    if size < classes:
        raise UserError(
            f"samples: re-tuning has {size:,} samples to train on and the network tells {classes:,} classes apart; "
            "give at least as many samples as classes"
        )
