"""The samples of a loader: passes over them, parts of batches, sub-samples, and their split over ranks."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from estimators import distributed
from estimators.batches import empty, leaves, memory_of, move, same_leaf
from estimators.distributed import Shard
from estimators.errors import UserError
from estimators.layouts import WHOLE, Evaluate, Layout, counted_samples, learned_layout, refuse_without_samples
from estimators.memory import GIB, available, retried
from estimators.sampling import Weighted, inclusion, systematic
from estimators.user_code import Draws, next_batches

LOGGER = logging.getLogger("estimators")
UNENDING_SAMPLES = 1 << 20
PART_SAMPLES = 256  # that a processor passes at once: convolutions of more take longer (``benchmarks/parts.py``)
P = ParamSpec("P")
T = TypeVar("T")


class Shrinkable(Protocol):
    """What passes over data in parts that can be made smaller."""

    def shrink(self) -> None:
        """Pass fewer samples at once from now on."""


S = TypeVar("S", bound=Shrinkable)


def shrinking(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Repeat a pass over the data with smaller batches when memory runs out; several ranks stop together instead."""

    @functools.wraps(method)
    def repeated(owner: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if distributed.world() > 1:
            return method(owner, *args, **kwargs)
        return retried(lambda: method(owner, *args, **kwargs), owner.shrink)

    return repeated


@dataclass(frozen=True)
class FirstBatches:
    """The first batches of a loader, which may have no end.

    Args:
        loader: Iterable of batches.
        count: Their number, at least 1.
    """

    loader: Iterable[Any]
    count: int

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches, and ask the loader for no other."""
        return islice(self.loader, self.count)


def first_batches(loader: Iterable[Any], count: int | None) -> Iterable[Any]:
    """Return a loader, or a rank's own part of one, with its first batches only; None keeps all of them."""
    if count is None:
        return loader
    if isinstance(loader, Shard):
        return Shard(FirstBatches(loader.loader, count))
    return FirstBatches(loader, count)


def has_length(loader: Iterable[Any]) -> bool:
    """Tell whether a loader says how many batches it has; one of a data set without a length cannot.

    Example:
        >>> has_length([1, 2]), has_length(iter([1, 2]))
        (True, False)
    """
    if isinstance(loader, Shard):
        return has_length(loader.loader)
    try:
        len(loader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return False
    return True


class Samples:
    """The samples of a loader, the same ones in every pass.

    Args:
        loader: Iterable of batches. Of several ranks all get the same loader, or each its own part as a ``Shard``.
        device: Where batches are moved.
        dtype: Type of the model, which tells how far rounding reaches.
        evaluate: Returns the losses of a batch on the device: per sample ``[n]``, or their mean. They tell what a
            sample is where the leading dimensions of a batch's tensors leave a doubt.
        draws: Where the loader draws random numbers from; None makes states of its own.

    Attributes:
        most: Most samples that are passed at once; None passes batches as they come.
        layout: Which leaves of a batch count samples; None before the first pass.
        sample_bytes: Most bytes of a sample in this rank's batches; 0 before the first pass.
        separate: Whether batches carry values of their own, so that they are never joined with others nor drawn in
            parts.
        weighted: Whether batches are ``Weighted``.
        per_sample: Whether losses are known to be those of samples, so that batches may be passed in parts.
        number: Number of the batch that was yielded last.
        digest: Of the batches of the last pass, to compare ranks by; empty with one process.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        device: torch.device,
        dtype: torch.dtype,
        evaluate: Evaluate,
        draws: Draws | None = None,
    ) -> None:
        self.loader, self.device, self.dtype, self.evaluate = loader, device, dtype, evaluate
        self._draws = Draws() if draws is None else draws
        self.most: int | None = None
        self.layout: Layout | None = None
        self.sample_bytes = 0
        self.separate = False
        self.weighted = False
        self.per_sample = False
        self.digest = ""
        self.number = 0
        self._shared: list[Any] | None = None
        self._sizes: list[int] = []
        self._total: int | None = None
        self._own_total: int | None = None
        self._passing = 0

    @property
    def total(self) -> int:
        """Number of samples in one pass, of all ranks together; all ranks ask together."""
        if self._total is None:
            if not self.counted:
                with distributed.together():
                    self.count()
            own = self._own_total or 0
            self._total = sum(distributed.gathered(own)) if isinstance(self.loader, Shard) else own
        if self._total == 0:
            raise UserError("loader: yields no samples; give a loader with at least one batch")
        return self._total

    @property
    def counted(self) -> bool:
        """Whether this rank has passed its loader once."""
        return self._own_total is not None

    def uncut(self) -> None:
        """Take it that batches cannot be cut, as was seen when a part of one was evaluated."""
        if self.layout is not None:
            self.layout = replace(self.layout, cuttable=False)

    def count(self) -> None:
        """Pass this rank's loader to count its samples."""
        for _ in self._numbered():
            pass

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        """Yield every batch of this rank's share, or its parts, on the device together with its size."""
        every = 1 if isinstance(self.loader, Shard) else distributed.world()
        for number, batch, size in self._numbered():
            if number % every == distributed.rank() % every:
                for part, count in self._parts(batch, size):
                    self._passing, self.number = count, number
                    yield move(part, self.device), count

    def in_loader_order(self, parts: Sequence[Tensor]) -> Tensor:
        """Join one entry per batch and rank: the ranks take batches in turn, or hold one part after the other."""
        ranks = distributed.gathered(parts)
        turns = ranks if isinstance(self.loader, Shard) else zip_longest(*ranks)
        return torch.cat([part for turn in turns for part in turn if part is not None])

    def shrink(self) -> None:
        """Pass at most half as many samples at once from now on as in the batch that was passed last.

        Raises:
            UserError: That batch was a single sample or cannot be cut, or none was passed.
        """
        fewer = min(self._passing, self.most or self._passing) // 2
        free = available(self.device) / GIB
        if not self._passing:
            raise UserError(
                f"memory: ran out with a whole batch on {self.device}, {free:.3g} GiB free, from whose losses its "
                "samples are counted; give smaller batches"
            )
        if fewer < 1:
            raise UserError(
                f"memory: ran out with a single sample on {self.device}, {free:.3g} GiB free; "
                "use a smaller model or smaller samples, or a machine with more memory"
            )
        if self.layout is not None and not self.layout.cuttable:
            raise UserError(
                f"memory: ran out with a batch of {self._passing} samples on {self.device}, {free:.3g} GiB free, which "
                "cannot be cut; give smaller batches"
            )
        self.most = fewer
        LOGGER.warning("memory ran out with %d samples; passing at most %d at once from now on", self._passing, fewer)

    def subset(self, samples: int, seed: int, scores: Tensor | None) -> tuple[Samples, Tensor, Tensor]:
        r"""Draw samples and keep them in memory, a part of them on every rank.

        Batches that carry values of their own or cannot be cut are drawn whole.

        Args:
            samples: Number n of samples, fewer than all N of them. Whole batches give at least that number.
            seed: Seed of the draw.
            scores: Scores of the samples ``[N]``, or None to draw all alike; see ``Objective.subset``.

        Returns:
            The drawn samples, as ``Weighted`` batches where there are scores; their numbers in loader order, and what
            their losses are multiplied by, float64 ``[n]``.
        """
        if samples < 1:
            raise UserError(f"samples: expected at least 1, got {samples}")
        generator = torch.Generator().manual_seed(seed)
        own = torch.zeros(self._own_total or 0, dtype=torch.bool, device="cpu")
        factors = torch.ones(samples, dtype=torch.float64, device="cpu")
        if any(distributed.gathered(self.separate or (self.layout is not None and not self.layout.cuttable))):
            drawn, own = self._whole_batches(samples, generator)
            factors = torch.ones(len(drawn), dtype=torch.float64, device="cpu")
            scores = None
        else:
            if scores is None:
                drawn = torch.randperm(self.total, generator=generator, device="cpu")[:samples].sort().values
            else:
                if scores.shape != (self.total,):
                    raise UserError(f"scores: expected {self.total}, one per sample, got shape {tuple(scores.shape)}")
                odds = inclusion(scores, samples)
                drawn = systematic(odds, samples, generator)
                factors = samples / self.total / odds[drawn]
            own[self._own_part(drawn)] = True
        part = self._frozen(own, (drawn, factors) if scores is not None else None)
        part._total, part._own_total = len(drawn), int(own.sum())
        return part, drawn, factors

    def _frozen(self, own: Tensor, weights: tuple[Tensor, Tensor] | None) -> Samples:
        """Keep some of this rank's samples, marked in ``own``, in memory, with their factors where there are some."""
        if weights is not None:
            everyone = torch.zeros(self.total, dtype=torch.float64, device="cpu")
            everyone[weights[0]] = weights[1]
            mine = everyone[self._own_start() :].to(self.dtype)
        picked, sizes, start, largest = [], [], 0, 1
        layout = self.layout
        for _, batch, size in self._numbered():
            largest, layout = max(largest, size), self.layout
            rows = own[start : start + size].nonzero().squeeze(1)
            if len(rows):
                part = batch if layout is None or not layout.cuttable else layout.cut(batch, rows)
                picked.append(part if weights is None else Weighted(part, mine[start + rows]))
                sizes.append(len(rows))
            start += size
        if weights is not None and picked and layout is not None:
            layout = layout.with_factors(picked[0].batch)
        if layout is not None and layout.cuttable and not self.separate:
            picked = layout.joined(picked, self._at_once() or max(largest, PART_SAMPLES))
        part = Samples(Shard(picked), self.device, self.dtype, self.evaluate, self._draws)
        part.most, part.layout, part._sizes = self.most, layout, sizes
        part.separate, part.weighted, part.per_sample = self.separate, weights is not None, self.per_sample
        return part

    def _whole_batches(self, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw whole batches of together at least some samples; return their numbers and marks of this rank's part."""
        shards = isinstance(self.loader, Shard)
        ranks = distributed.gathered(self._sizes) if shards else [self._sizes]
        sizes = torch.tensor([size for part in ranks for size in part], dtype=torch.long, device="cpu")
        order = torch.randperm(len(sizes), generator=generator, device="cpu")
        enough = int((sizes[order].cumsum(0) < samples).sum()) + 1
        batches = order[:enough].sort().values
        ends = sizes.cumsum(0)
        numbers = [torch.arange(int(ends[batch] - sizes[batch]), int(ends[batch]), device="cpu") for batch in batches]
        drawn = torch.cat(numbers)
        start, own = self._own_start(), torch.zeros(self._own_total or 0, dtype=torch.bool, device="cpu")
        mine = numbers if shards else numbers[distributed.rank() :: distributed.world()]
        for rows in mine:
            inside = rows[(rows >= start) & (rows < start + len(own))] - start
            own[inside] = True
        return drawn, own

    def _own_start(self) -> int:
        """Number of the first sample of this rank's loader among all."""
        if not isinstance(self.loader, Shard):
            return 0
        return sum(distributed.gathered(self._own_total or 0)[: distributed.rank()])

    def _own_part(self, drawn: Tensor) -> Tensor:
        """Return which samples of this rank's loader it takes of the drawn ones, given by their number among all."""
        start = self._own_start()
        if not isinstance(self.loader, Shard):
            drawn = drawn.tensor_split(distributed.world())[distributed.rank()]
        return drawn[(drawn >= start) & (drawn < start + (self._own_total or 0))] - start

    def _numbered(self) -> Iterator[tuple[int, Any, int]]:
        """Yield every batch of the loader with its number and size, and check that passes and ranks see the same."""
        common = distributed.world() > 1 and not isinstance(self.loader, Shard)
        first = self._own_total is None
        sizes: list[int] = []
        digest = hashlib.blake2b(digest_size=16)
        for batch in next_batches(self.loader, self._draws):
            if empty(batch):
                continue
            number = len(sizes)
            size = self._size(number, batch)
            if first:
                self._note(number, batch, size, sum(sizes))
            if common:
                tensors = (leaf for leaf in leaves(batch) if isinstance(leaf, Tensor) and not leaf.is_nested)
                digest.update(distributed.fingerprint(tensors).encode())
            sizes.append(size)
            yield number, batch, size
        total = sum(sizes)
        if self._own_total is None:
            self._own_total, self._sizes = total, sizes
        if total != self._own_total:
            raise UserError(
                f"loader: this pass yielded {total} samples, an earlier one {self._own_total}; "
                "give a loader that yields the same samples every time"
            )
        if total == 0 and not self._total:
            raise UserError("loader: yields no samples; give a loader with at least one batch")
        if common and len(sizes) < distributed.world():
            raise UserError(
                f"loader: yields {len(sizes)} batches for {distributed.world()} ranks; "
                "start no more processes than batches, or make the batches smaller"
            )
        self.digest = digest.hexdigest()

    def _note(self, number: int, batch: Any, size: int, before: int) -> None:
        """Remember of the first pass what later ones need: bytes, and whether batches carry values of their own."""
        if size:
            self.sample_bytes = max(self.sample_bytes, memory_of(batch) // size)
        if self.layout is not None and not self.separate:
            shared = self.layout.shared(batch)
            if self._shared is None:
                self._shared = shared
            elif len(shared) != len(self._shared) or not all(map(same_leaf, shared, self._shared)):
                self.separate = True
                LOGGER.debug("batch %d carries values of its own: sub-samples are made of whole batches", number)
        if before < UNENDING_SAMPLES <= before + size and not has_length(self.loader):
            LOGGER.warning("a loader: %d samples and no end so far; give max_batches= if it has none", UNENDING_SAMPLES)

    def _size(self, number: int, batch: Any) -> int:
        """Return the number of samples of a batch: by its leaves, what it states, or the number of its losses."""
        if self.layout is None:
            refuse_without_samples(batch)
            self._passing = 0
            self.layout = learned_layout(move(batch, self.device), self.evaluate, self.dtype)
            LOGGER.debug("samples: %s", self.layout)
        if not self.layout.fits(batch):
            self.layout = WHOLE
            LOGGER.debug("batch %d is built otherwise than those before: batches are not cut", number)
        size = self.layout.size(batch)
        if size is not None:
            return size
        if number < len(self._sizes):
            return self._sizes[number]
        self._passing = 0
        return counted_samples(batch, self.evaluate(move(batch, self.device)))

    def _parts(self, batch: Any, size: int) -> Iterator[tuple[Any, int]]:
        """Split a batch into parts of as many samples as are passed at once."""
        most = self._at_once()
        if most is None or size <= most or self.layout is None or not self.layout.cuttable:
            yield batch, size
            return
        for rows in torch.split(torch.arange(size, device="cpu"), most):
            yield self.layout.cut(batch, rows), len(rows)

    def _at_once(self) -> int | None:
        """Return how many samples are passed at once at most; None passes batches as they come."""
        if not self.per_sample or self.device.type != "cpu" or distributed.world() > 1:
            return self.most
        return min(self.most or PART_SAMPLES, PART_SAMPLES)
