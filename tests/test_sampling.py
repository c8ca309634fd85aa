"""Samples drawn by scores: probabilities, draws, and unbiased values, gradients and products."""

import pytest
import torch
from helpers import assert_close
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from estimators import GGN, L2, Hessian, Objective, UserError
from estimators.sampling import inclusion, systematic

SIZE, TAKEN, DRAWS = 24, 8, 400
scores_ = st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=40)


@given(scores_, st.data())
def test_probabilities_sum_to_the_number_and_are_in_proportion_below_one(scores, data):
    samples = data.draw(st.integers(1, len(scores)))
    given_ = torch.tensor(scores, dtype=torch.float64)
    odds = inclusion(given_, samples)
    assert odds.min() > 0 or samples == int((odds == 1).sum())
    assert odds.max() <= 1
    assert float(odds.sum()) == pytest.approx(samples)
    below = odds < 1
    if below.sum() > 1 and odds[below].min() > 0:
        ratio = odds[below] / given_[below]
        assert_close(ratio / ratio[0], torch.ones_like(ratio), scale=1.0)
        assert given_[~below].numel() == 0 or given_[~below].min() >= given_[below].max()


@given(scores_, st.data())
def test_draws_take_every_sample_at_most_once_and_the_certain_ones(scores, data):
    samples = data.draw(st.integers(1, len(scores)))
    odds = inclusion(torch.tensor(scores), samples)
    picked = systematic(odds, samples, torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    assert len(set(picked.tolist())) == len(picked) == samples
    assert picked.tolist() == sorted(picked.tolist())
    certain = (odds > 1 - 1e-12).nonzero().flatten().tolist()
    assert set(certain) <= set(picked.tolist())


def test_samples_are_drawn_as_often_as_their_probabilities_say():
    odds = inclusion(torch.arange(1.0, 11.0) ** 2, 4)
    counts = torch.zeros(10)
    for seed in range(4000):
        counts[systematic(odds, 4, torch.Generator().manual_seed(seed))] += 1
    errors = (odds * (1 - odds) / 4000).sqrt()
    assert ((counts / 4000 - odds).abs() <= 4 * errors + 1e-9).all()


@pytest.fixture
def objective():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = 2 * torch.randn(SIZE, 3, dtype=torch.float64), torch.randint(0, 3, (SIZE,))
    return Objective(model, list(zip(x.split(7), y.split(7), strict=True)), penalty=L2(0.1))


def shares(objective):
    return -torch.expm1(-objective.sample_losses()[0]) + 0.05


@pytest.mark.parametrize("quantity", ["value", "gradient", "hessian", "ggn"])
def test_a_weighted_sub_sample_estimates_all_data_without_bias(objective, quantity):
    along = torch.randn(objective.dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def of(part):
        match quantity:
            case "value":
                return torch.tensor([part.value()], dtype=torch.float64)
            case "gradient":
                return part.gradient()
            case "hessian":
                return Hessian(part) @ along
        return GGN(part) @ along

    scores = shares(objective)
    estimates = torch.stack([of(objective.subset(TAKEN, seed, scores)) for seed in range(DRAWS)])
    misses = estimates.mean(0) - of(objective)
    assert (misses.abs() <= 4.5 * estimates.std(0) / DRAWS**0.5).all()
    assert estimates.std(0).max() > 0


def test_scores_that_go_with_the_gradients_make_less_noise_than_equal_ones(objective):
    each = [
        Objective(objective.model, [sample])
        for x, y in objective.loader
        for sample in zip(x.split(1), y.split(1), strict=True)
    ]
    norms = torch.stack([torch.linalg.vector_norm(sample.gradient()) for sample in each])
    assert norms.max() > 2 * norms.min()
    spread = [
        torch.stack([objective.subset(TAKEN, seed, odds).gradient() for seed in range(DRAWS)]).var(0).sum()
        for odds in (norms, None)
    ]
    assert spread[0] < 0.95 * spread[1]


def test_a_part_of_a_weighted_sub_sample_keeps_its_weights(objective):
    part = objective.subset(12, 0, shares(objective))
    means = [part.subset(6, seed).value() for seed in range(DRAWS)]
    error = torch.tensor(means).std() / DRAWS**0.5
    assert abs(sum(means) / DRAWS - part.value()) <= 4.5 * error


def test_all_data_need_no_weights(objective):
    assert objective.subset(SIZE, 0, shares(objective)) is objective


def test_picked_samples_and_factors_reproduce_the_losses(objective):
    losses, scores = objective.sample_losses()[0], shares(objective)
    part = objective.subset(TAKEN, 3, scores)
    assert_close(part.sample_losses()[0], losses[part.picked] * part.factors)
    assert_close(part.factors, TAKEN / SIZE / inclusion(scores, TAKEN)[part.picked])


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_scores_that_are_no_positive_numbers(objective, bad):
    scores = torch.ones(SIZE)
    scores[3] = bad
    with pytest.raises(UserError, match="scores"):
        objective.subset(TAKEN, 0, scores)


@pytest.mark.parametrize("count", [SIZE - 1, SIZE + 1])
def test_other_numbers_of_scores_than_samples(objective, count):
    with pytest.raises(UserError, match=f"scores: expected {SIZE}"):
        objective.subset(TAKEN, 0, torch.ones(count))


def test_losses_that_are_means_cannot_be_weighted():
    model = nn.Linear(3, 1)
    data = [(torch.randn(6, 3), torch.randn(6, 1)) for _ in range(3)]
    objective = Objective(model, data, lambda model, batch: (model(batch[0]) - batch[1]).square().mean())
    with pytest.raises(UserError, match="scores"):
        objective.subset(5, 0, torch.ones(18)).value()
