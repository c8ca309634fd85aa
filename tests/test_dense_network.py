"""The network before pruning: its losses, gradient and metric, draws of its data, and what a penalty balances."""

from dataclasses import replace

import pytest
import torch
from helpers import random, seeded
from torch import nn

from estimators import L1, L2, Objective, UserError
from pruning_limits.dense_network import DenseNetwork, Subject
from pruning_limits.metrics import metric_loss
from pruning_limits.settings import Settings


def subject(samples=300, **fields):
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)))
    x = random(samples, 8, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        y = (model(x) + 0.3 * random(samples, 4, seed=2)).argmax(1)
    given = {"loss_fn": None, "penalty": None, "parameters": None, "metric": None, "held_out": None}
    return Subject(model, [(x[:200], y[:200]), (x[200:], y[200:])], **given | fields)


@pytest.mark.parametrize("criterion", ["loss", "objective"])
@pytest.mark.parametrize("penalty", [None, L1(1e-3), L2(1e-2)])
def test_loss_and_gradient_are_those_of_the_criterion(criterion, penalty):
    asked = subject(penalty=penalty)
    network = DenseNetwork(asked, Settings(criterion=criterion))
    counted = penalty if criterion == "objective" else None
    objective = Objective(asked.model, asked.loader, penalty=counted)
    assert network.described(None).objective == pytest.approx(objective.value())
    torch.testing.assert_close(network.gradient, objective.gradient())
    assert network.settings.parameters == ("0.weight", "2.weight")
    assert network.samples == 2 * 300 + 4 * 300


@pytest.mark.parametrize(
    ("budget", "samples"), [(None, 3000), (1.0, 3000), (0.99, 1113), (0.5, 562), (0.1, 256), (1e-6, 256)]
)
def test_losses_are_of_all_data_or_of_a_draw_where_the_budget_is_less_than_an_epoch(budget, samples):
    losses = DenseNetwork(subject(3000), Settings(budget=budget)).losses
    assert (len(losses.values), losses.objective.samples, losses.total) == (samples, samples, 3000)
    assert (losses.mean_error > 0) == (samples < 3000)


def trained(samples, penalty, coefficient):
    """A linear classifier at the minimum of its loss and penalty, by Newton's method."""
    x = random(samples, 6, seed=4)
    model = seeded(lambda: nn.Linear(6, 3, bias=False))
    y = (x @ random(6, 3, seed=5) + 2 * random(samples, 3, seed=6)).argmax(1)
    asked = Subject(model, [(x, y)], None, penalty, None, None, None)
    for _ in range(30):
        weights = model.weight.detach().clone().requires_grad_()

        def loss(w):
            return nn.functional.cross_entropy(x @ w.reshape(3, 6).T, y) + 0.5 * coefficient * w.square().sum()

        flat = weights.reshape(-1)
        slope = torch.autograd.functional.jacobian(loss, flat)
        step = torch.linalg.lstsq(torch.autograd.functional.hessian(loss, flat), slope[:, None]).solution
        with torch.no_grad():
            model.weight.sub_(step.reshape(3, 6))
    return asked


@pytest.mark.parametrize("criterion", ["loss", "objective"])
@pytest.mark.parametrize(("penalty", "coefficient"), [(None, 0.0), (L2(0.05), 0.05)])
def test_where_draws_show_no_gradient_it_is_what_balances_the_penalty(criterion, penalty, coefficient):
    asked = trained(4096, penalty, coefficient)
    network = DenseNetwork(asked, Settings(criterion))
    balance = -coefficient * network.profile.vector if criterion == "loss" else torch.zeros(18).double()
    torch.testing.assert_close(network.gradient, balance, rtol=1e-12, atol=1e-12)
    exact = network.losses.objective.gradient()
    torch.testing.assert_close(exact, balance, rtol=1e-6, atol=1e-9)  # the weights are at the minimum
    assert network.samples == 4096 + 2048 + 1024


@pytest.mark.parametrize(
    ("penalty", "scale", "passed"),
    [
        (None, 0.5, 0),  # a large gradient: the draw that shows it is enough
        (L2(0.05), 0.5, 0),
        (None, 0.85, 2730),
        (None, 0.9, 8192),  # a small one
    ],
)
def test_where_draws_show_a_gradient_at_most_a_third_of_it_is_noise(penalty, scale, passed):
    asked = trained(8192, None, 0.0)
    with torch.no_grad():
        asked.model.weight.mul_(scale)
    network = DenseNetwork(Subject(asked.model, asked.loader, None, penalty, None, None, None), Settings())
    exact = network.losses.objective.gradient()
    noise = float((network.gradient - exact).square().sum() / network.gradient.square().sum())
    assert noise < 1 / 3
    assert (noise < 1e-12) == (passed == 8192)
    assert network.samples == 8192 + 2048 + 1024 + passed


def test_few_data_are_passed_whole_for_the_gradient():
    asked = trained(4095, None, 0.0)
    network = DenseNetwork(asked, Settings())
    torch.testing.assert_close(network.gradient, network.losses.objective.gradient())
    assert network.samples == 2 * 4095


def test_a_penalty_that_the_criterion_leaves_out_pulls():
    weights = DenseNetwork(subject(), Settings()).profile.vector
    network = DenseNetwork(subject(penalty=L2(0.1)), Settings())
    torch.testing.assert_close(network.pull(), 0.1 * weights)
    for network in (DenseNetwork(subject(), Settings()), DenseNetwork(subject(penalty=L2(0.1)), Settings("objective"))):
        assert network.pull() is None


def test_the_kink_of_l1_balances_any_slope_up_to_its_coefficient():
    network = DenseNetwork(subject(penalty=L1(1e-2)), Settings())
    left = network.gradient + network.pull()
    expected = torch.sign(network.gradient) * (network.gradient.abs() - 1e-2).clamp(min=0)
    torch.testing.assert_close(left, expected)
    assert left.any()
    assert (left == 0).any()


def test_a_weight_that_acts_without_a_derivative_is_left_out():
    class Frozen(nn.Sequential):
        def forward(self, x):
            with torch.no_grad():
                x = self[0](x)
            return self[1](x)

    model = seeded(lambda: Frozen(nn.Linear(8, 6), nn.Linear(6, 4)))
    asked = Subject(model, [(random(40, 8), torch.arange(40) % 4)], None, None, None, None, None)
    network = DenseNetwork(asked, Settings())
    assert network.settings.parameters == ("1.weight",)
    assert network.profile.dimension == 24
    assert network.remarks[0].startswith("left out: 0.weight")


def test_the_metric_is_compared_on_its_own_data():
    held_out = [(random(50, 8, seed=5), torch.arange(50) % 4)]
    asked = subject(metric=metric_loss("accuracy"), held_out=held_out)
    settings = Settings(metric="accuracy", held_out=True)
    network = DenseNetwork(asked, settings)
    comparison = network.metric(asked, settings)
    right = (asked.model(held_out[0][0]).argmax(1) == held_out[0][1]).double()
    dense = network.described(comparison)
    assert dense.metric == pytest.approx(float(right.mean()))
    assert (dense.metric_samples, dense.resolution) == (50, 0.02)
    pruned = [parameter.detach().clone() for parameter in asked.model.parameters()]
    difference = comparison.at(192)
    with torch.no_grad():
        for parameter in (asked.model[0].weight, asked.model[2].weight):
            parameter.zero_()
        constant = (asked.model(held_out[0][0]).argmax(1) == held_out[0][1]).double()
        for parameter, before in zip(asked.model.parameters(), pruned, strict=True):
            parameter.copy_(before)
    assert difference.mean == pytest.approx(float((right - constant).mean()))
    assert dense.constant_metric == pytest.approx(float(constant.mean()))


def test_data_that_change_between_passes_are_refused():
    class Augmented:
        def __init__(self, batches):
            self.batches = batches

        def __iter__(self):
            return iter([(x + 0.3 * torch.randn_like(x), y) for x, y in self.batches])

    asked = subject()
    moving = Subject(asked.model, Augmented(asked.loader), None, None, None, None, None)
    with pytest.raises(UserError, match=r"^loader: two passes give different losses"):
        DenseNetwork(moving, Settings())


class Reads:
    """A loader that counts how often it was read to its end."""

    def __init__(self, batches):
        self.batches, self.ends = batches, 0

    def __iter__(self):
        yield from self.batches
        self.ends += 1


def test_the_data_are_not_read_once_more_to_plan_the_budget():
    asked = subject()
    loader = Reads(asked.loader)
    DenseNetwork(replace(asked, loader=loader), Settings())
    assert loader.ends == 3  # losses, the check of derivatives, gradient
