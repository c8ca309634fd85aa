"""Draws of a thread's own: the generators of the process stay as they are, and a seeded run is repeatable."""

import pytest
import torch
from helpers import random
from torch import nn
from torch.distributions import Beta, Gamma, Normal
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from estimators.substitution import PrivateDraws, substituted_functions


class Recurrent(nn.LSTM):
    def __init__(self):
        super().__init__(3, 4, num_layers=2, dropout=0.5)
        for number, parameter in enumerate(self.parameters()):
            parameter.data = random(*parameter.shape, seed=number).float()

    def forward(self, x):
        return super().forward(x)[0]


def image(*shape):
    return random(*shape).float()


DRAWS = {
    "rand": lambda: torch.rand(2, 3),
    "randn": lambda: torch.randn(4),
    "randint": lambda: torch.randint(100, (5,)),
    "randperm": lambda: torch.randperm(9),
    "normal": lambda: torch.normal(0.0, 1.0, (3,)),
    "normal of tensors": lambda: torch.normal(torch.zeros(3), torch.ones(3)),
    "bernoulli": lambda: torch.bernoulli(torch.full((30,), 0.5)),
    "multinomial": lambda: torch.ones(30).multinomial(5),
    "poisson": lambda: torch.poisson(torch.full((9,), 4.0)),
    "random_": lambda: torch.empty((), dtype=torch.int64).random_(generator=None),
    "uniform_": lambda: torch.empty(3).uniform_(1, 2),
    "exponential_": lambda: torch.empty(3).exponential_(),
    "rand_like": lambda: torch.rand_like(torch.ones(3)),
    "randn_like": lambda: torch.randn_like(torch.ones(2, 2), dtype=torch.float64),
    "randint_like": lambda: torch.randint_like(torch.ones(5), 3, 90),
    "randint_like below": lambda: torch.randint_like(torch.ones(5), high=90),
    "init": lambda: nn.init.xavier_normal_(nn.init.uniform_(torch.empty(2, 2))),
    "dropout": lambda: functional.dropout(torch.ones(40), 0.3),
    "dropout_": lambda: functional.dropout(torch.ones(40), 0.3, inplace=True),
    "dropout2d": lambda: functional.dropout2d(torch.ones(2, 20, 2, 2)),
    "dropout1d": lambda: functional.dropout1d(torch.ones(2, 20, 2)),
    "alpha dropout": lambda: functional.alpha_dropout(torch.ones(40), training=True),
    "rrelu": lambda: functional.rrelu(-torch.ones(9), training=True),
    "gumbel": lambda: functional.gumbel_softmax(torch.zeros(2, 5)),
    "fractional pool": lambda: functional.fractional_max_pool2d(image(2, 3, 9, 9), 2, output_size=5),
    "recurrent": lambda: Recurrent()(torch.ones(2, 1, 3)),
    "attention": lambda: functional.scaled_dot_product_attention(*[image(2, 6, 4)] * 3, dropout_p=0.5),
    "Normal": lambda: Normal(torch.zeros(3), 1.0).rsample(),
    "Gamma": lambda: Gamma(torch.ones(3), 1.0).sample(),
    "Beta": lambda: Beta(torch.ones(3), 1.0).sample(),
    "loader": lambda: torch.cat([x for (x,) in DataLoader(TensorDataset(torch.arange(30)), 4, shuffle=True)]),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("around", [False, True])
def test_draws_do_not_touch_the_generator_of_the_process(name, around):
    draw, model = DRAWS[name], nn.Linear(1, 1)
    torch.manual_seed(5)
    before = torch.get_rng_state()

    def drawn(draws):
        if around:
            with substituted_functions(model), draws:
                return draw()
        with draws, substituted_functions(model):
            return draw()

    own, other = PrivateDraws(1), PrivateDraws(1)
    first, second = drawn(own), drawn(own)
    assert torch.equal(first, drawn(other))
    assert torch.equal(second, drawn(other))
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", DRAWS)
def test_without_a_seed_they_are_those_of_the_process(name):
    torch.manual_seed(3)
    with PrivateDraws():
        ours = DRAWS[name]()
    assert torch.equal(ours, DRAWS[name]())


def test_a_generator_that_is_given_is_used():
    given = torch.Generator().manual_seed(2)
    expected = torch.rand(3, generator=torch.Generator().manual_seed(2))
    with PrivateDraws(0):
        assert torch.equal(torch.rand(3, generator=given), expected)


def test_what_draws_nothing_does_not_exchange_the_state(monkeypatch):
    def refused(state):
        raise AssertionError("the state was exchanged")

    monkeypatch.setattr(torch, "set_rng_state", refused)
    x = image(2, 6, 4)
    with PrivateDraws(0):
        Recurrent().eval()(torch.ones(2, 1, 3))
        functional.scaled_dot_product_attention(x, x, x)
        functional.dropout(x, training=False)
        functional.rrelu(x)
        functional.alpha_dropout(x)


def test_gradients_go_through_dropout():
    x = torch.ones(50, requires_grad=True)
    with PrivateDraws(0):
        y = functional.dropout(x, 0.2)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(slope, y.detach())
    assert set(slope.tolist()) == {0.0, 1.25}


def test_on_the_meta_device_nothing_is_drawn():
    def numbers():
        x = torch.ones(30, 4, device="meta")
        drawn = [torch.rand(2, device="meta"), torch.randn_like(x), functional.dropout(x), x.uniform_()]
        return [*drawn, functional.rrelu(x, training=True), nn.Linear(3, 2, device="meta").weight]

    with PrivateDraws(0):
        before = torch.rand(2)
    with PrivateDraws(0):
        assert all(tensor.device.type == "meta" for tensor in numbers())
        assert torch.equal(torch.rand(2), before)
