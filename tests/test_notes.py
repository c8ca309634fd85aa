"""Notes on tensors that hold the same numbers twice, and on those that are left out."""

import copy

import pytest
import torch
from helpers import random, seeded
from torch import nn

from estimators import Objective
from pruning_limits import predict_limit
from pruning_limits.notes import note_doubles, note_untrue

X, Y = random(40, 4, seed=1), torch.arange(40) % 4


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self, transposed=False):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last.weight = self.first.weight
        self.middle = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


def told(model):
    return note_doubles(Objective(model, [(X, Y)]))


def untied():
    model = seeded(Tied)
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    model.last.weight = nn.Parameter(model.first.weight.detach().clone())
    return model


def transposed():
    model = untied()
    model.last.weight = nn.Parameter(model.first.weight.detach().T.clone())
    return model


def transposed_view():
    model = untied()
    model.last.weight = nn.Parameter(model.first.weight.detach().T)
    return model


def same_view():
    model = untied()
    model.last.weight = nn.Parameter(model.first.weight.detach())
    return model


def rectangular():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    model[2].weight = nn.Parameter(model[0].weight.detach().T.contiguous())
    return model


def convolutions():
    model = nn.Sequential(nn.Conv1d(2, 2, 1), nn.Tanh(), nn.Conv1d(2, 2, 1), nn.Flatten()).double()
    model[2].weight = nn.Parameter(model[0].weight.detach().clone())
    return model


DOUBLES = {
    "loaded with assign": (untied, "first.weight and last.weight"),
    "transposed": (transposed, "first.weight and last.weight"),
    "a view transposed": (transposed_view, "first.weight and last.weight"),
    "a view": (same_view, "first.weight and last.weight"),
    "rectangular": (rectangular, "0.weight and 2.weight"),
}


@pytest.mark.parametrize("name", DOUBLES)
def test_the_same_numbers_twice_are_noted(name):
    build, pair = DOUBLES[name]
    note = (
        f"the same numbers twice: {pair}; D counts both. If the network was trained with tied weights, tie them again "
        "(load_state_dict without assign=True, or model.tie_weights())"
    )
    assert told(build()) == (note,)
    assert note in predict_limit(build(), [(X, Y)], epsilon=0.05, measure=False, progress=False).notes


def test_convolutions_that_hold_the_same_numbers():
    (note,) = note_doubles(Objective(convolutions(), [(X.unflatten(1, (2, 2)), Y)]))
    assert note.startswith("the same numbers twice: 0.weight and 2.weight; ")


def test_loading_with_assign_itself():
    """The state dict of two tied layers holds the weight under both names, as two tensors once it was saved."""
    model = seeded(Tied)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert told(model) == ()
    assert Objective(model, [(X, Y)]).dimension == 28
    model.load_state_dict(state, assign=True)
    assert Objective(model, [(X, Y)]).dimension == 44
    assert "first.weight and last.weight" in told(model)[0]
    model.last.weight = model.first.weight
    assert told(model) == ()


def flat_storage():
    """All weights are slices of one vector, as some optimisers lay them."""
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)))
    flat, start = torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), 0
    for module in (model[0], model[2]):
        for name, parameter in list(module.named_parameters()):
            part = flat[start : start + parameter.numel()].view(parameter.shape)
            setattr(module, name, nn.Parameter(part))
            start += parameter.numel()
    return model


def constant(value):
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)))
    for layer in (model[0], model[2]):
        nn.init.constant_(layer.weight, value)
    return model


def one_entry_differs():
    model = untied()
    with torch.no_grad():
        model.last.weight[1, 2] += 1e-12
    return model


def permuted():
    model = untied()
    with torch.no_grad():
        model.last.weight.copy_(model.first.weight[[1, 0, 2, 3]])
    return model


def negative():
    model = untied()
    with torch.no_grad():
        model.last.weight.neg_()
    return model


SINGLE = {
    "tied": lambda: seeded(Tied),
    "usual": lambda: seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))),
    "slices of one storage": flat_storage,
    "zeros": lambda: constant(0.0),
    "ones": lambda: constant(1.0),
    "one entry differs": one_entry_differs,
    "permuted": permuted,
    "negative": negative,
}


@pytest.mark.parametrize("name", SINGLE)
def test_what_is_not_the_same_twice_is_not_noted(name):
    assert told(SINGLE[name]()) == ()


def test_slices_of_one_storage_that_hold_the_same_numbers_are_noted():
    model = flat_storage()
    with torch.no_grad():
        model[2].weight.copy_(model[0].weight)
    assert "0.weight and 2.weight" in told(model)[0]


def test_many_pairs_are_listed_in_part():
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)]).double()
    for layer in model[1:]:
        layer.weight = nn.Parameter(model[0].weight.detach().clone())
    (note,) = told(model)
    assert "0.weight and 1.weight, 0.weight and 2.weight, 0.weight and 3.weight and 3 more; D counts" in note


def test_notes_of_what_is_left_out():
    assert note_untrue([]) == ()
    assert note_untrue(["a"])[0].startswith("left out: a; the gradient of these weights does not match the change of")
    assert note_untrue(list("abcde"))[0].startswith("left out: a, b, c and 2 more; ")
