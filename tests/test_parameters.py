"""Choice of weights, and the helpers that every other test relies on."""

import pytest
import torch
from helpers import (
    CASES,
    Dense,
    Idle,
    Tied,
    assert_close,
    mlp,
    random,
    same,
    seeded,
    snapshot,
    tolerance,
    with_spectrum,
)
from torch import nn

from estimators import UserError
from estimators.parameters import choose_parameters
from estimators.vectors import flatten, named, unflatten


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


def test_flatten_inverts_unflatten():
    like = {"a": torch.zeros(2, 3), "b": torch.zeros(()), "c": torch.zeros(4, 1, 1)}
    vector = random(11)
    assert torch.equal(flatten(unflatten(vector, list(like.values()))), vector)
    parts = named(vector, like)
    assert {name: part.shape for name, part in parts.items()} == {name: part.shape for name, part in like.items()}
    assert torch.equal(parts["c"].reshape(-1), vector[7:])


# --------------------------------------------------------------------------------------------- the helpers


def test_tolerance_keeps_two_thirds_of_the_digits():
    assert 1e-11 < tolerance(torch.float64) < 1e-10
    assert 1e-5 < tolerance(torch.float32) < 1e-4
    with pytest.raises(TypeError):
        tolerance(torch.int64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_assert_close_separates_rounding_from_errors(dtype):
    expected = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    assert_close(expected * (1 + 0.9 * tolerance(dtype)), expected, dtype)
    assert_close([], [], dtype)
    wrong = [expected * (1 + 1.1 * tolerance(dtype)), expected[:2], expected[:, None], expected * torch.nan]
    for value in wrong:
        with pytest.raises(AssertionError):
            assert_close(value, expected, dtype)
    with pytest.raises(AssertionError):
        assert_close(1e-300, 0.0, dtype)
    assert_close(1e-300, 0.0, dtype, scale=1.0)


def test_with_spectrum_has_the_spectrum():
    spectrum = torch.tensor([-1.0, 0.0, 0.5, 7.0], dtype=torch.float64)
    matrix = with_spectrum(spectrum, seed=4)
    assert torch.equal(matrix, matrix.T)
    assert_close(torch.linalg.eigvalsh(matrix), spectrum)
    assert_close(Dense(spectrum).matmat(torch.eye(4).double()), spectrum.diag())


def test_snapshot_sees_every_kind_of_change():
    def changed(change):
        model = seeded(lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
        before = snapshot(model)
        assert same(before, snapshot(model))
        change(model)
        return not same(before, snapshot(model))

    assert changed(lambda model: model[0].weight.data.add_(1))
    assert changed(lambda model: model[1].running_mean.add_(1))
    assert changed(lambda model: model[0].bias.requires_grad_(False))
    assert changed(lambda model: model[1].eval())
    assert changed(lambda model: model[0].register_forward_hook(print))
    assert changed(lambda model: setattr(model[0].weight, "grad", torch.zeros(2, 2).double()))
    assert changed(lambda model: setattr(model[0], "weight", nn.Parameter(model[0].weight.detach())))


def test_cases_stay_small():
    for case in CASES.values():
        assert sum(p.numel() for p in choose_parameters(case.model(), case.options.get("parameters")).values()) <= 300
