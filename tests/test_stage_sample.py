"""The samples of one stage of re-tuning."""

import pytest
import torch
from helpers import CASES, random
from torch import nn

from estimators import Objective, UserError
from pruning_limits.stage_sample import StageSample, drawn_count

NUMBERED = [(torch.arange(start, start + 20)[:, None].double(), torch.arange(20) % 2) for start in (0, 20, 40, 60, 80)]


def numbers(batches):
    return sorted(int(value) for batch, *_ in batches for value in batch[0][:, 0])


def passed(sample, width=8, seed=0):
    return [(batch, size) for _, batch, size in sample.shuffled(width, torch.Generator().manual_seed(seed))]


def test_training_and_stopping_samples_are_apart_and_fresh():
    objective = Objective(nn.Linear(1, 2).double(), NUMBERED)
    first, second = StageSample(objective, 40, 1), StageSample(objective, 40, 2)
    training, stopping = numbers(passed(first)), numbers(first.stopping)
    assert first.size == len(training) == 40
    assert len(stopping) == drawn_count(40) - 40
    assert not set(training) & set(stopping)
    assert len({*training, *stopping}) == drawn_count(40)
    assert numbers(first.training) == training
    assert training != numbers(passed(second))
    assert numbers(passed(StageSample(objective, 40, 1))) == training


def test_a_pass_is_shuffled_in_mini_batches_of_about_equal_size():
    sample = StageSample(Objective(nn.Linear(1, 2).double(), NUMBERED), 50, 0)
    sizes = [size for _, size in passed(sample, 8)]
    assert sum(sizes) == 50
    assert set(sizes) == {7, 8}
    orders = [[int(value) for batch, _ in passed(sample, 8, seed) for value in batch[0][:, 0]] for seed in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_places_are_those_of_the_groups():
    sample = StageSample(Objective(nn.Linear(1, 2).double(), NUMBERED), 50, 0)
    groups = [torch.cat([batch[0] for batch, _ in parts]) for parts in sample.groups()]
    for place, batch, _ in sample.shuffled(8, torch.Generator().manual_seed(0)):
        assert torch.equal(groups[place.number][place.rows], batch[0])


def test_a_fifth_of_few_samples_tells_when_to_stop():
    sample = StageSample(Objective(nn.Linear(1, 2).double(), NUMBERED), 2048, 0)
    assert (sample.size, sum(size for _, size in sample.stopping)) == (80, 20)


@pytest.mark.parametrize("name", ["dict", "ragged", "scalar mean", "tokens"])
def test_other_kinds_of_batches(name):
    if name not in CASES:
        pytest.skip(f"there is no case {name}")
    case = CASES[name]
    objective = Objective(case.model(), case.loader(), case.loss_fn, **case.options)
    sample = StageSample(objective, 4, 0)
    assert sample.size + sum(size for _, size in sample.stopping) <= objective.samples
    for _, batch, size in sample.shuffled(2, torch.Generator().manual_seed(0)):
        assert objective.data.layout.size(batch) == size


def test_batches_that_carry_values_of_their_own_stay_whole():
    data = [{"x": random(4, 3, seed=k), "scale": torch.tensor(1.0 + k).double()} for k in range(6)]
    objective = Objective(nn.Linear(3, 2).double(), data, lambda m, b: b["scale"] * m(b["x"]).square().sum(1))
    sample = StageSample(objective, 8, 0)
    assert {size for _, size in passed(sample)} == {4}
    scales = [float(batch["scale"]) for batch, _ in (*passed(sample), *sample.stopping)]
    assert len(scales) == len(set(scales))


def test_samples_that_cannot_do_are_refused():
    model = nn.Linear(1, 2).double()
    one_class = [(x, torch.ones_like(y)) for x, y in NUMBERED]
    with pytest.raises(UserError, match=r"^loader: the 40 samples drawn for re-tuning are all of class 1; give data"):
        StageSample(Objective(model, one_class), 40, 0)
    with pytest.raises(UserError, match=r"^samples: re-tuning has 8 samples to train on and the network tells 9 cl"):
        StageSample(Objective(nn.Linear(1, 9).double(), NUMBERED), 8, 0)
    with pytest.raises(UserError, match=r"^loader: re-tuning needs samples to train on and others to stop by"):
        StageSample(Objective(model, [(NUMBERED[0][0][:1], NUMBERED[0][1][:1])]), 40, 0)
    StageSample(Objective(model, one_class, lambda m, b: m(b[0]).square().sum(1)), 40, 0)  # no classes, no question
