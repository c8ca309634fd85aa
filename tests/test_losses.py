"""The losses of a pass: the default epsilon, the error of a draw of them, and when all data are passed instead."""

import copy

import pytest
import torch
from helpers import random, seeded
from test_predict import batched, wide_problem
from torch import nn

from estimators import L1, Objective, UserError
from pruning_limits import PruningLimit, losses, predict_limit
from pruning_limits.gate import compare
from pruning_limits.losses import Losses, all_losses, drawn_losses

N = 4000


@pytest.fixture(scope="module")
def many():
    """A network and 4,000 samples whose losses have no heavy tail."""
    model, x, y = wide_problem(N)
    with torch.no_grad():
        model[2].weight.mul_(0.3)
    return model, batched(x, y, 1000)


@pytest.fixture(scope="module")
def whole(many):
    return all_losses(Objective(*many))


def a_part(whole, count, seed):
    """The losses of a random part, as a pass over it has them."""
    part = whole.objective.subset(count, seed)
    rows = part.picked
    return Losses(part, whole.values[rows], whole.sizes[rows], N, whole.shares[rows])


def test_deviation_is_that_of_the_mean_of_a_batch(whole):
    assert whole.deviation() == pytest.approx(float(whole.values.std()) / 128**0.5)
    generator = torch.Generator().manual_seed(0)
    means = whole.values[torch.randint(N, (4000, 128), generator=generator)].mean(1)
    assert whole.deviation() == pytest.approx(float(means.std()), rel=0.05)
    assert whole.deviation(batch=32) == pytest.approx(2 * whole.deviation())


@pytest.mark.parametrize("count", [500, 2000])
def test_the_errors_of_a_draw_are_the_spread_over_draws(whole, count):
    draws = [a_part(whole, count, seed) for seed in range(200)]
    deviations = torch.tensor([draw.deviation() for draw in draws])
    shares = torch.stack([draw.shares.mean() for draw in draws])
    means = torch.tensor([draw.mean for draw in draws])
    told = torch.tensor([[draw.deviation_error, draw.curvature_error, draw.mean_error] for draw in draws]).mean(0)
    assert float(deviations.std() / deviations.mean()) == pytest.approx(float(told[0]), rel=0.2)
    assert float(shares.std() / shares.mean()) == pytest.approx(float(told[1]), rel=0.2)
    assert float(means.std()) == pytest.approx(float(told[2]), rel=0.2)


def test_all_data_have_no_error(whole):
    assert whole.deviation_error == whole.curvature_error == whole.mean_error == 0
    assert whole.objective.samples == whole.total == N


def test_other_losses_have_no_shares(many):
    model, batches = many
    squared = all_losses(Objective(model, batches, lambda model, batch: model(batch[0]).square().sum(1)))
    assert squared.shares is None
    assert squared.curvature_error == 0


@pytest.fixture
def small_draws(monkeypatch):
    """As if data sets of 1,000 samples were large."""
    monkeypatch.setattr(losses, "DRAWN_SAMPLES", 1000)
    monkeypatch.setattr(losses, "FEWEST_DRAWN", 500)
    monkeypatch.setattr(losses, "DRAWN_ERROR", 0.1)


@pytest.mark.usefixtures("small_draws")
def test_a_draw_stands_for_all_data(many, whole):
    drawn = drawn_losses(Objective(*many), 0, seed=1)
    assert drawn.total == N
    assert len(drawn.values) == drawn.objective.samples == 1000
    torch.testing.assert_close(drawn.values, whole.values[drawn.objective.picked])
    assert drawn.deviation() == pytest.approx(whole.deviation(), rel=3 * drawn.deviation_error)
    assert drawn.mean == pytest.approx(whole.mean, rel=0.1)


@pytest.mark.usefixtures("small_draws")
def test_at_least_as_many_are_drawn_as_asked_for(many):
    assert len(drawn_losses(Objective(*many), 1500, seed=1).values) == 1500
    assert len(drawn_losses(Objective(*many), 2 * N, seed=1).values) == N


@pytest.mark.usefixtures("small_draws")
def test_large_samples_are_drawn_in_smaller_number(many, monkeypatch):
    monkeypatch.setattr(losses, "DRAWN_BYTES", 800 * (12 * 8 + 8))  # 12 float64 inputs and a label
    assert len(drawn_losses(Objective(*many), 0, seed=1).values) == 800
    monkeypatch.setattr(losses, "DRAWN_BYTES", 1)
    assert len(drawn_losses(Objective(*many), 0, seed=1).values) == 500


@pytest.mark.usefixtures("small_draws")
def test_heavy_tails_ask_for_all_data(many):
    sure = copy.deepcopy(many[0])
    with torch.no_grad():
        sure[2].weight.mul_(30)
        logits = [(x, sure(x)) for x, _ in many[1]]
        rare = [(x, torch.where(torch.arange(len(z)) % 125 == 0, z.argmin(1), z.argmax(1))) for x, z in logits]
    drawn = drawn_losses(Objective(sure, rare), 0, seed=1)
    assert len(drawn.values) == N


OPTIONS = {"measure": False, "steps": 24, "probes": 2, "penalty": L1(1e-4), "criterion": "objective"}


@pytest.mark.usefixtures("small_draws")
@pytest.mark.parametrize("penalty", [None, L1(1e-4)])
def test_a_prediction_without_measurement_passes_no_more_than_a_draw(many, penalty):
    limit = predict_limit(*many, **OPTIONS | {"penalty": penalty})
    assert limit.cost.forward_samples == 2 * 1000 + 4 * 512  # losses, gradient or check; constant outputs and strangers


@pytest.mark.usefixtures("small_draws")
def test_its_interval_says_so(many, monkeypatch):
    limits = [predict_limit(*many, **OPTIONS, seed=seed) for seed in range(6)]
    given = [predict_limit(*many, **OPTIONS, seed=seed, epsilon=limit.epsilon) for seed, limit in enumerate(limits[:2])]
    monkeypatch.setattr(losses, "DRAWN_SAMPLES", N)
    truth = predict_limit(*many, **OPTIONS | {"samples": N, "probes": 8, "steps": 64})
    assert truth.evidence.hessian.sample_error == 0
    for limit in limits:
        assert limit.interval[0] <= truth.sparsity <= limit.interval[1]
        assert limit.epsilon == pytest.approx(truth.epsilon, rel=0.1)
        assert abs(limit.objective - truth.objective) <= 3 * limit.evidence.dense.objective_error
    for limit, known in zip(limits, given, strict=False):
        # nothing is unknown about a given epsilon
        assert limit.evidence.hessian.sample_error > known.evidence.hessian.sample_error > 0
        assert limit.sparsity == known.sparsity


@pytest.mark.usefixtures("small_draws")
def test_the_gate_takes_the_limit_of_a_draw_for_that_of_its_data(many, whole, tmp_path):
    predict_limit(*many, **OPTIONS).to_json(tmp_path / "limit.json")
    limit = PruningLimit.from_json(tmp_path / "limit.json")
    dense = Objective(*many, penalty=OPTIONS["penalty"])
    value = dense.value()
    assert abs(value - limit.objective) > 1e-3 * value
    assert compare(limit, dense.chosen, dense.chosen, value, value).status == "achievable"
    with pytest.raises(UserError, match="the objective of dense was"):
        compare(limit, dense.chosen, dense.chosen, value + 5 * limit.evidence.dense.objective_error, value)


@pytest.mark.usefixtures("small_draws")
def test_measured_predictions_pass_all_data(many, whole):
    limit = predict_limit(*many, **OPTIONS | {"measure": True})
    assert limit.epsilon == pytest.approx(whole.deviation(), rel=1e-12)


@pytest.mark.parametrize(("values", "message"), [([1.0], "needs at least two losses"), ([1.0, 1.0], "is zero because")])
def test_no_default_epsilon(values, message):
    data = [(random(len(values), 3).float(), torch.zeros(len(values)).long())]
    objective = Objective(seeded(lambda: nn.Linear(3, 2)), data)
    with pytest.raises(ValueError, match=message):
        Losses(objective, torch.tensor(values), torch.ones(len(values)), len(values)).deviation()
