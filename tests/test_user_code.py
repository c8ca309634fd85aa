"""Calls of the user's model, loss and loader: the modes around them, and one line for whatever they raise."""

import json
import random as python_random
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import assert_close, random, same, seeded, snapshot, without_cost
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from estimators import GGN, Hessian, Objective, UserError
from estimators.user_code import Draws, autocast_enabled, next_batches, plain_modes, run
from pruning_limits import predict_limit
from validation import cli


def mlp(dtype=torch.float32, inputs=4, hidden=6):
    return seeded(lambda: nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, 3))).to(dtype)


def rows(dtype=torch.float32, samples=60, size=20, inputs=4):
    x, y = random(samples, inputs, seed=1).to(dtype), torch.arange(samples) % 3
    return list(zip(x.split(size), y.split(size), strict=True))


def numbers(limit):
    """All of a limit but what the clock and the memory say."""
    return json.loads(without_cost(limit).to_json())


def entropies(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def mean_square(model, batch):
    return functional.mse_loss(model(batch[0]), functional.one_hot(batch[1], 3).to(batch[0].dtype))


def refusal(call, *arguments, **options):
    """The one line that a call is refused with, and its cause."""
    with pytest.raises(UserError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value), error.value.__cause__


# --------------------------------------------------------------------------------------------- modes around the call


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def together(*contexts):
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


MODES = {
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "gradients in inference": lambda: together(torch.inference_mode(), torch.enable_grad()),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to half": lambda: torch.autocast("cpu", torch.float16),
    "meta device": lambda: torch.device("meta"),
    "default meta device": lambda: default_device("meta"),
    "default cpu device": lambda: default_device("cpu"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "several": lambda: together(
        torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta")
    ),
}
every_mode = pytest.mark.parametrize("mode", MODES)
CALLS = {
    "labels": (lambda: (mlp(), rows()), {}),
    "no measurement": (lambda: (mlp(), rows()), {"samples": 30, "measure": False}),
    "own loss": (lambda: (mlp(), rows(), entropies), {"samples": 30}),
    "batch means": (lambda: (mlp(torch.float64), rows(torch.float64), mean_square), {"curvature": "ggn"}),
    "many weights": (lambda: (mlp(inputs=40, hidden=20), rows(inputs=40)), {"samples": 30, "steps": 3, "probes": 2}),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_limit_is_the_same_in_every_mode(call):
    build, options = CALLS[call]
    model, *others = build()
    outside = numbers(predict_limit(model, *others, progress=False, **options))
    before = snapshot(model)
    for mode in ("inference", "autocast", "default meta device", "float64", "bfloat16", "several"):
        with MODES[mode]():
            modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), autocast_enabled("cpu")
            inside = numbers(predict_limit(model, *others, progress=False, **options))
            after = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), autocast_enabled("cpu")
        assert modes == after
        assert inside == outside, mode
    assert same(before, snapshot(model))


@every_mode
def test_the_parts_are_the_same_in_every_mode(mode):
    model, data = mlp(), rows()
    vectors, scores = random(42, 2).float(), torch.linspace(1, 2, 60, dtype=torch.float64)

    def computed():
        objective = Objective(model, data)
        part, weighted = objective.subset(25, seed=3), objective.subset(25, seed=3, scores=scores)
        return [
            objective.value(),
            list(objective.sample_losses()),
            objective.gradient(),
            part.value(),
            weighted.value(),
            Hessian(part) @ vectors,
            Hessian(weighted, memory=0) @ vectors,
            GGN(objective) @ vectors,
        ]

    outside = computed()
    with MODES[mode]():
        inside = computed()
    assert same(inside, outside)


def test_a_model_and_batches_made_in_inference_mode():
    expected = numbers(predict_limit(mlp(), rows(), progress=False))
    with torch.inference_mode():
        model, data = mlp(), rows()
        assert next(model.parameters()).is_inference()
        assert numbers(predict_limit(model, data, progress=False)) == expected
    assert numbers(predict_limit(model, data, progress=False)) == expected
    assert numbers(predict_limit(mlp(), data, progress=False)) == expected


def test_writes_to_a_model_made_in_inference_mode_are_followed():
    with torch.inference_mode():
        model = mlp()
    objective, data = Objective(model, rows()), rows()
    before, product = objective.value(), Hessian(objective)
    old = product @ random(42).float()
    with torch.inference_mode():
        model[0].weight.mul_(2)
    assert objective.value() != before
    assert objective.value() == Objective(model, data).value()
    new = product @ random(42).float()
    assert not torch.equal(old, new)
    assert torch.equal(new, Hessian(Objective(model, data)) @ random(42).float())


class Generated:
    """Batches of a generator function, made under whatever mode is on."""

    def __iter__(self):
        x, y = random(60, 4, seed=1).float(), torch.arange(60, device="cpu") % 3
        yield from zip(x.split(20), y.split(20), strict=True)


class Streamed(IterableDataset):
    def __iter__(self):
        x, y = random(60, 4, seed=1).float(), torch.arange(60, device="cpu") % 3
        yield from zip(x, y, strict=True)


LOADERS = {
    "generator function": Generated,
    "data loader": lambda: DataLoader(TensorDataset(*(torch.cat(part) for part in zip(*rows(), strict=True))), 20),
    "stream": lambda: DataLoader(Streamed(), 20),
    "workers": lambda: DataLoader(Streamed(), 20, num_workers=1),
}


@pytest.mark.parametrize("name", LOADERS)
def test_loaders_that_make_their_batches_inside_a_mode(name):
    model, loader = mlp(), LOADERS[name]()
    expected = Objective(model, rows()).sample_losses()[0]
    for mode in ("inference", "several"):
        with MODES[mode]():
            objective = Objective(model, loader)
            assert torch.equal(objective.sample_losses()[0], expected)
            assert torch.equal(objective.gradient(), Objective(model, rows_made_before).gradient())
            assert objective.subset(30).samples == 30


class Mixed(nn.Module):
    """A network that is computed in bfloat16 by its own forward."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.body(x).float()


def test_the_modes_of_the_model_itself_are_kept():
    model, data = seeded(Mixed).float(), rows()
    with torch.no_grad():
        by_hand = torch.cat([entropies(model, batch) for batch in data]).double()
        plain = torch.cat([entropies(model.body, batch) for batch in data]).double()
    for mode in MODES.values():
        with mode():
            assert torch.equal(Objective(model, data).sample_losses()[0], by_hand)
    assert not torch.equal(by_hand, plain)


def test_bfloat16_products_are_the_same_in_every_mode():
    model, data = mlp(inputs=40, hidden=20), rows(inputs=40)
    vector = random(860).float()
    outside = Hessian(Objective(model, data), precision="bfloat16") @ vector
    assert not torch.equal(outside, Hessian(Objective(model, data)) @ vector)
    for mode in MODES.values():
        with mode():
            assert torch.equal(Hessian(Objective(model, data), precision="bfloat16") @ vector, outside)


class Positions(nn.Module):
    """A network that makes a tensor on the default device, as position embeddings do."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(4, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.table(torch.arange(4)) + x[:, :, None])).mean(1)


def test_a_model_that_makes_tensors_is_not_led_to_the_meta_device():
    model = seeded(Positions).float()
    outside = Objective(model, rows()).gradient()
    with torch.device("meta"):
        assert torch.equal(Objective(model, rows_made_before).gradient(), outside)


rows_made_before = rows()


def test_plain_modes_by_themselves():
    for mode in MODES.values():
        with mode(), plain_modes():
            assert not torch.is_inference_mode_enabled()
            assert not autocast_enabled("cpu")
            assert torch.get_default_device() == torch.device("cpu")
    with torch.no_grad(), plain_modes():
        assert not torch.is_grad_enabled()
    with torch.inference_mode(), pytest.raises(KeyError), plain_modes():
        raise KeyError
    assert not torch.is_inference_mode_enabled()


# ----------------------------------------------------------------------------------- what the user's code raises


class Raising(nn.Module):
    """A network whose forward raises in a batch of some size."""

    def __init__(self, error, size=None):
        super().__init__()
        self.body, self.error, self.size = mlp(), error, size

    def forward(self, x):
        if self.size in (None, len(x)):
            raise self.error
        return self.body(x)


class NestedError(RuntimeError):
    def __str__(self):
        return "  \n  first line that says something\nsecond line"


ERRORS = {
    "value": (ValueError("bad shape"), "ValueError: bad shape"),
    "index": (IndexError("index 5 is out of range"), "IndexError: index 5 is out of range"),
    "key": (KeyError("labels"), "KeyError: 'labels'"),
    "attribute": (AttributeError("no attribute x"), "AttributeError: no attribute x"),
    "several lines": (RuntimeError("Given groups=1\nand\nmore"), "RuntimeError: Given groups=1"),
    "begins with empty lines": (NestedError(), "NestedError: first line that says something"),
    "no message": (NotImplementedError(), "NotImplementedError"),
    "stop iteration": (StopIteration("ended"), "StopIteration: ended"),
    "generator exit inside": (AssertionError(), "AssertionError"),
    "division": (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    "operating system": (
        FileNotFoundError(2, "No such file", "x.bin"),
        "FileNotFoundError: [Errno 2] No such file: 'x.bin'",
    ),
}
USES = {
    "value": lambda objective: objective.value(),
    "gradient": lambda objective: objective.gradient(),
    "sample losses": lambda objective: objective.sample_losses(),
    "hessian": lambda objective: Hessian(objective) @ random(42).float(),
    "ggn": lambda objective: GGN(objective) @ random(42).float(),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_of_the_model_is_told_in_one_line(name):
    error, line = ERRORS[name]
    model = Raising(error, 7)
    before = snapshot(model)
    data = [*rows(), (torch.zeros(7, 4), torch.zeros(7, dtype=torch.long))]
    for use in USES.values():
        told, cause = refusal(use, Objective(model, data))
        assert cause is error
        assert told == (
            "model or loss_fn: failed on batch 3 ((7, 4) float32, (7,) int64) on cpu, the model in evaluation mode: "
            + line
        )
    assert same(before, snapshot(model))
    told, cause = refusal(predict_limit, model, data, progress=False)
    assert cause is error
    assert told.endswith(line)


@pytest.mark.parametrize("name", ["several lines", "stop iteration", "no message"])
def test_an_error_of_the_loss_is_told_in_one_line(name):
    error, line = ERRORS[name]

    def loss(model, batch):
        model(batch["x"])
        raise error

    batch = {"x": torch.zeros(5, 4), "y": torch.zeros(5, 2, dtype=torch.int32), "name": "cat"}
    for use in USES.values():
        told, cause = refusal(use, Objective(mlp(), [batch], loss))
        assert cause is error
        assert told.startswith(
            "model or loss_fn: failed on batch 0 ((5, 4) float32, (5, 2) int32) on cpu, the model in"
        )
        assert told.endswith(line)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()], ids=repr)
def test_what_is_no_error_passes(error):
    model = Raising(error)
    before = snapshot(model)
    with pytest.raises(type(error)) as told:
        predict_limit(model, rows(), progress=False)
    assert told.value is error
    assert same(before, snapshot(model))


def test_a_refusal_raised_inside_passes_as_it_is():
    told, cause = refusal(predict_limit, Raising(UserError("mine: do that")), rows(), progress=False)
    assert (told, cause) == ("mine: do that", None)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.cuda.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough")],
    ids=repr,
)
def test_memory_that_runs_out_leads_to_smaller_batches(error):
    """The model raises for more than ten samples at once."""

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, x):
            if len(x) > 10:
                raise error
            return self.body(x)

    model = Small()
    for loss in (None, entropies):
        objective = Objective(model, rows(), loss)
        assert_close(objective.value(), Objective(model.body, rows(), loss).value(), torch.float32)
        assert objective.most == 10
        vector = random(42).float()
        expected = Hessian(Objective(model.body, rows(), loss)) @ vector
        assert_close(Hessian(Objective(model, rows(), loss)) @ vector, expected, torch.float32)


def test_float64_inputs_of_a_float32_model_are_named_with_both_types():
    told, cause = refusal(predict_limit, mlp(), rows(torch.float64), progress=False)
    assert isinstance(cause, RuntimeError)
    assert "the model is torch.float32 and the batch torch.float64: convert one of them: RuntimeError: " in told
    told, _ = refusal(predict_limit, mlp(torch.float64), rows(), progress=False)
    assert "the model is torch.float64 and the batch torch.float32: convert one of them" in told
    told, _ = refusal(predict_limit, mlp(torch.bfloat16), rows(), progress=False)
    assert "the model is torch.bfloat16 and the batch torch.float32: convert one of them" in told


# ------------------------------------------------------------------------------------------------- loaders that raise


class Breaking:
    """A loader that raises in its fourth batch."""

    def __init__(self, error):
        self.error = error

    def __iter__(self):
        yield from rows()
        raise self.error


class Unreadable(TensorDataset):
    def __getitem__(self, index):
        if index == 45:
            raise OSError("truncated file")
        return super().__getitem__(index)


BROKEN = {
    "generator": (lambda: Breaking(ValueError("no such record\nin the file")), "3", "ValueError: no such record"),
    "stop iteration": (lambda: Breaking(StopIteration()), "3", "RuntimeError: generator raised StopIteration"),
    "data loader": (
        lambda: DataLoader(Unreadable(*(torch.cat(part) for part in zip(*rows(), strict=True))), 20),
        "2",
        "OSError: truncated file",
    ),
    "workers": (
        lambda: DataLoader(Unreadable(*(torch.cat(part) for part in zip(*rows(), strict=True))), 20, num_workers=1),
        "2",
        "OSError: truncated file",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_loader_that_raises_is_told_with_the_number_of_the_batch(name):
    build, number, line = BROKEN[name]
    for call in (
        lambda loader: predict_limit(mlp(), loader, progress=False),
        lambda loader: Objective(mlp(), loader).samples,
    ):
        told, cause = refusal(call, build())
        assert told == f"loader: batch {number} cannot be read: {line}"
        assert cause is not None


def test_a_loader_that_cannot_begin():
    class Closed:
        def __iter__(self):
            raise OSError("the file is closed")

    told, cause = refusal(predict_limit, mlp(), Closed(), progress=False)
    assert told == "loader: cannot be read: OSError: the file is closed"
    assert isinstance(cause, OSError)


def test_a_loader_of_the_old_protocol():
    class Indexed:
        def __getitem__(self, number):
            return rows()[number]

    assert list(map(len, next_batches(Indexed(), Draws()))) == [2, 2, 2]
    assert Objective(mlp(), Indexed()).value() == Objective(mlp(), rows()).value()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), UserError("mine: do that")], ids=repr)
def test_what_a_loader_raises_and_is_no_error_of_its_own_passes(error):
    with pytest.raises(type(error)) as told:
        list(next_batches(Breaking(error), Draws()))
    assert told.value is error


def test_run_returns_what_was_returned():
    assert run(lambda: 3, lambda: "nothing", Draws()) == 3


def raising(shape, classes):
    return nn.Sequential(nn.Flatten(), Raising(ValueError("expected 5 channels\nnot 1")))


def test_the_command_prints_the_line_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.main, ["predict", "--model", f"{__name__}:raising", "--dataset", "digits"])
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: model: failed on batch 0 (")
    assert last.endswith("ValueError: expected 5 channels")


# ---------------------------------------------------------------------------------- models that differentiate inside


class ForceField(nn.Module):
    """Energies of points and, as forces, their slopes by the points."""

    def __init__(self, graph):
        super().__init__()
        self.body, self.graph = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)), graph

    def forward(self, x):
        x = x.clone().requires_grad_()
        with torch.enable_grad():
            energy = self.body(x).squeeze(1)
            create = {"training": self.training, "always": True, "never": False}[self.graph]
            (force,) = torch.autograd.grad(energy.sum(), x, create_graph=create)
        return energy, force


class Energies(ForceField):
    """The same under whatever mode records gradients, as most force fields are written."""

    def forward(self, x):
        x = x.clone().requires_grad_()
        energy = self.body(x).squeeze(1)
        create = {"training": self.training, "always": True, "never": False}[self.graph]
        (force,) = torch.autograd.grad(energy.sum(), x, create_graph=create)
        return energy, force


def forces_only(model, batch):
    return (model(batch[0])[1] - batch[1]).square().sum(1)


def energies_and_forces(model, batch):
    energy, force = model(batch[0])
    return (energy - batch[2]).square() + (force - batch[1]).square().sum(1)


def points():
    x, force, energy = random(12, 3, seed=1), random(12, 3, seed=2), random(12, seed=3)
    return list(zip(x.split(5), force.split(5), energy.split(5), strict=True))


@pytest.mark.parametrize("kind", [ForceField, Energies])
@pytest.mark.parametrize("loss", [forces_only, energies_and_forces])
def test_a_force_field_with_its_graph(kind, loss):
    """Held against a dense Hessian of the energies' slopes, written down as a function of the weights."""
    model, data = seeded(lambda: kind("always")), points()
    layers = model.body[0], model.body[2]
    x, force, energy = (torch.cat(part) for part in zip(*data, strict=True))

    def value(flat):
        first, last = flat[:15].view(5, 3), flat[15:].view(1, 5)
        hidden = torch.tanh(x @ first.T + layers[0].bias)
        slope = ((1 - hidden.square()) * last) @ first
        square = (slope - force).square().sum(1)
        if loss is energies_and_forces:
            square = square + (hidden @ last[0] + layers[1].bias - energy).square()
        return square.mean()

    flat = torch.cat([layer.weight.detach().flatten() for layer in layers])
    dense = torch.autograd.functional.hessian(value, flat)
    objective = Objective(model, data, loss)
    for mode in ("inference", "no gradients", "float64"):
        with MODES[mode]():
            assert_close(objective.value(), value(flat))
            assert_close(Hessian(objective) @ torch.eye(20, dtype=torch.float64), dense)
    assert_close(objective.gradient(), torch.autograd.functional.jacobian(value, flat))
    limit = predict_limit(model, data, loss, curvature="hessian", epsilon=0.05, progress=False)
    assert limit.parameters == 20


@pytest.mark.parametrize("graph", ["training", "never"])
@pytest.mark.parametrize("kind", [ForceField, Energies])
@pytest.mark.parametrize("loss", [forces_only, energies_and_forces])
def test_a_force_field_that_drops_its_graph(kind, loss, graph):
    model = seeded(lambda: kind(graph))
    before = snapshot(model)
    told, _ = refusal(predict_limit, model, points(), loss, epsilon=0.05, progress=False)
    assert told.startswith(("model: ", "loss_fn: no gradient of the loss reaches any chosen weight"))
    assert "create_graph=True" in told
    assert same(before, snapshot(model))


# ----------------------------------------------------------------------------------------- seeds set in the user's code


def drawn_like(hidden):
    """One noise for all samples."""
    return 0.3 * torch.randn(hidden.shape[1:], device=hidden.device, dtype=hidden.dtype)


def seeded_noise(hidden):
    torch.manual_seed(3)
    return drawn_like(hidden)


def forked_noise(hidden):
    with torch.random.fork_rng():
        torch.random.manual_seed(3)
        return drawn_like(hidden)


def numpy_noise(hidden):
    np.random.seed(3)  # noqa: NPY002
    return torch.from_numpy(0.3 * np.random.randn(*hidden.shape[1:])).to(hidden)  # noqa: NPY002


def python_noise(hidden):
    python_random.seed(3)
    return torch.tensor([0.3 * python_random.gauss(0, 1) for _ in range(hidden.shape[1])]).to(hidden)


NOISES = {"torch": seeded_noise, "fork": forked_noise, "numpy": numpy_noise, "python": python_noise}


class Noisy(nn.Module):
    """Adds noise to the hidden layer; ``constant`` holds it instead where it is known."""

    def __init__(self, noise, constant=None):
        super().__init__()
        self.body, self.noise, self.constant = mlp(), noise, constant

    def forward(self, x):
        hidden = self.body[1](self.body[0](x))
        return self.body[2](hidden + (self.noise(hidden) if self.constant is None else self.constant))


def process_states():
    return torch.get_rng_state(), python_random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


@pytest.mark.parametrize("place", ["model", "loss"])
@pytest.mark.parametrize("name", NOISES)
def test_seeds_inside_a_model_or_a_loss_give_the_limit_of_what_is_drawn(name, place):
    noise = NOISES[name]
    outside = process_states()
    try:
        constant = noise(torch.zeros(1, 6 if place == "model" else 3))
    finally:
        torch.set_rng_state(outside[0])

    def disturbed(model, batch, noise=noise):
        outputs = model(batch[0])
        return functional.cross_entropy(outputs + noise(outputs), batch[1], reduction="none")

    if place == "model":
        expected = predict_limit(Noisy(noise, constant), rows(), retune=True, progress=False)
        model, loss = Noisy(noise), None
    else:
        expected = predict_limit(
            mlp(), rows(), lambda model, batch: disturbed(model, batch, lambda _: constant), retune=True, progress=False
        )
        model, loss = mlp(), disturbed
    before = process_states()
    limit = predict_limit(model, rows(), loss, retune=True, progress=False)
    assert same(before, process_states())
    assert limit.answers == expected.answers


RANDOM = "model or loss_fn: two calls with the same batch give different values; turn off dropout and other random"
REFUSALS = {
    "noise": (drawn_like, RANDOM),
    "another seed": (lambda hidden: (torch.seed(), drawn_like(hidden))[1], RANDOM),
    "of the whole batch": (
        lambda hidden: (torch.manual_seed(0), torch.randn_like(hidden))[1],
        "loss_fn: splitting a batch of 20 changes its losses",
    ),
}


@pytest.mark.parametrize("size", [1, 20])
@pytest.mark.parametrize("name", REFUSALS)
def test_random_numbers_inside_a_model_are_named(name, size):
    noise, beginning = REFUSALS[name]
    if (name, size) == ("of the whole batch", 1):
        predict_limit(Noisy(noise), rows(samples=9, size=1), measure=False, steps=4, probes=1, progress=False)
        return
    before = process_states()
    told, _ = refusal(predict_limit, Noisy(noise), rows(size=size), progress=False)
    assert told.startswith(beginning)
    assert same(before, process_states())
