"""The scores of the dense network as the aim of re-tuning."""

from unittest import mock

import pytest
import torch
from helpers import assert_close, random
from retuning_problems import classes
from torch import nn

from estimators import Objective
from pruning_limits import matching as module
from pruning_limits.matching import TEMPERATURE, DenseScores, Matched, matching
from pruning_limits.stage_sample import StageSample


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 7)])
def test_it_is_the_divergence_of_torch(shape):
    scores, aim = 4 * random(*shape), 4 * random(*shape, seed=1)
    expected = TEMPERATURE**2 * nn.functional.kl_div(
        (scores / TEMPERATURE).log_softmax(1), (aim / TEMPERATURE).softmax(1), reduction="none"
    ).sum(1)
    values = matching(nn.Identity(), Matched((scores, None), aim))
    assert_close(values, expected.reshape(5, -1).mean(1))


def test_its_slope_is_that_of_the_squared_error_where_temperatures_are_high():
    scores, aim = random(4, 3).requires_grad_(), random(4, 3, seed=1)
    with mock.patch.object(module, "TEMPERATURE", 1e4):
        (slope,) = torch.autograd.grad(matching(nn.Identity(), Matched((scores, None), aim)).sum(), scores)
    apart = scores.detach() - aim
    centred = apart - apart.mean(1, keepdim=True)
    assert float((slope - centred / 3).abs().max()) < 1e-3


@pytest.mark.parametrize("kept", [1 << 30, 0])
def test_scores_are_those_of_the_dense_network_kept_or_not(kept):
    model, data = classes()
    objective = Objective(model, data)
    sample = StageSample(objective, 64, 0)
    with mock.patch.object(module, "KEPT_BYTES", kept):
        scores = DenseScores(objective, sample)
    for place, batch, size in sample.shuffled(10, torch.Generator().manual_seed(0)):
        matched = scores.of(place, batch)
        assert len(matched.scores) == size
        assert_close(matched.scores, model(batch[0]))
