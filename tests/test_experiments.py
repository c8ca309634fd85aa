from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from estimators import Hessian, Objective, SpectralMeasure, UserError
from estimators.trace import row_norms
from pruning_limits import PruningLimit, predict_limit
from validation.data import load_data
from validation.models import build_model
from validation.studies.limits import algorithms, bounds, crossing, early, predicted
from validation.studies.limits.weights import total_variation
from validation.tables.discovery import tables
from validation.tables.reading import load_suite
from validation.tables.runner import Run, run_table
from validation.training import Course, Network, Recipe, accuracy, train

SUITE = """
[limit]
samples = 64
steps = 4
probes = 1
[retrain]
epochs = 1
evaluations = 1
[row_norms]
samples = 64
probes = 2
[slq]
steps = [2, 4]
probes = []
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
pruners = ["lomp", "random", "smart-ratio"]
sparsities = [0.5, 0.9]
epochs = 1
[[network]]
model = "fc5-mini"
dataset = "digits"
seeds = [0, 1]
recipe = { epochs = 1, lr = 0.05, l1 = 1e-3 }
"""
NAMES = {
    "algorithms",
    "bounds",
    "crossing",
    "early",
    "iterative-and-l2",
    "row-norms",
    "slq-settings",
    "sota",
    "weight-scale",
    "weights",
}


def test_every_table_is_found() -> None:
    assert set(tables()) >= {*NAMES, "meaning", "one-shot", "theory-vs-actual"}  # which have test modules of their own


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_table_writes_three_files_and_resumes_to_the_same_bytes(name: str, runs: Path, suite_file: Path) -> None:
    suite = load_suite(str(suite_file))
    folder = run_table(name, suite, Run(runs, command="test"))
    written = {kind: (folder / f"{name}.{kind}").read_bytes() for kind in ("json", "md", "png")}
    rows = json.loads(written["json"])["rows"]
    assert rows
    assert written["md"].startswith(b"# ")
    assert written["png"].startswith(b"\x89PNG")
    finished = sorted(runs.glob(f"{tables()[name].rows_of or name}-*/row.json"))
    stamps = [path.stat().st_mtime_ns for path in finished]
    run_table(name, suite, Run(runs, command="test"))
    assert [path.stat().st_mtime_ns for path in finished] == stamps
    for kind in ("json", "md"):
        assert (folder / f"{name}.{kind}").read_bytes() == written[kind]


def test_a_pruner_that_refuses_leaves_its_reason(runs: Path, suite_file: Path) -> None:
    suite = load_suite(str(suite_file))
    folder = run_table("algorithms", suite, Run(runs, command="test"))
    cells = json.loads((folder / "algorithms.json").read_text())["cells"]
    refused = [cell for cell in cells if cell["refused"]]
    assert all(cell["pruner"] == "smart-ratio" for cell in refused)
    for cell in cells:
        if not cell["refused"]:
            assert cell["realised"] == pytest.approx(cell["sparsity"], abs=1e-4)
            assert cell["epochs"] <= 2


def row(**values: object) -> dict[str, object]:
    base = {"model": "m", "dataset": "d", "penalty": "none", "seed": 0, "pruner": "p", "dense_accuracy": 0.9}
    base |= {"isotropic": 0.6, "retrained": 0.8, "upper": 0.85, "lower": 0.5, "epsilon": 0.1, "rise": 0.0}
    return base | {"epochs": 1, "seconds": 1.0, "refused": None} | values


def test_reached_is_the_end_of_the_sustained_region() -> None:
    rows = [row(sparsity=s, accuracy=a) for s, a in ((0.5, 0.9), (0.9, 0.87), (0.95, 0.95))]
    share = 0.01 / (0.01 + 0.02)
    assert algorithms.reached(rows, 0.01) == pytest.approx(1 - np.exp((1 - share) * np.log(0.5) + share * np.log(0.1)))
    assert algorithms.reached(rows[:1], 0.01) == pytest.approx(0.5)
    assert algorithms.reached([row(sparsity=0.5, accuracy=0.5)], 0.0) == pytest.approx(0.0)


def test_averages_say_side_and_spread() -> None:
    rows = [row(seed=seed, sparsity=0.7, accuracy=a) for seed, a in ((0, 0.88), (1, 0.92))]
    (mean,) = algorithms.averaged(rows, 0.005)
    assert mean["accuracy"] == pytest.approx(0.9)
    assert mean["accuracy_spread"] == pytest.approx(0.02 * 2**0.5)
    assert (mean["side"], mean["keeps"], mean["seeds"]) == ("between one-shot and re-trained", "yes", 2)
    assert [algorithms.side(row(sparsity=s)) for s in (0.6, 0.84, 0.86)] == [
        "below both",
        "above both",
        "above the upper bound",
    ]


def test_crossings_name_pruners_on_both_sides() -> None:
    rows = [row(pruner=p, sparsity=0.7, accuracy=a) for p, a in (("good", 0.9), ("bad", 0.1))]
    one_shot, again = algorithms.crossings(rows, 0.005)
    assert "Crossed (points of sparsity): good by 10.0. Not reached: bad by" in one_shot
    assert "by none. Not reached: good by 10.0, bad by" in again


@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_the_allowed_norm_of_equal_eigenvalues_is_known(sparsity: float) -> None:
    measure, curvature, whole, epsilon = SpectralMeasure.from_eigenvalues(np.full(5, 3.0)), 3.0, 8.0, 0.1
    hessian = SimpleNamespace(limit=lambda solve: solve(measure))
    curve = SimpleNamespace(squared_norm=lambda sparsity: whole)
    limit: Any = SimpleNamespace(epsilon=epsilon, evidence=SimpleNamespace(hessian=hessian, curve=curve))
    squared = 2 * epsilon * (1 - sparsity) / (sparsity * curvature)  # c / (c + 3) = s with c = 2 epsilon / R^2
    assert crossing.allowed(limit, sparsity) == pytest.approx((squared / whole) ** 0.5, rel=1e-9)


def test_flat_directions_alone_allow_any_norm() -> None:
    measure = SpectralMeasure.from_eigenvalues(np.array([0.0, 0.0, 0.0, 1.0]))
    hessian = SimpleNamespace(limit=lambda solve: solve(measure))
    curve = SimpleNamespace(squared_norm=lambda sparsity: 1.0)
    limit: Any = SimpleNamespace(epsilon=0.1, evidence=SimpleNamespace(hessian=hessian, curve=curve))
    assert crossing.allowed(limit, 0.7) is None
    assert crossing.allowed(limit, 0.8) is not None


@pytest.mark.parametrize(("upper", "gap", "inside"), [(0.9, 40.0, "yes"), (0.55, 5.0, "no"), (None, None, None)])
def test_a_bound_that_is_not_known_is_no_number(
    upper: float | None, gap: float | None, inside: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = SimpleNamespace(sparsity=upper, high=upper and upper + 0.01)
    answers = {"bound": bound, "formula": SimpleNamespace(status="settled: by steps")}
    limit: Any = SimpleNamespace(lower=0.5, sparsity=0.6, interval=(0.55, 0.65), retrained=0.8, epsilon=0.1)
    limit.parameters, limit.upper, limit.answer = 100, 0.5, answers.__getitem__
    monkeypatch.setattr(bounds, "predicted_limit", lambda network, bench: limit)
    network = Network("fc5-mini", "digits", Recipe(1, 0.1), 0)
    cell: Any = SimpleNamespace(network=network)
    said = bounds.run(cell, cell)
    assert (said["upper"], said["beyond"], said["inside"]) == (upper, bound.high, inside)
    assert said["gap"] == (None if gap is None else pytest.approx(gap))
    assert said["kept_ratio"] == (None if upper is None else pytest.approx(0.5 / (1 - upper)))


def test_total_variation_of_known_histograms() -> None:
    assert total_variation(np.array([1, 0]), np.array([0, 5])) == 1.0
    assert total_variation(np.array([2, 2]), np.array([7, 7])) == 0.0


def test_row_norms_agree_with_the_dense_matrix(tiny: tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]) -> None:
    operator = Hessian(Objective(*tiny))
    exact = (operator @ torch.eye(operator.shape[0], dtype=torch.float64)).abs().sum(0)
    estimates = torch.stack([row_norms(operator, probes=8, seed=seed) for seed in range(60)])
    error = estimates.std(0) / 60**0.5
    assert float(((estimates.mean(0) - exact) / error).abs().max()) < 5
    assert float((estimates.mean(0) / exact - 1).abs().mean()) < 0.1
    with pytest.raises(UserError, match="probes: expected at least 2"):
        row_norms(operator, probes=1)


def test_row_norms_of_rows_that_are_zero_are_zero() -> None:
    class Singular:
        shape, dtype, device = (3, 3), torch.float64, torch.device("cpu")

        def matmat(self, vectors: torch.Tensor) -> torch.Tensor:
            return vectors * torch.tensor([[2.0], [0.0], [1.0]], dtype=torch.float64)

    norms = row_norms(Singular(), probes=500)
    assert norms[1] == 0
    assert float(norms[0] / norms[2]) == pytest.approx(2, rel=0.3)


@pytest.mark.parametrize("model", ["fc5", "alexnet", "resnet18"])
def test_networks_of_the_paper_suite_take_their_first_steps(model: str) -> None:
    from validation.data import ImageData

    network: Network = next(n for n in load_suite("paper").networks if n.model == model)
    generator = torch.Generator().manual_seed(0)
    size, classes = (32, 100) if network.dataset == "cifar100" else (32, 10)
    x = torch.randint(0, 256, (4, 3, size, size), generator=generator, dtype=torch.uint8)
    y = torch.tensor([0, 1, 2, classes - 1])
    data = ImageData("synthetic", x, y, x, y, classes)
    net = build_model(network.model, data.shape, classes, 0)
    before = [parameter.clone() for parameter in net.parameters()]
    recipe = Recipe(**{**network.settings()["recipe"], "batch_size": 2})
    train(net, data, recipe, seed=0, course=Course(last=2))
    assert all(parameter.isfinite().all() for parameter in net.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_checkpoints_keep_the_fractions_of_a_shorter_recipe_and_the_end() -> None:
    assert early.checkpoints((1, 5, 10, 20), 40) == [1, 5, 10, 20, 40]
    assert early.checkpoints((1, 5, 10, 20), 20) == [1, 5, 10, 20]
    assert early.checkpoints((1, 5, 10, 20), 10) == [1, 2, 5, 10]
    assert early.checkpoints((1, 5, 10, 20), 1) == [1]
    assert early.checkpoints((), 7) == [7]


def test_early_limits_come_from_one_training_run_that_ends_in_the_trained_network(
    tmp_path: Path, suite_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = suite_file.read_text().replace("seeds = [0, 1]", "seeds = [0]").replace("epochs = 1, lr", "epochs = 3, lr")
    path = tmp_path / "three.toml"
    path.write_text(text)
    suite = load_suite(str(path))
    data, snapshots = load_data("digits"), []

    def predict(model: nn.Module, *arguments: object, **options: object) -> PruningLimit:
        if len(snapshots) == 2 and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        snapshots.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return predict_limit(model, *arguments, **options)

    interrupted: list[bool] = []
    monkeypatch.setattr(predicted, "predict_limit", predict)
    with pytest.raises(KeyboardInterrupt):
        run_table("early", suite, Run(tmp_path))
    folder = run_table("early", suite, Run(tmp_path))
    assert len(snapshots) == 3
    network = suite.networks[0]
    straight = build_model(network.model, data.shape, data.classes, network.seed)
    states = {}
    per_epoch = len(data.batches("train", network.recipe.batch_size))

    def keep(step: int, model: nn.Module) -> None:
        if step % per_epoch == 0:
            states[step // per_epoch] = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    train(straight, data, network.recipe, network.seed, course=Course(on_step=keep))
    for epoch, state in zip((1, 2, 3), snapshots, strict=True):
        assert all(torch.equal(state[name], states[epoch][name]) for name in state)
    rows = json.loads((folder / "early.json").read_text())["rows"]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    last = rows[-1]
    assert (last["difference"], last["difference_final"]) == (0.0, 0.0)
    assert (last["isotropic"], last["lower"]) == (last["isotropic_final"], last["lower_final"])
    for row in rows:
        assert row["difference"] == pytest.approx(100 * (row["isotropic"] - last["isotropic"]))
        assert (row["isotropic_final"] > row["isotropic"]) == (last["epsilon"] > row["epsilon"])
    assert last["accuracy"] == pytest.approx(accuracy(straight.eval(), data))
    (run,) = tmp_path.glob("early-*")
    assert not (run / "state.pt").exists()


def test_a_pattern_that_is_no_regular_expression_is_refused(suite_file: Path, tmp_path: Path) -> None:
    suite = load_suite(str(suite_file))
    with pytest.raises(UserError, match="only: '\\(' is not a regular expression"):
        run_table("bounds", suite.only("("), Run(tmp_path))
    with pytest.raises(UserError, match="only: no network of suite little matches 'vgg'"):
        run_table("bounds", suite.only("vgg"), Run(tmp_path))
