"""The default loss, for a user who passes none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from estimators.errors import UserError

OWN_LOSS = "for a model that returns its own loss: lambda model, batch: model(**batch).loss"
OTHER_TARGETS = "for regression, binary and multi-label targets give loss_fn="


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Per-sample cross-entropy of ``model(x)`` against class labels ``y`` for a batch ``(x, y)``.

    Labels are ``[n]`` for logits ``[n, C]``; further dimensions, such as pixels, are averaged within a sample.

    Raises:
        UserError: The batch, the logits or the labels are of another kind.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise UserError(
            f"loader: the default loss needs (x, y) batches, got {type(batch).__name__}; give loss_fn=, {OWN_LOSS}"
        )
    x, y = batch
    if isinstance(x, Tensor) and x.dim() and (isinstance(y, int) or (isinstance(y, Tensor) and not y.dim())):
        raise UserError(
            f"loader: labels have no dimension that counts samples beside inputs {tuple(x.shape)}: where it yields "
            "single samples wrap it in a DataLoader, torch.utils.data.DataLoader(dataset, batch_size=128)"
        )
    if not isinstance(y, Tensor):
        raise UserError(f"loader: labels must be a tensor of class indices, got {type(y).__name__}; {OTHER_TARGETS}")
    logits = logits_of(model(x))
    real = y.is_floating_point() or y.is_complex()
    if not real:
        y = y.long()
    classes = logits.shape[1] if logits.dim() > 1 else 1
    if real or (y.numel() and not (int(y.min()) >= 0 and int(y.max()) < classes)):
        kind = str(y.dtype) if real else f"{int(y.min())}..{int(y.max())}"
        raise UserError(f"loader: labels must be class indices in 0..{classes - 1}, got {kind}; {OTHER_TARGETS}")
    if classes == 1:
        raise UserError(
            f"model: the default loss needs logits of two or more classes, got {tuple(logits.shape)}; {OTHER_TARGETS}"
        )
    if y.shape != logits.shape[:1] + logits.shape[2:]:
        raise UserError(
            f"loader: labels {tuple(y.shape)} do not fit logits {tuple(logits.shape)}, whose dimension 1 counts "
            "classes; give loss_fn="
        )
    loss = nn.functional.cross_entropy(logits, y, reduction="none")
    return loss.flatten(1).mean(1) if loss.dim() > 1 else loss


def logits_of(output: Any) -> Tensor:
    """Return the class scores in a model's output: the tensor itself, its ``logits``, or its entry ``"out"``.

    Args:
        output: A tensor, an output of Hugging Face's models, or that of a torchvision segmentation network.

    Returns:
        Scores ``[n, C, ...]``.

    Raises:
        UserError: There are none under these names.
    """
    scores = getattr(output, "logits", output)
    if isinstance(scores, Mapping):
        scores = scores.get("out")
    if not isinstance(scores, Tensor):
        raise UserError(
            f"model: the default loss needs one tensor of logits, got {type(output).__name__}; give loss_fn="
        )
    return scores
