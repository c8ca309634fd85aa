"""The training objective: mean loss over a fixed set of samples plus the weight penalty."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import zip_longest
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from estimators import distributed
from estimators.batches import batch_size, leaves, map_leaves, memory_of, move, pick_rows, rebatched
from estimators.default_loss import cross_entropy
from estimators.distributed import Shard
from estimators.errors import UserError
from estimators.memory import GIB, available, retried
from estimators.parameters import choose_parameters, flatten, named, pruning_masks
from estimators.penalty import Penalty
from estimators.sampling import Weighted, inclusion, systematic, weighted
from estimators.substitution import (
    evaluation_mode,
    no_reentrant_checkpoints,
    replaced,
    substituted_functions,
    without_zero_units,
)
from estimators.unfit import refuse_unfit

LOGGER = logging.getLogger("pruning_limits")
LossFunction = Callable[[nn.Module, Any], Tensor]
DIFFERENT_BATCHES = (
    "loader: the ranks see different batches; turn off shuffling, random augmentation and DistributedSampler, "
    "or wrap every rank's own part in estimators.Shard"
)
DIFFERENT_MODELS = "model: the ranks hold different weights or buffers; load the same checkpoint on every rank"
DIFFERENT_VECTORS = "distributed: the ranks computed different vectors; give all the same arguments and like machines"
HALVED_BATCHES = 2
P = ParamSpec("P")
T = TypeVar("T")


def shrinking(method: Callable[Concatenate[Objective, P], T]) -> Callable[Concatenate[Objective, P], T]:
    """Repeat a pass over the data with smaller batches when memory runs out; several ranks stop together instead."""

    @functools.wraps(method)
    def repeated(objective: Objective, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if distributed.world() > 1:
            return method(objective, *args, **kwargs)
        return retried(lambda: method(objective, *args, **kwargs), objective.shrink)

    return repeated


class Objective:
    r"""The function :math:`F(w) = \frac1n \sum_j \ell_j(w) + p(w)` of a model's chosen weights.

    The sum runs over the samples of the loader, whatever its batch sizes. The model is evaluated in evaluation mode
    by substitution of weights: its parameters, buffers, gradients and mode flags are never written. When memory runs
    out, batches are split, and stay so for later passes.

    Where ``torch.distributed`` is initialised, every rank evaluates its share of the batches; sums run over all ranks
    and have the same bits on each.

    Args:
        model: Any module; all parameters on one device.
        loader: Iterable of batches that yields the same samples on every pass. A batch is a tensor or a tuple, list,
            dictionary or object of tensors whose first dimension counts samples. Of several ranks all get the same
            loader, or each its own part as a ``Shard``.
        loss_fn: ``(model, batch) -> losses``, per sample ``[n]`` or the scalar mean over the batch's samples; default
            cross-entropy on ``(x, y)``.
        penalty: ``L1``, ``L2`` or None; a penalty over all parameters of the model.
        parameters: Name patterns of the chosen weights; default the weights of convolution and linear layers.

    Attributes:
        names: Names of the chosen parameters, in order.
        dimension: Number D of chosen weights.
        most: Most samples that are passed at once; None passes batches as they come.
        picked: Of a sub-sample, the numbers of its samples in loader order; None of all data.
        factors: Of a sub-sample, what their losses are multiplied by; None of all data.
        sample_bytes: Most bytes of a sample in this rank's batches; 0 before the first pass.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> data = [(torch.eye(2), torch.tensor([0, 1]))]
        >>> Objective(model, data).dimension
        4
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        loss_fn: LossFunction | None = None,
        penalty: Penalty | None = None,
        parameters: str | Sequence[str] | None = None,
    ) -> None:
        refuse_unfit(model)
        if isinstance(loss_fn, nn.modules.loss._Loss):
            raise UserError(
                f"loss_fn: expected a function of model and batch, got {type(loss_fn).__name__}; give "
                "lambda model, batch: criterion(model(batch[0]), batch[1])"
            )
        chosen = choose_parameters(model, parameters)
        self.model, self.loader = model, loader
        self.loss_fn = loss_fn or cross_entropy
        self.penalty, self.patterns = penalty, parameters
        self.names = tuple(chosen)
        self._tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self._masks = pruning_masks(model)
        self.buffers = {name: buffer.detach() for name, buffer in model.named_buffers()}
        self.dimension = sum(parameter.numel() for parameter in chosen.values())
        first = next(iter(chosen.values()))
        self.device, self.dtype = first.device, first.dtype
        self.most: int | None = None
        self.picked: Tensor | None = None
        self.factors: Tensor | None = None
        self.sample_bytes = 0
        self._samples: int | None = None
        self._own_samples: int | None = None
        self._batches_seen = ""
        self._passing = 0

    @property
    def chosen(self) -> dict[str, Tensor]:
        """The chosen weights by name; where a pruning mask multiplies them, the product."""
        return {name: self._effective(name) for name in self.names}

    @property
    def fixed(self) -> dict[str, Tensor]:
        """All other parameters of the model by name, masked likewise."""
        chosen = set(self.names)
        return {name: self._effective(name) for name in self._tensors if name not in chosen}

    def _effective(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        return tensor * self._masks[name] if name in self._masks else tensor

    def vector(self) -> Tensor:
        """Return a copy of the chosen weights as one vector ``[D]``."""
        return flatten(list(self.chosen.values())).clone()

    def versions(self) -> list[int]:
        """Count the writes to the model's parameters and buffers so far; a change tells that kept graphs are stale."""
        tensors = (*self._tensors.values(), *self.buffers.values())
        return [tensor._version for tensor in tensors if not tensor.is_inference()]

    @property
    def samples(self) -> int:
        """Number of samples in one pass over the loader, of all ranks together."""
        if self._samples is None:
            if self._own_samples is None:
                with self.one_pass():
                    for _ in self._numbered():
                        pass
            own = self._own_samples or 0
            self._samples = sum(distributed.gathered(own)) if isinstance(self.loader, Shard) else own
        if self._samples == 0:
            raise UserError("loader: yields no samples; give a loader with at least one batch")
        return self._samples

    def one_pass(self, *vectors: Tensor) -> AbstractContextManager[None]:
        """Return a context for a pass over this rank's share, which all ranks come through with equal inputs, or none.

        Args:
            vectors: What the pass multiplies or evaluates; must be equal on all ranks.
        """
        tensors = (*self.chosen.values(), *self.fixed.values(), *self.buffers.values())
        return distributed.together(
            lambda: {
                DIFFERENT_BATCHES: self._batches_seen,
                DIFFERENT_MODELS: distributed.fingerprint(tensors),
                DIFFERENT_VECTORS: distributed.fingerprint(vectors),
            }
        )

    def batches(self) -> Iterator[tuple[Any, int]]:
        """Yield every batch of this rank's share, or its parts, on the model's device together with its size."""
        every = 1 if isinstance(self.loader, Shard) else distributed.world()
        for number, batch, size in self._numbered():
            if number % every == distributed.rank() % every:
                for part, count in self._parts(batch, size):
                    self._passing = count
                    yield move(part, self.device), count

    def _numbered(self) -> Iterator[tuple[int, Any, int]]:
        """Yield every batch of the loader with its number and size, and check that passes and ranks see the same."""
        common = distributed.world() > 1 and not isinstance(self.loader, Shard)
        seen, count, digest = 0, 0, hashlib.blake2b(digest_size=16)
        for batch in self.loader:
            size = batch_size(batch)
            if self._own_samples is None and size:
                self.sample_bytes = max(self.sample_bytes, memory_of(batch) // size)
            if common:
                tensors = (leaf for leaf in leaves(batch) if isinstance(leaf, Tensor))
                digest.update(distributed.fingerprint(tensors).encode())
            yield count, batch, size
            seen, count = seen + size, count + 1
        if self._own_samples is None:
            self._own_samples = seen
        if seen != self._own_samples:
            raise UserError(
                f"loader: this pass yielded {seen} samples, an earlier one {self._own_samples}; "
                "give a loader that yields the same samples every time"
            )
        if seen == 0 and not self._samples:
            raise UserError("loader: yields no samples; give a loader with at least one batch")
        if common and count < distributed.world():
            raise UserError(
                f"loader: yields {count} batches for {distributed.world()} ranks; "
                "start no more processes than batches, or make the batches smaller"
            )
        self._batches_seen = digest.hexdigest()

    def shrink(self) -> None:
        """Pass at most half as many samples at once from now on as in the batch that was passed last.

        Raises:
            UserError: That batch was a single sample, or none was passed.
        """
        fewer = min(self._passing, self.most or self._passing) // 2
        if fewer < 1:
            free = available(self.device) / GIB
            raise UserError(
                f"memory: ran out with a single sample on {self.device}, {free:.3g} GiB free; "
                "use a smaller model or smaller samples, or a machine with more memory"
            )
        self.most = fewer
        LOGGER.warning("memory ran out with %d samples; passing at most %d at once from now on", self._passing, fewer)

    def losses(self, weights: Mapping[str, Tensor], batch: Any) -> Tensor:
        """Evaluate the loss function on one batch at substituted weights; differentiable in ``weights``."""
        with self._substituted(weights), substituted_functions(self.model), no_reentrant_checkpoints():
            losses: Any = self.loss_fn(self.model, batch)
        if not isinstance(losses, Tensor):
            raise UserError(f"loss_fn: expected a tensor of losses, got {type(losses).__name__}; return its loss alone")
        size = batch_size(batch)
        if losses.dim() and losses.shape != (size,):
            raise UserError(f"loss_fn: expected losses of shape ({size},) or a scalar, got {tuple(losses.shape)}")
        return losses

    def outputs_and_losses(self, weights: Mapping[str, Tensor], batch: Any) -> tuple[list[Any], Tensor]:
        """Evaluate one batch and also return what every call of the model put out."""
        outputs: list[Any] = []
        handle = self.model.register_forward_hook(lambda module, arguments, output: outputs.append(output))
        try:
            return outputs, self.losses(weights, batch)
        finally:
            handle.remove()

    @shrinking
    @torch.no_grad()
    def value(self, weights: Tensor | None = None) -> float:
        """Return F at the model's weights or at the given ones, ``[D]``."""
        at = self.chosen if weights is None else named(weights, self.chosen)
        total = torch.zeros((), dtype=torch.float64)
        with self.one_pass(*at.values()), without_zero_units(at.values()):
            for batch, size in self.batches():
                total += _sum(self.losses(at, batch), size).cpu()
        return sum(distributed.gathered(float(total))) / self.samples + self.penalty_value(at)

    @shrinking
    @torch.no_grad()
    def sample_losses(self) -> tuple[Tensor, Tensor]:
        """Return the data losses at the model's weights, without penalty, in loader order; of all ranks together.

        Returns:
            Losses, float64 ``[m]``, and the number of samples ``[m]`` each of them is the mean of: all ones where
            ``loss_fn`` gives per-sample losses, batch sizes where it gives batch means.

        Raises:
            UserError: A loss is NaN or infinite, or losses of a batch change when it is split.
        """
        losses, sizes = [], []
        with self.one_pass():
            for number, (batch, size) in enumerate(self.batches()):
                loss = self.losses(self.chosen, batch).double().cpu()
                if number < HALVED_BATCHES and size > 1 and loss.isfinite().all():
                    self._check_mean(batch, size, loss)
                losses.append(loss.reshape(-1))
                sizes.append(torch.full((loss.numel(),), size if loss.dim() == 0 else 1))
        result = self._in_loader_order(losses)
        bad = int((~result.isfinite()).sum())
        if bad:
            raise UserError(f"loss_fn: {bad} of {len(result)} losses are NaN or infinite; check the model and the data")
        return result, self._in_loader_order(sizes)

    def _in_loader_order(self, parts: Sequence[Tensor]) -> Tensor:
        """Join one entry per batch and rank: the ranks take batches in turn, or hold one part after the other."""
        ranks = distributed.gathered(parts)
        turns = ranks if isinstance(self.loader, Shard) else zip_longest(*ranks)
        return torch.cat([part for turn in turns for part in turn if part is not None])

    def _check_mean(self, batch: Any, size: int, loss: Tensor) -> None:
        """Compare the losses of one batch with those of its halves, as sub-samples would have them."""
        halves, found = torch.split(torch.arange(size), size // 2), []
        for rows in halves[:1] if loss.dim() else halves:
            part = map_leaves(lambda leaf, rows=rows: pick_rows(leaf, rows, size), batch)
            found.append(self.losses(self.chosen, part).double().cpu().expand(len(rows)))
        apart, whole = (found[0], loss[: len(found[0])]) if loss.dim() else (torch.cat(found).mean(), loss)
        if self._alike(apart, whole) or not self._alike(self.losses(self.chosen, batch).double().cpu(), loss):
            return
        raise UserError(
            f"loss_fn: splitting a batch of {size} changes its losses (mean {float(whole.mean()):.4g} at once, "
            f"{float(apart.mean()):.4g} in parts), so that the objective is no mean over samples; return one loss per "
            "sample that depends on that sample only, shape (n,)"
        )

    def _alike(self, one: Tensor, other: Tensor) -> bool:
        relative = max(1e-3, 2 * torch.finfo(self.dtype).eps)
        return torch.allclose(one, other, rtol=relative, atol=1e-5, equal_nan=True)

    def penalty_value(self, weights: Mapping[str, Tensor]) -> float:
        """Return the penalty over all parameters, the chosen ones substituted."""
        if self.penalty is None:
            return 0.0
        return float(self.penalty.value([*self.fixed.values(), *weights.values()]))

    def gradient(self) -> Tensor:
        """Return the gradient of F with respect to the chosen weights, ``[D]``."""
        return self.losses_and_gradient()[1]

    @shrinking
    @torch.enable_grad()
    def losses_and_gradient(self) -> tuple[Tensor, Tensor]:
        """Return the losses as ``sample_losses`` does, without their sizes, and the gradient of F, in one pass."""
        weights = {name: tensor.clone().requires_grad_() for name, tensor in self.chosen.items()}
        total = torch.zeros(self.dimension, dtype=self.dtype, device=self.device)
        found = []
        with self.one_pass():
            for batch, size in self.batches():
                losses = self.losses(weights, batch)
                found.append(losses.detach().double().cpu().reshape(-1))
                loss = _sum(losses, size)
                if loss.requires_grad:
                    with self.held():
                        slopes = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
                        total += flatten(slopes).detach()
        total = distributed.total(total)
        total /= self.samples
        if self.penalty is not None:
            total += self.penalty.gradient(self.vector())
        return self._in_loader_order(found), total

    def subset(self, samples: int, seed: int = 0, scores: Tensor | None = None) -> Objective:
        r"""Freeze a random sub-sample of the data in memory.

        With scores a sample is drawn with a probability in proportion to its score, :math:`\pi_j`, and its loss is
        multiplied by :math:`n/(N \pi_j)`, so that values, gradients and products estimate those of all data without
        bias, and with the less noise the more a sample's share in them goes with its score.

        Args:
            samples: Number n of samples, drawn without replacement; at least the whole data set means all N of it.
            seed: Seed of the draw; the global random state is not used.
            scores: One positive number per sample ``[N]``, in loader order, where ``loss_fn`` returns one loss per
                sample; None draws all with equal probability.

        Returns:
            The same objective on the sub-sample, a part of it on every rank, or this one when it asks for everything.
            Its ``picked`` holds the numbers of the samples in loader order, its ``factors`` what their losses are
            multiplied by.

        Source: Madow, On the theory of systematic sampling II, Annals of Mathematical Statistics 20, 1949; Horvitz and
        Thompson, Journal of the American Statistical Association 47, 1952.
        """
        total = self.samples
        if samples >= total:
            return self
        if samples < 1:
            raise UserError(f"samples: expected at least 1, got {samples}")
        generator = torch.Generator().manual_seed(seed)
        if scores is None:
            chosen = torch.randperm(total, generator=generator)[:samples].sort().values
            factors = torch.ones(samples, dtype=torch.float64)
        else:
            if scores.shape != (total,):
                raise UserError(f"scores: expected {total}, one per sample, got shape {tuple(scores.shape)}")
            odds = inclusion(scores, samples)
            chosen = systematic(odds, samples, generator)
            factors = samples / total / odds[chosen]
        wanted = self._own_part(chosen)
        everyone = torch.zeros(total, dtype=torch.float64)
        everyone[chosen] = factors
        own = everyone[self._own_start() :].to(self.dtype)
        picked, start, largest = [], 0, 1
        with self.one_pass():
            for _, batch, size in self._numbered():
                largest = max(largest, size)
                rows = wanted[start : start + size].nonzero().squeeze(1)
                if len(rows):
                    part = map_leaves(lambda leaf, rows=rows, size=size: pick_rows(leaf, rows, size), batch)
                    picked.append(part if scores is None else Weighted(part, own[start + rows]))
                start += size
        result = Objective(
            self.model,
            Shard(rebatched(picked, max(largest, 256))),
            self.loss_fn if scores is None else weighted(self.loss_fn),
            self.penalty,
            self.patterns,
        )
        result._samples, result._own_samples, result.most = samples, int(wanted.sum()), self.most
        result.picked, result.factors = chosen, factors
        return result

    def _own_start(self) -> int:
        """Number of the first sample of this rank's loader among all."""
        if not isinstance(self.loader, Shard):
            return 0
        return sum(distributed.gathered(self._own_samples or 0)[: distributed.rank()])

    def _own_part(self, chosen: Tensor) -> Tensor:
        """Mark which samples of this rank's loader it takes of the chosen ones, given by their number among all."""
        start = self._own_start()
        if not isinstance(self.loader, Shard):
            chosen = chosen.tensor_split(distributed.world())[distributed.rank()]
        wanted = torch.zeros(self.samples, dtype=torch.bool)
        wanted[chosen] = True
        return wanted[start : start + (self._own_samples or 0)]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the model as ``losses`` sees it while a graph is differentiated.

        Activation checkpointing calls the model's layers again then; without this they would be called with the model's
        own buffers, mode and ``requires_grad`` flags.
        """
        weights = {name: tensor.detach().requires_grad_() for name, tensor in self.chosen.items()}
        with self._substituted(weights), substituted_functions(self.model):
            yield

    @contextmanager
    def _substituted(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Put the model in evaluation mode, and weights and copies of the buffers in their places, for a while."""
        state = self.fixed | dict(weights)
        substitutes = {id(parameter): state[name] for name, parameter in self.model.named_parameters()}
        substitutes |= {id(buffer): self.buffers[name].clone() for name, buffer in self.model.named_buffers()}
        with evaluation_mode(self.model), replaced(self.model, substitutes):
            yield

    def _parts(self, batch: Any, size: int) -> Iterator[tuple[Any, int]]:
        """Split a batch into parts of at most ``most`` samples."""
        if self.most is None or size <= self.most:
            yield batch, size
            return
        for rows in torch.split(torch.arange(size), self.most):
            yield map_leaves(lambda leaf, rows=rows: pick_rows(leaf, rows, size), batch), len(rows)


def _sum(losses: Tensor, size: int) -> Tensor:
    return losses.sum(dtype=torch.float64) if losses.dim() else losses.double() * size
