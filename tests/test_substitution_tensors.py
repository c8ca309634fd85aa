"""Tensors and modes that stand in for a model's own come and go whole."""

import pytest
import torch
from helpers import BatchNormNet, same, seeded, snapshot
from torch import nn

from estimators.substitution import evaluation_mode, replaced


def test_every_module_is_in_evaluation_mode_inside_and_in_its_own_afterwards():
    model = seeded(BatchNormNet).train()
    model.norm.eval()
    before = [module.training for module in model.modules()]
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
    assert len(set(before)) == 2


def test_plain_tensors_of_a_module_come_back():
    model = nn.Linear(2, 2)
    model.cache, model.history = torch.ones(2), [torch.zeros(1)]
    cache, history = model.cache, model.history
    with evaluation_mode(model):
        model.cache, model.history = torch.zeros(2), []
    assert model.cache is cache
    assert model.history is history


def test_other_tensors_are_used_inside_and_the_own_ones_come_back_after_an_error():
    model = seeded(BatchNormNet).eval()
    before, x = snapshot(model), torch.ones(1, 1, 4, 4).double()
    expected = model(x)
    tensors = {id(tensor): 0 * tensor.detach() for tensor in (*model.parameters(), *model.buffers())}
    outputs = []

    def fail():
        with replaced(model, tensors):
            outputs.append(model(x))
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert not outputs[0].any()
    assert same(snapshot(model), before)
    assert torch.equal(model(x), expected)


def test_a_shared_tensor_is_replaced_wherever_it_stands():
    model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    model[1].weight = model[0].weight
    other = torch.zeros(2, 2)
    with replaced(model, {id(model[0].weight): other}):
        assert model[0].weight is other
        assert model[1].weight is other
    assert model[0].weight is model[1].weight
    assert model[0].weight is not other
