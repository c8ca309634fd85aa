"""The input subspace: the same losses, curvature and eigenvalues in fewer weights, or none at all."""

import pytest
import torch
from helpers import Loader, random, same, seeded, snapshot
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

from estimators import GGN, L1, L2, Hessian, Objective
from estimators.input_subspace import InputSubspace, input_weights
from pruning_limits import MagnitudeProfile, predict_limit
from pruning_limits.quadratic import QuadraticRise

INPUTS, SAMPLES = 20, 6
kinds = pytest.mark.parametrize("kind", [Hessian, GGN])


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(INPUTS, 5), nn.Tanh(), nn.Linear(5, 3)).double()


class Siamese(nn.Module):
    """One layer that sees two images."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(INPUTS, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)) * torch.sigmoid(self.first(x.flip(1))))


class Recurrent(Siamese):
    """One layer that sees an image and what it made of it."""

    def forward(self, x):
        return self.last(torch.tanh(self.first(functional.pad(self.first(x), (0, INPUTS - 5)))))


class Functional(Siamese):
    """A layer whose weight is used beside it."""

    def forward(self, x):
        return self.last(torch.tanh(functional.linear(x, self.first.weight) + self.first(x)))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.other = nn.Linear(INPUTS, 5), nn.Linear(INPUTS, 5)
        self.other.weight = self.first.weight

    def forward(self, x):
        return torch.tanh(self.first(x)) + torch.sigmoid(self.other(x))


def data(shape=(INPUTS,), samples=SAMPLES):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, *shape, generator=generator, dtype=torch.float64)
    half = samples // 2
    y = torch.arange(samples) % 3
    return [(x[:half], y[:half]), (x[half:], y[half:])]


def decayed(model, batch):
    """A loss that uses a weight without its layer, and hardly."""
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none") + 1e-4 * model[1].weight.square().sum()


def subspace(kind, objective):
    return InputSubspace(kind(objective.in_weights(input_weights(objective))), objective.penalty)


def dense(operator):
    return operator.matmat(torch.eye(operator.shape[0], dtype=operator.dtype))


@kinds
@pytest.mark.parametrize("penalty", [None, L2(0.3)])
@pytest.mark.parametrize("make", [mlp, lambda: Siamese().double()])
def test_eigenvalues_are_those_of_the_whole_matrix_but_for_the_penalty(make, kind, penalty):
    objective = Objective(seeded(make), data(samples=4), penalty=penalty)
    operator = subspace(kind, objective)
    whole, inside = (torch.linalg.eigvalsh(dense(matrix)) for matrix in (kind(objective), operator))
    flat = torch.full((objective.dimension - operator.shape[0],), operator.outside)
    torch.testing.assert_close(torch.cat([inside, flat.double()]).sort().values, whole)
    assert operator.shape[0] < objective.dimension


@kinds
def test_products_are_those_of_the_whole_matrix(kind):
    objective = Objective(seeded(mlp), data())
    operator = subspace(kind, objective)
    vectors = torch.randn(objective.dimension, 2, dtype=torch.float64)
    expected = kind(objective) @ vectors
    torch.testing.assert_close(operator.matmat(operator.project(vectors)), operator.project(expected))
    assert operator.products == 2
    operator.forget()
    torch.testing.assert_close(operator.matmat(operator.project(vectors)), operator.project(expected))


def test_losses_are_equal_and_the_model_is_left_alone():
    model = seeded(mlp)
    before = snapshot(model)
    objective = Objective(model, data())
    inside = objective.in_weights(input_weights(objective))
    assert inside.value() == pytest.approx(objective.value(), rel=1e-12)
    Hessian(inside) @ torch.ones(inside.dimension, dtype=torch.float64)
    assert same(snapshot(model), before)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(("length", "kept"), [(1, SAMPLES), (2, 2 * SAMPLES), (3, None)])
def test_rows_of_sequences_count_one_by_one(length, kept):
    model = nn.Sequential(nn.Linear(INPUTS, 5), nn.Tanh(), nn.Flatten(), nn.Linear(5 * length, 3)).double()
    weights = input_weights(Objective(model, data((length, INPUTS))))
    assert (weights and weights.dimension) == (kept and 5 * kept + 15 * length)


@pytest.mark.parametrize("make", [Recurrent, Functional, Tied])
def test_weights_that_do_more_than_see_data_stay_whole(make):
    assert input_weights(Objective(seeded(lambda: make().double()), data())) is None


def test_weights_that_the_loss_uses_a_mask_multiplies_or_bfloat16_holds_stay_whole():
    assert input_weights(Objective(seeded(mlp), data(), decayed)) is None
    pruned = seeded(mlp)
    prune.l1_unstructured(pruned[1], "weight", 0.5)
    assert input_weights(Objective(pruned, data())) is None
    half = seeded(mlp).bfloat16()
    assert input_weights(Objective(half, [(x.bfloat16(), y) for x, y in data()])) is None


def test_layers_on_hidden_activations_or_many_samples_stay_whole():
    deep = nn.Sequential(nn.Linear(INPUTS, INPUTS), nn.Tanh(), nn.Linear(INPUTS, 4)).double()
    assert input_weights(Objective(deep, data())).dimension == SAMPLES * INPUTS + 4 * INPUTS
    many = Loader(data(samples=16))
    objective = Objective(seeded(mlp), many)
    assert objective.samples == 16
    passes = many.passes
    assert input_weights(objective) is None
    assert many.passes == passes


@pytest.mark.parametrize("penalty", [None, L1(1e-3), L2(0.01)])
def test_the_predicted_limit_is_that_of_the_dense_matrix(penalty):
    model = seeded(lambda: nn.Sequential(nn.Linear(120, 6), nn.Tanh(), nn.Linear(6, 3)))
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(12, 120, generator=generator, dtype=torch.float64), torch.arange(12) % 3)]

    def limit(steps):
        options = {"penalty": penalty, "criterion": "objective", "epsilon": 0.05, "probes": 8, "measure": False}
        return predict_limit(model, batches, steps=steps, **options)

    exact, estimated = limit(steps=1000), limit(steps=60)
    assert exact.evidence.hessian.measure.exact
    assert estimated.sparsity == pytest.approx(exact.sparsity, abs=0.01)
    assert estimated.retrained == pytest.approx(exact.retrained, abs=0.01)
    assert estimated.directional == pytest.approx(exact.directional, abs=0.01)


def test_subsets_values_and_penalties_of_the_subspace_are_those_of_the_losses():
    objective = Objective(seeded(mlp), data(), penalty=L2(0.3))
    inside = objective.in_weights(input_weights(objective))
    assert inside.penalty is None
    assert inside.value() == pytest.approx(objective.value() - objective.penalty_value(objective.chosen), rel=1e-12)
    part = inside.subset(4)
    assert part.dimension == inside.dimension
    assert part.value() == pytest.approx(float(objective.subset(4).sample_losses()[0].mean()), rel=1e-12)


@pytest.mark.parametrize("penalty", [None, L1(1e-3), L2(0.01)])
def test_the_quadratic_rise_is_that_of_all_weights(penalty):
    model = seeded(lambda: nn.Sequential(nn.Linear(120, 6), nn.Tanh(), nn.Linear(6, 3)))
    batches = [(random(12, 120), torch.arange(12) % 3)]
    objective = Objective(model, batches, penalty=penalty)
    profile, operators = MagnitudeProfile(objective.chosen), (Hessian(objective), subspace(Hessian, objective))
    assert operators[1].shape[0] < objective.dimension
    whole, inside = (QuadraticRise(operator, random(738, seed=1), profile) for operator in operators)
    for sparsity in (0.1, 0.6, 1.0):
        assert inside(sparsity) == pytest.approx(whole(sparsity), rel=1e-9)
        assert inside.linear(sparsity) + inside.quadratic(sparsity) == inside(sparsity)
    assert inside.operator.products == 3


@pytest.mark.parametrize("penalty", [None, L1(1e-3), L2(0.01)])
def test_the_traces_of_layers_are_those_of_all_their_weights(penalty):
    model = seeded(lambda: nn.Sequential(nn.Linear(120, 6), nn.Tanh(), nn.Linear(6, 3)))
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(12, 120, generator=generator, dtype=torch.float64), torch.arange(12) % 3)]
    matrix = dense(Hessian(Objective(model, batches, penalty=penalty)))
    first, second = (float(matrix.diagonal()[part].sum()) for part in (slice(0, 720), slice(720, 738)))
    layers_of_seeds = []
    for seed in range(20):
        options = {"penalty": penalty, "criterion": "objective", "epsilon": 0.05, "steps": 2, "measure": False}
        limit = predict_limit(model, batches, **options, seed=seed)
        layers_of_seeds.append([(layer.weights, layer.trace) for layer in limit.layers()])
    assert [weights for weights, _ in layers_of_seeds[0]] == [720, 18]
    for number, exact in enumerate((first, second)):
        traces = torch.tensor([layers[number][1] for layers in layers_of_seeds])
        assert abs(traces.mean() - exact) <= 4 * traces.std() / len(traces) ** 0.5
