"""Operators that are known by their products: symmetric, or refused because they draw random numbers."""

import pytest
import torch
from click.testing import CliRunner
from helpers import CASES, Dense, classification, random, seeded, with_spectrum
from torch import nn
from torch.nn import functional

from estimators import GGN, Hessian, Objective, UserError, check_symmetric
from pruning_limits import predict_limit
from validation import cli

both = pytest.mark.parametrize("kind", ["hessian", "ggn"])


class Forgetful(nn.Module):
    """Dropout that does not know about evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 30), nn.Linear(30, 3)

    def forward(self, x):
        return self.last(functional.dropout(torch.tanh(self.first(x)), 0.3))


class Augmented:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter([(x + 0.3 * torch.randn_like(x), y) for x, y in self.batches])


@pytest.mark.parametrize("operator", [Hessian, GGN])
@pytest.mark.parametrize("memory", [0, 2 << 30])
def test_random_forward_is_not_symmetric(operator, memory):
    batches = classification(4, sizes=(20, 10))()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for model, loader in ((seeded(Forgetful), batches), (CASES["ragged"].model(), Augmented(batches))):
            with pytest.raises(UserError, match=r"u'Hv = .* v'Hu = .* dropout .* augmentation or sampling"):
                check_symmetric(operator(Objective(model.eval(), loader), memory))


def test_random_forward_stops_the_prediction_too():
    model, batches = seeded(Forgetful), classification(4, sizes=(20, 10))()
    with pytest.raises(UserError, match="turn off dropout and other random numbers"):
        predict_limit(model, batches)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@both
@pytest.mark.parametrize("name", ["ragged", "batch norm", "multi-head attention", "idle layer"])
def test_curvature_of_a_deterministic_model_is_symmetric(name, kind, dtype):
    case = CASES[name]
    objective = Objective(case.model(dtype), case.loader(dtype), case.loss_fn, **case.options)
    for seed in range(5):
        check_symmetric((Hessian if kind == "hessian" else GGN)(objective), seed)


def test_dense_matrices():
    matrix = random(40, 40)
    check_symmetric(Dense(matrix + matrix.T))
    check_symmetric(Dense(torch.zeros(40, 40)))
    with pytest.raises(UserError, match="operator: not symmetric"):
        check_symmetric(Dense(matrix))


def test_command_finds_a_random_forward(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fast = ["--dataset", "digits", "--samples", "64", "--steps", "3", "--probes", "1"]
    result = CliRunner().invoke(cli.main, ["spectrum", "--model", f"{__name__}:forgetful", *fast])
    assert result.exit_code == 1
    assert "Error: operator: not symmetric" in result.stderr.splitlines()[-1]


def forgetful(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 30), Dropout(), nn.Linear(30, classes))


class Dropout(nn.Module):
    def forward(self, x):
        return functional.dropout(x.tanh(), 0.3)


def test_an_operator_that_keeps_graphs_forgets_them_before_each_product():
    class Noting(Dense):
        forgotten = 0

        def forget(self):
            self.forgotten += 1

    operator = Noting(torch.eye(5, dtype=torch.float64))
    check_symmetric(operator)
    assert (operator.forgotten, operator.calls) == (2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_asymmetry_beyond_half_the_digits_is_told_and_rounding_is_not(dtype):
    matrix = with_spectrum(torch.linspace(1, 2, 30))
    bent = random(30, 30, seed=1)
    step = torch.finfo(dtype).eps ** 0.5
    check_symmetric(Dense((matrix + 1e-3 * step * (bent - bent.T)).to(dtype)))
    with pytest.raises(UserError, match="operator: not symmetric"):
        check_symmetric(Dense((matrix + 100 * step * (bent - bent.T)).to(dtype)))


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    check_symmetric(Dense(torch.eye(3)))
    assert torch.equal(before, torch.get_rng_state())
