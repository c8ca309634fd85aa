import torch

from pruning_limits.groups import NONE, Groups
from pruning_limits.pattern_names import parsed


def test_numbers_are_spread_over_the_parameter():
    rows = torch.tensor([[0], [1], [NONE]])
    groups = Groups(parsed("channels"), 2, ({"w": rows}, {}))
    (ids,) = groups.of("w", torch.ones(3, 2))
    assert ids.tolist() == [[0, 0], [1, 1], [NONE, NONE]]
    assert groups.of("other", torch.ones(3)) == []


def test_a_weight_between_two_channels_of_one_group_counts_once():
    rows, columns = torch.tensor([[0], [1]]), torch.tensor([[1, 0]])
    groups = Groups(parsed("channels"), 2, ({"w": rows}, {"w": columns}))
    first, second = groups.of("w", torch.ones(2, 2))
    pairs = {(i, j): {int(ids[i, j]) for ids in (first, second)} - {NONE} for i in range(2) for j in range(2)}
    assert pairs == {(0, 0): {0, 1}, (0, 1): {0}, (1, 0): {1}, (1, 1): {0, 1}}
    assert second.tolist() == [[1, NONE], [NONE, 0]]
