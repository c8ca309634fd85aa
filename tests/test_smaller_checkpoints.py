from pathlib import Path

import pytest
import torch
from helpers import assert_close, random, seeded
from torch import nn

from estimators import Objective, UserError
from pruning_limits.channels import smaller_network
from pruning_limits.group_profile import GroupProfile
from pruning_limits.patterns import groups_of
from pruning_limits.smaller_checkpoints import smaller_checkpoint
from pruning_limits.trials import Trial

PATH = Path("pruned.pt")


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6)
        self.gate, self.head = nn.Linear(6 * 16, 8), nn.Linear(4, 3)

    def forward(self, x):
        left, right = self.gate(torch.tanh(self.norm(self.first(x))).flatten(1)).chunk(2, 1)
        return self.head(torch.tanh(left) * torch.tanh(right))


@pytest.fixture
def objective():
    return Objective(seeded(Gated).eval(), [(random(9, 2, 6, 6), torch.arange(9) % 3)])


def shrunk(objective, sparsity):
    groups, trial = groups_of("channels", objective), Trial(objective)
    profile = GroupProfile(objective.chosen, groups)
    gone = profile.gone(sparsity)
    removed = {root: gone[ids].nonzero().flatten().tolist() for root, ids in groups.roots.items()}
    return groups, profile, smaller_network(objective.model, trial, removed)


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.7])
@pytest.mark.parametrize("entry", [None, "state_dict"])
def test_a_checkpoint_of_fewer_channels_is_loaded_and_counted(objective, sparsity, entry):
    groups, profile, network = shrunk(objective, sparsity)
    stored = network.state_dict() if entry is None else {entry: network.state_dict(), "epoch": 3}
    smaller = smaller_checkpoint(objective, groups, stored, PATH)
    x = objective.loader[0][0]
    assert_close(smaller.model(x), network(x))
    for name, weight in smaller.weights.items():
        own = network.get_parameter(name)
        assert weight.shape == objective.chosen[name].shape
        assert int((weight != 0).sum()) == own.numel()
        assert torch.equal(weight[weight != 0], own.detach().flatten())
    zeros = sum(int((weight == 0).sum()) for weight in smaller.weights.values())
    assert zeros == profile.count(sparsity)
    gone = profile.gone(sparsity)
    counts = {root: int(gone[ids].sum()) for root, ids in groups.roots.items()}
    assert smaller.channels == {root: count for root, count in counts.items() if count}


def test_a_checkpoint_of_the_same_sizes_is_none(objective):
    groups = groups_of("channels", objective)
    assert smaller_checkpoint(objective, groups, objective.model.state_dict(), PATH) is None
    assert smaller_checkpoint(objective, groups, {"other": torch.ones(2)}, PATH) is None


def test_sizes_that_do_not_belong_together_are_refused(objective):
    groups, _, network = shrunk(objective, 0.5)
    state = network.state_dict()
    state["head.weight"] = torch.ones(3, 4)
    state["norm.bias"] = torch.ones(1)
    with pytest.raises(UserError, match=r"^pruned: its sizes are not those of coupled channels: .*of another shape"):
        smaller_checkpoint(objective, groups, state, PATH)
