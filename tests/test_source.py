import pytest
import torch
from helpers import random
from torch import nn

from estimators import L2, UserError
from pruning_limits.dense_network import Subject
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.settings import Settings
from pruning_limits.source import Source


def right(model, batch):
    return (model(batch[0]).argmax(1) == batch[1]).double()


@pytest.mark.parametrize("criterion", ["loss", "objective"])
def test_objectives_are_those_of_the_prediction(criterion):
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    data, held = [(random(9, 4), torch.arange(9) % 3)] * 3, [(random(6, 4, seed=1), torch.arange(6) % 3)]
    settings = Settings(parameters=("0.weight",), criterion=criterion, max_batches=2, metric="right")
    profile = MagnitudeProfile({"0.weight": model[0].weight})
    objective, metric = Source(Subject(model, data, None, L2(0.1), None, right, held)).objectives(settings, profile)
    assert objective.names == metric.names == ("0.weight",)
    assert (objective.samples, metric.samples) == (18, 6)
    assert (objective.penalty is None) is (criterion == "loss")
    alone = Source(Subject(model, data, None, None, None, None, None)).objectives(settings, profile)
    assert alone[1] is None
    with torch.no_grad():
        model[0].weight.mul_(2)
    with pytest.raises(UserError, match=r"^layers: the weights of the network have changed"):
        Source(Subject(model, data, None, None, None, None, None)).objectives(settings, profile)
    with pytest.raises(UserError, match=r"^layers: this limit holds no network and data"):
        Source().objectives(settings, profile)
