"""The Gauss-Newton matrix of models that return several tensors, their own loss, or are called several times."""

from dataclasses import dataclass

import pytest
import torch
from helpers import assert_close, classification, random, same, seeded, snapshot
from torch import nn
from torch.nn import functional

from estimators import GGN, Objective, UserError
from estimators.outputs import loss_inputs, tensors


@dataclass
class Output:
    loss: torch.Tensor | None
    logits: torch.Tensor
    hidden: torch.Tensor


class OwnLoss(nn.Module):
    """Computes its loss itself, as the networks of Hugging Face do."""

    def __init__(self, wrap=Output):
        super().__init__()
        self.body, self.head, self.wrap = nn.Linear(4, 5), nn.Linear(5, 3), wrap

    def forward(self, x, y=None):
        hidden = torch.tanh(self.body(x))
        logits = self.head(hidden)
        return self.wrap(None if y is None else functional.cross_entropy(logits, y), logits, hidden)


class Heads(nn.Module):
    """Two outputs of different shape from one trunk."""

    def __init__(self):
        super().__init__()
        self.body, self.classes, self.box = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, x):
        hidden = torch.tanh(self.body(x))
        return {"classes": self.classes(hidden), "box": torch.sigmoid(self.box(hidden))}


def twin():
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))


def two_heads(z, y):
    return functional.cross_entropy(z["classes"], y, reduction="none") + z["box"].pow(4).prod(1)


def far_apart(first, second):
    return (first - second).square().sum(1).add(1).log()


def own(model, batch):
    return model(*batch).loss


# build the model, loss_fn, what z is, and the per-sample loss of z
CASES = {
    "own loss": (
        OwnLoss,
        own,
        lambda m, x: [m(x).logits],
        lambda z, y: functional.cross_entropy(z[0], y, reduction="none"),
    ),
    "own loss in a tuple": (
        lambda: OwnLoss(lambda *parts: parts),
        lambda model, batch: model(*batch)[0],
        lambda m, x: [m(x)[1]],
        lambda z, y: functional.cross_entropy(z[0], y, reduction="none"),
    ),
    "two heads": (
        Heads,
        lambda model, batch: two_heads(model(batch[0]), batch[1]),
        lambda m, x: list(m(x).values()),
        lambda z, y: two_heads({"classes": z[0], "box": z[1]}, y),
    ),
    "twins": (
        twin,
        lambda model, batch: far_apart(model(batch[0][:, :2]), model(batch[0][:, 2:])),
        lambda m, x: [m(x[:, :2]), m(x[:, 2:])],
        lambda z, y: far_apart(*z),
    ),
}


def dense_ggn(model, batches, outputs, losses):
    """Sum J' (d2 loss / dz2) J over samples by loops over every entry, on the parameters themselves."""
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    total, count = 0, 0
    for x, y in batches:
        for row in range(len(y)):
            z = outputs(model, x[row : row + 1])
            flat = torch.cat([part.flatten() for part in z])
            jacobian = torch.stack(
                [joined(torch.autograd.grad(k, weights, retain_graph=True, allow_unused=True), weights) for k in flat]
            )
            sizes, shapes = [part.numel() for part in z], [part.shape for part in z]

            def loss(flat, sizes=sizes, shapes=shapes, y=y[row : row + 1]):
                return losses([a.view(b) for a, b in zip(flat.split(sizes), shapes, strict=True)], y).sum()

            total = total + jacobian.T @ torch.autograd.functional.hessian(loss, flat.detach()) @ jacobian
            count += 1
    return total / count


def joined(parts, like):
    return torch.cat([(torch.zeros_like(b) if a is None else a).flatten() for a, b in zip(parts, like, strict=True)])


@pytest.mark.parametrize("memory", [0, 2 << 30])
@pytest.mark.parametrize("name", CASES)
def test_every_column(name, memory):
    build, loss_fn, outputs, losses = CASES[name]
    model, batches = seeded(build), classification(4)()
    before = snapshot(model)
    operator = GGN(Objective(model, batches, loss_fn), memory)
    matrix = operator.matmat(torch.eye(operator.shape[0], dtype=torch.float64))
    assert same(before, snapshot(model))
    assert float(matrix.abs().max()) > 1e-3
    assert_close(matrix, dense_ggn(model, batches, outputs, losses))


def test_the_own_loss_gives_the_bits_of_one_that_is_computed_outside():
    model, batches = seeded(OwnLoss), classification(4)()
    inside, outside = (
        GGN(Objective(model, batches, loss))
        for loss in (own, lambda model, batch: functional.cross_entropy(model(batch[0]).logits, batch[1]))
    )
    v = random(inside.shape[0])
    assert torch.equal(inside @ v, outside @ v)


def refused(model, loss):
    objective = Objective(model, classification(4)(), loss)
    with pytest.raises(UserError) as error:
        GGN(objective) @ random(objective.dimension)
    return str(error.value)


def test_a_model_that_returns_nothing_but_its_loss():
    class Closed(OwnLoss):
        def forward(self, x, y):
            return super().forward(x, y).loss

    assert "computed from a tensor that the model returns, such as logits, got Tensor" in refused(
        seeded(Closed), lambda model, batch: model(*batch)
    )


def test_outputs_that_depend_on_each_other():
    def with_hidden(model, batch):
        outputs = model(*batch)
        return outputs.loss + outputs.hidden.square().mean()

    def chained(model, batch):
        return model(model(batch[0])).square().sum(1) + model(batch[0]).square().sum(1)

    def replayed(model, batch):
        first = model(batch[0])
        return model(first).square().sum(1) + first.square().sum(1)

    square = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    assert "outputs that do not depend on each other" in refused(seeded(OwnLoss), with_hidden)
    assert "outputs that do not depend on each other" in refused(square, replayed)
    GGN(Objective(square, classification(4)(), chained)) @ random(16)  # the second call's graph is its own


def test_loss_inputs_leave_out_what_reaches_the_loss_through_others_only():
    x = torch.ones(2, 3, requires_grad=True)
    hidden = x * 2
    logits, idle = hidden.exp(), hidden.sin()
    inputs = loss_inputs([{"hidden": [hidden], "logits": logits}, (idle, None, 3)], logits.sum())
    assert len(inputs) == 1
    assert inputs[0] is logits
    with pytest.raises(UserError, match=r"got Tensor, Tensor$"):
        loss_inputs([x, torch.ones(2)], x.sum())


def test_tensors_of_nested_outputs():
    a, b, c, d = (torch.full((1,), float(k)) for k in range(4))
    flat = list(tensors({"a": a, "rest": [(b, None), Output(c, d, "no tensor")]}))
    assert [float(tensor) for tensor in flat] == [0, 1, 2, 3]
