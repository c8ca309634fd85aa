"""The command line: what it writes, its exit codes, and one line for everything that goes wrong."""

import dataclasses
import json
import math
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers import with_bounds
from safetensors.torch import load_file, save_file
from torch import nn

from pruning_limits import PruningLimit, predict_limit
from validation import cli
from validation.models import build_model

TASK = ("--model", "fc5-mini", "--dataset", "digits")
FAST = ("--samples", 64, "--steps", 4, "--probes", 1)


def run(*arguments, code=0):
    """Run a command in this process; nothing but a chosen exit code may come out of it."""
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def refuse(*arguments, code=1):
    """Run a command that fails and return its error, one line."""
    result = run(*arguments, code=code)
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert result.stderr.endswith(errors[0] + "\n")
    rest = result.stderr.splitlines()[:-1]
    assert all(line.startswith(("note: ", "Usage: ", "Try ")) or not line for line in rest)
    return errors[0]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Run in an empty folder, without the caller's data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PRUNING_LIMITS_DATA", raising=False)


@pytest.fixture(scope="module")
def checkpoints(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.save(trained.state_dict(), folder / "net.pt")
    torch.save({"epoch": 3, "state_dict": trained.state_dict()}, folder / "nested.pth")
    save_file(trained.state_dict(), folder / "net.safetensors")
    return folder


@pytest.fixture(scope="module")
def limit(trained, digits):
    limit = predict_limit(trained, digits.batches("train", limit=100), samples=64, steps=4, probes=1)
    return with_bounds(limit, 0.6, 0.8)


# ---------------------------------------------------------------------------------------------- what it writes


def test_predict_writes_summary_json_and_plot(checkpoints, tmp_path):
    arguments = ("--l1", 1e-3, "--json", "out/limit.json", "--plot", "out/limit.png")
    result = run("predict", *TASK, *FAST, "--checkpoint", checkpoints / "net.pt", *arguments)
    limit = PruningLimit.from_json("out/limit.json")
    assert limit.summary() in result.stdout
    assert result.stderr == ""
    assert result.stdout.endswith(f"wrote {Path('out/limit.json')}\nwrote {Path('out/limit.png')}\n")
    assert (tmp_path / "out" / "limit.png").read_bytes().startswith(b"\x89PNG")
    assert limit.parameters == 15_000
    assert limit.achieved is not None
    assert limit.settings.penalty == "L1(coefficient=0.001)"
    assert (limit.evidence.hessian.samples, limit.evidence.hessian.steps, limit.evidence.hessian.measure.probes) == (
        64,
        4,
        1,
    )
    assert limit.settings.epsilon == "batch-std"


def test_predict_names_what_the_limit_is_of(checkpoints):
    """As on the command line, so that the first line of the summary tells."""
    run("predict", *TASK, *FAST, "--checkpoint", checkpoints / "net.pt", "--no-measure", "--json", "limit.json")
    limit = PruningLimit.from_json("limit.json")
    assert (limit.evidence.origin.model, limit.evidence.origin.data) == ("fc5-mini", "digits")
    assert limit.summary().startswith("fc5-mini on digits, 15,000 prunable weights, ")


def test_predict_judges_a_target(checkpoints):
    options = (*TASK, *FAST, "--checkpoint", checkpoints / "net.pt", "--json", "limit.json")
    result = run("predict", *options, "--target", 0.8)
    limit = PruningLimit.from_json("limit.json")
    assert limit.summary(0.8) in result.stdout
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("your target"))
    assert line == f"your target 80.0 %: {limit.check(0.8).status}. {limit.check(0.8).reason}."
    assert "your target" not in run("predict", *options, "--no-measure").stdout


@pytest.mark.parametrize("target", [1, -0.1, "nan"])
def test_targets_out_of_range(target):
    """Told before a network or data are loaded, of which there are none here."""
    error = refuse("predict", "--model", "none.py:net", "--data", "none.py:data", "--target", target)
    assert error.startswith("Error: target: expected a number in [0, 1) (the removed fraction), got ")


def test_predict_reads_all_kinds_of_checkpoints_alike(checkpoints):
    limits = []
    for name in ("net.pt", "nested.pth", "net.safetensors"):
        run("predict", *TASK, *FAST, "--checkpoint", checkpoints / name, "--no-measure", "--json", f"{name}.json")
        plain = json.loads(Path(f"{name}.json").read_text())
        limits.append(plain | {"evidence": plain["evidence"] | {"cost": None}})
    assert limits[0] == limits[1] == limits[2]


def test_predict_passes_its_options_on():
    options = ("--epsilon", 0.5, "--curvature", "ggn", "--tolerance", 0.1, "--no-measure", "--seed", 3, "--l2", 1e-4)
    result = run("predict", *TASK, *FAST, *options, "--budget", 0.5, "--json", "limit.json")
    assert "untrained weights" in result.stderr
    limit = PruningLimit.from_json("limit.json")
    assert limit.epsilon == 0.5
    assert limit.achieved is None
    expected = {"curvature": "ggn", "tolerance": 0.1, "seed": 3, "penalty": "L2(coefficient=0.0001)", "samples": 64}
    expected |= {"budget": 0.5}
    assert expected.items() <= dataclasses.asdict(limit.settings).items()


@pytest.mark.parametrize(
    ("curvature", "arguments", "file", "start"),
    [("hessian", (), "spectrum.png", b"\x89PNG"), ("ggn", ("--plot", "density.pdf"), "density.pdf", b"%PDF")],
)
def test_spectrum_writes_a_plot(checkpoints, curvature, arguments, file, start):
    options = ("--checkpoint", checkpoints / "net.pt", "--curvature", curvature)
    result = run("spectrum", *TASK, *FAST, *options, *arguments)
    assert Path(file).read_bytes().startswith(start)
    assert f"{curvature} of 15,000 weights on 64 samples, 4 steps, 1 probes" in result.stdout
    for part in ("trace", "+-", "top Ritz values", f"wrote {file}"):
        assert part in result.stdout


@pytest.mark.parametrize(
    ("sparsity", "status", "code"),
    [(0.0, "achievable", 0), (0.6, "achievable", 0), (0.7, "open", 3), (0.8, "open", 3), (0.81, "infeasible", 4)],
)
def test_check_of_a_file(limit, sparsity, status, code):
    limit.to_json("limit.json")
    plain = run("check", "--sparsity", sparsity, "--limit", "limit.json", code=code)
    verdict = limit.check(sparsity)
    assert plain.output == f"{status}: {verdict.reason}\n"
    as_json = run("check", "--sparsity", sparsity, "--limit", "limit.json", "--json", code=code)
    assert json.loads(as_json.stdout) == dataclasses.asdict(verdict)
    assert as_json.stdout.count("\n") == 1


def test_check_of_a_model(checkpoints):
    options = (*TASK, *FAST, "--checkpoint", checkpoints / "net.safetensors", "--l1", 1e-3)
    result = run("check", "--sparsity", 0.05, *options, "--json")
    assert json.loads(result.stdout)["status"] == "achievable"


@pytest.mark.parametrize("command", ["", "demo", "predict", "retune", "spectrum", "check", "validate"])
def test_help(command):
    result = run(*command.split(), "--help")
    assert result.stdout.startswith("Usage: ")
    assert run(*command.split(), "-h").stdout == result.stdout


def test_version():
    assert run("--version").stdout.strip().endswith("0.2.0")


# --------------------------------------------------------------------------------------------- model and data


def test_unknown_model():
    error = refuse("predict", "--model", "fc6", "--dataset", "digits")
    for known in ("'fc6'", "fc5-mini", "resnet50", "package.module:factory"):
        assert known in error


@pytest.mark.parametrize("name", ["nowhere:Net", "torch.nn:Nothing", "builtins:len", "pathlib:Path"])
def test_bad_factories(name):
    assert name in refuse("predict", "--model", name, "--dataset", "digits")


def narrow(shape, classes):
    """A model that does not fit the data."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3, classes))


def test_model_that_does_not_fit_the_data():
    refuse("predict", "--model", "mnistnet", "--dataset", "digits")
    error = refuse("predict", "--model", f"{__name__}:narrow", "--dataset", "digits", "--epsilon", 0.1)
    assert "shapes" in error


def test_model_from_a_factory():
    run("predict", "--model", "validation.models:SmallCNN", "--dataset", "digits", *FAST, "--no-measure")


def test_unknown_dataset():
    error = refuse("predict", "--model", "fc5-mini", "--dataset", "digit")
    for known in ("'digit'", "digits", "mnist", "cifar100", "--data-dir", "PRUNING_LIMITS_DATA"):
        assert known in error


def test_missing_data_directory_says_what_was_looked_for(monkeypatch, tmp_path):
    def offline(*arguments, **options):
        raise RuntimeError("no network\nat all")

    monkeypatch.setattr("torchvision.datasets.MNIST", offline)
    for name in ("mnist", "flowers"):
        for places in (("--data-dir", tmp_path / "absent"), ()):
            if not places:
                monkeypatch.setenv("PRUNING_LIMITS_DATA", str(tmp_path / "absent"))
            error = refuse("predict", "--model", "fc5-mini", "--dataset", name, *places)
            for suffix in (".npz", ".tar.gz"):
                assert str(tmp_path / "absent" / f"{name}{suffix}") in error


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", ""])
def test_unusable_device(device):
    if device == "cuda:99" and torch.cuda.device_count() > 99:
        pytest.skip("there is such a device")
    refuse("predict", *TASK, *FAST, "--device", device)


# ------------------------------------------------------------------------------------------------ checkpoints


def test_missing_checkpoint():
    assert "none.pt does not exist" in refuse("predict", *TASK, "--checkpoint", "none.pt")


def test_checkpoint_with_wrong_keys_names_them(trained):
    state = trained.state_dict()
    state["extra.weight"] = state.pop("1.weight")
    state["3.weight"] = state["3.weight"].T.contiguous()
    torch.save(state, "wrong.pt")
    save_file(state, "wrong.safetensors")
    for name in ("wrong.pt", "wrong.safetensors"):
        error = refuse("predict", *TASK, "--checkpoint", name)
        assert f"{name} does not fit the model: missing 1.weight; unexpected extra.weight; " in error
        assert error.endswith("of another shape 3.weight")


def test_checkpoint_of_another_model(trained):
    torch.save(build_model("small-cnn", (1, 8, 8), 10).state_dict(), "other.pt")
    assert "does not fit the model: missing 1.weight" in refuse("predict", *TASK, "--checkpoint", "other.pt")


@pytest.mark.parametrize("content", [{"1.weight": "text"}, {}, [torch.ones(3)], torch.ones(3), 3])
def test_checkpoint_of_other_content(content):
    torch.save(content, "odd.pt")
    assert "odd.pt" in refuse("predict", *TASK, "--checkpoint", "odd.pt")


def test_checkpoint_with_undefined_weights(trained):
    state = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    state["1.weight"][0, 0] = torch.nan
    torch.save(state, "nan.pt")
    assert "NaN" in refuse("predict", *TASK, "--checkpoint", "nan.pt")


class Hostile:
    """An object whose unpickling creates a file."""

    def __reduce__(self):
        return Path.touch, (Path("owned"),)


@pytest.mark.parametrize("suffix", ["pt", "pth", "safetensors"])
@pytest.mark.parametrize("kind", ["plain pickle", "torch", "legacy torch", "nested"])
def test_hostile_checkpoint(trained, suffix, kind):
    state = trained.state_dict() | {"1.weight": Hostile()}
    path = Path(f"hostile.{suffix}")
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(Hostile()))
    elif kind == "nested":
        torch.save({"state_dict": trained.state_dict(), "optimizer": [Hostile()]}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "torch")
    error = refuse("predict", *TASK, "--checkpoint", path)
    assert str(path) in error
    assert not Path("owned").exists()
    if suffix != "safetensors":
        assert "is not a file of plain weights and was not loaded" in error
        torch.load(path, weights_only=False) if kind != "plain pickle" else pickle.loads(path.read_bytes())
        assert Path("owned").exists()  # it was hostile indeed


def test_whole_model_as_checkpoint(trained):
    torch.save(trained, "model.pt")
    assert "model.state_dict()" in refuse("predict", *TASK, "--checkpoint", "model.pt")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_truncated_checkpoint(checkpoints, name, share):
    content = (checkpoints / name).read_bytes()
    Path(name).write_bytes(content[: int(share * len(content))])
    assert f"checkpoint: {name} " in refuse("predict", *TASK, "--checkpoint", name)


def test_files_that_are_no_checkpoint():
    Path("text.pt").write_text("hello\nworld\n")
    with zipfile.ZipFile("zip.pt", "w") as file:
        file.writestr("readme", "nothing")
    for name in ("text.pt", "zip.pt"):
        assert f"checkpoint: {name} " in refuse("predict", *TASK, "--checkpoint", name)


# ---------------------------------------------------------------------------------------------------- options


def test_two_penalties():
    error = refuse("predict", *TASK, "--l1", 1e-3, "--l2", 1e-3, code=2)
    assert "--l1" in error
    assert "--l2" in error


@pytest.mark.parametrize("command", [("predict",), ("spectrum",), ("check", "--sparsity", 0.5)])
def test_missing_model_or_dataset(command):
    assert "--model" in refuse(*command, *(("--dataset", "digits") if command[0] != "check" else ()), code=2)
    assert "missing --dataset" in refuse(*command, "--model", "fc5-mini", code=2)


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--epsilon", 0, "epsilon"),
        ("--epsilon", "nan", "epsilon"),
        ("--tolerance", -1, "tolerance"),
        ("--budget", 0, "budget"),
        ("--budget", "nan", "budget"),
        ("--samples", 0, "samples"),
        ("--steps", -1, "steps"),
        ("--probes", 0, "probes"),
        ("--l1", -1, "penalty"),
        ("--l2", "inf", "penalty"),
    ],
)
def test_numbers_out_of_range(option, value, word):
    assert word in refuse("predict", *TASK, option, value)


@pytest.mark.parametrize("option", ["--samples", "--steps", "--probes"])
@pytest.mark.parametrize("value", [0, -2])
def test_numbers_out_of_range_for_the_spectrum(option, value):
    assert option.removeprefix("--") in refuse("spectrum", *TASK, option, value)
    assert not Path("spectrum.png").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", *TASK, "--steps", "many"),
        ("predict", *TASK, "--curvature", "fisher"),
        ("predict", *TASK, "--nonsense"),
        ("predict", *TASK, "--checkpoint", "."),
        ("check", "--sparsity", "lots", "--limit", "limit.json"),
        ("check", "--limit", "limit.json"),
        ("nonsense",),
    ],
)
def test_wrong_usage(arguments):
    refuse(*arguments, code=2)


@pytest.mark.parametrize("sparsity", [1, 1.5, -0.1, "nan", "inf"])
def test_sparsity_out_of_range(limit, sparsity):
    limit.to_json("limit.json")
    assert "sparsity" in refuse("check", "--sparsity", sparsity, "--limit", "limit.json")
    assert "sparsity" in refuse("check", "--sparsity", sparsity, *TASK)


def test_limit_files_that_cannot_be_read(limit):
    Path("text.json").write_text("hello")
    Path("old.json").write_text('{"format": "pruning-limit/0"}')
    plain = json.loads(limit.to_json())
    del plain["evidence"]["hessian"]
    Path("damaged.json").write_text(json.dumps(plain))
    for name in ("none.json", "text.json", "old.json", "damaged.json"):
        assert name in refuse("check", "--sparsity", 0.5, "--limit", name)


def test_places_that_cannot_be_written(limit, monkeypatch):
    """Told before a network or data are loaded, of which there are none here."""
    Path("file").touch()
    Path("folder.json").mkdir()
    limit.to_json("limit.json")
    nothing = ("--model", "none.py:net", "--data", "none.py:data")
    endings = ("--json", "limit.txt"), ("--plot", "limit.nonsense"), ("--plot", "limit"), ("--report", "page.pdf")
    for option, name in (("--json", "file/limit.json"), ("--plot", "file/in/limit.png"), *endings):
        assert f"cannot write {name}: " in refuse("predict", *nothing, option, name)
    assert "cannot write file/x.png: file is no folder" in refuse("spectrum", *nothing, "--plot", "file/x.png")
    for option in ("--junit", "--markdown"):
        assert "cannot write file/gate" in refuse("check", *nothing, "--sparsity", 0.5, option, "file/gate")
    for name in ("page.json", "file/page.html"):
        assert f"cannot write {name}" in refuse("report", "limit.json", "-o", name)
    refuse("predict", *nothing, "--json", "folder.json", code=2)
    refuse("demo", "--out", "file", code=2)
    monkeypatch.setattr("os.access", lambda *_: False)  # as in a folder of someone else
    assert "cannot write new.json: . cannot be written" in refuse("predict", *nothing, "--json", "new.json")
    assert "cannot write demo/limit.json" in refuse("demo")


def test_predict_writes_a_page(checkpoints):
    options = ("--checkpoint", checkpoints / "net.pt", "--no-measure", "--report", "out/page.html")
    result = run("predict", *TASK, *FAST, *options)
    assert result.stdout.endswith("wrote out/page.html\n")
    assert "data: digits, 1,400 training images" in result.stdout
    assert Path("out/page.html").read_text().startswith("<!doctype html>")


RETUNE = ("retune", *TASK, "--samples", 256, "--passes", 1)


def test_retune_writes_a_network_that_the_gate_reads(checkpoints):
    dense = checkpoints / "net.safetensors"
    told = run(*RETUNE, "--checkpoint", dense, "--sparsity", 0.7, "-o", "pruned.safetensors")
    assert "wrote pruned.safetensors" in told.output
    assert "70.0" in told.output
    assert "held-out samples" in told.output
    weights = load_file("pruned.safetensors")
    counted = [weights[name] for name in weights if name.endswith("weight") and weights[name].dim() == 2]
    total = sum(weight.numel() for weight in counted)
    assert sum(int((weight == 0).sum()) for weight in counted) == math.ceil(0.7 * total)
    gate = ("check", "--dense", dense, "--pruned", "pruned.safetensors", *TASK, *FAST)
    result = CliRunner().invoke(cli.main, [str(part) for part in (*gate, "--max-drop", 0.5, "--json")])
    assert json.loads(result.stdout)["sparsity"] == pytest.approx(math.ceil(0.7 * total) / total)
    refused = run(*RETUNE, "--checkpoint", dense, "--sparsity", 0.7, "-o", "pruned.safetensors", code=1)
    assert "Error: out: pruned.safetensors exists; name another file, or write over it with --force" in refused.output
    run(*RETUNE, "--checkpoint", dense, "--sparsity", 0.6, "-o", "pruned.safetensors", "--force")


def test_retune_goes_the_way_of_a_limit(checkpoints):
    dense = checkpoints / "net.safetensors"
    predicted = run("predict", *TASK, *FAST, "--checkpoint", dense, "--retune", "--max-drop", 0.05, "--json", "l.json")
    assert "re-tuned, " in predicted.output
    answer = PruningLimit.from_json("l.json").answer("re-tuned")
    told = run(
        "retune",
        *TASK,
        "--checkpoint",
        dense,
        "--limit",
        "l.json",
        "--sparsity",
        answer.sparsity,
        "-o",
        "p.safetensors",
    )
    assert f"to {answer.metric:.4g} on" in told.output or "pruning alone reaches as far" in answer.status


def groups_that_are_zero(weight, pattern):
    """Share of the groups of a linear layer that are zero as a whole; of 2:4 that of its runs with two zeros."""
    if pattern == "2:4":
        return float(((weight.view(len(weight), -1, 4) == 0).sum(2) == 2).float().mean())
    rows, columns = weight.shape
    blocks = weight.view(rows // 4, 4, columns // 4, 4).movedim(2, 1)
    zeros = (blocks == 0).sum((2, 3))
    assert set(zeros.unique().tolist()) <= {0, 16}
    return float((zeros == 16).float().mean())


@pytest.mark.parametrize("pattern", ["2:4", "blocks:4x4"])
def test_retune_in_a_pattern_writes_groups_that_the_gate_reads(checkpoints, pattern):
    dense, options = checkpoints / "net.safetensors", () if pattern == "2:4" else ("--sparsity", 0.5)
    predicted = ("predict", *TASK, *FAST, "--checkpoint", dense, "--pattern", "unstructured", "--pattern", pattern)
    run(*predicted, "--max-drop", 0.05, "--json", "l.json")
    told = run(*RETUNE, "--checkpoint", dense, "--pattern", pattern, *options, "-o", "p.safetensors")
    assert f" removed in {pattern}: pruned and re-tuned " in told.output
    weights = load_file("p.safetensors")
    layers = [weight for name, weight in weights.items() if name.endswith("weight") and weight.dim() == 2]
    fitting = [layer for layer in layers if layer.shape[1] % 4 == 0 and layer.shape[0] % 4 == 0]
    shares = [groups_that_are_zero(layer, pattern) for layer in fitting]
    assert shares == [1.0] * len(shares) if pattern == "2:4" else 0.3 < max(shares) < 1
    gate = ("check", "--dense", dense, "--pruned", "p.safetensors", "--limit", "l.json", *TASK, "--json")
    result = json.loads(CliRunner().invoke(cli.main, [str(part) for part in gate]).stdout)
    assert result["pattern"] == pattern
    counted = sum(int((layer == 0).sum()) for layer in layers) / sum(layer.numel() for layer in layers)
    assert result["sparsity"] == pytest.approx(counted)
    again = run(
        "retune",
        *TASK,
        "--checkpoint",
        dense,
        "--pattern",
        pattern,
        *options,
        "-o",
        "q.safetensors",
        "--limit",
        "l.json",
    )
    assert f" removed in {pattern}: " in again.output


def test_retune_refuses_patterns_that_do_not_fit(checkpoints):
    for options, code, message in (
        (
            ("--pattern", "5:7"),
            1,
            "Error: pattern: 5:7 fits no layer of this network (1.weight: 64 inputs are no multiple of 7",
        ),
        (("--pattern", "2:4", "--sparsity", 0.3), 1, "and no other share, got 0.3; leave the sparsity out"),
        (("--pattern", "rows", "--sparsity", 0.3), 1, "Error: pattern: expected unstructured, N:M such as 2:4"),
        (("--pattern", "blocks:4x4"), 2, "missing --sparsity; blocks:4x4 has many"),
        (("--pattern", "heads", "--sparsity", 0.3), 1, "Error: pattern: heads fits no layer of this network"),
    ):
        told = run(*RETUNE, "--checkpoint", checkpoints / "net.safetensors", *options, "-o", "p.safetensors", code=code)
        assert message in told.output
        assert not Path("p.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--sparsity", 1.0, "-o", "p.safetensors"), 1, "sparsity: expected a number in [0, 1)"),
        (("--sparsity", 0.5, "-o", "p.pt"), 1, "cannot write p.pt: expected a name that ends in .safetensors"),
        (("--sparsity", 0.5), 2, "Missing option '-o'"),
        (("-o", "p.safetensors"), 2, "missing --sparsity; unstructured has many"),
        (("--sparsity", 0.5, "-o", "p.safetensors", "--steps", 3), 2, "--steps and --probes are for predict"),
        (("--sparsity", 0.5, "-o", "p.safetensors", "--passes", 0), 1, "passes: expected a whole number, at least 1"),
    ],
)
def test_retune_refuses_bad_options_first(options, code, message):
    assert message in run("retune", *TASK, *options, code=code).output
