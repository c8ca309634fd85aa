"""The loss of a model whose user gives none, against cross-entropy by hand."""

import re
from dataclasses import dataclass

import pytest
import torch
from helpers import assert_close, random
from torch import nn

from estimators import UserError
from estimators.default_loss import cross_entropy, logits_of


@dataclass
class Output:
    loss: torch.Tensor | None
    logits: torch.Tensor
    hidden: torch.Tensor


def test_logits():
    x = torch.ones(2, 3)
    for output in (x, {"out": x, "aux": x + 1}, Output(None, x, x + 1)):
        assert logits_of(output) is x
    for output in ((x, x), {"scores": x}, None):
        with pytest.raises(UserError, match=f"^model: .* got {type(output).__name__}; give loss_fn=$"):
            logits_of(output)


def test_cross_entropy_of_classes_and_of_pixels_by_hand():
    logits, pixels = random(4, 3), random(2, 3, 5, 6, seed=1)
    labels = torch.tensor([0, 2, 1, 1])
    by_hand = [float(z.exp().sum().log() - z[y]) for z, y in zip(logits, labels, strict=True)]
    assert_close(cross_entropy(nn.Identity(), (logits, labels)), by_hand)
    classes = torch.arange(60).view(2, 5, 6) % 3
    places = pixels.logsumexp(1) - pixels.gather(1, classes[:, None])[:, 0]
    assert_close(cross_entropy(nn.Identity(), [pixels, classes]), places.flatten(1).mean(1))
    for kind in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64):
        assert_close(cross_entropy(nn.Identity(), (logits, labels.to(kind))), by_hand)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.ones(2), "loader: the default loss needs (x, y) batches, got Tensor"),
        ((torch.ones(2, 3), torch.ones(2)), "class indices in 0..2, got torch.float32"),
        ((torch.ones(2, 3), torch.ones(2) * 1j), "class indices in 0..2, got torch.complex64"),
        ((torch.ones(2, 3), torch.tensor([0, 3])), "class indices in 0..2, got 0..3"),
        ((torch.ones(2, 3), torch.tensor([-1, 0])), "class indices in 0..2, got -1..0"),
        ((torch.ones(2, 1), torch.zeros(2).long()), "needs logits of two or more classes, got (2, 1)"),
        ((torch.ones(2, 3), torch.zeros(2, 2).long()), "labels (2, 2) do not fit logits (2, 3)"),
    ],
)
def test_batches_that_do_not_fit_are_refused(batch, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        cross_entropy(nn.Identity(), batch)
    assert "\n" not in str(caught.value)
