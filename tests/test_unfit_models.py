"""Models whose curvature cannot be had: a forward that draws random numbers, a missing second derivative."""

import pytest
import torch
from click.testing import CliRunner
from helpers import CASES, Dense, classification, random, same, seeded, snapshot
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from estimators import GGN, Hessian, Objective, UserError, check_symmetric
from pruning_limits import predict_limit
from validation import cli

both = pytest.mark.parametrize("kind", ["hessian", "ggn"])

# ---------------------------------------------------------------------------------------------------- symmetry


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
    with pytest.raises(UserError, match="augmentation and dropout"):
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


# ------------------------------------------------------------------------------------- missing double backward


class OnceSquared(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(context, slope):
        return 2 * context.saved_tensors[0] * slope


class Once(nn.Module):
    def forward(self, x, *, scale=1.0):
        return OnceSquared.apply(x) * scale


class Margin(nn.Module):
    """A layer whose second derivative torch itself does not have."""

    def forward(self, x):
        return x * functional.multilabel_margin_loss(x, torch.zeros_like(x).long(), reduction="none")[:, None]


class Inline(nn.Module):
    """The operation sits in the model's own forward, behind a layer that writes to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))

    def forward(self, x):
        return OnceSquared.apply(self.body(x))[:, :3]


def nested(layer):
    block = nn.Sequential(nn.Tanh(), layer)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), block, nn.Linear(4, 3))


BLAME = {
    "custom": (lambda: nested(Once()), r"layer '2\.1' \(Once\)"),
    "torch": (lambda: nested(Margin()), r"layer '2\.1' \(Margin\)"),
    "inline": (Inline, "what the forward of Inline does outside of its layers"),
}


@both
@pytest.mark.parametrize("name", BLAME)
def test_layer_without_second_derivative_is_named(name, kind):
    build, blamed = BLAME[name]
    model = seeded(build)
    before = snapshot(model)
    operator = (Hessian if kind == "hessian" else GGN)(Objective(model, classification(4)()))
    with pytest.raises(UserError, match=rf"^model: no second derivative of {blamed} \(.*\); .*parameters=$"):
        operator @ random(operator.shape[0])
    assert same(before, snapshot(model))


@pytest.mark.parametrize(
    "loss",
    [
        lambda model, batch: OnceSquared.apply(model(batch[0])).mean(1),
        lambda model, batch: functional.multi_margin_loss(model(batch[0]), batch[1], reduction="none").square(),
    ],
    ids=["custom", "torch"],
)
@both
def test_loss_without_second_derivative_is_named(loss, kind):
    objective = Objective(CASES["ragged"].model(), classification(4)(), loss)
    with pytest.raises(UserError, match="no second derivative of the loss function"):
        (Hessian if kind == "hessian" else GGN)(objective) @ random(35)


def test_weights_behind_the_layer_can_still_be_chosen():
    objective = Objective(seeded(lambda: nested(Once())), classification(4)(), parameters="3.*")
    check_symmetric(Hessian(objective))


def test_prediction_names_the_layer():
    with pytest.raises(UserError, match=r"layer '2\.1' \(Once\)"):
        predict_limit(seeded(lambda: nested(Once())), classification(4, sizes=(20, 10))(), samples=30, steps=3)


def test_other_errors_are_told_with_the_batch():
    def loss(model, batch):
        raise RuntimeError("out of luck")

    operator = Hessian(Objective(CASES["ragged"].model(), classification(4)(), loss))
    with pytest.raises(UserError, match="RuntimeError: out of luck"):
        operator @ random(35)
