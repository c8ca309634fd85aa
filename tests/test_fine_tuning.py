"""One stage of re-tuning."""

import copy
import dataclasses
from unittest import mock

import pytest
import torch
from helpers import assert_close, random, same, seeded, snapshot
from retuning_problems import FEATURES, classes, doubled, squares
from torch import nn

from estimators import L1, L2, Objective, UserError
from pruning_limits.descent import Descent
from pruning_limits.fine_tuning import FORWARD, READ, SOLVING, TRAINED, WIDTH, FineTuning, Turn
from pruning_limits.magnitude import MagnitudeProfile

HALF = FEATURES * 2


def tuned(model, data, count, loss_fn=None, passes=3, seed=0, **options):
    tuning = FineTuning(Objective(model, data, loss_fn, **options), 300, passes, seed)
    return tuning, tuning.stage(tuning.dense, count)


def reconstructed(tuning, count, sample):
    alone = tuning.pruned(tuning.dense, count)
    return tuning.reconstructed(alone, tuning.of_dense(alone, sample)[1])


def loss_of(tuning, network, data):
    at, weights = network.on(tuning.objective)
    return at.value(weights)


def test_a_planted_sparse_teacher_is_recovered_and_one_shot_does_not():
    model, data = doubled()
    tuning, network = tuned(model, data, HALF, squares, passes=20)
    alone = loss_of(tuning, tuning.pruned(tuning.dense, HALF), data)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    kept = network.vector.view(2, -1) != 0
    truth = sum(
        float((x[:, keep] @ torch.linalg.lstsq(x[:, keep], y[:, [row]]).solution - y[:, [row]]).square().sum())
        for row, keep in enumerate(kept)
    ) / len(x)
    assert truth < 1e-20
    assert alone > 1.0
    assert loss_of(tuning, network, data) < 0.02 * alone


@pytest.mark.parametrize("seed", [0, 1])
def test_removed_weights_are_zero_after_every_step_whatever_momentum_says(seed):
    model, data = classes()
    removed = []

    class Watched(Descent):
        def step(self, weights, slope, done):
            super().step(weights, slope, done)
            removed.append(int((weights[tuning.prunable] == 0).sum()))
            assert not slope[tuning.prunable & (weights == 0)].any()

    tuning = FineTuning(Objective(model, data), 300, 2, seed, Watched)
    network = tuning.stage(tuning.dense, 150)
    assert len(removed) >= 10
    assert set(removed) == {150}
    assert int((network.vector[tuning.prunable] == 0).sum()) == 150
    assert not network.vector[~network.kept].any()


def test_masks_are_nested_and_taken_from_the_present_weights():
    model, data = classes()
    tuning, first = tuned(model, data, 120)
    second = tuning.pruned(first, 180)
    assert not (second.kept & ~first.kept).any()
    magnitudes = first.vector[tuning.prunable & first.kept].abs().sort().values
    assert float(second.vector[tuning.prunable & second.kept].abs().min()) == float(magnitudes[60])


def test_the_first_mask_is_that_of_pruning_alone():
    model, data = classes()
    objective = Objective(model, data)
    tuning = FineTuning(objective, 300, 1, 0)
    kept = tuning.pruned(tuning.dense, 100).kept[tuning.prunable]
    masks = MagnitudeProfile(objective.chosen).masks(100 / objective.dimension)
    assert torch.equal(kept, torch.cat([mask.flatten() for mask in masks.values()]))


def test_equal_seeds_give_equal_bits_and_others_do_not():
    model, data = classes(normalised=True)
    _, first = tuned(model, data, 150)
    _, again = tuned(model, data, 150)
    _, other = tuned(model, data, 150, seed=1)
    assert torch.equal(first.vector, again.vector)
    assert all(torch.equal(value, again.buffers[name]) for name, value in first.buffers.items())
    assert not torch.equal(first.vector, other.vector)


def test_what_is_best_left_alone_is_the_network_of_pruning_alone():
    """The smallest weights lie on inputs that are always zero, and the others fit the data exactly."""
    x, weight = random(100, 8), random(8, 2, seed=1) + 3
    x[:, :4] = 0
    weight[:4] *= 1e-3
    model = nn.Linear(8, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(weight.T)
    tuning, network = tuned(model, [(x, x @ weight)], 8, squares)
    assert torch.equal(network.vector, tuning.pruned(tuning.dense, 8).vector)
    assert network.loss < 1e-20


def test_it_is_never_worse_on_the_stopping_samples_than_pruning_alone():
    model, data = classes()
    tuning = FineTuning(Objective(model, data), 300, 2, 0, lambda counted: Descent(counted, rate=100.0))
    base = tuning.stage(tuning.dense, 100)
    network = tuning.stage(base, 150)
    alone = tuning.evaluated(tuning.pruned(tuning.dense, 150), tuning.sample(150))
    assert network.loss <= alone.loss
    assert loss_of(tuning, network, data) < 10


def test_a_pass_that_does_not_help_is_undone_and_the_next_takes_shorter_steps():
    model, data = classes()
    calls = []

    class Wild(Descent):
        def step(self, weights, slope, done):
            weights += torch.where(weights != 0, 10.0 * random(len(weights), seed=len(calls)), 0.0)

        def gentler(self):
            calls.append("gentler")

    tuning = FineTuning(Objective(model, data), 300, 3, 0, Wild, layerwise=False)
    network = tuning.stage(tuning.dense, 50)
    assert calls == ["gentler"] * 3
    assert torch.equal(network.vector, tuning.pruned(tuning.dense, 50).vector)


@pytest.mark.parametrize("penalty", [None, L1(0.01), L2(0.01)])
def test_the_penalty_that_counts_is_trained_and_measured(penalty):
    model, data = classes()
    tuning = FineTuning(Objective(model, data, penalty=penalty), 300, 1, 0)
    network = tuning.pruned(tuning.dense, 100)
    sample = tuning.sample(100)
    twin = copy.deepcopy(model)
    vector = iter(network.vector.split([weight.numel() for weight in twin.parameters()]))
    with torch.no_grad():
        for weight in twin.parameters():
            weight.copy_(next(vector).view_as(weight))
    x, y = (torch.cat(parts) for parts in zip(*(batch for batch, _ in sample.stopping), strict=True))
    expected = nn.functional.cross_entropy(twin(x), y).detach()
    expected += 0.0 if penalty is None else penalty.value([weight.detach() for weight in twin.parameters()])
    assert tuning.evaluated(network, sample).loss == pytest.approx(float(expected), rel=1e-12)
    shrunk = tuning.stage(tuning.dense, 100).vector.abs().sum()
    if penalty == L1(0.01):
        assert shrunk < tuned(model, data, 100, passes=1)[1].vector.abs().sum()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_helps_in_every_type(dtype):
    model, data = classes(dtype=dtype)
    tuning, network = tuned(model, data, 200)
    assert network.vector.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    at, weights = network.on(tuning.objective)
    assert weights.dtype == dtype
    alone, alone_weights = tuning.pruned(tuning.dense, 200).on(tuning.objective)
    assert at.value(weights) < alone.value(alone_weights)


def test_normalised_networks_measure_their_statistics_anew():
    model, data = classes(normalised=True)
    tuning, network = tuned(model, data, 180)
    alone = tuning.evaluated(tuning.pruned(tuning.dense, 180), tuning.sample(180))
    anew = tuning.evaluated(tuning.normalised(alone, tuning.sample(180)), tuning.sample(180))
    assert network.loss < min(anew.loss, alone.loss)
    assert set(anew.buffers) == {"1.running_mean", "1.running_var"}
    assert not network.buffers  # the old ones serve better here


def test_statistics_anew_are_taken_where_they_serve_better():
    model, data = classes(normalised=True)
    shifted = [(3 * x + 1, y) for x, y in data]  # as after a shift of what reaches the layer
    tuning, network = tuned(model, shifted, 60)
    assert set(network.buffers) == {"1.running_mean", "1.running_var"}
    at, weights = network.on(tuning.objective)
    assert at.value(weights) < Objective(model, shifted).value()


def test_frozen_layers_stay_as_they_are_but_for_what_is_removed():
    model, data = classes()
    model[0].requires_grad_(False)
    tuning, network = tuned(model, data, 150)
    frozen = ~tuning.trained
    assert int(frozen.sum()) == 12 * 16
    expected = torch.where(network.kept, tuning.dense.vector, 0.0)
    assert torch.equal(network.vector[frozen], expected[frozen])
    assert not torch.equal(network.vector[tuning.trained], expected[tuning.trained])


def test_shared_weights_stay_shared():
    shared = nn.Linear(6, 6).double()
    model = seeded(lambda: nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(6, 3)))
    x = random(200, 6)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
        scores = model(x)
    data = [(x, (scores - scores.mean(0)).argmax(1))]
    tuning, network = tuned(model, data, 20, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none"))
    assert tuning.objective.names == ("0.weight", "0.bias", "4.weight", "4.bias")
    assert network.loss < tuning.evaluated(tuning.pruned(tuning.dense, 20), tuning.sample(20)).loss


def test_the_model_is_left_as_it_is():
    model, data = classes(normalised=True)
    before = snapshot(model)
    tuned(model, data, 150)
    assert same(snapshot(model), before)


def test_a_loss_of_the_users_own_is_trained_on_itself():
    model, data = classes()
    kinds = []

    def loss(model, batch):
        kinds.append(type(batch))
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    tuned(model, data, 150, loss)
    assert set(kinds) == {tuple}


def test_half_precision_keeps_small_steps():
    """Steps far below the spacing of bfloat16 add up."""
    model, data = classes(dtype=torch.bfloat16)
    tuning = FineTuning(Objective(model, data), 300, 1, 0)

    class Creeping(Descent):
        def step(self, weights, slope, done):
            weights += torch.where(weights != 0, 1e-4 * weights, 0.0)

    with mock.patch.object(tuning, "steps", Creeping):
        start = tuning.pruned(tuning.dense, 50)
        steps = Creeping(start.kept)
        sample = tuning.sample(50)
        scores, _ = tuning.of_dense(start, sample)
        moved = tuning._passed(start, sample, scores, steps, torch.Generator().manual_seed(0), Turn(0, 1, False))
    count = -(-sample.size // WIDTH)
    assert_close(moved.vector, start.vector * (1 + 1e-4) ** count, torch.float32, scale=float(start.vector.abs().max()))


def test_what_cannot_be_re_tuned_is_refused():
    model, data = classes()
    with pytest.raises(UserError, match=r"^loss_fn: no gradient reaches the weights, so that nothing can be re-tuned"):
        tuned(model, data, 50, lambda m, b: m(b[0]).detach().square().sum(1))
    model.requires_grad_(False)
    with pytest.raises(UserError, match=r"^model: all its parameters are frozen"):
        FineTuning(Objective(model, data), 300, 1, 0)


def test_the_cost_counts_what_is_passed():
    model, data = classes()
    tuning, _ = tuned(model, data, 150, passes=2)
    sample = tuning.sample(150)
    stopping = sum(size for _, size in sample.stopping)
    read = 2 * READ * tuning.objective.samples  # once for the stage, once here
    passed = (2 * TRAINED + FORWARD) * sample.size  # trained twice, and seen by the dense network
    passed += 4 * FORWARD * stopping  # losses as pruned, as reconstructed, and after two passes
    assert tuning.cost == pytest.approx(passed + _solved(tuning, sample) + read)


def _solved(tuning, sample):
    """What the reconstruction costs, in samples that are trained on."""
    alone = tuning.pruned(tuning.dense, 150)
    moments = 2 * (13**2 + 17**2) * sample.size  # of the inputs of both layers, and of the constant one
    _, moments_of_dense = tuning.of_dense(alone, sample)
    network = tuning.reconstructed(alone, moments_of_dense)
    kept = [network.kept[: 16 * 12].view(16, 12), network.kept[16 * 12 + 16 :][: 3 * 16].view(3, 16)]
    solves = sum(2 * mask.shape[1] ** 3 + sum(k**3 / 3 + k**2 for k in mask.sum(1).tolist()) for mask in kept)
    forward = 2 * (16 * 13 + 3 * 17)  # operations of a sample, three times as many where it is trained on
    return (moments + SOLVING * solves) / (3 * forward)


def test_fewer_samples_are_passed_more_often():
    model, data = classes()
    passes = []

    class Counted(Descent):
        def step(self, weights, slope, done):
            passes.append(done)
            super().step(weights, slope, done)

    for samples in (320, 640, 960):  # of 400 there are 320 to train on
        passes.clear()
        tuning = FineTuning(Objective(model, data), samples, 2, 0, Counted)
        tuning.stage(tuning.dense, 150)
        assert len(passes) == 2 * samples // 320 * 5
        assert passes == sorted(passes)
        assert 0 <= passes[0] < passes[-1] < 1


def test_networks_are_values():
    model, data = classes()
    _, network = tuned(model, data, 150, passes=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        network.loss = 0.0


def test_layers_are_reconstructed_as_the_dense_solution_says():
    """Of a linear network there is one layer, whose outputs are those of the network."""
    model, data = doubled()
    tuning = FineTuning(Objective(model, data, squares), 320, 1, 0)
    sample = tuning.sample(HALF)
    network = reconstructed(tuning, HALF, sample)
    kept = network.vector.view(2, -1) != 0
    assert int(kept.sum()) == HALF
    assert torch.equal(kept.flatten(), network.kept)
    x = torch.cat([batch[0] for batch, _ in sample.training])
    moments = x.T @ x / len(x)
    moments += 0.01 * moments.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)
    for row, keep, old in zip(network.vector.view(2, -1), kept, model.weight.detach(), strict=True):
        assert_close(row[keep], torch.linalg.solve(moments[keep][:, keep], moments[keep] @ old))
    alone = loss_of(tuning, tuning.pruned(tuning.dense, HALF), data)
    assert loss_of(tuning, network, data) < 0.05 * alone


def test_frozen_and_too_dear_layers_are_not_reconstructed():
    model, data = classes()
    model[0].requires_grad_(False)
    tuning = FineTuning(Objective(model, data), 300, 1, 0)
    network = reconstructed(tuning, 150, tuning.sample(150))
    expected = tuning.pruned(tuning.dense, 150).vector
    assert torch.equal(network.vector[~tuning.trained], expected[~tuning.trained])
    few = FineTuning(Objective(model.requires_grad_(True), data), 3, 1, 0)
    assert reconstructed(few, 150, tuning.sample(150)) is None
