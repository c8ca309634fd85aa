"""What a prediction from the command line may lose: criterion, metric, allowed fall and held-out data."""

import copy
import json
from pathlib import Path

import pytest
import torch
from test_cli import FAST, TASK, elsewhere, refuse, run  # noqa: F401
from test_own_code import CODE, MODEL, loaded, own  # noqa: F401
from torch.nn import functional

from estimators import L1, L2, UserError
from pruning_limits import PruningLimit, predict_limit
from validation.commands import prediction

METRICS = """

def likelihood(model, batch):
    return model(batch[0]).log_softmax(1).gather(1, batch[1][:, None])[:, 0]


def others(n=10):
    return batches(n + 40, seed=5)[1:]
"""
BATCHES = ("--data", "own.py:batches")
QUICK = {"samples": 64, "steps": 4, "probes": 1, "progress": False}
SECOND = ("--data", "own.py:pair")


@pytest.fixture(autouse=True)
def metrics(own):  # noqa: F811
    Path("own.py").write_text(CODE + METRICS)


@pytest.fixture
def asked(monkeypatch):
    """What predict_limit is asked for."""
    calls = []

    def predicted(model, loader, *arguments, **options):
        calls.append(options | {"loader": loader})
        raise UserError("asked")

    monkeypatch.setattr(prediction, "predict_limit", predicted)
    return calls


def ask(asked, *arguments, command=("predict",)):
    """Run a command that predicts, and return what it asked for."""
    assert refuse(*command, *arguments) == "Error: asked"
    return asked.pop()


@pytest.mark.parametrize("command", [("predict",), ("check", "--sparsity", 0.5)])
def test_what_is_asked_for_without_options(asked, command):
    options = ask(asked, *TASK, command=command)
    assert (options["criterion"], options["metric"], options["max_drop"]) == ("loss", "accuracy", None)
    assert (options["epsilon"], options["penalty"]) == ("batch-std", None)
    assert sum(len(y) for _, y in options["held_out"]) == 397
    assert sum(len(y) for _, y in options["loader"]) == 1400
    options = ask(asked, *MODEL, *SECOND, command=command)
    assert (options["metric"], options["held_out"]) == (None, None)


@pytest.mark.parametrize("command", [("predict",), ("check", "--sparsity", 0.5)])
def test_options_are_passed_on(asked, command):
    options = ask(asked, *TASK, "--criterion", "objective", "--l1", 1e-3, "--max-drop", 0.01, command=command)
    assert (options["criterion"], options["metric"], options["max_drop"]) == ("objective", "accuracy", 0.01)
    assert options["penalty"] == L1(1e-3)
    named = ("--metric", "own.py:likelihood", "--max-drop", 0.5, "--l2", 1e-4)
    options = ask(asked, *MODEL, *SECOND, *named, command=command)
    assert (options["criterion"], options["max_drop"], options["penalty"]) == ("loss", 0.5, L2(1e-4))
    assert options["metric"] is loaded().likelihood
    assert [len(y) for _, y in options["held_out"]] == [20, 0]
    assert ask(asked, *MODEL, *SECOND, "--metric", "accuracy", command=command)["metric"] == "accuracy"


def test_accuracy_is_no_default_where_there_is_none(asked):
    """A network that gives back its images, whose loss is none of labels."""
    Path("same.py").write_text(
        "from torch import nn\n\n\ndef build():\n    return nn.Conv2d(1, 1, 1)\n\n\n"
        "def loss(model, batch):\n    return (model(batch[0]) - batch[0]).square().flatten(1).mean(1)\n"
    )
    options = ask(asked, "--model", "same.py:build", "--dataset", "digits", "--loss", "same.py:loss")
    assert (options["metric"], options["held_out"]) == (None, None)


def test_held_out_data_of_a_function(asked):
    metric = ("--metric", "own.py:likelihood")
    assert ask(asked, *MODEL, *BATCHES, *metric)["held_out"] is None
    for data in (BATCHES, SECOND):
        options = ask(asked, *MODEL, *data, *metric, "--held-out", "own.py:others")
        ((x, _),) = options["held_out"]
        assert torch.equal(x, loaded().others()[0][0])
    options = ask(asked, *MODEL, *BATCHES, *metric, "--held-out", "own.py:others", "--held-out-arg", "n=7")
    assert [len(y) for _, y in options["held_out"]] == [7]


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(
    ("arguments", "on"),
    [
        (BATCHES, "60 training samples"),
        (SECOND, "20 held-out samples"),
        ((*BATCHES, "--held-out", "own.py:others"), "10 held-out samples"),
    ],
)
def test_the_accuracy_told_is_that_of_the_held_out_data(arguments, on):
    assert run("predict", *MODEL, *arguments, code=1).stdout.splitlines()[0].endswith(f" on {on}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--metric", "acc"), "expected accuracy or path.py:function or package.module:function, got 'acc'"),
        (("--held-out", "others"), "expected path.py:function or package.module:function, got 'others'"),
        (("--held-out-arg", "n=3"), "--held-out-arg is for --held-out"),
        (("--criterion", "accuracy"), "'accuracy' is not one of 'loss', 'objective'"),
        (("--max-drop", "little"), "'little' is not a valid float"),
        (("--max-drop", 0.1, "--no-measure"), "--max-drop and --no-measure cannot be given together"),
    ],
)
def test_wrong_usage(arguments, message):
    assert message in refuse("predict", *MODEL, *BATCHES, *arguments, code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--metric", "own.py:nothing"), "metric: cannot import 'own.py:nothing': own.py has no nothing; it defines"),
        (("--held-out", "own.py:one_batch"), "held-out: 'own.py:one_batch' returned no loader: loader: expected an"),
        (
            ("--held-out", "own.py:once"),
            "held-out: 'own.py:once' returned a list_iterator, which can be read only once",
        ),
        (("--held-out", "own.py:build"), "needs the argument width; give --held-out-arg width=VALUE"),
        (("--held-out", "own.py:fails"), "held-out: 'own.py:fails' failed: LookupError: no such"),
    ],
)
def test_functions_that_are_refused(arguments, message):
    assert message in refuse("predict", *MODEL, *BATCHES, *arguments)


@pytest.mark.parametrize(
    "option",
    [("--metric", "accuracy"), ("--max-drop", 0.1), ("--held-out", "own.py:others"), ("--held-out-arg", "n=3")],
)
def test_a_limit_from_a_file_has_its_own_allowance(option):
    """The criterion always, the rest where a sparsity is asked about."""
    error = refuse("check", "--sparsity", 0.5, "--limit", "limit.json", *option, code=2)
    assert error == "Error: --metric, --max-drop and --held-out are for predict; --limit has its own"
    pair = ("--limit", "limit.json", "--dense", "dense.pt", "--pruned", "pruned.pt")
    for form in (("--sparsity", 0.5, "--limit", "limit.json"), (*pair, *option)):
        error = refuse("check", *form, "--criterion", "loss", code=2)
        assert error == "Error: --criterion is for predict; --limit has its own"


def test_a_prediction_with_an_allowed_fall(trained, digits):
    """The fall of the accuracy that a mask causes, by hand, is the allowed one where it was measured."""
    torch.save(trained.state_dict(), "dense.pt")
    run("predict", *TASK, *FAST, "--checkpoint", "dense.pt", "--max-drop", 0.02, "--json", "limit.json")
    limit = PruningLimit.from_json("limit.json")
    settings = limit.settings
    assert (settings.metric, settings.max_drop, settings.held_out) == ("accuracy", 0.02, True)
    assert (settings.criterion, settings.penalty) == ("loss", None)
    masks, shares = predict_limit(trained, digits.batches("train", 1000), **QUICK).mask(limit.achieved), []
    pruned = copy.deepcopy(trained)
    with torch.no_grad():
        for name, mask in masks.items():
            pruned.get_parameter(name).mul_(mask)
        for model in (trained, pruned):
            right = [model(x).argmax(1) == y for x, y in digits.batches("test", 1000)]
            shares.append(float(torch.cat(right).double().mean()))
    assert 0 < limit.achieved < 1
    assert shares[0] - shares[1] <= 0.02


@pytest.mark.parametrize("criterion", ["loss", "objective"])
def test_a_pruned_network_is_judged_by_the_criterion_of_the_limit(trained, digits, criterion):
    """The penalty counts only where it belongs to the criterion."""
    options = {**QUICK, "penalty": L1(1e-2), "epsilon": 0.5}
    whole = digits.batches("train", 1000)
    predicted = predict_limit(trained, whole, criterion=criterion, **options)
    predicted.to_json("limit.json")
    pruned = copy.deepcopy(trained)
    with torch.no_grad():
        for name, mask in predicted.mask(0.3).items():
            pruned.get_parameter(name).mul_(mask)
    torch.save(trained.state_dict(), "dense.pt")
    torch.save(pruned.state_dict(), "pruned.pt")
    files = ("--limit", "limit.json", "--dense", "dense.pt", "--pruned", "pruned.pt", "--l1", 1e-2, "--json")
    told = json.loads(run("check", *TASK, *files).stdout)
    losses, sizes = [], []
    with torch.no_grad():
        for model in (pruned, trained):
            rows = [functional.cross_entropy(model(x), y, reduction="none") for x, y in whole]
            losses.append(float(torch.cat(rows).double().mean()))
            sizes.append(float(sum(weight.abs().sum(dtype=torch.float64) for weight in model.parameters())))
    rise = losses[0] - losses[1] + (1e-2 * (sizes[0] - sizes[1]) if criterion == "objective" else 0.0)
    assert told["rise"] == pytest.approx(rise, abs=1e-6)
    assert sizes[1] - sizes[0] > 1e-2
