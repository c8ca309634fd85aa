"""Weights that act without a true derivative are found, and no others: against what the loss does by itself."""

import pytest
import torch
from helpers import assert_close, random, same, seeded, snapshot
from torch import nn
from torch.nn import functional

from estimators import Hessian, Objective, UserError
from estimators.derivatives import untrue_derivatives, zero_weights_loss
from pruning_limits import predict_limit

X, Y, Z = random(96, 4, seed=1), torch.arange(96) * 7 % 3, random(96, 3, seed=2)
WORDS = torch.randint(0, 11, (96, 5), generator=torch.Generator().manual_seed(0))
IMAGES, SEQUENCES = random(96, 1, 8, 8, seed=3), random(96, 6, 4, seed=4)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def entropies(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def squares(model, batch):
    return (model(batch[0]) - batch[2]).square().mean(1)


def distances(model, batch):
    return (model(batch[0]) - batch[2]).abs().mean(1)


def margins(model, batch):
    return functional.multi_margin_loss(model(batch[0]), batch[1], reduction="none")


def batch_of(x, dtype):
    return (x.to(dtype) if x.is_floating_point() else x, Y, Z.to(dtype))


def fit(model, batch, loss=entropies, steps=100, rate=0.01):
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, batch).mean().backward()
        optimizer.step()
    return model.eval()


def refusal(call, *arguments, **options):
    with pytest.raises(UserError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# --------------------------------------------------------------------------------------- weights without a derivative


class Backbone(nn.Module):
    """A backbone that its own forward may cut off from the head."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Sequential(nn.Linear(4, 6), nn.Tanh()), nn.Linear(6, 3)


class NoGrad(Backbone):
    def forward(self, x):
        with torch.no_grad():
            hidden = self.backbone(x)
        return self.head(hidden)


class Detached(Backbone):
    def forward(self, x):
        return self.head(self.backbone(x).detach())


class ThroughData(Backbone):
    def forward(self, x):
        return self.head(self.backbone(x).data)


class ThroughNumpy(Backbone):
    def forward(self, x):
        return self.head(torch.from_numpy(self.backbone(x).detach().numpy().copy()))


class InInferenceMode(Backbone):
    def forward(self, x):
        with torch.inference_mode():
            hidden = self.backbone(x)
        return self.head(hidden.clone())


class Decorated(Backbone):
    @torch.no_grad()
    def features(self, x):
        return self.backbone(x)

    def forward(self, x):
        return self.head(self.features(x))


class Gated(nn.Module):
    """A gate that is open or shut, as hard as it gets."""

    def __init__(self):
        super().__init__()
        self.backbone, self.body, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        gate = torch.sigmoid(4 * self.backbone(x)).detach()
        return self.head(gate * torch.tanh(self.body(x)))


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return (4 * x).round() / 4

    @staticmethod
    def backward(context, slope):
        return slope


class RoundedWeights(nn.Module):
    """Weights that are rounded in the forward pass and differentiated as if they were not."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(functional.linear(x, Rounded.apply(self.backbone.weight), self.backbone.bias)))


class Signs(nn.Module):
    """Binary weights with a straight-through estimator, written as ``w + (sign(w) - w).detach()``."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        weight = self.backbone.weight
        binary = weight + (weight.sign() - weight).detach()
        return self.head(torch.tanh(functional.linear(x, binary, self.backbone.bias)))


class Wrong(torch.autograd.Function):
    """A tanh whose backward has the wrong sign."""

    @staticmethod
    def forward(context, x):
        y = torch.tanh(x)
        context.save_for_backward(y)
        return y

    @staticmethod
    def backward(context, slope):
        (y,) = context.saved_tensors
        return -slope * (1 - y * y)


class WrongBackward(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(Wrong.apply(self.backbone(x)))


class Reversal(torch.autograd.Function):
    """Gradient reversal, as for domain adaptation."""

    @staticmethod
    def forward(context, x):
        return x.view_as(x)

    @staticmethod
    def backward(context, slope):
        return -slope


class Adversarial(Backbone):
    def forward(self, x):
        return self.head(Reversal.apply(self.backbone(x)))


UNTRUE = {
    "no_grad": (NoGrad, {"backbone.0.weight"}),
    "detach": (Detached, {"backbone.0.weight"}),
    "data": (ThroughData, {"backbone.0.weight"}),
    "numpy": (ThroughNumpy, {"backbone.0.weight"}),
    "inference mode": (InInferenceMode, {"backbone.0.weight"}),
    "decorated": (Decorated, {"backbone.0.weight"}),
    "gate": (Gated, {"backbone.weight"}),
    "rounded": (RoundedWeights, {"backbone.weight"}),
    "signs": (Signs, {"backbone.weight"}),
    "wrong backward": (WrongBackward, {"backbone.weight"}),
    "reversal": (Adversarial, {"backbone.0.weight"}),
}


@dtypes
@pytest.mark.parametrize("trained", [0, 100])
@pytest.mark.parametrize("name", UNTRUE)
def test_weights_without_a_true_derivative_are_named(name, trained, dtype):
    build, names = UNTRUE[name]
    model, batch = seeded(build).to(dtype), batch_of(X, dtype)
    fit(model, batch, steps=trained)
    before = snapshot(model)
    for seed in range(3):
        assert set(untrue_derivatives(Objective(model, [batch], entropies), seed)) == names
    assert same(before, snapshot(model))


@pytest.mark.parametrize("name", UNTRUE)
def test_they_are_left_out_of_the_limit_and_told(name):
    build, names = UNTRUE[name]
    model, batch = seeded(build), batch_of(X, torch.float64)
    limit = predict_limit(model, [batch], entropies, epsilon=0.05, progress=False)
    chosen = list(limit.settings.parameters)
    assert names.isdisjoint(chosen)
    expected = predict_limit(model, [batch], entropies, epsilon=0.05, parameters=chosen, progress=False)
    assert (limit.sparsity, limit.retrained, limit.parameters) == (
        expected.sparsity,
        expected.retrained,
        expected.parameters,
    )
    (note,) = [note for note in limit.notes if note.startswith("left out: ")]
    assert note.startswith(
        f"left out: {', '.join(names)}; the gradient of these weights does not match the change of the loss"
    )


def test_what_is_left_has_the_curvature_of_the_dense_computation():
    model, batch = fit(seeded(NoGrad), batch_of(X, torch.float64)), batch_of(X, torch.float64)
    limit = predict_limit(model, [batch], entropies, epsilon=0.05, progress=False)
    hidden, weight = model.backbone(X).detach(), model.head.weight.detach()

    def value(flat):
        return functional.cross_entropy(hidden @ flat.view(3, 6).T + model.head.bias.detach(), Y)

    matrix = torch.autograd.functional.hessian(value, weight.flatten())
    product = Hessian(Objective(model, [batch], entropies, parameters="head.weight")) @ torch.eye(
        18, dtype=torch.float64
    )
    assert_close(product, matrix)
    assert limit.parameters == 18
    assert_close(
        limit.evidence.hessian.measure.nodes @ limit.evidence.hessian.measure.weights * 18, torch.trace(matrix)
    )


def test_nothing_left_is_refused():
    for parameters in ("backbone*", "backbone.0.weight"):
        told = refusal(
            predict_limit,
            seeded(NoGrad),
            [batch_of(X, torch.float64)],
            entropies,
            parameters=parameters,
            progress=False,
        )
        assert told.startswith(
            "loss_fn: no gradient of the loss reaches any chosen weight; do not detach losses or outputs"
        )
    told = refusal(
        predict_limit,
        seeded(Adversarial),
        [batch_of(X, torch.float64)],
        parameters="backbone.0.weight",
        loss_fn=entropies,
        progress=False,
    )
    assert told.startswith(
        "model: no chosen weight has a true derivative: the loss moves otherwise than its gradient says"
    )


# ------------------------------------------------------------------------------------------ losses without a gradient


class Cut(nn.Module):
    """A network whose outputs have left the graph."""

    def __init__(self, how):
        super().__init__()
        self.body, self.how = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), how

    def forward(self, x):
        if self.how == "no_grad":
            with torch.no_grad():
                return self.body(x)
        output = self.body(x)
        if self.how == "numpy":
            return torch.from_numpy(output.detach().numpy().copy())
        return torch.tensor(output.tolist(), dtype=output.dtype) if self.how == "list" else output.detach()


def mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def wrong_labels(model, batch):
    return (model(batch[0]).argmax(1) != batch[1]).double()


NO_GRADIENT = {
    "detached losses": (mlp, lambda model, batch: entropies(model, batch).detach()),
    "detached mean": (mlp, lambda model, batch: entropies(model, batch).mean().detach()),
    "numbers": (mlp, lambda model, batch: torch.tensor(entropies(model, batch).tolist()).double()),
    "loss in no_grad": (mlp, torch.no_grad()(entropies)),
    "errors": (mlp, wrong_labels),
    "constant": (mlp, lambda model, batch: torch.ones(len(batch[0])).double()),
    "of the data": (mlp, lambda model, batch: batch[0].square().sum(1)),
    "outputs detached": (lambda: Cut("detach"), entropies),
    "outputs in no_grad": (lambda: Cut("no_grad"), entropies),
    "outputs in numpy": (lambda: Cut("numpy"), entropies),
    "outputs in lists": (lambda: Cut("list"), entropies),
}


@pytest.mark.parametrize("name", NO_GRADIENT)
def test_losses_without_a_gradient_are_refused(name):
    build, loss = NO_GRADIENT[name]
    model = seeded(build)
    before = snapshot(model)
    for options in ({}, {"measure": False}, {"curvature": "ggn"}):
        told = refusal(predict_limit, model, [batch_of(X, torch.float64)], loss, progress=False, **options)
        assert told == (
            "loss_fn: no gradient of the loss reaches any chosen weight; do not detach losses or outputs nor call the "
            "model under torch.no_grad, and where the model differentiates inside its forward pass let it call "
            "torch.autograd.grad with create_graph=True, also in evaluation mode"
        )
    assert same(before, snapshot(model))


# ---------------------------------------------------------------------------------------------------- healthy networks


class Last(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.body, self.head = kind(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.body(x)[0][:, -1])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(x).mean(1))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(11, 4), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, words):
        return self.head(self.table(words).mean(1))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.idle, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


class Masked(nn.Module):
    """A layer that is multiplied with zero."""

    def __init__(self):
        super().__init__()
        self.body, self.idle, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x) + 0 * self.idle(x)))


def dead():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].bias[:4] = -100
        model[2].bias[:] = 1
    return model


def all_dead():
    model = dead()
    with torch.no_grad():
        model[0].bias[:] = -100
    return model


def saturated():
    model = mlp()
    with torch.no_grad():
        model[0].weight.mul_(1000)
    return model


def frozen():
    model = mlp()
    return model.requires_grad_(False)


def frozen_body():
    model = mlp()
    model[0].requires_grad_(False)
    return model


def deep(layers, activation, norm=None):
    blocks = [[*([norm(8)] if norm else []), activation(), nn.Linear(8, 8)] for _ in range(layers)]
    return nn.Sequential(
        nn.Linear(4, 8), *[layer for block in blocks for layer in block], activation(), nn.Linear(8, 3)
    )


def pooled():
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 3))


def normalised():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def zeros():
    model = mlp()
    nn.init.zeros_(model[2].weight)
    return model


HEALTHY = {
    "mlp": (mlp, X),
    "relu": (lambda: deep(1, nn.ReLU), X),
    "gelu": (lambda: deep(2, nn.GELU), X),
    "hardswish": (lambda: deep(2, nn.Hardswish), X),
    "linear": (lambda: nn.Linear(4, 3), X),
    "deep linear": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)), X),
    "20 relu layers": (lambda: deep(20, nn.ReLU, nn.LayerNorm), X),
    "30 tanh layers": (lambda: deep(30, nn.Tanh), X),
    "dead units": (dead, X),
    "all dead": (all_dead, X),
    "saturated": (saturated, X),
    "unused layer": (Unused, X),
    "layer times zero": (Masked, X),
    "frozen": (frozen, X),
    "frozen body": (frozen_body, X),
    "zero weights": (zeros, X),
    "max pooling": (pooled, IMAGES),
    "batch norm": (normalised, IMAGES),
    "lstm": (lambda: Last(nn.LSTM), SEQUENCES),
    "gru": (lambda: Last(nn.GRU), SEQUENCES),
    "encoder": (Encoder, SEQUENCES),
    "embedding": (Words, WORDS),
}


@dtypes
@pytest.mark.parametrize("name", HEALTHY)
def test_no_alarm_on_a_healthy_network(name, dtype):
    build, x = HEALTHY[name]
    model, batch = seeded(build, seed=3).to(dtype).eval(), batch_of(x, dtype)
    assert untrue_derivatives(Objective(model, [batch], entropies, parameters="*weight*")) == ()
    if any(parameter.requires_grad for parameter in model.parameters()):
        fit(model, batch, steps=60)
        assert untrue_derivatives(Objective(model, [batch], entropies, parameters="*weight*"), seed=1) == ()


@dtypes
@pytest.mark.parametrize("loss", [squares, distances, margins])
@pytest.mark.parametrize("name", ["mlp", "relu", "max pooling", "embedding"])
def test_no_alarm_with_kinks_in_the_loss(name, loss, dtype):
    build, x = HEALTHY[name]
    model, batch = seeded(build, seed=3).to(dtype), batch_of(x, dtype)
    for steps in (0, 100):
        fit(model, batch, loss, steps)
        assert untrue_derivatives(Objective(model, [batch], loss, parameters="*weight*"), seed=steps) == ()


@pytest.mark.parametrize("name", ["mlp", "relu", "max pooling", "batch norm", "lstm"])
def test_no_alarm_in_bfloat16(name):
    build, x = HEALTHY[name]
    model, batch = seeded(build, seed=3).bfloat16().eval(), batch_of(x, torch.bfloat16)
    assert untrue_derivatives(Objective(model, [batch], entropies, parameters="*weight*")) == ()


def test_a_graph_that_reaches_nothing_is_seen_in_bfloat16():
    objective = Objective(seeded(NoGrad).bfloat16(), [batch_of(X, torch.bfloat16)], entropies, parameters="backbone*")
    assert refusal(untrue_derivatives, objective).startswith(
        "loss_fn: no gradient of the loss reaches any chosen weight"
    )


def converged(build, batch, loss):
    """A network at a point where the gradient vanishes up to rounding."""
    model = seeded(build).double()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=2000, tolerance_grad=1e-14, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = loss(model, batch).mean() + 1e-3 * sum(parameter.square().sum() for parameter in model.parameters())
        value.backward()
        return value

    optimizer.step(closure)
    return model


@dtypes
@pytest.mark.parametrize("loss", [entropies, squares])
def test_no_alarm_at_a_converged_network(loss, dtype):
    model = converged(mlp, batch_of(X, torch.float64), loss).to(dtype)
    for seed in range(3):
        assert untrue_derivatives(Objective(model, [batch_of(X, dtype)], loss), seed) == ()


@dtypes
def test_no_alarm_at_an_exactly_stationary_point(dtype):
    """The mean of the targets is the best constant, and zero weights keep it so."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model[2].bias.copy_(Z.mean(0))
    batch = batch_of(X, dtype)
    with torch.no_grad():
        model[0].weight.fill_(0.5)
    assert untrue_derivatives(Objective(model, [batch], squares)) == ()


@dtypes
def test_no_alarm_at_a_saddle(dtype):
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert untrue_derivatives(Objective(model, [batch_of(X, dtype)], squares)) == ()


# ------------------------------------------------------------------------------------------- losses at rounding level


def own_outputs(model, dtype):
    with torch.no_grad():
        return X.to(dtype), Y, model(X.to(dtype))


@dtypes
@pytest.mark.parametrize("size", [96, 7])
def test_targets_that_are_the_outputs_of_the_network_leave_no_epsilon(size, dtype):
    model = seeded(mlp).to(dtype)
    x, y, z = own_outputs(model, dtype)
    batches = list(zip(x.split(size), y.split(size), z.split(size), strict=True))
    told = refusal(predict_limit, model, batches, squares, progress=False)
    assert told.startswith("epsilon: ")
    assert told.endswith(
        ("give the allowed rise of the objective as a number", "all losses are equal; give a number > 0")
    )


@dtypes
def test_targets_that_are_the_outputs_and_a_number_for_epsilon(dtype):
    model = seeded(mlp).to(dtype)
    limit = predict_limit(model, [own_outputs(model, dtype)], squares, epsilon=1e-3, progress=False)
    assert limit.epsilon == 1e-3
    assert 0 < limit.sparsity < 1


@dtypes
def test_a_regression_that_fits_well_is_not_refused(dtype):
    model = seeded(mlp).to(dtype)
    x, y, z = own_outputs(model, dtype)
    noisy = z + 1e-3 * random(96, 3, seed=9).to(dtype)
    limit = predict_limit(model, [(x, y, noisy)], squares, progress=False)
    spread = (model(x).detach() - noisy).double().square().mean(1)
    assert limit.epsilon == pytest.approx(float(spread.std()) / 128**0.5, rel=1e-3)


@dtypes
def test_a_classifier_that_fits_perfectly_is_not_refused(dtype):
    """Separable classes, each label right by far: losses of about 1e-6, but beyond rounding."""
    model = seeded(lambda: nn.Linear(4, 3)).to(dtype)
    x = X.to(dtype)
    labels = model(x).argmax(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(200)
    losses = functional.cross_entropy(model(x), labels, reduction="none").detach().double()
    assert float(losses.median()) < 1e-3
    limit = predict_limit(model, [(x, labels)], progress=False)
    assert limit.epsilon == pytest.approx(float(losses.std()) / 128**0.5, rel=1e-4)


def test_the_loss_without_any_chosen_weight():
    model = seeded(mlp)
    objective = Objective(model, [batch_of(X, torch.float64)], entropies, penalty=None)
    with torch.no_grad():
        plain = functional.cross_entropy(model[2].bias.expand(96, 3), Y, reduction="none")
    part = objective.subset(64, 0)
    assert zero_weights_loss(objective) == pytest.approx(float(plain[part.picked].mean()), rel=1e-12)
    undefined = Objective(
        model, [batch_of(X, torch.float64)], lambda model, batch: 1 / model[0].weight.sum() + batch[0][:, 0]
    )
    assert zero_weights_loss(undefined) != zero_weights_loss(undefined)


def test_a_loss_in_a_shorter_type_than_the_weights_raises_no_alarm():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3)))
    data = [(random(30, 6), torch.arange(30) % 3)]
    short = lambda model, batch: functional.cross_entropy(model(batch[0]).float(), batch[1], reduction="none")  # noqa: E731
    assert untrue_derivatives(Objective(model, data, short)) == ()


STEPPED = {
    "rounded weights": lambda first, x: nn.functional.linear(x, (first.weight * 16).round() / 16, first.bias),
    "signs": lambda first, x: first(x).sign(),
    "largest": lambda first, x: nn.functional.one_hot(first(x).argmax(1), 6).to(x),
    "whole numbers": lambda first, x: (8 * first(x)).long().to(x) / 8,
    "compared": lambda first, x: (first(x) > 0).to(x),
}


class HalfDetached(nn.Module):
    """Passes on the second half of a hidden layer without its graph."""

    def __init__(self, activation):
        super().__init__()
        self.first, self.second, self.activation = nn.Linear(4, 8), nn.Linear(8, 3), activation()

    def forward(self, x):
        kept, cut = self.activation(self.first(x)).chunk(2, 1)
        return self.second(torch.cat([kept, cut.detach()], 1))


@dtypes
@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.SiLU])
@pytest.mark.parametrize("steps", [0, 50])
def test_units_that_are_detached_beside_others_are_found(activation, steps, dtype):
    model, batch = seeded(lambda: HalfDetached(activation), seed=2).to(dtype), batch_of(X, dtype)
    fit(model, batch, steps=steps)
    assert untrue_derivatives(Objective(model, [batch], entropies)) == ("first.weight",)


@pytest.mark.parametrize("margin", [0.0, 1e-7, 1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("seed", range(4))
def test_no_alarm_for_dead_units_that_small_steps_wake_up(seed, margin):
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), seed=seed).float()
    batch = batch_of(X, torch.float32)
    with torch.no_grad():  # the bias of half of the units takes them just below zero on all samples
        model[0].bias[4:] = -(batch[0] @ model[0].weight[4:].T).max(0).values - margin
    assert untrue_derivatives(Objective(model, [batch], entropies), seed=seed) == ()


class Stepped(nn.Module):
    def __init__(self, step):
        super().__init__()
        self.first, self.last, self.step = nn.Linear(4, 6), nn.Linear(6, 3), step

    def forward(self, x):
        return self.last(self.step(self.first, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", STEPPED)
def test_a_loss_that_jumps_where_its_gradient_is_zero_is_named(name, dtype):
    model = seeded(lambda: Stepped(STEPPED[name])).to(dtype)
    data = [(random(64, 4).to(dtype), torch.arange(64) % 3)]
    assert untrue_derivatives(Objective(model, data)) == ("first.weight",)


def test_weights_without_influence_and_flat_minima_are_true():
    class Idle(Stepped):
        def forward(self, x):
            return self.last(0.0 * self.first(x) + x.sum(1, keepdim=True))

    data = [(random(64, 4), torch.arange(64) % 3)]
    assert untrue_derivatives(Objective(seeded(lambda: Idle(None)).double(), data)) == ()

    def cubed(model, batch):
        return (model.first.weight - 1).sum() ** 3 + model(batch[0]).square().sum(1)

    model = seeded(lambda: Idle(None)).double()
    with torch.no_grad():
        model.first.weight.fill_(1.0)
    assert untrue_derivatives(Objective(model, data, cubed)) == ()
