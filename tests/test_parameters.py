"""Choice of weights by layer and by name."""

import pytest
import torch
from helpers import (
    Idle,
    Tied,
    mlp,
)
from torch import nn

from estimators import UserError
from estimators.parameters import choose_parameters


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (mlp, ["0.weight", "2.weight"]),
        (Tied, ["encoder.weight"]),
        (Idle, ["used.weight", "idle.weight", "head.weight"]),
        (
            lambda: nn.Sequential(nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1), nn.ConvTranspose3d(1, 1, 1)),
            ["0.weight", "2.weight"],
        ),
        (lambda: nn.Sequential(nn.Embedding(3, 2), nn.LayerNorm(2), nn.Linear(2, 2)), ["2.weight"]),
    ],
)
def test_default_is_conv_and_linear_weights(build, expected):
    assert list(choose_parameters(build())) == expected


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("*", ["0.weight", "0.bias", "2.weight", "2.bias"]),
        ("0.*", ["0.weight", "0.bias"]),
        (["2.bias", "0.weight"], ["0.weight", "2.bias"]),
        ("[!0].weight", ["2.weight"]),
        (("*.bias", "0.*"), ["0.weight", "0.bias", "2.bias"]),
    ],
)
def test_patterns_keep_the_order_of_the_model(patterns, expected):
    assert list(choose_parameters(mlp(), patterns)) == expected


def test_tied_parameters_appear_once():
    assert list(choose_parameters(Tied(), "*")) == ["encoder.weight", "encoder.bias", "decoder.bias"]


def test_chosen_are_the_parameters_themselves_even_if_frozen():
    model = mlp().requires_grad_(False)
    assert choose_parameters(model)["0.weight"] is model[0].weight


@pytest.mark.parametrize("patterns", ["3.weight", "WEIGHT", "weight", [], ["0", "2"]])
def test_nothing_matches(patterns):
    with pytest.raises(UserError, match=r"matches none of the model's parameters \(0\.weight, 0\.bias"):
        choose_parameters(mlp(), patterns)


@pytest.mark.parametrize("model", [nn.Sequential(), nn.LayerNorm(3), nn.Embedding(2, 2)])
def test_no_layers_to_prune(model):
    with pytest.raises(UserError, match="no convolution or linear layers"):
        choose_parameters(model)


@pytest.mark.parametrize("patterns", [None, "0.weight"])
def test_two_devices(patterns):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(UserError, match="lie on cpu, meta"):
        choose_parameters(model, patterns)


def test_two_types():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    assert list(choose_parameters(model, "1.*")) == ["1.weight", "1.bias"]
    with pytest.raises(UserError, match="one floating point type"):
        choose_parameters(model)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32])
def test_not_real_numbers(dtype):
    model = nn.Module()
    model.scale = nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False)
    with pytest.raises(UserError, match="floating point"):
        choose_parameters(model, "scale")


@pytest.mark.parametrize("wrong", [3, b"*", [None], ["*", 3], {"*": 1}, 0.5], ids=repr)
def test_what_is_no_pattern_is_refused(wrong):
    with pytest.raises(UserError, match=r"^parameters: expected name patterns as text, such as 'encoder\.\*', or"):
        choose_parameters(nn.Linear(2, 2), wrong)
