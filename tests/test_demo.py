"""The demonstration: what it writes, and that all it calls measured is what the network does."""

import re
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional

from pruning_limits import PruningLimit
from pruning_limits.ladder import NAMES, percent, rows
from validation import cli
from validation.commands.demo import MAX_DROP, NETWORK, TARGET
from validation.training import trained_network

SECONDS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "results"


@pytest.fixture(scope="module")
def ran(folder):
    """What it prints, and the processor time that it takes."""
    threads, started = torch.get_num_threads(), time.process_time()
    result = CliRunner().invoke(cli.main, ["demo", "--out", str(folder)])
    spent = time.process_time() - started
    assert result.exit_code == 0, result.output
    assert torch.get_num_threads() == threads
    return result.stdout, spent


@pytest.fixture(scope="module")
def printed(ran):
    return ran[0]


@pytest.fixture(scope="module")
def limit(ran, folder):
    return PruningLimit.from_json(folder / "limit.json")


@pytest.fixture(scope="module")
def model(ran, digits, folder):
    assert len(list(folder.glob("network-*/weights.pt"))) == 1
    return trained_network(NETWORK, digits, folder)


def pruned(model, sparsity):
    """Outputs of the network without its smallest weights, by sorting and a chain of products."""
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    sizes = torch.cat([layer.weight.detach().abs().flatten() for layer in layers])
    removed = torch.zeros(len(sizes), dtype=torch.bool)
    removed[sizes.argsort(stable=True)[: round(sparsity * len(sizes))]] = True
    masks = removed.split([layer.weight.numel() for layer in layers])

    def outputs(x):
        x = x.flatten(1)
        for number, (layer, mask) in enumerate(zip(layers, masks, strict=True)):
            weight = layer.weight.detach().masked_fill(mask.view_as(layer.weight), 0)
            x = functional.linear(x.relu() if number else x, weight, layer.bias.detach())
        return x

    return outputs


def accuracy(model, digits, sparsity):
    ((x, y),) = digits.batches("test", 1000)
    return float((pruned(model, sparsity)(x).argmax(1) == y).double().mean())


def loss(model, digits, sparsity):
    outputs = pruned(model, sparsity)
    parts = [functional.cross_entropy(outputs(x), y, reduction="none") for x, y in digits.batches("train", 1000)]
    return float(torch.cat(parts).double().mean())


# --------------------------------------------------------------------------------------------- what it writes


def test_it_takes_less_than_a_minute(ran):
    assert ran[1] < SECONDS


def test_it_prints_the_ladder_and_a_verdict_on_the_target(printed, limit):
    assert printed.startswith(f"fc5-mini on digits, 15,000 prunable weights, version {limit.evidence.origin.version}, ")
    assert printed.splitlines()[1].startswith("allowed: accuracy -0.5 points of ")
    assert limit.summary(TARGET) in printed
    assert f"\nyour target 80.0 %: {limit.check(TARGET).status}. " in printed
    assert (limit.max_drop, limit.metric, limit.settings.held_out) == (MAX_DROP, "accuracy", True)


def test_it_writes_the_limit_its_figure_and_its_page(printed, folder):
    assert (folder / "limit.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert [Path(line.removeprefix("wrote ")).name for line in printed.splitlines()[-3:]] == [
        "limit.json",
        "limit.png",
        "report.html",
    ]


def test_it_says_of_every_rung_that_is_not_settled_why(printed, limit):
    tolerance = limit.settings.tolerance
    for answer in limit.answers:
        assert (f"  {NAMES[answer.rung]}: {answer.status}\n" in printed) is not answer.settled(tolerance)
    settled = limit.status.startswith("settled: ") and "not settled" not in limit.status
    assert ("not settled within 0.5 points, and why:\n" in printed) is not settled


# ------------------------------------------------------------------------------------- what it calls measured


def test_every_accuracy_that_is_called_measured_is_that_of_the_network(printed, limit, model, digits):
    measured = [row for row in rows(limit) if row.how == "measured"]
    assert [row.name for row in measured] == ["dense", "pruned, nothing else"]
    for row, sparsity in zip(measured, (0.0, limit.achieved), strict=True):
        assert row.sparsity == percent(sparsity)
        assert row.metric == f"{100 * accuracy(model, digits, sparsity):.2f} %"
        assert re.search(rf"^{row.name} +{row.sparsity} .* {row.metric}  measured$", printed, re.MULTILINE)
    assert limit.answer("one-shot").metric == pytest.approx(accuracy(model, digits, limit.achieved), abs=1e-12)


def test_the_rung_that_is_called_measured_is_the_first_crossing(limit, model, digits):
    """What it reaches loses no more than is allowed, and the next network of the grid loses more."""
    dense = accuracy(model, digits, 0.0)
    failing = next(point.sparsity for point in limit.evidence.points if point.sparsity > limit.achieved)
    assert dense - accuracy(model, digits, limit.achieved) <= MAX_DROP < dense - accuracy(model, digits, failing)
    assert failing - limit.achieved <= 0.05 * limit.settings.tolerance + 2 / limit.parameters


def test_every_measured_point_is_what_the_network_does(limit, model, digits):
    right, before = accuracy(model, digits, 0.0), loss(model, digits, 0.0)
    assert before == pytest.approx(limit.objective, rel=1e-6)
    assert len(limit.evidence.points) > 10
    for point in limit.evidence.points:
        assert point.drop == pytest.approx(right - accuracy(model, digits, point.sparsity), abs=1e-12)
        assert point.rise == pytest.approx(loss(model, digits, point.sparsity) - before, abs=1e-6)


def test_re_tuning_reaches_what_it_says(printed, limit, model, digits):
    ((x, y),) = digits.batches("test", 1000)
    for sparsity, told in ((limit.answer("re-tuned").sparsity, None), (TARGET, "re-tuned there and measured")):
        network, answer = limit.retune(model, digits.batches("train", 1000), sparsity)
        right = float((network(x).argmax(1) == y).double().mean())
        removed = sum(int((layer.weight == 0).sum()) for layer in network.modules() if hasattr(layer, "weight"))
        assert removed == round(sparsity * limit.parameters) == round(answer.sparsity * limit.parameters)
        if told is None:
            assert right == pytest.approx(limit.answer("re-tuned").metric, abs=1e-12)
            assert accuracy(model, digits, 0.0) - right <= MAX_DROP
        else:
            assert f"\n{told}: accuracy {100 * right:.2f} %\n" in printed


def test_the_target_is_out_of_reach_of_pruning_alone(printed, limit, model, digits):
    reached = accuracy(model, digits, TARGET)
    assert accuracy(model, digits, 0.0) - reached > MAX_DROP
    assert limit.check(TARGET).status != "achievable"
    assert f"\npruned to your target and measured: accuracy {100 * reached:.2f} %\n" in printed
