"""Limits of regression, binary, multi-label, language and weighted losses, and losses that have no place here."""

import pytest
import torch
from any_model import Case, check
from helpers import random, seeded
from torch import nn
from torch.nn import functional

from pruning_limits import predict_limit


def mlp(outputs=2):
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs))


def data(targets, sizes=(5, 4)):
    return lambda: [(random(n, 3, seed=n), targets(random(n, 2, seed=20 + n))) for n in sizes]


def squares(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(1)


def hubers(model, batch):
    return functional.huber_loss(model(batch[0]), batch[1], reduction="none").mean(1)


def binary(model, batch):
    return functional.binary_cross_entropy_with_logits(model(batch[0]).squeeze(1), batch[1], reduction="none")


def labels(model, batch):
    return functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1], reduction="none").mean(1)


def soft(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none", label_smoothing=0.1)


def weighted(model, batch):
    weight = torch.tensor([1.0, 5.0], dtype=torch.float64)
    return functional.cross_entropy(model(batch[0]), batch[1], weight=weight, reduction="none")


def mean_of(losses):
    return lambda model, batch: losses(model, batch).mean()


def yes(z):
    return (z > 0).double()


CASES = {
    "regression": Case(mlp, data(lambda z: z), squares, 20, loss_fn=squares),
    "regression by the batch mean": Case(
        mlp, data(lambda z: z), squares, 20, loss_fn=lambda model, batch: functional.mse_loss(model(batch[0]), batch[1])
    ),
    "huber": Case(mlp, data(lambda z: 3 * z), hubers, 20, loss_fn=hubers),
    "binary": Case(lambda: mlp(1), data(lambda z: yes(z[:, 0])), binary, 16, loss_fn=binary),
    "multi-label": Case(mlp, data(yes), labels, 20, loss_fn=mean_of(labels)),
    "soft labels": Case(mlp, data(lambda z: z.softmax(1)), soft, 20, loss_fn=soft),
    "weighted classes": Case(mlp, data(lambda z: yes(z[:, 0]).long()), weighted, 20, loss_fn=weighted),
}


@pytest.mark.parametrize("name", CASES)
def test_limit(name):
    check(CASES[name])


def refusal(batches, loss_fn=None, outputs=2, **options):
    with pytest.raises(ValueError, match=r"^(loader|model|loss_fn): [^\n]*$") as error:
        predict_limit(seeded(lambda: mlp(outputs)), batches, loss_fn, **options)
    return str(error.value)


def contrast(model, batch):
    """Every sample against all others of its batch."""
    z = functional.normalize(model(batch[0]), dim=1)
    return functional.cross_entropy(z @ z.T.roll(1, 1), torch.arange(len(z)), reduction="none")


def test_targets_of_another_kind():
    advice = "for regression, binary and multi-label targets give loss_fn="
    assert advice in refusal(data(lambda z: z)())
    assert advice in refusal(data(lambda z: yes(z[:, 0]).long())(), outputs=1)
    ones = data(lambda z: torch.zeros(len(z), dtype=torch.long))()
    assert f"two or more classes, got (5, 1); {advice}" in refusal(ones, outputs=1)
    assert "labels (5, 2) do not fit logits (5, 2), whose dimension 1 counts classes" in refusal(
        data(lambda z: yes(z).long())()
    )


def test_a_criterion_in_the_place_of_the_loss_function():
    message = refusal(data(lambda z: z)(), nn.MSELoss())
    assert "got MSELoss; give lambda model, batch: criterion(model(batch[0]), batch[1])" in message


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda model, batch: squares(model, batch).sum(),
        lambda model, batch: functional.cross_entropy(
            model(batch[0]), (batch[1][:, 0] > 0).long(), weight=torch.tensor([1.0, 5.0], dtype=torch.float64)
        ),
        contrast,
        mean_of(contrast),
    ],
    ids=["sum", "weighted mean", "contrast", "mean contrast"],
)
def test_losses_that_are_no_mean_over_samples(loss_fn):
    message = refusal(data(lambda z: z)(), loss_fn)
    assert message.startswith("loss_fn: splitting a batch of ")
    assert message.endswith("return one loss per sample that depends on that sample only, shape (n,)")


def test_a_contrastive_loss_of_groups():
    """A group of samples that are held against each other is one sample of the objective."""
    groups = [{"x": random(3, 4, 3, seed=7)}, {"x": random(2, 4, 3, seed=8)}]

    def losses(model, batch):
        z = functional.normalize(model(batch["x"].flatten(0, 1)), dim=1).unflatten(0, batch["x"].shape[:2])
        targets = torch.arange(z.shape[1]).expand(len(z), -1)
        return functional.cross_entropy((z @ z.mT.roll(1, 2)).transpose(1, 2), targets, reduction="none").mean(1)

    check(Case(mlp, lambda: groups, losses, 20, loss_fn=losses))


def test_labels_of_tokens_need_their_classes_in_dimension_one():
    """``[n, T, C]`` scores are not what the default loss reads."""

    class Tagger(nn.Module):
        def __init__(self, flip):
            super().__init__()
            self.head, self.flip = nn.Linear(3, 4), flip

        def forward(self, x):
            scores = self.head(x)
            return scores.transpose(1, 2) if self.flip else scores

    x, y = random(5, 6, 3), torch.arange(30).reshape(5, 6) % 4
    with pytest.raises(ValueError, match=r"labels \(5, 6\) do not fit logits \(5, 6, 4\)"):
        predict_limit(seeded(lambda: Tagger(False)), [(x, y)])

    def losses(model, batch):
        return functional.cross_entropy(model(batch[0]), batch[1], reduction="none").mean(1)

    check(Case(lambda: Tagger(True), lambda: [(x, y)], losses, 12))
