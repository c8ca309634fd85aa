import torch
from torch import nn

from estimators import Objective
from pruning_limits.patterns import Matrix
from pruning_limits.structure import Structure, structure_of


def test_what_is_known_of_a_network():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
    objective = Objective(model, [(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3)])
    structure = structure_of(objective, ("unstructured", "2:4"))
    assert structure.matrices == {"0.weight": Matrix(0, 1), "2.weight": Matrix(0, 1)}
    assert structure.uses == {"0.weight": 1.0, "2.weight": 1.0}
    assert (structure.others, structure.other_bytes) == (15, 60)
    assert list(structure.groups) == ["2:4"]
    assert structure.groups["2:4"].count == 7
    assert Structure().groups == {}
