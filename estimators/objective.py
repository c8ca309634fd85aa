"""The training objective: mean loss over a fixed set of samples plus the weight penalty."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from estimators.errors import UserError
from estimators.parameters import choose_parameters, flatten, named
from estimators.penalty import Penalty

LossFunction = Callable[[nn.Module, Any], Tensor]


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Per-sample cross-entropy of ``model(x)`` against class labels ``y`` for a batch ``(x, y)``."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise UserError(f"loader: the default loss needs (x, y) batches, got {type(batch).__name__}; give loss_fn=")
    x, y = batch
    logits = model(x)
    classes = logits.shape[1]
    if y.is_floating_point() or (y.numel() and not (int(y.min()) >= 0 and int(y.max()) < classes)):
        found = str(y.dtype) if y.is_floating_point() else f"{int(y.min())}..{int(y.max())}"
        raise UserError(f"loader: labels must be class indices in 0..{classes - 1}, got {found}")
    loss = nn.functional.cross_entropy(logits, y, reduction="none")
    return loss.flatten(1).mean(1) if loss.dim() > 1 else loss


class Objective:
    r"""The function :math:`F(w) = \frac1n \sum_j \ell_j(w) + p(w)` of a model's chosen weights.

    The sum runs over the samples of the loader, whatever its batch sizes. The model is evaluated in evaluation mode
    by substitution of weights: its parameters, buffers, gradients and mode flags are never written.

    Args:
        model: Any module; all parameters on one device.
        loader: Iterable of batches that yields the same samples on every pass. A batch is a tensor or a tuple, list,
            dictionary or object of tensors whose first dimension counts samples.
        loss_fn: ``(model, batch) -> losses``, per sample ``[n]`` or the scalar mean over the batch; default
            cross-entropy on ``(x, y)``.
        penalty: ``L1``, ``L2`` or None; a penalty over all parameters of the model.
        parameters: Name patterns of the chosen weights; default the weights of convolution and linear layers.

    Attributes:
        names: Names of the chosen parameters, in order.
        dimension: Number D of chosen weights.

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
        chosen = choose_parameters(model, parameters)
        self.model, self.loader = model, loader
        self.loss_fn = loss_fn or cross_entropy
        self.penalty, self.patterns = penalty, parameters
        self.names = tuple(chosen)
        self.chosen = {name: parameter.detach() for name, parameter in chosen.items()}
        self.fixed = {name: p.detach() for name, p in model.named_parameters() if name not in chosen}
        self.buffers = {name: buffer.detach() for name, buffer in model.named_buffers()}
        self.dimension = sum(tensor.numel() for tensor in self.chosen.values())
        first = next(iter(self.chosen.values()))
        self.device, self.dtype = first.device, first.dtype
        self._call = _Loss(model, self.loss_fn)
        self._samples: int | None = None

    def vector(self) -> Tensor:
        """Return a copy of the chosen weights as one vector ``[D]``."""
        return flatten(list(self.chosen.values())).clone()

    def versions(self) -> list[int]:
        """Count the writes to the model's parameters and buffers so far; a change tells that kept graphs are stale."""
        tensors = (*self.chosen.values(), *self.fixed.values(), *self.buffers.values())
        return [tensor._version for tensor in tensors if not tensor.is_inference()]

    @property
    def samples(self) -> int:
        """Number of samples in one pass over the loader."""
        if self._samples is None:
            self._samples = sum(batch_size(batch) for batch in self.loader)
        if self._samples == 0:
            raise UserError("loader: yields no samples; give a loader with at least one batch")
        return self._samples

    def batches(self) -> Iterator[tuple[Any, int]]:
        """Yield every batch on the model's device together with its number of samples."""
        seen = 0
        for batch in self.loader:
            size = batch_size(batch)
            seen += size
            yield move(batch, self.device), size
        if self._samples is None:
            self._samples = seen
        if seen != self._samples:
            raise UserError(
                f"loader: this pass yielded {seen} samples, an earlier one {self._samples}; "
                "give a loader that yields the same samples every time"
            )
        if seen == 0:
            raise UserError("loader: yields no samples; give a loader with at least one batch")

    def losses(self, weights: Mapping[str, Tensor], batch: Any) -> Tensor:
        """Evaluate the loss function on one batch at substituted weights; differentiable in ``weights``."""
        return self._evaluate(self._call, weights, batch)

    def outputs_and_losses(self, weights: Mapping[str, Tensor], batch: Any) -> tuple[list[Any], Tensor]:
        """Evaluate one batch and also return what every call of the model put out."""
        outputs: list[Any] = []
        handle = self.model.register_forward_hook(lambda module, arguments, output: outputs.append(output))
        try:
            return outputs, self.losses(weights, batch)
        finally:
            handle.remove()

    @torch.no_grad()
    def value(self, weights: Tensor | None = None) -> float:
        """Return F at the model's weights or at the given ones, ``[D]``."""
        at = self.chosen if weights is None else named(weights, self.chosen)
        total = torch.zeros((), dtype=torch.float64)
        for batch, size in self.batches():
            total += _sum(self.losses(at, batch), size).cpu()
        return float(total / self.samples) + self.penalty_value(at)

    @torch.no_grad()
    def sample_losses(self) -> tuple[Tensor, Tensor]:
        """Return the data losses at the model's weights, without penalty, in loader order.

        Returns:
            Losses, float64 ``[m]``, and the number of samples ``[m]`` each of them is the mean of: all ones where
            ``loss_fn`` gives per-sample losses, batch sizes where it gives batch means.

        Raises:
            UserError: A loss is NaN or infinite.
        """
        losses, sizes = [], []
        for batch, size in self.batches():
            loss = self.losses(self.chosen, batch).double().cpu()
            losses.append(loss.reshape(-1))
            sizes.append(torch.full((loss.numel(),), size if loss.dim() == 0 else 1))
        result = torch.cat(losses)
        bad = int((~result.isfinite()).sum())
        if bad:
            raise UserError(f"loss_fn: {bad} of {len(result)} losses are NaN or infinite; check the model and the data")
        return result, torch.cat(sizes)

    def penalty_value(self, weights: Mapping[str, Tensor]) -> float:
        """Return the penalty over all parameters, the chosen ones substituted."""
        if self.penalty is None:
            return 0.0
        return float(self.penalty.value([*self.fixed.values(), *weights.values()]))

    def gradient(self) -> Tensor:
        """Return the gradient of F with respect to the chosen weights, ``[D]``."""
        return self.losses_and_gradient()[1]

    @torch.enable_grad()
    def losses_and_gradient(self) -> tuple[Tensor, Tensor]:
        """Return the losses as ``sample_losses`` does, without their sizes, and the gradient of F, in one pass."""
        weights = {name: tensor.clone().requires_grad_() for name, tensor in self.chosen.items()}
        total = torch.zeros(self.dimension, dtype=self.dtype, device=self.device)
        found = []
        for batch, size in self.batches():
            losses = self.losses(weights, batch)
            found.append(losses.detach().double().cpu().reshape(-1))
            loss = _sum(losses, size)
            if loss.requires_grad:
                total += flatten(torch.autograd.grad(loss, list(weights.values()), materialize_grads=True))
        total /= self.samples
        if self.penalty is not None:
            total += self.penalty.gradient(self.vector())
        return torch.cat(found), total

    def subset(self, samples: int, seed: int = 0) -> Objective:
        """Freeze a random sub-sample of the data in memory.

        Args:
            samples: Number of samples, drawn without replacement; at least the whole data set means all of it.
            seed: Seed of the draw; the global random state is not used.

        Returns:
            The same objective on the sub-sample, or this one when it asks for everything.
        """
        total = self.samples
        if samples >= total:
            return self
        if samples < 1:
            raise UserError(f"samples: expected at least 1, got {samples}")
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
        wanted = torch.zeros(total, dtype=torch.bool)
        wanted[order[:samples]] = True
        picked, start, largest = [], 0, 1
        for batch in self.loader:
            size = batch_size(batch)
            largest = max(largest, size)
            rows = wanted[start : start + size].nonzero().squeeze(1)
            start += size
            if len(rows):
                picked.append(_map(lambda leaf, rows=rows, size=size: _rows(leaf, rows, size), batch))
        whole = _map(lambda *leaves: _joined(leaves, [batch_size(one) for one in picked]), *picked)
        width = max(largest, 256)
        parts = [torch.arange(i, min(i + width, samples)) for i in range(0, samples, width)]
        frozen = [_map(lambda leaf, rows=rows: _rows(leaf, rows, samples), whole) for rows in parts]
        result = Objective(self.model, frozen, self.loss_fn, self.penalty, self.patterns)
        result._samples = samples
        return result

    def _evaluate(self, call: nn.Module, weights: Mapping[str, Tensor], batch: Any) -> Tensor:
        state = {f"model.{name}": tensor for name, tensor in (*self.fixed.items(), *weights.items())}
        state |= {f"model.{name}": buffer.clone() for name, buffer in self.buffers.items()}
        with evaluation_mode(self.model), sdpa_kernel(SDPBackend.MATH):
            losses: Tensor = functional_call(call, state, (batch,))
        size = batch_size(batch)
        if losses.dim() and losses.shape != (size,):
            raise UserError(f"loss_fn: expected losses of shape ({size},) or a scalar, got {tuple(losses.shape)}")
        return losses


class _Loss(nn.Module):
    """Module whose forward is the loss, so that ``functional_call`` can substitute the model's weights."""

    def __init__(self, model: nn.Module, loss_fn: LossFunction) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, batch: Any) -> Tensor:
        return self.loss_fn(self.model, batch)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode and each one back into its own mode afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def batch_size(batch: Any) -> int:
    """Return the number of samples in a batch: the length of its first tensor."""
    for leaf in _leaves(batch):
        if isinstance(leaf, Tensor) and leaf.dim() > 0:
            return int(leaf.shape[0])
    raise UserError(f"loader: a batch of type {type(batch).__name__} holds no tensor with a sample dimension")


def move(batch: Any, device: torch.device) -> Any:
    """Move all tensors of a batch to a device."""
    return _map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)


def _sum(losses: Tensor, size: int) -> Tensor:
    return losses.sum(dtype=torch.float64) if losses.dim() else losses.double() * size


def _children(batch: Any) -> dict[Any, Any] | None:
    if isinstance(batch, Mapping):
        return dict(batch)
    if isinstance(batch, tuple | list):  # one of plain values only, such as sample names, is a leaf
        nested = any(isinstance(child, Tensor) or _children(child) is not None for child in batch)
        return dict(enumerate(batch)) if nested else None
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    if hasattr(batch, "__dict__") and not isinstance(batch, Tensor | nn.Module):
        return dict(vars(batch))
    return None


def _leaves(batch: Any) -> Iterator[Any]:
    children = _children(batch)
    if children is None:
        yield batch
    else:
        for child in children.values():
            yield from _leaves(child)


def _map(function: Callable[..., Any], first: Any, *others: Any) -> Any:
    """Apply a function to corresponding leaves of equally built batches and build one more like them."""
    children = _children(first)
    if children is None:
        return function(first, *others)
    rest = [_children(other) or {} for other in others]
    mapped = {key: _map(function, child, *(one[key] for one in rest)) for key, child in children.items()}
    if isinstance(first, tuple):
        values = mapped.values()
        return type(first)(*values) if hasattr(first, "_fields") else type(first)(values)
    if isinstance(first, list):
        return list(mapped.values())
    if type(first) is dict:
        return mapped
    if isinstance(first, Mapping):
        return type(first)(mapped)  # type: ignore[call-arg]
    copy = object.__new__(type(first))
    for key, value in mapped.items():
        object.__setattr__(copy, key, value)
    return copy


def _rows(leaf: Any, rows: Tensor, size: int) -> Any:
    """Pick samples of a leaf; whatever does not count samples is shared by all of them."""
    if not _counts(leaf, size):
        return leaf
    return leaf[rows.to(leaf.device)] if isinstance(leaf, Tensor) else type(leaf)(leaf[row] for row in rows.tolist())


def _counts(leaf: Any, size: int) -> bool:
    """Tell whether a leaf has one entry per sample."""
    return (leaf.dim() > 0 if isinstance(leaf, Tensor) else type(leaf) in (list, tuple)) and len(leaf) == size


def _joined(leaves: Sequence[Any], sizes: Sequence[int]) -> Any:
    if not all(_counts(leaf, size) for leaf, size in zip(leaves, sizes, strict=True)):
        return leaves[0]
    return torch.cat(list(leaves)) if isinstance(leaves[0], Tensor) else type(leaves[0])(chain.from_iterable(leaves))
