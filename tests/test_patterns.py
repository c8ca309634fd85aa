"""N:M and blocks against loops over every weight."""

import itertools

import pytest
import torch
from helpers import seeded
from torch import nn
from torch.nn.utils import prune

from estimators import Objective, UserError
from pruning_limits.group_profile import GroupProfile
from pruning_limits.pattern_names import parsed
from pruning_limits.patterns import Matrix, blocks, groups_of, matrices, runs


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.deep = nn.Linear(8, 6), nn.Conv2d(4, 6, 3)
        self.up, self.attend = nn.ConvTranspose2d(4, 6, 2), nn.MultiheadAttention(8, 2)
        self.odd, self.table = nn.Linear(3, 8), nn.Embedding(5, 8)


def weights_and_layers():
    model = seeded(Layers)
    weights = {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}
    return weights, matrices(model, weights)


def test_which_dimension_counts_inputs():
    _, known = weights_and_layers()
    assert known == {
        "wide.weight": Matrix(0, 1),
        "deep.weight": Matrix(0, 1),
        "up.weight": Matrix(1, 0),
        "attend.in_proj_weight": Matrix(0, 1),
        "attend.out_proj.weight": Matrix(0, 1),
        "odd.weight": Matrix(0, 1),
    }
    model = nn.Sequential(nn.Linear(4, 2))
    prune.l1_unstructured(model[0], "weight", 1)
    assert list(matrices(model, {"0.weight_orig": torch.ones(2, 4)})) == ["0.weight_orig"]


def test_the_layers_of_gpt_count_inputs_first():
    layers = pytest.importorskip("transformers.pytorch_utils")
    assert matrices(nn.Sequential(layers.Conv1D(6, 4)), {"0.weight": torch.ones(4, 6)}) == {"0.weight": Matrix(1, 0)}


@pytest.mark.parametrize(("name", "kept", "of"), [("2:4", 2, 4), ("1:4", 1, 4), ("1:2", 1, 2)])
def test_of_every_m_neighbours_along_the_inputs_the_n_largest_stay(name, kept, of):
    weights, known = weights_and_layers()
    profile = GroupProfile(weights, runs(parsed(name), weights, known))
    masks = profile.masks(0.1)
    for layer, matrix in known.items():
        if weights[layer].shape[matrix.inputs] % of:
            assert masks[layer].all()
            continue
        rows = weights[layer].movedim(matrix.inputs, -1).reshape(-1, weights[layer].shape[matrix.inputs])
        mask = masks[layer].movedim(matrix.inputs, -1).reshape(rows.shape)
        for row, keep in zip(rows, mask, strict=True):
            for start in range(0, len(row), of):
                order = sorted(range(start, start + of), key=lambda k: -abs(float(row[k])))
                assert {k for k in range(start, start + of) if keep[k]} == set(order[:kept])
    assert masks["table.weight"].all()
    removed = sum(int((~mask).sum()) for mask in masks.values())
    assert profile.counts.tolist() == [0, removed]


def test_layers_that_do_not_fit_are_left_dense_and_named():
    weights, known = weights_and_layers()
    groups = runs(parsed("2:4"), weights, known)
    assert groups.left == {
        "odd.weight": "3 inputs are no multiple of 4",
        "table.weight": "its outputs and inputs are not known",
    }
    with pytest.raises(UserError, match=r"^pattern: blocks:2x2 fits no layer .*table\.weight: its outputs"):
        blocks(parsed("blocks:2x2"), {"table.weight": weights["table.weight"]}, known)
    with pytest.raises(UserError, match=r"^pattern: 2:4 fits no layer .*3 inputs are no multiple of 4"):
        runs(parsed("2:4"), {"odd.weight": weights["odd.weight"]}, known)


@pytest.mark.parametrize(("rows", "columns"), [(4, 1), (2, 3), (1, 4), (16, 16)])
def test_blocks_are_those_of_a_loop(rows, columns):
    weights, known = weights_and_layers()
    groups = blocks(parsed(f"blocks:{rows}x{columns}"), weights, known)
    members, numbers, ragged = groups.members[0], [], 0
    for name, matrix in known.items():
        ids = members[name].movedim((matrix.outputs, matrix.inputs), (0, 1))
        high, wide, kernel = *ids.shape[:2], ids[0, 0].numel()
        ids = ids.reshape(high, wide, kernel)
        for top, left, at in itertools.product(range(0, high, rows), range(0, wide, columns), range(kernel)):
            block = ids[top : top + rows, left : left + columns, at]
            assert len(block.unique()) == 1
            numbers.append(int(block[0, 0]))
            ragged += block.numel() if block.numel() < rows * columns else 0
    assert sorted(numbers) == list(range(groups.count))
    assert groups.ragged == ragged


def test_single_weights_have_no_groups():
    objective = Objective(nn.Linear(4, 2), [(torch.ones(2, 4), torch.tensor([0, 1]))])
    with pytest.raises(UserError, match=r"^pattern: single weights have no groups"):
        groups_of("unstructured", objective)
    assert groups_of("2:4", objective).count == 2
    assert groups_of("blocks:2x1", objective).count == 4
