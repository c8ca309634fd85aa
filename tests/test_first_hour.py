"""The first hour of a new user: the three tasks of the README, by its own commands, on data of seconds.

Commands are read off the README and run as they stand there, with fewer Lanczos steps.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from helpers import ROOT
from PIL import Image
from torch import nn
from torch.nn.utils import prune

from pruning_limits import PruningLimit
from validation.cli import main
from validation.references import resolve

COLOURS = {"blue": (60, 60, 200), "green": (60, 200, 60), "red": (200, 60, 60)}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
QUICK = ("--steps", "2", "--probes", "1")
NETWORK = """
from torch import nn


def build():
    return nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 1))
"""


def commands() -> list[list[str]]:
    """Arguments of every command of the README, without the program's name."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("pruning-limits ")]


def documented(*parts: str) -> list[str]:
    """The one command of the README with all of some parts."""
    (command,) = [command for command in commands() if set(parts) <= set(command)]
    return command


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert "Traceback" not in result.output
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    return tmp_path_factory.mktemp("first-hour")


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


# ------------------------------------------------------------------------ a ResNet-18 of torchvision, images in folders


def pictures(split: str, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Write noisy pictures of three colours into folders, and return them as inputs with their labels."""
    inputs, labels = [], []
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    for label, (name, colour) in enumerate(COLOURS.items()):
        place = Path("pictures") / split / name
        place.mkdir(parents=True)
        for number in range(count):
            noise = torch.randint(-50, 50, (32, 32, 3), generator=generator)
            pixels = (torch.tensor(colour) + noise).to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(place / f"{number}.png")
            inputs.append((pixels.permute(2, 0, 1) / 255 - mean) / std)
            labels.append(label)
    return torch.stack(inputs), torch.tensor(labels)


@pytest.fixture(scope="module")
def images(folder: Path) -> Path:
    """Folders of pictures, and the checkpoint of a network that tells them apart."""
    from torchvision.models import resnet18

    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.chdir(folder)
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        x, y = pictures("train", 6, generator)
        pictures("val", 3, generator)
        model = resnet18(num_classes=3)
        optimizer = torch.optim.SGD(model.parameters(), 0.002, momentum=0.9)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.5
        for _ in range(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        torch.save(model.state_dict(), "resnet18.pt")
    return folder / "resnet18.pt"


def test_images_in_folders(images: Path) -> None:
    result = run(*documented("torchvision.models:resnet18", "pictures"), *QUICK)
    assert result.exit_code == 0, result.output
    assert "dense accuracy 100.00% on 9 held-out samples" in result.output
    assert "allowed: accuracy -0.5 points" in result.output
    limit = PruningLimit.from_json("limit.json")
    assert (limit.metric, limit.max_drop) == ("accuracy", 0.005)
    assert 0.3 < limit.lower < 1


def test_the_form_for_small_images_says_how_that_of_torchvision_is_named(images: Path) -> None:
    result = run("predict", "--model", "resnet18", "--checkpoint", str(images), "--dataset", "pictures")
    assert result.exit_code == 1
    (line,) = result.output.strip().splitlines()
    assert "of another shape conv1.weight" in line
    assert line.endswith("torchvision has --model torchvision.models:resnet18")


def test_images_of_several_sizes_are_refused_with_a_remedy(images: Path) -> None:
    stranger = Path("several") / "train" / "red"
    stranger.mkdir(parents=True)
    for side in (32, 33):
        Image.new("RGB", (side, side)).save(stranger / f"{side}.png")
    (Path("several") / "val" / "red").mkdir(parents=True)
    result = run("predict", "--model", "torchvision.models:resnet18", "--dataset", "several")
    assert result.exit_code == 1
    assert "save them in one size, or give a loader of yours with --data" in result.output


# ------------------------------------------------------------------------------------- regression in files of the user


@pytest.fixture(scope="module")
def regression(folder: Path) -> Path:
    """The files ``net.py``, ``data.py`` of the page on the command line, ``table.csv``, and the trained ``net.pt``."""
    page = (ROOT / "docs" / "howto" / "command-line.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def within_a_tenth" in block]
    (folder / "data.py").write_text(code)
    (folder / "net.py").write_text(NETWORK)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.chdir(folder)
        torch.manual_seed(0)
        x = torch.randn(600, 3)
        y = torch.tanh(x[:, :1] - x[:, 1:2])
        Path("table.csv").write_text("\n".join(",".join(map(str, row)) for row in torch.cat([x, y], 1).tolist()))
        model = resolve("model", "net.py:build")()
        training, _ = resolve("data", "data.py:batches")("table.csv")
        loss = resolve("loss", "data.py:squared_error")
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(150):
            for batch in training:
                optimizer.zero_grad()
                loss(model, batch).mean().backward()
                optimizer.step()
        torch.save(model.state_dict(), "net.pt")
    return folder / "net.pt"


@pytest.fixture(scope="module")
def predicted(regression: Path, folder: Path) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return run(*documented("predict", "net.py:build"), *QUICK)


def test_regression_in_files_of_the_user(predicted: Result) -> None:
    assert predicted.exit_code == 0, predicted.output
    assert "allowed: within_a_tenth -0.01" in predicted.output
    limit = PruningLimit.from_json("limit.json")
    assert (limit.metric, limit.max_drop) == ("within_a_tenth", 0.01)
    assert 0 <= limit.lower < 1


# ------------------------------------------------------------------------------------------------------------ the gate


def pruned_to(share: float) -> None:
    """Write ``pruned.pt`` as a pipeline would: by the masks of ``torch.nn.utils.prune``."""
    model = resolve("model", "net.py:build")()
    model.load_state_dict(torch.load("net.pt", weights_only=True))
    layers = [(module, "weight") for module in model if isinstance(module, nn.Linear)]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=share)
    torch.save(model.state_dict(), "pruned.pt")


@pytest.mark.parametrize(("share", "codes"), [(0.0, {0}), (0.9, {3, 4})])
def test_the_gate_answers_by_its_exit_code(share: float, codes: set[int], predicted: Result) -> None:
    pruned_to(share)
    result = run(*documented("check", "--pruned"))
    assert result.exit_code in codes, result.output
    assert re.search(r"^(achievable|open|infeasible): ", result.output, re.MULTILINE)
    assert Path("gate.xml").read_text().startswith("<?xml")


def test_a_sparsity_is_judged_without_network_and_data(predicted: Result) -> None:
    result = run(*documented("check", "--sparsity"))
    assert result.exit_code in {3, 4}
    assert run(*documented("report")).output == "wrote report.html\n"
    assert Path("report.html").read_text().startswith("<!")


def test_a_metric_of_the_user_is_asked_for_again(predicted: Result) -> None:
    pruned_to(0.0)
    command = documented("check", "--pruned")
    place = command.index("--metric")
    result = run(*command[:place], *command[place + 2 :])
    assert result.exit_code == 1
    assert "name it again with --metric" in result.output


def test_every_command_of_the_readme_is_walked() -> None:
    assert len(commands()) == 5
