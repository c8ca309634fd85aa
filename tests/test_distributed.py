"""Two processes that share the data against one, and what each of them hears when something is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import distributed_program as program
import pytest
import torch
from click.testing import CliRunner
from helpers import seeded

from estimators import Objective, Shard, distributed
from pruning_limits import PruningLimit
from validation import cli

HERE = Path(__file__).parent
CLOSE = {"rtol": 1e-12, "atol": 1e-14}
PREDICT = ("predict", "--model", "fc5-mini", "--dataset", "digits", "--samples", "64", "--steps", "4", "--probes", "1")
pytestmark = pytest.mark.usefixtures("one_thread")
needs_fully_shard = pytest.mark.skipif(program.FULLY_SHARD is None, reason="torch has no fully_shard before 2.6")


def environment():
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def ranks(forking, tmp_path_factory):
    """What the two ranks found; the second one is killed at the end."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [forking.Process(target=program.main, args=(rank, folder)) for rank in (0, 1)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(600)
    finally:
        for process in processes:
            process.kill()
    assert [process.exitcode for process in processes] == [0, 9]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one_process():
    return {name: program.measured(problem) for name, problem in program.objectives().items()}


def assert_equal_bits(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(b[key])), key


@pytest.mark.parametrize("name", [*program.NAMES, "five batches", "own values"])
def test_two_ranks_sum_what_one_process_sums(ranks, one_process, name):
    assert_equal_bits(ranks[0][name], ranks[1][name])
    for key, value in one_process[name].items():
        torch.testing.assert_close(torch.as_tensor(ranks[0][name][key]), torch.as_tensor(value), **CLOSE, msg=key)


@pytest.mark.parametrize("name", [*program.NAMES, "five batches", "own values"])
def test_losses_come_in_loader_order_with_equal_bits(ranks, one_process, name):
    for key in ("losses", "losses again", "sizes"):
        assert torch.equal(ranks[0][name][key], one_process[name][key])


@pytest.mark.parametrize(("name", "shards"), [("five batches", "shards"), ("own values", "shards of own values")])
def test_ranks_that_hold_their_own_parts(ranks, one_process, name, shards):
    assert_equal_bits(ranks[0][shards], ranks[1][shards])
    for key, value in one_process[name].items():
        actual, expected = (torch.as_tensor(source) for source in (ranks[0][shards][key], value))
        torch.testing.assert_close(actual, expected, **CLOSE, msg=key)


def test_two_ranks_re_tune_as_one_process_does(ranks):
    assert_equal_bits(ranks[0]["re-tuned"], ranks[1]["re-tuned"])
    for name, points in program.re_tuned().items():
        assert len(points) > 1
        torch.testing.assert_close(ranks[0]["re-tuned"][name], points, rtol=1e-9, atol=1e-11)


def test_products_by_finite_differences_are_those_of_one_process(ranks):
    expected = program.by_differences()
    for kind in ("hessian", "ggn"):
        product, again = (rank["differences"][kind] for rank in ranks)
        assert torch.equal(product, again)
        assert float((product - expected[kind]).norm()) <= 1e-8 * float(expected[kind].norm())
        assert {rank["differences"][f"{kind} reason"] for rank in ranks} == {expected[f"{kind} reason"]} != {""}


def test_the_module_inside_of_distributed_data_parallel_is_taken(ranks):
    for rank in ranks:
        rank_results = rank["in parallel"]
        assert rank_results["names"] == ("0.weight", "2.weight")
        assert torch.equal(rank_results["gradient"], rank_results["plain gradient"])
        assert rank_results["limit"] == rank_results["plain limit"]
        assert rank_results["copy"] == "Sequential"


@needs_fully_shard
@pytest.mark.parametrize("name", program.SHARDED)
def test_models_that_fully_shard_has_spread_give_what_one_process_gives(ranks, name):
    build, loader = program.SHARDED[name]
    ours, others = (rank["sharded"][name] for rank in ranks)
    expected = program.of_sharded(model := seeded(build), loader)
    for key, value in expected.items():
        rough = 1e-8 if "differences" in key or name.startswith("without") else 1e-12
        if key in ("reasons", "names"):
            assert ours[key] == others[key] == value
        elif key == "masks":
            assert all(torch.equal(mask, ours[key][layer]) for layer, mask in value.items())
        else:
            own, again, truth = (torch.as_tensor(results[key]).double() for results in (ours, others, expected))
            assert torch.equal(own, again)
            assert float((own - truth).norm()) <= max(rough, CLOSE["rtol"]) * float(truth.norm()), key
    assert expected["reasons"] == ["", ""] or name.startswith("without")
    for rank in (ours, others):
        assert rank["left as it was"]
        torch.testing.assert_close(rank["while gathered"], expected["gradient"], **CLOSE)
    model.eval()(loader[0][0]).sum().backward()
    for gradient, weight in zip(ours["own gradient"], model.parameters(), strict=True):
        torch.testing.assert_close(gradient, weight.grad, **CLOSE)


@needs_fully_shard
def test_a_sharded_model_is_not_copied(ranks):
    assert {rank["sharded"]["refusal"] for rank in ranks} == {
        "model: one sharded by fully_shard cannot be copied; gather its weights into a plain module, or multiply them "
        "by limit.mask(sparsity)"
    }


def test_one_rank_alone_without_a_graph_stops_nobody(ranks):
    assert ranks[0]["loose ends"] == ranks[1]["loose ends"] == {"one without a graph": ()}


def flat(value):
    """Numbers and texts of nested JSON."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in flat(value[key])]
    return [leaf for item in value for leaf in flat(item)] if isinstance(value, list) else [value]


def test_all_ranks_return_the_same_limit(ranks):
    assert ranks[0]["limits"] == ranks[1]["limits"]


def without_time(text):
    fields = json.loads(text)
    for key in ("seconds", "peak_memory"):
        del fields["evidence"]["cost"][key]
    del fields["evidence"]["origin"]["date"]  # midnight may lie between the two
    return fields


def test_two_ranks_predict_what_one_process_predicts(ranks):
    for name, text in program.limits().items():
        actual, expected = flat(without_time(ranks[0]["limits"][name])), flat(without_time(text))
        assert len(actual) == len(expected)
        for a, b in zip(actual, expected, strict=True):
            assert a == (pytest.approx(b, rel=1e-7, abs=1e-9) if isinstance(b, float) else b)


def test_two_ranks_resume_to_the_same_bits(ranks):
    resumed, whole = (json.loads(ranks[0]["limits"][name]) for name in ("resumed", "measured"))
    costs = [fields["evidence"].pop("cost") for fields in (resumed, whole)]
    assert costs[0]["products"] < costs[1]["products"]
    assert resumed == whole


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("few batches", "loader: yields 1 batches for 2 ranks; start no more processes than batches"),
        ("no batches", "loader: yields no samples"),
        ("shuffled", "loader: the ranks see different batches; turn off shuffling"),
        ("weights", "model: the ranks hold different weights or buffers; load the same checkpoint"),
        ("vectors", "distributed: the ranks computed different vectors"),
        ("arguments", "distributed: the ranks were given different weights, losses or arguments"),
        ("checkpoints", "checkpoint: the ranks read different states (here "),
        ("wrapped", "model: expected a plain module, got DistributedDataParallel; give model.0.module"),
    ],
)
def test_every_rank_is_told_in_one_line(ranks, name, told):
    for rank in ranks:
        assert rank["failures"][name].startswith(told)
        assert "\n" not in rank["failures"][name]


def test_an_error_on_one_rank_stops_the_others_with_its_reason(ranks):
    told = ranks[0]["failures"]["one fails"]
    assert told.startswith("distributed: rank 1 stopped: model or loss_fn: failed on batch 1 (")
    assert told.endswith(": RuntimeError: boom")
    assert ranks[1]["failures"]["one fails"].startswith("model or loss_fn: failed on batch 1 (")
    assert ranks[1]["failures"]["one fails"].endswith(": RuntimeError: boom")


def test_a_rank_that_dies_stops_the_others(ranks):
    message, seconds = ranks[0]["death"]
    assert message.startswith("distributed: rank 0 lost the other ranks (")
    assert message.endswith("); one of them stopped or hangs, look at its output")
    assert "\n" not in message
    assert seconds < 60
    assert "death" not in ranks[1]


# ---------------------------------------------------------------------------------------------- one process


def test_one_process_is_the_only_rank():
    assert (distributed.rank(), distributed.world()) == (0, 1)
    assert distributed.gathered("a") == ["a"]
    tensor = torch.ones(2)
    assert distributed.total(tensor) is tensor


def test_the_shard_of_one_process_is_everything(one_process):
    whole = program.measured(Objective(program.seeded(program.mlp), Shard(program.FIVE)))
    assert_equal_bits(whole, one_process["five batches"])


# ------------------------------------------------------------------------------------------- command line


@pytest.fixture
def torchrun(monkeypatch):
    """The environment of the first of two ranks."""
    for name, value in (("RANK", 0), ("WORLD_SIZE", 2), ("LOCAL_RANK", 0), ("MASTER_ADDR", "::1"), ("MASTER_PORT", 1)):
        monkeypatch.setenv(name, str(value))


def refused(*arguments):
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("Error: ")


@pytest.mark.parametrize("arguments", [("demo",), ("validate",), ("check", "--sparsity", "0.5", "--limit", "l.json")])
def test_commands_for_one_process(torchrun, arguments):
    assert refused(*arguments) == f"{arguments[0]}: runs in one process; start it without torchrun\n"


def test_every_rank_has_a_gpu_of_its_own(torchrun, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "99")
    assert refused(*PREDICT, "--device", "cuda").startswith("device: local rank 99 needs its own GPU")
    assert refused(*PREDICT, "--device", "cuda:1").endswith("got 'cuda:1'\n")


def test_predict_under_torchrun(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")
    command = [*launch, "validation.cli", *PREDICT, "--no-measure", "--json", "two.json"]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("wrote two.json") == 1
    assert result.stderr.count("note: no --checkpoint") == 1
    assert CliRunner().invoke(cli.main, [*PREDICT, "--no-measure", "--json", "one.json"]).exit_code == 0
    two, single = (PruningLimit.from_json(Path(f"{name}.json")) for name in ("two", "one"))
    assert two.sparsity == pytest.approx(single.sparsity, abs=1e-3)
    assert result.stdout.count("isotropic") == single.summary().count("isotropic")
