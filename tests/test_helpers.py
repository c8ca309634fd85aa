"""What every other test relies on: tolerances, operators with known spectra, snapshots, small cases."""

import pytest
import torch
from helpers import (
    CASES,
    Dense,
    assert_close,
    same,
    seeded,
    snapshot,
    tolerance,
    with_spectrum,
)
from torch import nn

from estimators.parameters import choose_parameters


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
