"""Tables on any device: what a GPU would refuse is refused by a pretended device, whose values are those of the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from helpers import same
from pretended import DEVICE, KIND, pretending

from estimators import UserError
from pruning_limits import predict_limit
from validation.cli import main
from validation.data import ImageData, load_data
from validation.devices import chosen_device, described
from validation.studies.limits import predicted
from validation.tables.discovery import tables
from validation.tables.reading import load_suite
from validation.tables.runner import Run, missing_cells, run_table
from validation.training import Course, Network, Recipe, fresh_network, train, trained_network

SUITE = """
[limit]
samples = 64
steps = 4
probes = 1
[retrain]
epochs = 1
evaluations = 1
[iterative]
sparsity = 0.3
epochs = 1
samples = 64
steps = 4
[early]
epochs = [1, 2]
samples = 64
steps = 4
[compare]
pruners = ["gmp", "ggp", "jgp", "imp", "rare-gems", "smart-ratio", "kmp", "lsp", "random", "obs-layerwise", "wanda",
    "retuned"]
sparsities = [0.5]
epochs = 2
[koopman]
epochs = [1]
compressions = [1, 2]
[[network]]
model = "cnn-tiny"
dataset = "digits-200"
recipe = { epochs = 2, lr = 0.05, l1 = 1e-3, augment = true }
"""
NAMES = ["theory-vs-actual", "bounds", "algorithms", "early", "koopman-spectrum", "koopman-epochs"]
RECIPE = Recipe(2, 0.05, l1=1e-3, augment=True)
NETWORK = Network("cnn-tiny", "digits-200", RECIPE, 0)
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits-200")


@pytest.fixture(scope="module")
def quick_limits() -> Iterator[None]:
    """Predict every limit as briefly as the suite says, also those that a user would get by the defaults."""
    with pytest.MonkeyPatch.context() as patch:
        brief = partial(predict_limit, samples=64, steps=4, probes=1)
        patch.setattr(predicted, "predict_limit", brief)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, one_thread: None, quick_limits: None) -> Iterator[dict[str, Path]]:
    """Folders of the runs on the CPU and on the pretended device, with the suite's file between them."""
    folder = tmp_path_factory.mktemp("devices")
    (folder / "little.toml").write_text(SUITE)
    return {kind: folder / kind for kind in ("cpu", KIND)}


def without_time(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: without_time(part) for key, part in value.items() if key != "device" and not key.endswith("seconds")
        }
    return [without_time(part) for part in value] if isinstance(value, list) else value


# ------------------------------------------------------------------------------------------------ names of devices


def test_the_processor_can_be_chosen() -> None:
    assert chosen_device("cpu") == torch.device("cpu")
    assert described(torch.device("cpu")) == "cpu"


@pytest.mark.parametrize("name", ["gpu", "", "cpu:x", "cuda:first"])
def test_an_unknown_kind_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"^device: expected cpu, cuda or cuda:N, got '{name}'$"):
        chosen_device(name)


@pytest.mark.parametrize("name", ["cuda:99", "meta", "lazy"])
def test_a_device_that_this_machine_lacks_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match=rf"^device: cannot use '{name}' here \(.+\); take cpu$") as caught:
        chosen_device(name)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_the_command_refuses_before_it_trains(name: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["validate", "--table", "bounds", "--out", str(tmp_path), "--device", name])
    assert result.exit_code == 1
    assert "device: " in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_command_trains_in_mixed_precision(tmp_path: Path) -> None:
    suite = tmp_path / "two.toml"
    recipe = "{ epochs = 1, lr = 0.05 }"
    suite.write_text(f'[[network]]\nmodel = "fc3-tiny"\ndataset = "digits"\nseeds = [0, 1]\nrecipe = {recipe}\n')
    command = ["validate", "--suite", str(suite), "--table", "weights", "--out", str(tmp_path / "runs")]
    result = CliRunner().invoke(main, [*command, "--precision", "bfloat16"], catch_exceptions=False)
    assert result.exit_code == 0
    settings = [json.loads(file.read_text()) for file in (tmp_path / "runs").glob("network-*/settings.json")]
    assert [entry["recipe"]["precision"] for entry in settings] == ["bfloat16"] * 2


# ---------------------------------------------------------------------------------------------- the pretended device


def test_the_pretended_device_refuses_what_a_gpu_would() -> None:
    with pretending() as device:
        there, here = torch.ones(3).to(device), torch.ones(3)
        assert there.device == device
        with pytest.raises(RuntimeError, match="expected all tensors"):
            there + here
        with pytest.raises(RuntimeError, match="expected all tensors"):
            here[there.long()]
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
        assert (there + 1).cpu().tolist() == [2.0, 2.0, 2.0]
        assert float(there @ there) == 3.0


# -------------------------------------------------------------------------------------------------------- equal draws


@pytest.mark.parametrize("augment", [False, True])
def test_draws_do_not_depend_on_the_device(augment: bool, digits: ImageData) -> None:
    here = list(digits.batches("train", 64).shuffled(seed=3, epoch=1, start=1, augment=augment))
    with pretending() as device:
        batches = digits.to(device).batches("train", 64).shuffled(seed=3, epoch=1, start=1, augment=augment)
        there = [(x.cpu(), y.cpu()) for x, y in batches]
    assert same(here, there)


def test_initial_weights_do_not_depend_on_the_device(digits: ImageData) -> None:
    here = fresh_network(NETWORK, digits).state_dict()
    with pretending() as device:
        there = {name: value.cpu() for name, value in fresh_network(NETWORK, digits.to(device)).state_dict().items()}
    assert same(dict(here), there)


def test_dropout_is_fixed_by_the_step(digits: ImageData) -> None:
    with pretending() as device:
        before = torch.get_rng_state()
        data = digits.to(device)
        ends = []
        for _ in range(2):
            model = torch.nn.Sequential(fresh_network(NETWORK, data), torch.nn.Dropout())
            train(model, data, RECIPE, 0, course=Course(last=2))
            ends.append({name: value.cpu() for name, value in model.state_dict().items()})
        assert same(*ends)
        assert torch.equal(torch.get_rng_state(), before)


# --------------------------------------------------------------------------------------------------- trained networks


def test_checkpoints_lie_on_the_processor(digits: ImageData, tmp_path: Path) -> None:
    with pretending() as device:
        model = trained_network(NETWORK, digits.to(device), tmp_path)
        assert {value.device for value in model.state_dict().values()} == {DEVICE}
        (folder,) = tmp_path.glob("network-*")
        stored = torch.load(folder / "weights.pt", weights_only=True)
        assert all(type(value) is torch.Tensor and value.device.type == "cpu" for value in stored.values())
    assert json.loads((folder / "training.json").read_text())["device"] == KIND
    assert same(dict(trained_network(NETWORK, digits, tmp_path).state_dict()), stored)


def test_a_training_goes_on_where_another_device_left_it(digits: ImageData, tmp_path: Path) -> None:
    whole = fresh_network(NETWORK, digits)
    train(whole, digits, RECIPE, 0)
    course = Course(state=tmp_path / "state.pt")
    with pretending() as device:
        data = digits.to(device)
        train(fresh_network(NETWORK, data), data, RECIPE, 0, course=replace(course, last=2))
    model = fresh_network(NETWORK, digits)
    train(model, digits, RECIPE, 0, course=course)
    assert same(dict(model.state_dict()), dict(whole.state_dict()))


# ------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_the_same_on_every_device_and_its_rows_say_which(name: str, runs: dict[str, Path]) -> None:
    suite = load_suite(str(runs["cpu"].parent / "little.toml"))
    rows: dict[str, list[Any]] = {}
    for kind, out in runs.items():
        with pretending() if kind == KIND else nullcontext():
            run_table(name, suite, Run(out, command="test", device=kind))
        files = sorted(out.glob(f"{tables()[name].rows_of or name}-*/row.json"))
        rows[kind] = [json.loads(file.read_text()) for file in files]
    assert {kind: {row["device"] for row in group} for kind, group in rows.items()} == {"cpu": {"cpu"}, KIND: {KIND}}
    assert without_time(rows["cpu"]) == without_time(rows[KIND])


def test_what_one_device_made_is_kept_on_another(runs: dict[str, Path]) -> None:
    suite = load_suite(str(runs["cpu"].parent / "little.toml"))
    with pretending():
        folder = run_table("bounds", suite, Run(runs[KIND], command="test", device=KIND))
    assert missing_cells(tables()["bounds"], suite, runs[KIND]) == []
    files = sorted(runs[KIND].glob("theory-vs-actual-*/row.json")) + sorted(runs[KIND].glob("bounds-*/row.json"))
    before = [file.read_bytes() for file in files]
    assert files
    assert run_table("bounds", suite, Run(runs[KIND], command="test")) == folder
    assert [file.read_bytes() for file in files] == before
    assert f"Made on {KIND}" in (folder / "bounds.md").read_text()


# ---------------------------------------------------------------------------------------------------------- a real GPU


@pytest.mark.cuda
@ON_GPU
def test_a_gpu_draws_the_same_batches(digits: ImageData) -> None:
    here = list(digits.batches("train", 64).shuffled(seed=3, epoch=1, augment=True))
    there = digits.to(torch.device("cuda")).batches("train", 64).shuffled(seed=3, epoch=1, augment=True)
    for (x, y), (other_x, other_y) in zip(here, there, strict=True):
        assert torch.equal(y, other_y.cpu())
        assert torch.allclose(x, other_x.cpu(), rtol=1e-6, atol=1e-6)


@pytest.mark.cuda
@ON_GPU
def test_a_gpu_trains_to_the_same_weights_and_limit(digits: ImageData) -> None:
    ends, limits = [], []
    for device in ("cpu", "cuda"):
        data = digits.to(torch.device(device))
        model = fresh_network(NETWORK, data)
        train(model, data, RECIPE, 0, course=Course(last=4))
        batches = data.batches("train", 1000)
        limits.append(predict_limit(model.eval(), batches, epsilon=0.05, probes=1, steps=24, progress=False))
        ends.append(torch.cat([value.flatten().double().cpu() for value in model.state_dict().values()]))
    assert torch.allclose(*ends, rtol=1e-3, atol=1e-4)
    assert limits[0].lower == pytest.approx(limits[1].lower, abs=0.01)
    assert limits[0].sparsity == pytest.approx(limits[1].sparsity, abs=0.01)


@pytest.mark.cuda
@ON_GPU
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_computes_every_table(name: str, tmp_path: Path) -> None:
    (tmp_path / "little.toml").write_text(SUITE)
    suite = load_suite(str(tmp_path / "little.toml"))
    folder = run_table(name, suite, Run(tmp_path / "runs", command="test", device="cuda"))
    assert (folder / f"{name}.json").exists()
    files = list((tmp_path / "runs").glob("*/row.json"))
    assert {json.loads(file.read_text())["device"] for file in files} == {described(torch.device("cuda"))}
