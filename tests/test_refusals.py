"""Layers, losses and graphs that cannot be differentiated twice are refused by name."""

import pytest
import torch
from helpers import CASES, classification, random, same, seeded, snapshot
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from estimators import GGN, Hessian, Objective, UserError, check_symmetric
from estimators.refusals import graph_nodes, no_lost_graphs
from pruning_limits import predict_limit

both = pytest.mark.parametrize("kind", ["hessian", "ggn"])


class OnceSquared(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(context, slope):
        return 2 * context.saved_tensors[0] * slope


class Once(nn.Module):
    def forward(self, x, *, scale=1.0):
        return OnceSquared.apply(x) * scale


class Margin(nn.Module):
    """A layer whose second derivative torch itself does not have."""

    def forward(self, x):
        return x * functional.multilabel_margin_loss(x, torch.zeros_like(x).long(), reduction="none")[:, None]


class Inline(nn.Module):
    """The operation sits in the model's own forward, behind a layer that writes to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))

    def forward(self, x):
        return OnceSquared.apply(self.body(x))[:, :3]


def nested(layer):
    block = nn.Sequential(nn.Tanh(), layer)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), block, nn.Linear(4, 3))


BLAME = {
    "custom": (lambda: nested(Once()), r"layer '2\.1' \(Once\)"),
    "torch": (lambda: nested(Margin()), r"layer '2\.1' \(Margin\)"),
    "inline": (Inline, "what the forward of Inline does outside of its layers"),
}


@both
@pytest.mark.parametrize("name", BLAME)
def test_layer_without_second_derivative_is_named(name, kind):
    build, blamed = BLAME[name]
    model = seeded(build)
    before = snapshot(model)
    operator = (Hessian if kind == "hessian" else GGN)(Objective(model, classification(4)()))
    with pytest.raises(UserError, match=rf"^model: no second derivative of {blamed} \(.*\); .*parameters=$"):
        operator @ random(operator.shape[0])
    assert same(before, snapshot(model))


@pytest.mark.parametrize(
    "loss",
    [
        lambda model, batch: OnceSquared.apply(model(batch[0])).mean(1),
        lambda model, batch: functional.multi_margin_loss(model(batch[0]), batch[1], reduction="none").square(),
    ],
    ids=["custom", "torch"],
)
@both
def test_loss_without_second_derivative_is_named(loss, kind):
    objective = Objective(CASES["ragged"].model(), classification(4)(), loss)
    with pytest.raises(UserError, match="no second derivative of the loss function"):
        (Hessian if kind == "hessian" else GGN)(objective) @ random(35)


def test_weights_behind_the_layer_can_still_be_chosen():
    objective = Objective(seeded(lambda: nested(Once())), classification(4)(), parameters="3.*")
    check_symmetric(Hessian(objective))


def test_prediction_names_the_layer():
    data = classification(4, sizes=(20, 10))()
    limit = predict_limit(seeded(lambda: nested(Once())), data, samples=30, steps=3)
    assert limit.notes[-1].endswith(
        "layer '2.1' (Once) has no second derivative (OnceSquared is marked once_differentiable)"
    )


def test_other_errors_are_told_with_the_batch():
    def loss(model, batch):
        raise RuntimeError("out of luck")

    operator = Hessian(Objective(CASES["ragged"].model(), classification(4)(), loss))
    with pytest.raises(UserError, match="RuntimeError: out of luck"):
        operator @ random(35)


def test_every_node_of_a_graph_is_visited_once():
    x = torch.ones(3, requires_grad=True)
    y = x.exp()
    names = [name for name, _ in graph_nodes([(y * y).sum() + y.sum()])]
    inner = sorted(name for name in names if "AccumulateGrad" not in name)
    assert inner == ["AddBackward0", "ExpBackward0", "MulBackward0", "SumBackward0", "SumBackward0"]
    assert len(names) == len(inner) + 1
    assert list(graph_nodes([torch.ones(3)])) == []
    assert [name for name, _ in graph_nodes([(y * y).sum()], inputs=[y])] == ["SumBackward0", "MulBackward0"]


def test_a_graph_that_is_gone_is_told_and_other_errors_pass():
    x = torch.ones(3, requires_grad=True)
    loss = x.exp().sum()
    loss.backward()
    with pytest.raises(UserError, match=r"^model: it differentiates inside its forward pass"), no_lost_graphs():
        loss.backward()
    with pytest.raises(RuntimeError, match="boom"), no_lost_graphs():
        raise RuntimeError("boom")
