"""The training objective as a function of the weights: mean loss over a fixed set of samples plus the penalty."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from glob import escape
from typing import Any

import torch
from torch import Tensor, nn

from estimators import distributed
from estimators.arguments import plain_model, refuse_loader, refuse_loss
from estimators.batches import copied, described, leaves
from estimators.default_loss import cross_entropy
from estimators.errors import UserError
from estimators.layouts import close_losses, unchanged_by_cut
from estimators.penalty import Penalty, refuse_penalty
from estimators.refusals import MISSING, no_lost_graphs
from estimators.samples import Samples, shrinking
from estimators.sampling import weighted
from estimators.substitution import no_reentrant_checkpoints, substituted_functions, without_zero_units
from estimators.user_code import NO_GRAPH, Draws, plain_modes, run
from estimators.vectors import flatten, named
from estimators.weights import Weights

LossFunction = Callable[[nn.Module, Any], Tensor]
DIFFERENT_BATCHES = (
    "loader: the ranks see different batches; turn off shuffling, random augmentation and DistributedSampler, "
    "or wrap every rank's own part in estimators.Shard"
)
DIFFERENT_MODELS = "model: the ranks hold different weights or buffers; load the same checkpoint on every rank"
DIFFERENT_VECTORS = "distributed: the ranks computed different vectors; give all the same arguments and like machines"
CUT_BATCHES = 2
REFUSED = re.compile(f"{MISSING.pattern}|No viable backend", re.IGNORECASE)


class Objective:
    r"""The function :math:`F(w) = \frac1n \sum_j \ell_j(w) + p(w)` of a model's chosen weights.

    The sum runs over the samples of the loader, whatever its batch sizes. The model runs in evaluation mode, and copies
    of its weights replace the weights: its parameters, buffers, gradients and mode flags are never written. When memory
    runs out, batches are split and stay split for later passes.

    The caller's inference mode, autocast and gradient mode do not matter. The model's forward hooks are called as in
    a normal call, its backward hooks are not.

    Where ``torch.distributed`` is initialised, every rank evaluates its share of the batches. Sums run over all ranks
    and are equal bit for bit on all of them.

    Args:
        model: Any module; all parameters on one device. If it is wrapped in ``DistributedDataParallel``, the module
            inside is used. Parameters that ``torch.distributed.fsdp.fully_shard`` has spread over ranks are gathered
            once, on every rank.
        loader: Iterable of batches that yields the same samples on every pass. A batch is a tensor or a tuple, list,
            dictionary or object of tensors whose first dimension counts samples; where first dimensions differ, the
            number of per-sample losses decides which of them does. With several ranks, all get the same loader, or each
            its own part of the data as a ``Shard``.
        loss_fn: ``(model, batch) -> losses``, per sample ``[n]`` or the scalar mean over the batch's samples; default
            cross-entropy on ``(x, y)``.
        penalty: ``L1``, ``L2`` or None; a penalty over all parameters of the model.
        parameters: Name patterns of the chosen weights; default the weights of convolution and linear layers.

    Attributes:
        weights: The model's weights, chosen and others.
        data: The samples.
        picked: In a sub-sample, the numbers of its samples in loader order; None for all data.
        factors: In a sub-sample, the factor on the loss of each of its samples; None for all data.
        plain_attention: Whether attention must run without torch's fast kernels everywhere, because already the first
            gradient of the loss differentiates attention twice, or because the caller's settings forbid these kernels.

    Raises:
        UserError: The model, the loader or the loss function is unsuitable.

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
        model = plain_model(model)
        refuse_loader(loader)
        refuse_loss(loss_fn)
        refuse_penalty(penalty)
        self.model, self.loader = model, loader
        self.loss_fn = loss_fn or cross_entropy
        self.penalty, self.patterns = penalty, parameters
        with plain_modes():
            self.weights = Weights(model, parameters)
        self._draws = Draws()
        self.data = Samples(loader, self.device, self.dtype, self._evaluated, self._draws)
        self.picked: Tensor | None = None
        self.factors: Tensor | None = None
        self.plain_attention = False
        self._graph_inside = False

    def in_weights(self, weights: Weights) -> Objective:
        """Return the mean loss of the same samples, without penalty, as a function of other weights of the model."""
        objective = copy.copy(self)
        objective.weights, objective.penalty = weights, None
        return objective

    def among(self, names: Sequence[str]) -> Objective:
        """Return the same objective as a function of only some of the chosen weights, given by their names."""
        objective = copy.copy(self)
        with plain_modes():
            objective.weights = Weights(self.model, [escape(name) for name in names])
        objective.patterns = list(names)
        return objective

    def with_buffers(self, buffers: Mapping[str, Tensor]) -> Objective:
        """Return the same objective for a model with other buffers, such as newly measured batch-norm statistics.

        Args:
            buffers: Tensors by name; buffers that are not named stay the model's.
        """
        objective = copy.copy(self)
        objective.weights = self.weights.with_buffers(buffers)
        return objective

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the chosen parameters, in order."""
        return self.weights.names

    @property
    def dimension(self) -> int:
        """Number D of chosen weights."""
        return self.weights.dimension

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.weights.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the chosen weights."""
        return self.weights.dtype

    @property
    def chosen(self) -> dict[str, Tensor]:
        """The chosen weights by name; a weight with a pruning mask is multiplied by it."""
        with plain_modes():
            return self.weights.chosen

    @property
    def fixed(self) -> dict[str, Tensor]:
        """All other parameters of the model by name, masked likewise."""
        with plain_modes():
            return self.weights.fixed

    @property
    def most(self) -> int | None:
        """Largest number of samples in one forward pass; None passes batches as they come."""
        return self.data.most

    @property
    @shrinking
    @plain_modes()
    def samples(self) -> int:
        """Number of samples in one pass over the loader, over all ranks."""
        if not self.data.counted:
            with self.one_pass():
                self.data.count()
        return self.data.total

    def vector(self) -> Tensor:
        """Return a copy of the chosen weights as one vector ``[D]``."""
        return flatten(list(self.chosen.values())).clone()

    def versions(self) -> list[int]:
        """Count the writes to the model's parameters and buffers so far; after a change, stored graphs are stale."""
        return self.weights.versions()

    def one_pass(self, *vectors: Tensor) -> AbstractContextManager[None]:
        """Return a context for a pass over this rank's share; either all ranks pass it with equal inputs, or none does.

        Args:
            vectors: Vectors that the pass multiplies or evaluates; they must be equal on all ranks.
        """
        tensors = (*self.chosen.values(), *self.fixed.values(), *self.weights.buffers.values())
        return distributed.together(
            lambda: {
                DIFFERENT_BATCHES: self.data.digest,
                DIFFERENT_MODELS: distributed.fingerprint(tensors),
                DIFFERENT_VECTORS: distributed.fingerprint(vectors),
            }
        )

    def batches(self) -> Iterator[tuple[Any, int]]:
        """Yield every batch of this rank's share, whole or in parts, on the model's device, with its size."""
        return iter(self.data)

    def shrink(self) -> None:
        """Pass at most half as many samples at once from now on, see ``Samples.shrink``."""
        self.data.shrink()

    def losses(self, weights: Mapping[str, Tensor], batch: Any, twice: bool = True) -> Tensor:
        """Evaluate the loss function on one batch at the given weights; differentiable in ``weights``.

        Args:
            weights: The chosen weights by name.
            batch: A batch on the model's device.
            twice: Whether the losses, where gradients are recorded, can be differentiated twice. If False, attention
                runs on torch's fast kernels.
        """
        losses = self._called(weights, batch, twice)
        layout = self.data.layout
        size = None if layout is None else layout.size(batch)
        if losses.dim() and losses.shape != (size or len(losses),):
            raise UserError(f"loss_fn: expected losses of shape ({size},) or a scalar, got {tuple(losses.shape)}")
        return losses

    def outputs_and_losses(
        self, weights: Mapping[str, Tensor], batch: Any, twice: bool = True
    ) -> tuple[list[Any], Tensor]:
        """Evaluate one batch as ``losses`` does, and also return the output of every call of the model."""
        outputs: list[Any] = []
        with self.model.register_forward_hook(lambda module, arguments, output: outputs.append(output)):
            return outputs, self.losses(weights, batch, twice)

    @shrinking
    @plain_modes()
    @torch.no_grad()
    def value(self, weights: Tensor | None = None) -> float:
        """Return F at the model's weights, or at given weights ``[D]``."""
        at = self._unwritten(weights)
        total = torch.zeros((), dtype=torch.float64, device="cpu")
        with self.one_pass(*at.values()), without_zero_units(at.values()):
            for batch, size in self.batches():
                at = self._unwritten(weights, at)
                total += _sum(self.losses(at, batch), size).cpu()
        return sum(distributed.gathered(float(total))) / self.samples + self.penalty_value(self._unwritten(weights, at))

    @shrinking
    @plain_modes()
    @torch.no_grad()
    def sample_losses(self, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the losses of the data, without penalty, in loader order and of all ranks.

        Args:
            weights: Weights to evaluate at, ``[D]``; None means the model's weights. At given weights, such as pruned
                ones, NaN and infinite losses are returned as they are, and it is not checked again that the losses are
                per-sample losses or batch means.

        Returns:
            Losses, float64 ``[m]``, and the number of samples ``[m]`` that each loss is the mean of: ones where
            ``loss_fn`` gives per-sample losses, batch sizes where it gives batch means.

        Raises:
            UserError: At the model's weights a loss is NaN or infinite, or the losses of a batch change when the batch
                is split.
        """
        at = self._unwritten(weights)
        given = [] if weights is None else list(at.values())
        losses, sizes = [], []
        with self.one_pass(*given), without_zero_units(given):
            for number, (batch, size) in enumerate(self.batches()):
                at = self._unwritten(weights, at)
                loss = self.losses(at, batch).double().cpu()
                if weights is None and number < CUT_BATCHES and loss.isfinite().all():
                    self._check_mean(batch, size, loss)
                    self.data.per_sample = loss.dim() == 1
                losses.append(loss.reshape(-1))
                sizes.append(torch.full((loss.numel(),), size if loss.dim() == 0 else 1, device="cpu"))
        result = self.data.in_loader_order(losses)
        bad = int((~result.isfinite()).sum())
        if bad and weights is None:
            raise UserError(f"loss_fn: {bad} of {len(result)} losses are NaN or infinite; check the model and the data")
        return result, self.data.in_loader_order(sizes)

    def _unwritten(self, weights: Tensor | None, at: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the weights of a pass by name, anew where a forward pass wrote to them."""
        if at is None or any(weight._version for weight in at.values()):
            return self.chosen if weights is None else named(weights.clone(), self.chosen)
        return at

    def penalty_value(self, weights: Mapping[str, Tensor]) -> float:
        """Return the penalty over all parameters, with the chosen weights replaced."""
        if self.penalty is None:
            return 0.0
        return float(self.penalty.value([*self.fixed.values(), *weights.values()]))

    def gradient(self, weights: Tensor | None = None) -> Tensor:
        """Return the gradient of F in the chosen weights, ``[D]``, at the model's weights or at given weights."""
        return self.losses_and_gradient(weights)[1]

    @shrinking
    @plain_modes()
    def losses_and_gradient(self, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return in one pass the losses as ``sample_losses`` does, without their sizes, and the gradient of F.

        Args:
            weights: Weights to evaluate at, ``[D]``; None means the model's weights.
        """
        vector = self.vector() if weights is None else weights.to(self.device, self.dtype)
        total = torch.zeros(self.dimension, dtype=self.dtype, device=self.device)
        losses = []
        with self.one_pass(*([] if weights is None else [vector])):
            for batch, size in self.batches():
                values, slopes = self.losses_and_slopes(vector, batch, size)
                losses.append(values.double().cpu().reshape(-1))
                if slopes is not None:
                    total += slopes
        total = distributed.total(total)
        total /= self.samples
        if self.penalty is not None:
            total += self.penalty.gradient(vector)
        return self.data.in_loader_order(losses), total

    @torch.enable_grad()
    def losses_and_slopes(self, weights: Tensor, batch: Any, size: int) -> tuple[Tensor, Tensor | None]:
        """Return the losses of one batch and the gradient of their sum.

        Args:
            weights: Weights to evaluate at, ``[D]``.
            batch: A batch on the model's device.
            size: Its number of samples.

        Returns:
            Losses, and the gradient ``[D]``, or None where the losses do not depend on the chosen weights.
        """
        try:
            return self._losses_and_slopes(weights, batch, size)
        except RuntimeError as error:
            if self.plain_attention or not MISSING.search(str(error)):
                raise
        self.plain_attention = True  # the model differentiates attention inside its forward pass, as force fields do
        return self._losses_and_slopes(weights, batch, size)

    def _losses_and_slopes(self, weights: Tensor, batch: Any, size: int) -> tuple[Tensor, Tensor | None]:
        at = {name: part.clone().requires_grad_() for name, part in named(weights.detach(), self.chosen).items()}
        values = self.losses(at, batch, twice=False)
        loss = _sum(values, size)
        if not loss.requires_grad:
            return values, None
        with self.held(at, twice=False), no_lost_graphs():
            slopes = torch.autograd.grad(loss, list(at.values()), materialize_grads=True)
        return values.detach(), flatten(slopes).detach()

    def subset(self, samples: int, seed: int = 0, scores: Tensor | None = None) -> Objective:
        r"""Freeze a random sub-sample of the data in memory.

        With scores, a sample is drawn with a probability :math:`\pi_j` in proportion to its score, and its loss is
        multiplied by :math:`n/(N \pi_j)`. Values, gradients and products are then unbiased estimates of those of all
        data. The noise is low where the contribution of a sample is nearly proportional to its score.

        Some batches are drawn whole, without regard to scores: batches that carry values of their own, such as a scale
        that differs from batch to batch, and batches that cannot be cut, such as graphs.

        Args:
            samples: Number n of samples, drawn without replacement; a number of N or more takes all N samples. Batches
                that are drawn whole give at least n samples.
            seed: Seed of the draw; the global random state is not used.
            scores: One positive number per sample ``[N]``, in loader order, where ``loss_fn`` returns one loss per
                sample; None draws all with equal probability.

        Returns:
            The same objective on the sub-sample, of which every rank has a part; or this objective if all samples are
            asked for. Its ``picked`` holds the numbers of the samples in loader order, its ``factors`` the factors on
            their losses.

        Source: Madow, On the theory of systematic sampling II, Annals of Mathematical Statistics 20, 1949; Horvitz and
        Thompson, Journal of the American Statistical Association 47, 1952.
        """
        if samples >= self.samples:
            return self
        with self.one_pass(), plain_modes():
            part, picked, factors = self.data.subset(samples, seed, scores)
        if part.total == self.samples:
            return self
        result = copy.copy(self)
        result.loader, result.data, result.picked, result.factors = part.loader, part, picked, factors
        if part.weighted:
            result.loss_fn = weighted(self.loss_fn)
        part.evaluate = result._evaluated
        return result

    @contextmanager
    def held(self, weights: Mapping[str, Tensor] | None = None, twice: bool = True) -> Iterator[None]:
        """Keep the model in the state of ``losses`` while a graph is differentiated.

        Activation checkpointing calls the model's layers again during differentiation. Without this context they would
        see the model's own buffers, mode and ``requires_grad`` flags.

        Args:
            weights: Chosen weights that the graph starts from; None means the model's weights.
            twice: The value of ``twice`` in the call of ``losses``.
        """
        at = self.chosen if weights is None else weights
        with (
            self.weights.substituted({name: tensor.detach().requires_grad_() for name, tensor in at.items()}),
            substituted_functions(self.model, twice or self.plain_attention),
        ):
            yield

    def _called(self, weights: Mapping[str, Tensor], batch: Any, twice: bool = False) -> Tensor:
        """Call the user's loss function, the one place where that happens."""
        twice = twice and torch.is_grad_enabled()
        while True:
            graph, plain = torch.is_grad_enabled() or self._graph_inside, twice or self.plain_attention
            try:
                losses: Any = self._run(weights, batch, graph, plain)
                break
            except UserError as error:
                if not graph and NO_GRAPH in str(error.__cause__):
                    self._graph_inside = True  # the model differentiates inside its forward pass, as force fields do
                elif not plain and REFUSED.search(str(error.__cause__)):
                    self.plain_attention = True  # it does so twice there, or the user's settings leave no fast kernel
                else:
                    raise
        if not isinstance(losses, Tensor):
            raise UserError(f"loss_fn: expected a tensor of losses, got {type(losses).__name__}; return its loss alone")
        if losses.is_complex():
            raise UserError(f"loss_fn: expected real losses, got {losses.dtype}; return their magnitude or real part")
        if losses.is_meta:
            raise UserError("loss_fn: expected losses that hold numbers, got a tensor on the meta device")
        return losses if torch.is_grad_enabled() else losses.detach()

    def _run(self, weights: Mapping[str, Tensor], batch: Any, graph: bool, twice: bool) -> Any:
        if graph and not torch.is_grad_enabled():
            weights = {name: tensor.detach().requires_grad_() for name, tensor in weights.items()}
        with (
            self.weights.substituted(weights),
            substituted_functions(self.model, twice),
            torch.set_grad_enabled(graph),
            no_reentrant_checkpoints(),
        ):
            return run(lambda: self.loss_fn(self.model, copied(batch)), lambda: self._described(batch), self._draws)

    def _described(self, batch: Any) -> str:
        """Say what was passed when the user's code failed."""
        kinds = {leaf.dtype for leaf in leaves(batch) if isinstance(leaf, Tensor) and leaf.is_floating_point()}
        dtype = next((kind for kind in kinds if kind != self.dtype), None)
        mixed = "" if dtype is None else f"; the model is {self.dtype} and the batch {dtype}: convert one of them"
        return (
            f"model or loss_fn: failed on batch {self.data.number} ({described(batch)}) on {self.device}, "
            f"the model in evaluation mode{mixed}"
        )

    @torch.no_grad()
    def _evaluated(self, batch: Any) -> Tensor:
        """Return the losses of a batch, whatever their number, at the model's weights."""
        return self._called(self.weights.chosen, batch)

    def _check_mean(self, batch: Any, size: int, loss: Tensor) -> None:
        """Refuse losses of a batch that change from call to call, or when it is cut, as for sub-samples."""
        layout = self.data.layout
        same: bool | None = True
        if layout is not None and layout.cuttable and size > 1:
            same = unchanged_by_cut(layout, batch, self._evaluated, self.dtype)
            if same is None:
                self.data.uncut()
        again = self._evaluated(batch).double().cpu()
        if not close_losses(again, loss, self.dtype):
            raise UserError(
                "model or loss_fn: two calls with the same batch give different values; turn off dropout and other "
                "random numbers inside them, or set their seed in every call"
            )
        if same is not False:
            return
        raise UserError(
            f"loss_fn: splitting a batch of {size} changes its losses (mean {float(loss.mean()):.4g} at once), by its "
            "other samples or by random numbers drawn for all of them, so that the objective is no mean over samples; "
            "return one loss per sample that depends on that sample only, shape (n,)"
        )


def _sum(losses: Tensor, size: int) -> Tensor:
    return losses.sum(dtype=torch.float64) if losses.dim() else losses.double() * size
