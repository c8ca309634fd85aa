"""Networks, data, losses and normalisation of other people on the command line."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli import FAST, elsewhere, refuse, run  # noqa: F401
from torch import nn

from estimators import UserError
from pruning_limits import PruningLimit
from validation.accuracy import Accuracy, sampled_accuracy
from validation.data import load_data
from validation.models import build_model
from validation.normalisation import SCALED, UNCHANGED, Affine
from validation.references import call, parsed_arguments, resolve

CODE = """
import csv

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CALLS = []


def build(width, depth=1, *, activation="relu", pretrained=False):
    CALLS.append((width, depth, activation, pretrained))
    act = {"relu": nn.ReLU, "tanh": nn.Tanh}[activation]
    return nn.Sequential(nn.Linear(3, width), act(), nn.Linear(width, 2))


def pretrained_first(pretrained=False, classes=4):
    CALLS.append((pretrained, classes))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def anything(**options):
    CALLS.append(options)
    return nn.Linear(3, 2)


def positional(shape, /):
    return nn.Linear(3, 2)


def fails():
    raise LookupError("no such\\nfile")


def batches(n=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator)
    return [(x[:40], (x[:40, 0] > 0).long()), (x[40:], (x[40:, 0] > 0).long())]


def pair(n=60):
    return batches(n), batches(20, seed=1)


def once():
    return iter(batches())


def one_batch():
    return batches()[0]


def regression(path):
    with open(path) as file:
        rows = [[float(entry) for entry in row] for row in csv.reader(file)]
    table = torch.tensor(rows)
    return DataLoader(TensorDataset(table[:, :3], table[:, 3:]), batch_size=16)


def squared(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(1)


def broken(model, batch):
    raise KeyError("label")
"""

MODEL = ("--model", "own.py:build", "--model-arg", "width=8")
QUICK = (*FAST, "--no-measure", "--epsilon", 0.1)


@pytest.fixture(autouse=True)
def own(elsewhere, monkeypatch):  # noqa: F811
    """A file of the user in the current folder, and a path that is put back."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("own.py").write_text(CODE)


def loaded():
    """The user's module as the last command imported it."""
    return next(
        module for module in sys.modules.values() if getattr(module, "__file__", None) == str(Path("own.py").resolve())
    )


# ------------------------------------------------------------------------------------------------- networks


def test_a_factory_gets_its_arguments_by_name():
    arguments = ("--model-arg", "activation=tanh", "--model-arg", "pretrained=None")
    run("predict", *MODEL, *arguments, "--data", "own.py:batches", *QUICK, "--json", "limit.json")
    assert loaded().CALLS == [(8, 1, "tanh", None)]
    assert PruningLimit.from_json("limit.json").parameters == 3 * 8 + 8 * 2


def test_shape_and_classes_go_to_parameters_of_these_names_only():
    run("predict", "--model", "own.py:pretrained_first", "--dataset", "digits", *QUICK)
    assert loaded().CALLS == [(False, 10)]
    run("predict", "--model", "own.py:pretrained_first", "--model-arg", "classes=12", "--dataset", "digits", *QUICK)
    assert loaded().CALLS[1:] == [(False, 12)]
    assert "needs the argument shape" in refuse("predict", "--model", "fc5-mini", "--data", "own.py:batches")
    shape = ("--model-arg", "shape=(1, 1, 3)", "--model-arg", "classes=2")
    run("predict", "--model", "fc3-tiny", *shape, "--data", "own.py:batches", *QUICK)


def test_a_factory_of_any_arguments_gets_those_that_were_given():
    run("predict", "--model", "own.py:anything", "--model-arg", "a=1", "--data", "own.py:batches", *QUICK)
    assert loaded().CALLS == [{"a": 1}]


@pytest.mark.parametrize("reference", ["elsewhere/net.py:build", "mynet:build"])
def test_code_is_found_in_the_current_folder_and_beside_its_file(reference):
    Path("elsewhere").mkdir()
    Path("elsewhere/layers_of_mine.py").write_text(
        "from torch import nn\n\n\ndef layer():\n    return nn.Linear(3, 2)\n"
    )
    text = "import layers_of_mine\n\n\ndef build():\n    return layers_of_mine.layer()\n"
    Path("elsewhere/net.py").write_text(text)
    Path("mynet.py").write_text("from elsewhere.layers_of_mine import layer as build\n")
    run("predict", "--model", reference, "--data", "own.py:batches", *QUICK)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (("--model", "own.py:build"), "model: 'own.py:build' needs the argument width; give --model-arg width=VALUE"),
        ((*MODEL, "--model-arg", "widht=3"), "takes no argument widht; it takes width, depth, activation, pretrained"),
        (("--model", "own.py:missing"), "own.py has no missing; it defines build"),
        (("--model", "none.py:build"), "none.py does not exist"),
        (("--model", "own.py:fails"), "model: 'own.py:fails' failed: LookupError: no such"),
        (("--model", "own.py:CALLS"), "is of type list, expected a function"),
        (("--model", "own.py:batches"), "returned list, expected torch.nn.Module"),
        (("--model", "own.py:positional"), "needs the argument shape"),
        (("--model", "broken.py:build"), "cannot import 'broken.py:build': SyntaxError"),
        (("--model", "leaves.py:build"), "cannot import 'leaves.py:build': SystemExit: 3"),
        (("--model", "squeezenet1_1", "--model-arg", "colour=red"), "'squeezenet1_1' failed: TypeError"),
        (("--model", "resnet18", "--model-arg", "colour=red"), "takes no argument colour; it takes shape, classes"),
    ],
)
def test_networks_that_are_refused(model, message):
    Path("broken.py").write_text("def build(:\n")
    Path("leaves.py").write_text("import sys\n\nsys.exit(3)\n")
    assert message in refuse("predict", *model, "--data", "own.py:batches")


# ----------------------------------------------------------------------------------------------------- data


def accuracy_told(result):
    """The share and the rest of what was said of the data."""
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("data: "))
    told = re.fullmatch(r"data: (.*); dense accuracy ([\d.]+)% on (.*)", line)
    return told.group(1), float(told.group(2)), told.group(3)


def test_a_function_gives_a_loader_or_a_pair():
    where, _, on = accuracy_told(run("predict", *MODEL, "--data", "own.py:batches", *QUICK))
    assert (where, on) == ("own.py:batches, as it gives them", "60 training samples")
    result = run("predict", *MODEL, "--data", "own.py:pair", "--data-arg", "n=80", *QUICK, "--json", "limit.json")
    where, share, on = accuracy_told(result)
    assert on == "20 held-out samples"
    module = loaded()
    model = build_model("own.py:build", None, None, arguments={"width": 8}).eval()
    ((x, y),) = [batch for batch in module.pair()[1] if len(batch[1])]
    assert share == pytest.approx(100 * float((model(x).argmax(1) == y).float().mean()), abs=5e-3)


def mean_square(model, table):
    with torch.no_grad():
        return float((model(table[:, :3]) - table[:, 3:]).square().mean())


def test_a_table_of_numbers_with_a_loss_of_its_own():
    rows = np.random.default_rng(0).normal(size=(50, 5))
    np.savetxt("table.csv", rows, delimiter=",")
    data = ("--data", "own.py:regression", "--data-arg", "path=table.csv")
    result = run("predict", *MODEL, *data, "--loss", "own.py:squared", *QUICK, "--json", "limit.json")
    assert "no accuracy, as these batches hold no labels of the outputs" in result.stdout
    model = build_model("own.py:build", None, None, arguments={"width": 8}).eval()
    table = torch.tensor(rows, dtype=torch.float32)
    loss = mean_square(model, table)
    limit = PruningLimit.from_json("limit.json")
    assert limit.objective == pytest.approx(loss, abs=4 * limit.evidence.dense.objective_error + 1e-5)
    spectrum = run("spectrum", *MODEL, *data, "--loss", "own.py:squared", *FAST)
    assert "hessian of 40 weights on 50 samples" in spectrum.stdout
    torch.save({"net": model.state_dict()}, "dense.pt")
    torch.save(model.state_dict() | {"0.weight": torch.zeros(8, 3)}, "pruned.pt")
    files = ("--limit", "limit.json", "--dense", "dense.pt", "--pruned", "pruned.pt", "--json")
    assert "'label'" in refuse("check", *MODEL, *data, "--loss", "own.py:broken", *files)
    result = run("check", *MODEL, *data, "--loss", "own.py:squared", *files, code=4)  # it was never trained
    state = model.state_dict() | {"0.weight": torch.zeros(8, 3)}
    model.load_state_dict(state)
    after = mean_square(model, table)
    assert json.loads(result.stdout)["rise"] == pytest.approx(after - loss, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("once", "returned a list_iterator, which can be read only once"),
        ("one_batch", "a tuple of tensors, which is one batch"),
        ("build", "needs the argument width; give --data-arg width=VALUE"),
        ("fails", "failed: LookupError: no such"),
    ],
)
def test_data_that_are_refused(function, message):
    assert message in refuse("predict", *MODEL, "--data", f"own.py:{function}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "own.py:batches", "--dataset", "digits"), "--dataset and --data cannot be given together"),
        (("--data", "own.py:batches", "--scale"), "--scale is for --dataset"),
        (("--data", "own.py"), "expected path.py:function or package.module:function, got 'own.py'"),
        (("--dataset", "digits", "--loss", "squared"), "expected path.py:function"),
        (("--dataset", "digits", "--data-arg", "n=3"), "--data-arg is for --data"),
        (("--data", "own.py:batches", "--data-arg", "n"), "expected key=value, got 'n'"),
        (("--data", "own.py:batches", "--data-arg", "n=1", "--data-arg", "n=2"), "n is given twice"),
        (("--dataset", "digits", "--mean", "0.5"), "--mean and --std belong together"),
        (("--dataset", "digits", "--mean", "0.5", "--std", "a"), "expected numbers, a comma between two, got 'a'"),
        (("--dataset", "digits", "--scale", "--no-normalise"), "--scale and --no-normalise cannot be given together"),
        ((), "missing --dataset or --data"),
    ],
)
def test_wrong_usage(arguments, message):
    assert message in refuse("predict", *MODEL, *arguments, code=2)


# --------------------------------------------------------------------------------------------- normalisation


LINEAR = """
from torch import nn


def build(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
"""


def scaled_network():
    """A network that classifies digits divided by 255 by their mean images, and relies on a corner that is empty."""
    digits = load_data("digits")
    x = digits.train_x.float().div(255).flatten(1)
    means = torch.stack([x[digits.train_y == label].mean(0) for label in range(10)])
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        model[1].weight.copy_(means)
        model[1].weight[:, 0] = 100.0 * torch.arange(10)
        model[1].bias.copy_(-0.5 * means.square().sum(1))
    return model


@pytest.mark.parametrize(
    ("options", "told", "inputs"),
    [
        ((), "the training images' own", None),
        (("--scale",), "x / 255", lambda x: x / 255),
        (("--no-normalise",), "values from 0 to 255 as they are", lambda x: x),
        (("--mean", "0.5", "--std", "0.25"), "x / 255, minus 0.5, by 0.25", lambda x: (x / 255 - 0.5) / 0.25),
    ],
)
def test_normalisation_is_told_with_the_accuracy_that_it_gives(options, told, inputs):
    model = scaled_network()
    torch.save({"model": model.state_dict()}, "net.pt")
    Path("linear.py").write_text(LINEAR)
    task = ("--model", "linear.py:build", "--dataset", "digits", "--weights", "net.pt")
    where, share, on = accuracy_told(run("predict", *task, *options, *QUICK))
    digits = load_data("digits")
    assert where.startswith("digits, 1,400 training images, ")
    assert told in where
    assert on == "397 held-out samples"
    if inputs is None:
        mean, std = (part.view(1, -1, 1, 1) for part in digits.statistics)
        inputs = lambda x: (x / 255 - mean) / std  # noqa: E731
    expected = (model(inputs(digits.test_x.float())).argmax(1) == digits.test_y).float().mean()
    assert share == pytest.approx(100 * float(expected), abs=5e-3)


def test_a_wrong_normalisation_shows():
    torch.save(scaled_network().state_dict(), "net.pt")
    Path("linear.py").write_text(LINEAR)
    task = ("--model", "linear.py:build", "--dataset", "digits", "--weights", "net.pt")
    right, wrong = (accuracy_told(run("predict", *task, *option, *QUICK))[1] for option in (("--scale",), ()))
    assert right > 85 > wrong + 10


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [((0.5,), (0.0,), "std: expected positive"), ((0.5,), (), "as many"), ((float("nan"),), (1.0,), "mean: expected")],
)
def test_numbers_that_normalise_nothing(mean, std, message):
    with pytest.raises(UserError, match=message):
        Affine(mean, std)


def test_one_value_per_channel():
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    result = Affine((0.1, 0.2, 0.3), (1.0, 2.0, 4.0))(images)
    assert torch.allclose(result[:, 2], (images[:, 2] / 255 - 0.3) / 4)
    assert torch.equal(UNCHANGED(images), images.float())
    assert torch.equal(SCALED(images), images.float() / 255)
    with pytest.raises(UserError, match="expected 1 or 3 values, one per channel, got 2"):
        Affine((0.1, 0.2), (1.0, 1.0))(images)


def test_weights_and_transforms_of_torchvision(monkeypatch):
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

    rng = np.random.default_rng(0)
    arrays = {f"x_{part}": rng.integers(0, 256, (6, 40, 40, 3), dtype=np.uint8) for part in ("train", "test")}
    np.savez("few.npz", y_train=np.arange(6) % 3, y_test=np.arange(6) % 3, **arrays)
    monkeypatch.setenv("TORCH_HOME", str(Path("home").resolve()))
    name = "SqueezeNet1_1_Weights.IMAGENET1K_V1"
    task = ("spectrum", "--model", "squeezenet1_1", "--dataset", "few.npz", "--samples", 2, "--steps", 1, "--probes", 1)
    error = refuse(*task, "--weights", name)
    assert "download https://download.pytorch.org/" in error
    folder = Path("home/hub/checkpoints")
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = squeezenet1_1(num_classes=1000).eval()
    torch.save(model.state_dict(), folder / SqueezeNet1_1_Weights.IMAGENET1K_V1.url.rpartition("/")[2])
    where, share, _ = accuracy_told(run(*task, "--weights", name))
    assert where.endswith(f"the transforms of {name}")
    images = torch.from_numpy(arrays["x_test"]).permute(0, 3, 1, 2)
    with torch.no_grad():
        labels = model(SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms()(images)).argmax(1)
    assert share == pytest.approx(100 * float((labels == torch.arange(6) % 3).float().mean()), abs=5e-3)
    assert "torchvision has no 'Nothing_Weights.X'" in refuse(*task, "--transforms", "Nothing_Weights.X")


# ------------------------------------------------------------------------------------------------- the parts


def test_values_are_literals_or_text():
    pairs = ["a=1", "b=1e-3", "c=None", "d=[1, 'x']", "e=relu", "f=a=b", "g=", "h=__import__('os')"]
    expected = {"a": 1, "b": 1e-3, "c": None, "d": [1, "x"], "e": "relu", "f": "a=b", "g": "", "h": "__import__('os')"}
    assert parsed_arguments(pairs) == expected
    for pair in ("a", "=1", "1a=2", "a-b=1"):
        with pytest.raises(UserError, match="expected key=value"):
            parsed_arguments([pair])


def test_a_file_is_imported_once_and_beside_a_module_of_its_name():
    Path("json.py").write_text("from pathlib import Path\n\n\ndef place():\n    return Path(__file__)\n")
    first, second = resolve("data", "json.py:place"), resolve("loss", "json.py:place")
    assert first is second
    assert call("data", "json.py:place", first, {}) == Path("json.py").resolve()
    assert sys.modules["json"] is json


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_accuracy_of_the_first_batches(share):
    model = nn.Identity()
    labels = torch.arange(8) % 4
    right = nn.functional.one_hot(torch.where(torch.arange(8) < 8 * share, labels, (labels + 1) % 4), 4).float()
    loader = [(right, labels), (right, labels), (right, labels)]
    assert sampled_accuracy(model, loader) == Accuracy(share, 24)
    assert sampled_accuracy(model, loader, most=9) == Accuracy(share, 16)
    assert sampled_accuracy(model, [(right, labels.float())]) is None
    assert sampled_accuracy(model, [{"x": right}]) is None
    assert sampled_accuracy(model, [(right[:, 0], labels)]) is None
    assert sampled_accuracy(model, []) is None
    with pytest.raises(UserError, match=r"model: failed on batch 0 \(\(8, 4\) float32"):
        sampled_accuracy(nn.Linear(3, 4), [(right, labels)])
