"""Private copies of a model's weights: forward passes that write, and hooks of others."""

import copy
from contextlib import nullcontext

import pytest
import torch
from helpers import assert_close, random, same, seeded, snapshot
from torch import nn
from torch.nn import functional

from estimators import GGN, L2, Hessian, Objective, UserError
from estimators.weights import Weights
from pruning_limits import predict_limit

X, Y = random(40, 4, seed=1), torch.arange(40) * 7 % 3
ROWS = [(X[:25], Y[:25]), (X[25:], Y[25:])]


def entropies(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def dense(mean_loss, weights):
    """Hessian of a loss by its leaves, in plain autograd, row by row."""
    slopes = torch.autograd.grad(mean_loss, weights, create_graph=True)
    flat = torch.cat([slope.flatten() for slope in slopes])
    parts = (torch.autograd.grad(entry, weights, retain_graph=True, materialize_grads=True) for entry in flat)
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in parts]).detach()


# ------------------------------------------------------------------------------------------ forward passes that write


class Normed(nn.Module):
    """Its table is renormalised in place by every call, as ``max_norm`` asks for."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4, max_norm=0.7), nn.Linear(4, 3)

    def forward(self, words):
        return self.head(torch.tanh(self.table(words)).mean(1))


class NormedBag(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.EmbeddingBag(7, 4, max_norm=0.7, mode="sum"), nn.Linear(4, 3)

    def forward(self, words):
        return self.head(torch.tanh(self.table(words)))


class Clamped(nn.Module):
    """Its first weight is clamped in place by every call."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        with torch.no_grad():
            self.body.weight.clamp_(-0.2, 0.2)
        return self.head(torch.tanh(self.body(x)))


class Overwritten(Clamped):
    """The same through ``.data``, which no version counter sees."""

    def forward(self, x):
        self.body.weight.data = self.body.weight.data.clamp(-0.2, 0.2)
        return self.head(torch.tanh(self.body(x)))


class WrittenInData(Clamped):
    def forward(self, x):
        self.body.weight.data.clamp_(-0.2, 0.2)
        return self.head(torch.tanh(self.body(x)))


class BiasWritten(Clamped):
    def forward(self, x):
        with torch.no_grad():
            self.body.bias.mul_(0.5)
        return self.head(torch.tanh(self.body(x)))


class Counting(Clamped):
    """Buffers of all kinds are written to."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(4))
        self.register_buffer("last", torch.zeros(4), persistent=False)

    def forward(self, x):
        self.calls += 1
        self.average.mul_(0.9).add_(0.1 * x.mean(0).detach())
        self.last = x[0].detach()
        return self.head(torch.tanh(self.body(x)))


class Centred(Clamped):
    """A running mean that evaluation mode goes on to write, and that the outputs follow from."""

    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(6))

    def forward(self, x):
        hidden = self.body(x)
        output = self.head(torch.tanh(hidden - self.average))
        self.average.copy_(hidden.detach().mean(0))
        return output


class Remembering(Clamped):
    """A tensor that is a plain attribute, and a list of them."""

    def __init__(self):
        super().__init__()
        self.state, self.history = torch.zeros(6).double(), []

    def forward(self, x):
        hidden = torch.tanh(self.body(x))
        self.state = hidden.mean(0).detach()
        return self.head(hidden)


def words():
    generator = torch.Generator().manual_seed(2)
    return [(torch.randint(0, 7, (20, 3), generator=generator), torch.arange(20) % 3) for _ in range(2)]


WRITING = {
    "renormalised table": (Normed, words),
    "renormalised bag": (NormedBag, words),
    "clamped": (Clamped, lambda: ROWS),
    "data set anew": (Overwritten, lambda: ROWS),
    "written through data": (WrittenInData, lambda: ROWS),
    "bias": (BiasWritten, lambda: ROWS),
    "buffers": (Counting, lambda: ROWS),
    "running mean": (Centred, lambda: ROWS),
    "attributes": (Remembering, lambda: ROWS),
}


def large(build):
    """Three times as large, so that every write changes something."""
    model = seeded(build)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


class StopError(Exception):
    pass


@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("parameters", [None, "*weight", "*"])
@pytest.mark.parametrize("name", WRITING)
def test_a_model_whose_forward_writes_is_left_bit_for_bit(name, parameters, train):
    build, make = WRITING[name]
    model = large(build).train(train)
    before = snapshot(model)
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    objective = Objective(model, make(), parameters=parameters)
    objective.sample_losses()
    objective.gradient()
    for operator in (Hessian(objective.subset(20)), GGN(objective)):
        if name == "renormalised bag" and parameters is not None:
            with pytest.raises(UserError, match=r"no second derivative of layer 'table' \(EmbeddingBag\)"):
                operator @ random(objective.dimension)
        else:
            operator @ random(objective.dimension)
    assert same(before, snapshot(model))
    assert same(buffers, dict(model.named_buffers()))


def test_a_bias_that_the_forward_pass_halves_is_the_same_for_every_batch():
    model = large(BiasWritten)
    body, head = (copy.deepcopy(layer).requires_grad_(False) for layer in (model.body, model.head))
    expected = []
    for x, y in ROWS:
        hidden = torch.tanh(x @ body.weight.T + 0.5 * body.bias)
        expected.append(functional.cross_entropy(head(hidden), y, reduction="none"))
    objective = Objective(model, ROWS, parameters="*")
    for weights in (None, objective.vector()):
        losses, _ = objective.sample_losses(weights)
        torch.testing.assert_close(losses, torch.cat(expected).double())
        assert objective.value(weights) == pytest.approx(float(torch.cat(expected).mean()))
    squares = sum(float(parameter.detach().square().sum()) for parameter in model.parameters())
    penalised = Objective(model, ROWS, penalty=L2(0.2), parameters="*")
    for weights in (None, penalised.vector()):
        assert penalised.value(weights) == pytest.approx(float(torch.cat(expected).mean()) + 0.1 * squares)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, StopError], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", WRITING)
def test_a_model_whose_forward_writes_is_left_by_what_stops_it(name, error):
    build, make = WRITING[name]
    model = large(build)
    before, calls = snapshot(model), []

    def loss(model, batch):
        values = entropies(model, batch)
        calls.append(0)
        if len(calls) == 9:
            raise error
        return values

    raised = {StopError: UserError}.get(error, error)
    with pytest.raises(raised) if error is not MemoryError else nullcontext():  # memory: goes on with smaller batches
        predict_limit(model, make(), loss, epsilon=0.05, samples=20, measure=False, progress=False)
    assert len(calls) >= 9
    assert same(before, snapshot(model))


@pytest.mark.parametrize(("build", "chosen"), [(Normed, [None, "table.weight"]), (NormedBag, [None])])
def test_the_curvature_of_a_renormalised_table_is_that_of_its_written_form(build, chosen):
    """A renormalised table is a table, whose rows that are used have been written once."""
    model, batches = large(build), words()
    written = large(build)
    with torch.no_grad():
        for batch in batches:
            written(batch[0])
    written.table.max_norm = None
    for parameters in chosen:
        objective, expected = (Objective(net, batches, parameters=parameters) for net in (model, written))
        vectors = random(objective.dimension, 2)
        assert_close(objective.value(), expected.value())
        assert_close(objective.sample_losses()[0], expected.sample_losses()[0])
        assert_close(Hessian(objective) @ vectors, Hessian(expected) @ vectors)


@pytest.mark.parametrize("build", [Clamped, WrittenInData])
def test_losses_do_not_depend_on_what_was_passed_before(build):
    model = large(build)
    objective = Objective(model, ROWS)
    first = objective.sample_losses()[0]
    objective.gradient()
    assert torch.equal(objective.sample_losses()[0], first)
    assert objective.value() == Objective(model, ROWS).value()


def test_weights_follow_the_model():
    model = seeded(mlp)
    weights = Weights(model, "0.*")
    assert weights.names == ("0.weight", "0.bias")
    assert weights.dimension == 30
    copies = weights.chosen
    assert torch.equal(copies["0.weight"], model[0].weight)
    assert copies["0.weight"].data_ptr() != model[0].weight.data_ptr()
    assert set(weights.fixed) == {"2.weight", "2.bias"}
    with torch.no_grad():
        model[0].weight.mul_(2)
        model[2].bias.add_(1)
    assert torch.equal(weights.chosen["0.weight"], model[0].weight)
    assert torch.equal(weights.fixed["2.bias"], model[2].bias)


# ------------------------------------------------------------------------------------------------- hooks of others


def hooked(register, inplace=True):
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=inplace), nn.Linear(6, 3)))
    called = []
    register(model, called)
    return model, called


def note(called):
    def noting(*arguments):
        called.append(arguments[0])

    return noting


BACKWARD = {
    "full, on a layer": lambda model, called: model[0].register_full_backward_hook(note(called)),
    "full, on the whole": lambda model, called: model.register_full_backward_hook(note(called)),
    "full, everywhere": lambda model, called: [
        module.register_full_backward_hook(note(called)) for module in model.modules()
    ],
    "before, on a layer": lambda model, called: model[2].register_full_backward_pre_hook(note(called)),
    "before, everywhere": lambda model, called: [
        module.register_full_backward_pre_hook(note(called)) for module in model.modules()
    ],
    "doubling": lambda model, called: model[2].register_full_backward_hook(
        lambda module, into, out: tuple(None if slope is None else 2 * slope for slope in into)
    ),
    "on parameters": lambda model, called: [parameter.register_hook(note(called)) for parameter in model.parameters()],
    "doubling those of parameters": lambda model, called: [
        parameter.register_hook(lambda slope: 2 * slope) for parameter in model.parameters()
    ],
    "after accumulation": lambda model, called: [
        parameter.register_post_accumulate_grad_hook(note(called)) for parameter in model.parameters()
    ],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", BACKWARD)
def test_backward_hooks_of_others_are_silent_and_stay(name):
    model, called = hooked(BACKWARD[name])
    plain, _ = hooked(lambda model, called: None, inplace=False)
    before = snapshot(model)
    changed, expected = (Objective(net, ROWS) for net in (model, plain))
    vectors = random(changed.dimension, 2)
    assert torch.equal(changed.gradient(), expected.gradient())
    assert torch.equal(Hessian(changed) @ vectors, Hessian(expected) @ vectors)
    assert torch.equal(GGN(changed) @ vectors, GGN(expected) @ vectors)
    limits = [predict_limit(net, ROWS, epsilon=0.05, measure=False, progress=False) for net in (model, plain)]
    assert limits[0].sparsity == limits[1].sparsity
    assert not called
    assert same(before, snapshot(model))
    if name in ("on parameters", "after accumulation", "before, on a layer"):
        entropies(model.train(), ROWS[0]).mean().backward()
        assert called


def test_forward_hooks_are_called_as_in_a_normal_call():
    counts = []
    model, _ = hooked(lambda model, called: None)
    for module in model.modules():
        module.register_forward_hook(lambda module, arguments, output: counts.append(type(module).__name__))
        module.register_forward_pre_hook(lambda module, arguments: counts.append("before"))
    model(X)
    normal, before = list(counts), snapshot(model)
    counts.clear()
    Objective(model, ROWS[:1]).value()
    assert counts == normal
    assert same(before, snapshot(model))


def test_a_forward_hook_that_changes_the_output_counts():
    """As an adapter does: its outputs are those of the model."""
    model, _ = hooked(
        lambda model, called: model[0].register_forward_hook(lambda module, arguments, output: 2 * output)
    )
    doubled, _ = hooked(lambda model, called: None)
    with torch.no_grad():
        doubled[0].weight.mul_(2)
        doubled[0].bias.mul_(2)
    changed, expected = Objective(model, ROWS), Objective(doubled, ROWS)
    assert_close(changed.value(), expected.value())
    factor = torch.cat([torch.full((24,), 2.0), torch.ones(18)]).double()
    vector = random(42)
    assert_close(Hessian(changed) @ vector, factor * (Hessian(expected) @ (factor * vector)))


def test_a_hook_on_the_graph_of_the_model_is_the_models_own():
    """A gradient that the forward itself changes is no derivative, and no hook of others."""

    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            hidden = torch.tanh(self.body(x))
            if hidden.requires_grad:
                hidden.register_hook(lambda slope: -slope)
            return self.head(hidden)

    limit = predict_limit(seeded(Reversed), ROWS, epsilon=0.05, progress=False)
    assert list(limit.settings.parameters) == ["head.weight"]
    assert any(note.startswith("left out: body.weight; ") for note in limit.notes)
    assert not any("name them with parameters=" in note for note in limit.notes)


# --------------------------------------------------------------------------------------- curvature against the dense


def test_a_written_model_against_a_dense_hessian():
    """The clamp is part of the forward: within it the weights act, and the others are at its ends."""
    model = large(Clamped)
    clamped = large(Clamped)
    with torch.no_grad():
        clamped.body.weight.clamp_(-0.2, 0.2)
    weights = [clamped.body.weight, clamped.head.weight]
    hidden = torch.tanh(X @ weights[0].T + clamped.body.bias)
    loss = functional.cross_entropy(hidden @ weights[1].T + clamped.head.bias, Y)
    matrix = Hessian(Objective(clamped, ROWS)) @ torch.eye(42, dtype=torch.float64)
    assert_close(matrix, dense(loss, weights))
    assert_close(Objective(model, ROWS).value(), loss.detach())
