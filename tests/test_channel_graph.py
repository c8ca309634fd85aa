"""What torch-pruning finds to go together: where it is wrong, without end, or fails."""

import pytest
import torch
from test_channels import Branched, JoinedToInputs, Kept, needs_shapes, objective_of
from torch import nn
from torchvision.models import SwinTransformer

from estimators import UserError
from pruning_limits import channel_graph
from pruning_limits.patterns import groups_of


def test_what_cannot_be_followed_is_told_by_name_with_what_does_work(monkeypatch):
    monkeypatch.setattr(channel_graph, "_beside_channels", lambda concatenation: False)
    objective = objective_of(Kept, (4, 6))
    with pytest.raises(UserError) as error:
        groups_of("channels", objective)
    told = "the outputs of maps are joined to others whose channels are not known"
    ways = "take heads, blocks or N:M, which need no such graph"
    assert str(error.value) == f"pattern: the layers of Kept cannot be followed: {told}; {ways}"
    assert groups_of("blocks:2x2", objective).count


@needs_shapes
def test_channels_that_are_joined_to_inputs_stay_and_those_beside_them_can_go():
    groups = groups_of("channels", objective_of(JoinedToInputs))
    assert set(groups.members[0]) == {"b.weight", "c.weight"}
    assert set(groups.left) == {"a.weight"}


@needs_shapes
def test_groups_that_are_shuffled_stay_and_the_layers_within_a_branch_can_go():
    groups = groups_of("channels", objective_of(Branched))
    assert set(groups.members[0]) == {"a.weight", "c.weight"}
    assert set(groups.left) == {"stem.weight"}


def test_a_vision_transformer_of_shifted_windows_loses_its_hidden_layers():
    """torch-pruning multiplies channels at every turn through its windows."""
    sizes = {"patch_size": [4, 4], "embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": [2, 2]}
    groups = groups_of("channels", objective_of(lambda: SwinTransformer(**sizes, num_classes=3), (3, 32, 32)))
    hidden = [f"features.1.{block}.mlp.0.weight" for block in range(2)]
    assert set(groups.members[0]) == set(hidden)
    assert groups.count == 2 * 32


class Among(nn.Module):
    """Mixes the channels of its first layer with each other by a function without weights."""

    def __init__(self, mix):
        super().__init__()
        self.mix = mix
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.c(torch.tanh(self.b(self.mix(self.a(x)))))


MIXED = {
    "halves swapped": lambda h: h + torch.cat((-h[:, 3:], h[:, :3]), 1),
    "halves swapped by chunk": lambda h: h + torch.cat(h.chunk(2, 1)[::-1], 1),
    "neighbours swapped": lambda h: h + torch.stack((-h[:, 1::2], h[:, ::2]), -1).flatten(1),
    "turned around": lambda h: h + h.flip(1),
    "turned around one by one": lambda h: h + torch.stack(h.unbind(1)[::-1], 1),
    "moved by one": lambda h: h + nn.functional.pad(h[:, 1:], (0, 1)),
    "cut from two copies": lambda h: h + torch.cat((h, h), 1)[:, 3:9],
}


@pytest.mark.parametrize("mix", MIXED.values(), ids=MIXED)
def test_channels_that_a_network_mixes_with_each_other_stay(mix):
    """Channels lead to others and back; a trial that took every third would be met by those swapped in pairs."""
    groups = groups_of("channels", objective_of(lambda: Among(mix), (4,)))
    assert set(groups.members[0]) == {"b.weight"}
    assert set(groups.left) == {"a.weight"}
    assert "lead back" in groups.left["a.weight"] or "puts out something else" in groups.left["a.weight"]
