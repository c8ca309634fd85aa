"""Metrics of a model's outputs, one value per sample, larger is better: accuracy, or a function of the user."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from estimators.arguments import refuse_function
from estimators.batches import described
from estimators.default_loss import logits_of
from estimators.errors import UserError

Metric = Literal["accuracy"] | Callable[[nn.Module, Any], Tensor]
IGNORED = -100
SHIFTING = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
REMEDY = "give metric= a function (model, batch) -> one value per sample, (n,), larger is better"
BEGINNINGS = {"loss_fn:": "metric:", "model or loss_fn:": "model or metric:", "loader:": "held_out:"}
WORDS = {" or a scalar": "", "losses": "values", "loss": "value", "objective": "metric"}


class NoAccuracyError(UserError):
    """A batch that has no accuracy: its targets are no labels of the model's outputs."""


def accuracy(model: nn.Module, batch: Any) -> Tensor:
    """Return the share of right answers of every sample.

    The targets' shape tells what they are, never their values, so that all batches are measured alike:

    * ``[n, ...]`` for outputs ``[n, C, ...]`` of two or more classes: class labels; the largest output is the answer.
      Labels of -100 do not count.
    * the outputs' own shape, such as ``[n]`` or ``[n, C]``, or that without a class dimension of size 1: labels 0 and
      1, each for itself; a positive output is the answer 1. One-hot rows are read so too, and other class probabilities
      are refused: for these give class labels, or a function of your own.

    Several answers in a sample, such as pixels, tokens or labels, are averaged within it. An answer is wrong where an
    output that it comes from is NaN.

    Args:
        model: The network; its output is a tensor, has ``logits``, or an entry ``"out"``.
        batch: ``(x, y)``; or a dictionary of arguments of the model with ``"labels"``, as Hugging Face's models take
            it. The classes of token outputs are then in their last dimension, ``[n, T, C]``, and causal language models
            answer with the next token.

    Returns:
        Shares in [0, 1], float64 ``[n]``.

    Raises:
        UserError: The batch or the output are of another kind.

    Example:
        >>> accuracy(nn.Identity(), (torch.tensor([[0.2, 0.8], [0.9, 0.1]]), torch.tensor([1, 1])))
        tensor([1., 0.], dtype=torch.float64)
    """
    outputs, targets = _answers(model, batch)
    if not outputs.dim():
        raise _refusal("needs outputs with a dimension that counts samples", outputs, targets)
    labels = targets if targets.is_floating_point() else targets.long()  # a byte can be no -100
    counted = labels != IGNORED
    without_classes = outputs.shape[:1] + outputs.shape[2:]
    if labels.shape == outputs.shape or (labels.shape == without_classes and outputs.shape[1:2] == (1,)):
        if not bool(((labels == 0) | (labels == 1) | ~counted).all()):
            raise _refusal("needs class labels, or labels 0 and 1 where there are as many as outputs", outputs, targets)
        largest = outputs.reshape(labels.shape)
        right = (largest > 0) == (labels == 1)
    elif labels.shape == without_classes and outputs.dim() > 1:
        classes = outputs.shape[1]
        if targets.is_floating_point() or not bool(((labels >= 0) & (labels < classes) | ~counted).all()):
            raise _refusal(f"needs class labels in 0..{classes - 1}, or {IGNORED} for none", outputs, targets)
        largest, answers = outputs.max(1)
        right = answers == labels
    else:
        raise _refusal("finds no labels of the outputs in the targets", outputs, targets)
    right &= counted & ~largest.isnan()
    totals = counted.unsqueeze(-1).flatten(1).sum(1)
    if not bool(totals.all()):
        raise _refusal("needs a label in every sample; leave out those without", outputs, targets)
    return right.unsqueeze(-1).flatten(1).sum(1, dtype=torch.float64) / totals


def metric_loss(metric: Metric) -> Callable[[nn.Module, Any], Tensor]:
    """Return a metric as the loss function of an ``Objective``, which then averages values, not losses.

    Whether all values are finite is left to the objective, which asks for it at the model's own weights only.

    Args:
        metric: ``"accuracy"``, or a function ``(model, batch) -> values`` per sample ``[n]``.

    Returns:
        The function, which refuses values of another kind.

    Raises:
        UserError: It is neither.

    Example:
        >>> likelihood = metric_loss(lambda model, batch: model(batch[0]).log_softmax(1)[:, 0])
        >>> likelihood(nn.Identity(), (torch.zeros(2, 4), None))
        tensor([-1.3863, -1.3863])
    """
    if isinstance(metric, str):
        if metric != "accuracy":
            raise UserError(f"metric: expected 'accuracy' or a function (model, batch) -> values, got {metric!r}")
        return accuracy
    refuse_function("metric", metric, "give 'accuracy' or lambda model, batch: score(model(batch[0]), batch[1])")

    def values_of(model: nn.Module, batch: Any) -> Tensor:
        values: Any = metric(model, batch)
        if not isinstance(values, Tensor):
            raise UserError(f"metric: expected a tensor of values, one per sample, got {type(values).__name__}")
        if values.dim() != 1:
            raise UserError(
                f"metric: expected one value per sample, shape (n,), got shape {tuple(values.shape)}; return the "
                "values before their mean, and the mean of each sample where it has several"
            )
        if values.is_complex():
            raise UserError(f"metric: expected real values, got {values.dtype}")
        return values if values.is_floating_point() else values.double()

    return values_of


def metric_name(metric: Metric) -> str:
    """Return a metric's name in settings and on pages.

    Args:
        metric: ``"accuracy"`` or a function.

    Returns:
        ``"accuracy"``, the name of the function or of the class of an object that is called, or ``"metric"`` for a
        function without a name.

    Example:
        >>> metric_name("accuracy"), metric_name(accuracy), metric_name(lambda model, batch: batch)
        ('accuracy', 'accuracy', 'metric')
    """
    if isinstance(metric, str):
        return metric
    innermost: Any = metric
    while isinstance(innermost, functools.partial):
        innermost = innermost.func
    name = str(getattr(innermost, "__name__", type(innermost).__name__))
    return name if name.isidentifier() else "metric"


@contextmanager
def metric_errors(loader: str = "held_out") -> Iterator[None]:
    """Let the errors of an objective that measures a metric speak of the metric and of the data it is measured on.

    Args:
        loader: Name of the argument that these data were given by.

    Yields:
        Nothing.

    Raises:
        UserError: One was raised inside; ``loss_fn`` in its beginning is ``metric``, and ``loader`` the name given.

    Example:
        >>> with metric_errors():
        ...     raise UserError("loader: yields no samples")
        Traceback (most recent call last):
        estimators.errors.UserError: held_out: yields no samples
    """
    try:
        yield
    except UserError as error:
        message = str(error)
        old = next((beginning for beginning in BEGINNINGS if message.startswith(beginning)), None)
        if old is None:
            raise
        rest = message.removeprefix(old)
        if old == "loss_fn:":
            rest = re.sub("|".join(WORDS), lambda word: WORDS[word[0]], rest)
        new = f"{loader}:" if old == "loader:" else BEGINNINGS[old]
        raise UserError(new + rest) from error.__cause__


def resolution(values: Tensor) -> float | None:
    """Return the smallest step of the mean of values that are all 0 or 1; None of other values.

    Args:
        values: Of a metric ``[n]``.

    Returns:
        1/n, or None.

    Example:
        >>> resolution(torch.tensor([1.0, 0.0, 1.0, 1.0])), resolution(torch.tensor([0.5, 1.0]))
        (0.25, None)
    """
    binary = bool(((values == 0) | (values == 1)).all())
    return 1 / len(values) if binary and len(values) else None


def _answers(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Return the outputs of a batch, their classes in dimension 1, and its targets."""
    labelled = isinstance(batch, Mapping) and "labels" in batch
    if not labelled and not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise NoAccuracyError(
            f"metric: accuracy needs batches (x, y) or dictionaries with 'labels', got {_kind(batch)}; {REMEDY}"
        )
    targets = batch["labels"] if labelled else batch[1]
    if not isinstance(targets, Tensor):
        raise NoAccuracyError(f"metric: accuracy needs a tensor of labels, got {type(targets).__name__}; {REMEDY}")
    if not labelled:
        return _scores(model(batch[0])), targets
    turned = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    # A decoder beside an encoder makes its inputs of the labels.
    outputs = _scores(model(**{name: part for name, part in batch.items() if turned or name != "labels"}))
    if outputs.dim() != 3 or targets.dim() != 2:
        return outputs, targets
    if not turned and _shifts(model):
        outputs, targets = outputs[:, :-1], targets[:, 1:]
    return outputs.transpose(1, 2), targets


def _scores(output: Any) -> Tensor:
    try:
        return logits_of(output)
    except UserError:
        raise NoAccuracyError(
            f"metric: accuracy needs one tensor of outputs, got {type(output).__name__}; {REMEDY}"
        ) from None


def _shifts(model: nn.Module) -> bool:
    """Tell by its name whether a model of Hugging Face compares each output with the label of the next token."""
    return any(kind.__name__.endswith(SHIFTING) for kind in type(model).__mro__)


def _kind(batch: Any) -> str:
    return f"a dictionary of {', '.join(map(repr, batch))}" if isinstance(batch, Mapping) else type(batch).__name__


def _refusal(reason: str, outputs: Tensor, targets: Tensor) -> NoAccuracyError:
    extremes = f" in {targets.min().item():.4g}..{targets.max().item():.4g}" if targets.numel() else ""
    return NoAccuracyError(
        f"metric: accuracy {reason}, got targets {described(targets)}{extremes} for outputs {described(outputs)}; "
        f"{REMEDY}"
    )
