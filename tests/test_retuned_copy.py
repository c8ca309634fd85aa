"""A pruned and re-tuned copy of a network."""

import copy
import dataclasses
import os
import signal

import pytest
import torch
from helpers import random, same, seeded, snapshot
from retuning_problems import classes
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

from estimators import L1, UserError
from estimators.files import load_tensors, save_tensors
from pruning_limits import PruningLimit, Retuning, predict_limit

QUICK = {"steps": 4, "probes": 1, "samples": 100, "progress": False}
SMALL = Retuning(samples=256, passes=2)


@pytest.fixture(scope="module")
def problem():
    return classes(normalised=True)


@pytest.fixture(scope="module")
def limit(problem):
    return predict_limit(*problem, **QUICK, metric="accuracy", max_drop=0.03, retune=SMALL)


@torch.no_grad()
def accuracy(model, data):
    return float(torch.cat([model(x).argmax(1) == y for x, y in data]).double().mean())


@torch.no_grad()
def loss(model, data):
    return float(torch.cat([nn.functional.cross_entropy(model(x), y, reduction="none") for x, y in data]).mean())


def equal(first, second):
    own, other = first.state_dict(), second.state_dict()
    return all(torch.equal(value, other[name]) for name, value in own.items())


def zeros(model, names=("0.weight", "3.weight")):
    return sum(int((model.get_parameter(name) == 0).sum()) for name in names)


def test_the_network_that_the_rung_names_comes_out_with_its_metric(problem, limit):
    model, data = problem
    before = snapshot(model)
    named = limit.answer("re-tuned")
    result, answer = limit.retune(model, data, named.sparsity)
    assert same(snapshot(model), before)
    assert (answer.rung, answer.basis, answer.sparsity) == ("re-tuned", "measured", named.sparsity)
    assert answer.metric == pytest.approx(named.metric, abs=1e-12)
    assert answer.metric == pytest.approx(accuracy(result, data), abs=1e-12)
    assert zeros(result) == round(named.sparsity * limit.parameters)
    point = next(point for point in limit.evidence.retuned.points if point.sparsity == named.sparsity)
    assert loss(result, data) - loss(model, data) == pytest.approx(point.rise, abs=1e-9)
    assert "within the 0.03 that it may" in answer.status


@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.9])
def test_any_sparsity_has_its_exact_count_and_beats_pruning_alone(problem, limit, sparsity):
    model, data = problem
    result, answer = limit.retune(model, data, sparsity)
    alone = limit.prune(model, sparsity)
    assert zeros(result) == zeros(alone) == -(-limit.parameters * sparsity // 1)
    assert loss(result, data) <= loss(alone, data) * 1.02
    assert answer.sparsity == zeros(alone) / limit.parameters
    assert all(parameter.requires_grad for parameter in result.parameters())


def test_a_limit_from_a_file_goes_the_same_way(problem, limit, tmp_path):
    limit.to_json(tmp_path / "limit.json")
    loaded = PruningLimit.from_json(tmp_path / "limit.json")
    first, second = (source.retune(*problem, 0.7)[0] for source in (limit, loaded))
    assert equal(first, second)


def test_without_a_measured_way_there_is_one(problem):
    model, data = problem
    plain = predict_limit(model, data, **QUICK)
    result, answer = plain.retune(model, data, 0.8, retuning=SMALL)
    assert answer.metric is None
    assert "the loss rises by" in answer.status
    assert loss(result, data) < loss(plain.prune(model, 0.8), data)


def test_the_metric_is_measured_on_held_out_data_only(problem, limit):
    model, data = problem
    poisoned = [(x, (y + 1) % 3) for x, y in data]
    results = [limit.retune(model, data, 0.7, held_out=held_out) for held_out in (data, poisoned)]
    assert equal(results[0][0], results[1][0])
    assert results[1][1].metric == pytest.approx(accuracy(results[1][0], poisoned), abs=1e-12)


@pytest.mark.parametrize("held_out", [None, "own"])
def test_another_metric_is_measured_where_it_is_given(problem, limit, held_out):
    model, data = problem
    own = [(x[:20], y[:20]) for x, y in data] if held_out else None

    def margin(model, batch):
        return model(batch[0]).topk(2).values.diff()[:, 0].neg()

    result, answer = limit.retune(model, data, 0.7, metric=margin, held_out=own)
    expected = torch.cat([margin(result, batch) for batch in own or data]).mean()
    assert answer.metric == pytest.approx(float(expected.detach()), rel=1e-9)
    assert f"{len(own or data) * (20 if own else 50)} {'held-out' if own else 'training'} samples" in answer.status


def test_dict_batches_and_a_loss_of_the_users_own():
    model, data = classes()
    batches = [{"x": x, "labels": y} for x, y in data]

    def own(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["labels"], reduction="none")

    limit = predict_limit(model, batches, own, **QUICK, epsilon=0.05, retune=SMALL)
    result, _ = limit.retune(model, batches, 0.6, own)
    assert loss(result, data) < loss(limit.prune(model, 0.6), data)


def test_a_language_model():
    tokens = torch.randint(0, 7, (120, 9), generator=torch.Generator().manual_seed(0)).cummax(1).values
    model = seeded(lambda: nn.Sequential(nn.Embedding(7, 12), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 7)))
    optimiser = torch.optim.Adam(model.parameters(), 0.02)

    def per_sample(model, batch):
        scores = model(batch["input"]).transpose(1, 2)
        return nn.functional.cross_entropy(scores, batch["next"], reduction="none").mean(1)

    batches = [{"input": part[:, :-1], "next": part[:, 1:]} for part in tokens.split(30)]
    for _ in range(60):
        for batch in batches:
            optimiser.zero_grad()
            per_sample(model, batch).mean().backward()
            optimiser.step()
    limit = predict_limit(model.eval(), batches, per_sample, **QUICK, epsilon=0.05)
    result, answer = limit.retune(model, batches, 0.7, per_sample, retuning=SMALL)
    means = [
        float(torch.cat([per_sample(net, batch) for batch in batches]).detach().mean())
        for net in (result, limit.prune(model, 0.7))
    ]
    assert means[0] < means[1]
    assert f"the loss rises by {means[0] - limit.objective:.3g}" in answer.status


def test_masks_of_torch_stay_and_their_zeros_count():
    model, data = classes()
    prune.l1_unstructured(model[0], "weight", 60)
    limit = predict_limit(model, data, **QUICK)
    assert limit.evidence.already_removed == 60 / 240
    result, _ = limit.retune(model, data, 0.5, retuning=SMALL)
    result(data[0][0])
    assert zeros(result, ("0.weight_orig",)) >= 60
    assert int((result[0].weight == 0).sum()) + int((result[2].weight == 0).sum()) == 120
    with pytest.raises(UserError, match=r"^sparsity: 25.00% of the weights are removed already; ask for more than 20"):
        limit.retune(model, data, 0.2, retuning=SMALL)


def test_the_criterion_with_its_penalty(problem):
    model, data = classes()
    limit = predict_limit(model, data, **QUICK, criterion="objective", penalty=L1(1e-3), epsilon=0.05)
    result, answer = limit.retune(model, data, 0.6, penalty=L1(1e-3), retuning=SMALL)
    values = [
        loss(net, data) + float(L1(1e-3).value([w.detach() for w in net.parameters()])) for net in (result, model)
    ]
    assert f"the objective rises by {values[0] - values[1]:.3g}" in answer.status


def test_a_limit_of_a_pattern_returns_a_network_of_that_pattern(problem, limit):
    model, data = problem
    for pattern, size in (("2:4", (4,)), ("blocks:1x4", (4,))):
        own = limit.for_pattern(pattern)
        sparsity = None if pattern == "2:4" else 0.6
        result, answer = own.retune(model, data, sparsity)
        assert answer.sparsity == (0.5 if pattern == "2:4" else 0.6)
        for layer in (module for module in result if isinstance(module, nn.Linear)):
            kept = (layer.weight != 0).view(-1, *size).sum(1)
            assert set(kept.tolist()) <= ({2} if pattern == "2:4" else {0, 4})
        assert answer.metric == pytest.approx(accuracy(result, data), abs=1e-12)
    for other in (0.7, 0.3):
        with pytest.raises(UserError) as error:
            limit.for_pattern("2:4").retune(model, data, other)
        expected = f"sparsity: 2:4 removes 0.5000 of the weights here and no other share, got {other}; leave the "
        assert str(error.value) == expected + "sparsity out"
    with pytest.raises(UserError, match=r"^pattern: 3:7 fits no layer of this network \(0\.weight: "):
        limit.for_pattern("3:7").retune(model, data)
    with pytest.raises(UserError, match=r"^sparsity: expected a number in \[0, 1\); unstructured has many"):
        limit.retune(model, data)


@pytest.mark.parametrize("when", [1, 12, 30])
def test_ctrl_c_returns_the_best_network_so_far(problem, limit, when):
    model, data = problem
    before, calls = snapshot(model), []

    def interrupting(model, batch):
        calls.append(1)
        if len(calls) == when + 8:  # the first passes measure what is there
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    result, answer = limit.retune(model, data, 0.8, interrupting)
    assert same(snapshot(model), before)
    assert answer.status.startswith("interrupted after ")
    assert zeros(result) == -(-limit.parameters * 0.8 // 1)
    assert answer.metric == pytest.approx(accuracy(result, data), abs=1e-12)


def retuned(checkpoint, told=False):
    torch.set_num_threads(1)
    model, data = classes(normalised=True)
    limit = predict_limit(model, data, **QUICK)
    result, _ = limit.retune(model, data, 0.9, retuning=SMALL, checkpoint=checkpoint, progress=told)
    return result.state_dict()


def die_at(checkpoint, number):
    def told(stage, done, total):
        if stage == "stages" and done == number:
            os.kill(os.getpid(), signal.SIGKILL)

    retuned(checkpoint, told)


@pytest.mark.usefixtures("one_thread")
def test_killed_it_resumes_to_the_same_bits(forking, tmp_path):
    whole = retuned(None)
    for number in (1, 2):
        checkpoint = tmp_path / f"{number}.pt"
        process = forking.Process(target=die_at, args=(checkpoint, number))
        process.start()
        process.join(300)
        assert process.exitcode == -signal.SIGKILL
        assert checkpoint.exists()
        again = retuned(checkpoint)
        assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_checkpoints_of_others_and_damaged_ones_are_refused(problem, limit, tmp_path):
    path = tmp_path / "run.pt"
    limit.retune(*problem, 0.8, checkpoint=path)
    with pytest.raises(UserError, match=r"belongs to another model, data or setting"):
        limit.retune(*problem, 0.7, checkpoint=path)
    stored = load_tensors(path)
    del stored["states"]["re-tuned copy"]["vector"]
    save_tensors(path, stored)
    with pytest.raises(UserError, match=r"^checkpoint: what it holds of re-tuning is damaged"):
        limit.retune(*problem, 0.8, checkpoint=path)


def test_bad_input_is_refused_in_one_line(problem, limit):
    model, data = problem
    frozen = copy.deepcopy(model).requires_grad_(False)
    one_class = [(x, torch.zeros_like(y)) for x, y in data]
    few = [(x[:3], y[:3]) for x, y in data[:1]]
    detached = lambda model, batch: model(batch[0]).detach().square().sum(1)  # noqa: E731
    cases = [
        ("sparsity: expected a number in [0, 1) (the removed fraction), got 1.0", (model, data, 1.0), {}),
        ("sparsity: expected a number in [0, 1)", (model, data, -0.1), {}),
        ("sparsity: 0.99999 leaves no weight to re-tune; ask for less", (model, data, 0.99999), {}),
        ("model: all its parameters are frozen", (frozen, data, 0.5), {}),
        ("loader: the 256 samples drawn for re-tuning are all of class 0", (model, one_class, 0.5), {}),
        ("samples: re-tuning has 2 samples to train on and the network tells 3 classes apart", (model, few, 0.5), {}),
        ("loss_fn: no gradient reaches the weights", (model, data, 0.5, detached), {}),
        ("model: expected a parameter '0.weight'", (nn.Bilinear(2, 2, 2), data, 0.5), {}),
        ("model: expected 240 prunable weights", (classes(normalised=True)[0][:3], data, 0.5), {}),
    ]
    for message, arguments, options in cases:
        with pytest.raises(UserError) as error:
            limit.retune(*arguments, **options)
        assert str(error.value).startswith(message) or "as in the network of the limit" in str(error.value)
        assert "\n" not in str(error.value)


def test_loaders_with_workers_and_other_types():
    x, centres = random(300, 12, seed=2).float(), random(3, 12, seed=3).float()
    model, _ = classes(dtype=torch.float32)
    loader = DataLoader(TensorDataset(x, (x @ centres.T).argmax(1)), batch_size=32)
    limit = predict_limit(model, loader, **QUICK, metric="accuracy")
    result, answer = limit.retune(model, loader, 0.5, retuning=dataclasses.replace(SMALL, passes=1))
    assert result[0].weight.dtype == torch.float32
    assert answer.metric is not None
