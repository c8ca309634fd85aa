"""What a prediction computes: the dense network with its metric, pruned networks on draws, remarks, cost."""

import dataclasses
from datetime import date

import pytest
import torch
from helpers import random, seeded
from torch import nn

from estimators import L1, L2, Objective, UserError
from estimators.penalty import Penalty
from pruning_limits import Retuning, predict_limit
from pruning_limits.dense_network import CHANCE_SAMPLES, GRADIENT_SAMPLES, Subject
from pruning_limits.gathering import gather
from pruning_limits.metrics import metric_loss
from pruning_limits.settings import Settings

QUICK = {"steps": 6, "probes": 1, "samples": 64, "tolerance": 0.05}


def subject(samples: int = 300, penalty: Penalty | None = None, metric: str | None = None) -> Subject:
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)))
    x = random(samples, 8, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        y = (model(x) + 0.3 * random(samples, 4, seed=2)).argmax(1)
    return Subject(model, [(x, y)], None, penalty, None, None if metric is None else metric_loss(metric), None)


def test_the_dense_network_is_described():
    asked = Settings(metric="accuracy", **QUICK)
    gathered = gather(subject(metric="accuracy"), asked, False, None)
    model, ((x, y),) = subject().model, subject().loader
    right = (model(x).argmax(1) == y).double()
    dense, evidence = gathered.evidence.dense, gathered.evidence
    assert dense.metric == pytest.approx(float(right.mean()))
    assert dense.metric_error == pytest.approx(float(right.std()) / 300**0.5)
    assert (dense.samples, dense.metric_samples, dense.resolution) == (300, 300, 1 / 300)
    assert dense.objective == pytest.approx(Objective(model, [(x, y)]).value())
    assert not dense.at_chance
    assert dense.constant_metric < dense.metric
    assert gathered.settings == dataclasses.replace(asked, parameters=("0.weight", "2.weight"))
    assert gathered.allowed.origin == "batch-std"
    assert (evidence.parameters, evidence.already_removed) == (192, 0.0)
    assert [layer.name for layer in evidence.layers] == ["0.weight", "2.weight"]
    assert evidence.origin.model == "Sequential"
    assert evidence.origin.data == "300 samples"
    assert evidence.origin.date == date.today().isoformat()


@pytest.mark.parametrize("penalty", [L1(1e-2), L2(1e-2)])
def test_the_penalty_counts_with_the_objective_only(penalty):
    alone = gather(subject(), Settings(epsilon=0.05, **QUICK), False, None).evidence
    loss = gather(subject(penalty=penalty), Settings(epsilon=0.05, **QUICK), False, None).evidence
    objective = Settings(epsilon=0.05, criterion="objective", **QUICK)
    both = gather(subject(penalty=penalty), objective, False, None).evidence
    assert loss.points == alone.points
    assert loss.dense.objective == alone.dense.objective < both.dense.objective
    assert all(point.pull == 0 for point in (*alone.model_points, *both.model_points))
    assert any(point.pull != 0 for point in loss.model_points)
    model = subject().model
    saved = [
        float(penalty.value([parameter.detach() for parameter in model.parameters()]))
        - float(penalty.value([_pruned(model, point.sparsity), *_biases(model)]))
        for point in both.points
    ]
    same = {point.sparsity: point.rise for point in loss.points}
    for point, less in zip(both.points, saved, strict=True):
        if point.sparsity in same:
            assert point.rise == pytest.approx(same[point.sparsity] - less, abs=1e-9)


def _biases(model):
    return [parameter.detach() for name, parameter in model.named_parameters() if "bias" in name]


def _pruned(model, sparsity):
    flat = torch.cat([p.detach().reshape(-1) for name, p in model.named_parameters() if "weight" in name])
    flat[torch.argsort(flat.abs(), stable=True)[: round(sparsity * len(flat))]] = 0
    return flat


def test_most_points_of_many_data_are_decided_by_a_draw():
    limit = predict_limit(*_parts(subject(9000)), epsilon=0.6, progress=False, **QUICK)
    points = limit.evidence.points
    drawn = [point for point in points if point.rise_error > 0]
    assert len(drawn) > len(points) / 2
    one_shot = limit.answer("one-shot")
    ends = {point.sparsity: point.rise_error for point in points if point.sparsity in (one_shot.low, one_shot.high)}
    slope = (points[-1].rise - points[0].rise) / (points[-1].sparsity - points[0].sparsity)
    assert max(ends.values()) < 0.02 * slope  # in sparsity, of draws beside all data
    assert limit.cost.forward_samples < 9000 * len(points)


def _parts(asked: Subject):
    return asked.model, asked.loader


def test_a_metric_is_measured_on_held_out_data_and_its_errors_name_them():
    model, data = _parts(subject())
    held_out = [(random(50, 8, seed=7), torch.zeros(50, dtype=torch.long))]
    limit = predict_limit(model, data, metric="accuracy", held_out=held_out, epsilon=0.05, progress=False, **QUICK)
    assert limit.evidence.dense.metric_samples == 50
    assert limit.settings.held_out
    broken = [(random(50, 8, seed=7), torch.zeros(50, 3, dtype=torch.long))]
    with pytest.raises(UserError, match=r"^(held_out|metric|model or metric): "):
        predict_limit(model, data, metric="accuracy", held_out=broken, progress=False, **QUICK)
    with pytest.raises(UserError, match=r"^held_out: "):
        predict_limit(model, data, metric="accuracy", held_out=[], progress=False, **QUICK)
    with pytest.raises(UserError, match=r"^metric: "):
        predict_limit(model, data, metric="precision", progress=False, **QUICK)
    with pytest.raises(UserError, match=r"^metric: "):
        predict_limit(model, data, metric=lambda model, batch: model(batch[0]), progress=False, **QUICK)


def test_a_fall_below_the_resolution_is_noted():
    model, data = _parts(subject())
    limit = predict_limit(model, data, metric="accuracy", max_drop=0.001, progress=False, **QUICK)
    assert any("below the resolution 0.0033 of the metric on 300 samples" in note for note in limit.notes)
    assert limit.answer("one-shot").metric >= limit.dense_metric - 0.001


def test_a_metric_that_never_falls_gives_no_epsilon():
    model, data = _parts(subject())

    def constant(network, batch):
        return torch.ones(len(batch[1])) + 0 * network(batch[0])[:, 0]

    limit = predict_limit(model, data, metric=constant, max_drop=0.1, progress=False, **QUICK)
    assert limit.allowed.origin == "batch-std"
    assert any("no rise of the loss goes with a metric that is lower by 0.1" in note for note in limit.notes)
    assert limit.lower == 1.0


def test_few_samples_tell_whether_a_network_is_better_than_constant_outputs():
    limit = predict_limit(*_parts(subject(9000)), epsilon=0.1, measure=False, progress=False, **QUICK)
    # Losses, a draw for the gradient and half of it; more networks would hold all data.
    assert limit.cost.forward_samples == 9000 + 3 * GRADIENT_SAMPLES // 2 + 4 * CHANCE_SAMPLES


def test_the_ggn_comes_before_directions_and_these_before_the_hessian():
    stages = []
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 40), nn.Tanh(), nn.Linear(40, 8)))  # too large to be built
    x = random(100, 8, seed=1)
    options = QUICK | {"progress": lambda stage, *_: stages.append(stage)}
    predict_limit(model, [(x, model(x).argmax(1))], epsilon=0.05, measure=False, **options)
    kinds = list(dict.fromkeys(stage.split()[0].strip(",") for stage in stages))
    assert kinds == ["ggn", "directions", "hessian"]


@pytest.mark.parametrize("budget", [1.0, 0.5, None])
def test_the_cost_counts_products_and_forward_passes_in_epochs(budget):
    model, data = _parts(subject())
    cost = predict_limit(model, data, epsilon=0.05, progress=False, budget=budget, **QUICK).cost
    assert cost.epochs == pytest.approx((cost.forward_samples + 4 * cost.samples) / (3 * 300))


def test_below_one_epoch_losses_and_pruned_networks_are_those_of_a_draw():
    model, data = _parts(subject(4000))
    whole = predict_limit(model, data, epsilon=0.05, progress=False, **QUICK)
    missed = []
    for seed in range(10):
        limit = predict_limit(model, data, epsilon=0.05, progress=False, budget=0.5, seed=seed, **QUICK)
        dense, answer = limit.evidence.dense, limit.answer("one-shot")
        assert dense.samples == 4000
        assert 0 < dense.objective_error < 0.02
        assert limit.cost.forward_samples < whole.cost.forward_samples / 2
        assert all(point.rise_error > 0 for point in limit.evidence.points)
        assert "a draw of the data" in answer.status
        assert answer.low < answer.sparsity < answer.high
        missed.append(not answer.low <= whole.lower <= answer.high)
        missed.append(abs(limit.objective - whole.objective) > 2 * dense.objective_error)
    assert sum(missed) <= 3  # of 20, where one is expected


def test_pruned_and_re_tuned_networks_carry_the_error_of_drawn_losses():
    asked = {"pattern": ("unstructured", "blocks:2x1"), "retune": Retuning(samples=128, passes=1)}
    model, data = _parts(subject(4000))
    limit = predict_limit(model, data, epsilon=0.05, progress=False, budget=0.5, **asked, **QUICK)
    blocks = limit.for_pattern("blocks:2x1").evidence
    tuned = limit.evidence.retuned
    assert tuned is not None
    for points in (limit.evidence.points, blocks.points, tuned.points):
        assert points
        assert all(point.rise_error > 0 for point in points)
    answer = limit.for_pattern("blocks:2x1").answer("one-shot")
    assert "all data" not in answer.status


@pytest.mark.parametrize("max_drop", [0.5, 1, 2.0, 100])
def test_a_fall_of_the_whole_accuracy_is_refused(max_drop):
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    data = [(torch.eye(2), torch.tensor([0, 0]))]
    with pytest.raises(UserError, match=r"^max_drop: expected less than the accuracy of the network, 0\.5, such as"):
        predict_limit(model, data, metric="accuracy", max_drop=max_drop, progress=False)


def test_undefined_outputs_on_held_out_data_leave_nothing_to_lose():
    model, data = seeded(lambda: nn.Linear(2, 2)).float(), [(torch.eye(2), torch.tensor([0, 1]))]
    held_out = [(torch.eye(2) * float("nan"), torch.tensor([0, 1]))]
    with pytest.raises(UserError, match=r"^max_drop: expected less than the accuracy of the network, 0, such as"):
        predict_limit(model, data, metric="accuracy", max_drop=0.02, held_out=held_out, progress=False)
