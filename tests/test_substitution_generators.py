"""Seeds and states that code sets while its thread draws from generators of its own: those of the process stay."""

import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from estimators.substitution import PrivateDraws
from estimators.substitution.generators import (
    GENERATORS,
    OwnGenerators,
    ThreadGenerator,
    ThreadGenerators,
    process_generator,
)


def forked():
    with torch.random.fork_rng():
        return torch.manual_seed(7), torch.rand(3)[0]


SEEDING = {
    "manual_seed": lambda: torch.manual_seed(7),
    "manual_seed of torch.random": lambda: torch.random.manual_seed(7),
    "seed": torch.seed,
    "fork_rng": forked,
    "set_rng_state": lambda: torch.set_rng_state(torch.Generator().manual_seed(7).get_state()),
}


@pytest.mark.parametrize("name", SEEDING)
def test_seeds_do_not_touch_the_generator_of_the_process(name):
    torch.manual_seed(5)
    before, functions = torch.get_rng_state(), (torch.random.default_generator, torch.cuda.default_generators)
    with GENERATORS.on(), PrivateDraws(1):
        SEEDING[name]()
        torch.rand(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert functions == (torch.random.default_generator, torch.cuda.default_generators)


def test_a_seed_is_that_of_the_threads_own_generator():
    torch.manual_seed(7)
    expected = torch.rand(3)
    with GENERATORS.on(), PrivateDraws(1):
        torch.manual_seed(7)
        assert torch.initial_seed() == 7
        assert torch.equal(torch.rand(3), expected)
        torch.manual_seed(7)
        assert torch.equal(torch.rand(3, generator=torch.default_generator), expected)
        assert torch.equal(torch.rand_like(expected), torch.rand(6, generator=torch.Generator().manual_seed(7))[3:])


def test_a_fork_ends_where_it_began():
    with GENERATORS.on(), PrivateDraws(1):
        before = torch.get_rng_state()
        first, second = forked()[1], forked()[1]
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)


def test_states_that_are_kept_and_put_back_repeat_draws():
    with GENERATORS.on(), PrivateDraws(1):
        state = torch.get_rng_state()
        first = torch.rand(3)
        torch.set_rng_state(state)
        assert torch.equal(torch.rand(3), first)


def test_checkpoints_repeat_the_draws_of_the_first_call():
    x, drawn = torch.ones(4, requires_grad=True), []

    def layer(x):
        drawn.append(torch.rand(4))
        return x * drawn[-1]

    with GENERATORS.on(), PrivateDraws(1):
        y = checkpoint(layer, x, use_reentrant=False)
        (slope,) = torch.autograd.grad(y.sum(), x)
    assert len(drawn) == 2
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(slope, drawn[0])


def test_other_threads_seed_the_process():
    before, states = torch.get_rng_state(), []

    def seed():
        torch.manual_seed(11)
        states.append(torch.get_rng_state())

    try:
        with GENERATORS.on(), PrivateDraws(1):
            other = threading.Thread(target=seed)
            other.start()
            other.join()
            torch.manual_seed(3)
        expected = torch.Generator().manual_seed(11).get_state()
        assert torch.equal(states[0], expected)
        assert torch.equal(torch.get_rng_state(), expected)
    finally:
        torch.set_rng_state(before)


def test_generators_are_taken_out_by_the_thread():
    process = torch.Generator().manual_seed(4)
    generators = ThreadGenerators([process])
    with OwnGenerators({}, seed=9) as own:
        assert generators[0] is own.generator(torch.device("cpu"))
        assert ThreadGenerator(process).initial_seed() == 9
    assert generators[0] is process
    assert process.initial_seed() == 4


def test_only_generators_of_the_process_are_replaced():
    own, given = OwnGenerators({}, seed=9), torch.Generator()
    assert own.own(given) is given
    assert own.own(process_generator(torch.device("cpu"))) is own.generator(torch.device("cpu"))
    assert own.own(None) is None
