"""What re-tuning and its competitors reach with few samples and little time, at equal samples and time.

``python benchmarks/retuned.py --out docs/results/benchmarks``, with CIFAR-10, MNIST and Fashion-MNIST in
``PRUNING_LIMITS_DATA``. Trained networks and finished cells are read from ``runs``; missing ones are computed, so that
a stopped run can go on. ``--samples`` and ``--seeds`` choose the rows that are added to the table.
"""

from __future__ import annotations

import copy
import math
import shlex
import sys
import time
from argparse import BooleanOptionalAction
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from networks import BATCH, CASES, Images, Text, windows
from timing import environment, environment_note, options
from torch import Tensor, nn

from estimators import GGN, Objective, UserError
from estimators.default_loss import cross_entropy
from estimators.vectors import named
from pruning_limits.batch_statistics import normalising
from pruning_limits.descent import RATE, Descent
from pruning_limits.fine_tuning import WIDTH as WIDTH_OF_BATCHES
from pruning_limits.fine_tuning import FineTuning, Network, Steps
from pruning_limits.magnitude import removed_count
from pruning_limits.metrics import accuracy
from pruning_limits.plotting import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, headline, new_figure, save
from pruning_limits.retuned import retune
from validation.data import load_data
from validation.masks import Masks
from validation.pruners.obs_layerwise import magnitude_counts, reconstruct
from validation.pruners.wanda import wanda_masks
from validation.tables.storage import load_tensors, read_json, run_folder, save_tensors, write_json
from validation.tables.writing import Column, Page, Row, mean_and_spread, write_table
from validation.training import apply_masks

LOST = (1.0, 5.0, 30.0)  # points of accuracy that pruning alone has lost
HELD_OUT = 5000
PASSES = 2
ADAM_RATE = 1e-3
FOUND = (
    "LeNet-300-100, MNIST",
    "MnistNet, MNIST",
    "MnistNet, Fashion-MNIST",
    "ResNet-8, CIFAR-10, 10,000 images",
)  # families that the rule was found on
ORDER = (
    *FOUND,
    "vision transformer, MNIST",
    "FC5, CIFAR-10",
    "ResNet-20, CIFAR-10, 10,000 images",
    "character transformer",
)
FEW = {"character transformer": 4}  # a window holds many predictions: so many times fewer samples
RULES = ((0.0025, 2), (0.005, 1), (0.005, 2), (0.005, 4), (0.01, 2))  # share of the norm, and passes
PATCH, WIDTH, HEADS, LAYERS, EPOCHS = 7, 48, 4, 3, 3
RUNG = "to the dense scores"
BRIEF, LAYERWISE = f"SGD, {RUNG}", "obs-layerwise, then SGD"
SHOWN = 2048  # samples, in the figure
LEAST_LOST = 0.05  # points, the least that the figure shows
COLOURS = (GREY, "#8c6d31", BLUE, "#56b4e9", ORANGE, "#e69f00", PURPLE, GREEN, "#cc0000", "#7fc97f", "#0a3d62", BLACK)


class VisionTransformer(nn.Module):
    """A small transformer on patches of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.places = nn.Linear(PATCH**2, WIDTH), nn.Parameter(torch.zeros((28 // PATCH) ** 2, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[n, 1, 28, 28]`` to scores ``[n, 10]``."""
        tokens = nn.functional.unfold(x, PATCH, stride=PATCH).transpose(1, 2)
        scores: Tensor = self.head(self.layers(self.patches(tokens) + self.places).mean(1))
        return scores


@dataclass(frozen=True)
class Subject:
    """A trained network, its training data and held-out data as batches."""

    model: nn.Module
    training: Any
    held_out: Sequence[tuple[Tensor, Tensor]]


def subject(name: str, runs: Path) -> Subject:
    """Train a network, or read it from its folder, and take its data."""
    if name.startswith("vision"):
        data = load_data("mnist")
        batches = data.batches("train", BATCH)
        return Subject(_transformer(runs), batches, _first(data.batches("test", BATCH)))
    case = CASES[name]
    trained = case.trained(runs)
    if isinstance(case, Text):
        x, _ = windows()
        shifted = x.roll(7, 0).flatten()[: len(x) // 16 * x.shape[1]].view(-1, x.shape[1])
        held_out = [(part[:, :-1], part[:, 1:]) for part in torch.split(shifted[: HELD_OUT // 5], BATCH // 4)]
        return Subject(trained.model, trained.batches, held_out)
    assert isinstance(case, Images)
    data = load_data(case.network.dataset)
    return Subject(trained.model, trained.batches, _first(data.batches("test", BATCH)))


def _first(batches: Any) -> list[tuple[Tensor, Tensor]]:
    """Return the first batches of held-out data."""
    return [batch for number, batch in enumerate(batches) if number < HELD_OUT // BATCH]


def _transformer(runs: Path) -> nn.Module:
    settings = {"patch": PATCH, "width": WIDTH, "heads": HEADS, "layers": LAYERS, "epochs": EPOCHS}
    file = run_folder(runs, "vision-transformer", settings) / "weights.pt"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VisionTransformer()
    if not file.exists():
        loader = load_data("mnist").batches("train", 64)
        optimiser, steps = torch.optim.AdamW(model.parameters(), 2e-3), EPOCHS * len(loader)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for epoch in range(EPOCHS):
            for x, y in loader.shuffled(0, epoch):
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimiser.step()
                schedule.step()
        save_tensors(file, model.state_dict())
    model.load_state_dict(load_tensors(file))
    return model.eval()


class Adam:
    """Steps of Adam, the rate falling to zero along a cosine.

    Args:
        counted: Not looked at: Adam has a scale of its own.
    """

    def __init__(self, counted: Tensor) -> None:
        self.rate, self.count = ADAM_RATE, 0
        self.first = self.second = torch.zeros(len(counted))

    def step(self, weights: Tensor, slope: Tensor, done: float) -> None:
        """Move weights in place."""
        self.count += 1
        self.first = 0.9 * self.first + 0.1 * slope
        self.second = 0.999 * self.second + 0.001 * slope.square()
        mean, square = self.first / (1 - 0.9**self.count), self.second / (1 - 0.999**self.count)
        weights.sub_(mean / (square.sqrt() + 1e-8), alpha=self.rate * math.cos(0.5 * math.pi * done) ** 2)

    def gentler(self) -> None:
        """Forget the moments and take shorter steps."""
        self.rate, self.count = self.rate / 4, 0
        self.first = self.second = torch.zeros_like(self.first)


def labels(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy that is trained on itself, not on the scores of the dense network."""
    return cross_entropy(model, batch)


@dataclass(frozen=True)
class Cell:
    """A network, a sparsity, a number of samples and a seed, and how the network does on held-out data."""

    subject: Subject
    sparsity: float
    samples: int
    seed: int

    def tuning(self, of_labels: bool, steps: Callable[[Tensor], Steps] = Descent, passes: int = PASSES) -> FineTuning:
        """Return what fine-tunes the network."""
        objective = Objective(self.subject.model, self.subject.training, labels if of_labels else None)
        return FineTuning(objective, self.samples, passes, self.seed, steps, layerwise=False)

    def count(self, tuning: FineTuning) -> int:
        """Return the number of removed weights."""
        return removed_count(self.sparsity, tuning.dimension)

    def accuracy(self, tuning: FineTuning, network: Network) -> float:
        """Return the accuracy of a network on held-out data, in per cent."""
        return 100 * held_out_accuracy(applied(self.subject.model, tuning, network), self.subject.held_out)


@torch.no_grad()
def held_out_accuracy(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the mean accuracy on some batches."""
    return float(torch.cat([accuracy(model, batch) for batch in batches]).mean())


@torch.no_grad()
def applied(model: nn.Module, tuning: FineTuning, network: Network) -> nn.Module:
    """Return a copy of the model with the weights and statistics of a network."""
    twin = copy.deepcopy(model)
    own = dict(twin.named_parameters()) | dict(twin.named_buffers())
    for name, part in (named(network.vector, tuning.objective.chosen) | network.buffers).items():
        own[name].copy_(part)
    return twin.eval()


# ------------------------------------------------------------------------------------------------------ the methods


def one_shot(cell: Cell, seconds: Mapping[str, float]) -> tuple[FineTuning, Network]:
    """Prune and do nothing else."""
    tuning = cell.tuning(of_labels=True)
    return tuning, tuning.pruned(tuning.dense, cell.count(tuning))


def biases(cell: Cell, seconds: Mapping[str, float]) -> tuple[FineTuning, Network]:
    """Train biases and normalisation alone, statistics measured anew."""
    model = copy.deepcopy(cell.subject.model)
    whole = cell.tuning(of_labels=False)
    prunable = {name for name, part in whole.objective.chosen.items() if part.dim() > 1}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in prunable)
    own = Cell(Subject(model, cell.subject.training, cell.subject.held_out), cell.sparsity, cell.samples, cell.seed)
    tuning = own.tuning(of_labels=False, steps=_of_everything)
    return tuning, tuning.stage(tuning.dense, cell.count(tuning))


def _of_everything(counted: Tensor) -> Steps:
    return Descent(torch.ones_like(counted))


def fine_tuned(
    of_labels: bool, steps: Callable[[Tensor], Steps]
) -> Callable[[Cell, Mapping[str, float]], tuple[FineTuning, Network]]:
    """Return brief fine-tuning in one stage."""

    def run(cell: Cell, seconds: Mapping[str, float]) -> tuple[FineTuning, Network]:
        tuning = cell.tuning(of_labels, steps)
        return tuning, tuning.stage(tuning.dense, cell.count(tuning))

    return run


def in_two_stages(cell: Cell, seconds: Mapping[str, float]) -> tuple[FineTuning, Network]:
    """Fine-tune to the dense scores in two stages of half as many samples."""
    half = Cell(cell.subject, cell.sparsity, cell.samples // 2, cell.seed)
    tuning = half.tuning(of_labels=False)
    kept = 1 - cell.sparsity
    first = tuning.stage(tuning.dense, removed_count(1 - math.sqrt(kept), tuning.dimension))
    return tuning, tuning.stage(first, cell.count(tuning))


def trust_region(cell: Cell, seconds: Mapping[str, float], steps: int = 4) -> tuple[FineTuning, Network]:
    r"""Solve the damped quadratic model of the mean loss by conjugate gradients, again and again until time is up.

    The damping falls where the measured fall is more than three quarters of the modelled one, rises where it is less
    than a quarter, and no step is accepted that raises the loss of the training samples. The second moment of
    mini-batch gradients preconditions.
    """
    started, budget = time.process_time(), seconds[BRIEF]
    tuning = cell.tuning(of_labels=True)
    count = cell.count(tuning)
    sample = tuning.sample(count)
    network = tuning.pruned(tuning.dense, count)
    if normalising(cell.subject.model):
        network = tuning.normalised(network, sample)
    best = tuning.evaluated(network, sample)
    batches = [batch for batch, _ in sample.training]
    free, damping, vector = network.kept & tuning.trained, 0.1, network.vector
    names = [name for name, _ in cell.subject.model.named_parameters() if name in tuning.objective.names]
    while time.process_time() - started < budget and damping < 1e6:
        twin = applied(cell.subject.model, tuning, Network(vector, network.kept, network.buffers))
        objective = Objective(twin, batches, labels, None, names)
        slope, squares = _slopes(objective, vector)
        before, improved = objective.value(), False
        while not improved and time.process_time() - started < budget and damping < 1e6:
            scale = damping * float(squares.mean())
            solved = retune(
                GGN(objective, memory=0),
                vector,
                free,
                slope,
                scale,
                diagonal=squares + 1e-12,
                steps=steps,
                tolerance=0.01,
            )
            change = torch.where(free, solved.change, 0.0).to(vector.dtype)
            after = objective.value(vector + change)
            gain = (before - after) / max(solved.before - solved.rise, 1e-30)
            improved = after < before
            if improved:
                vector = vector + change
            damping *= 1 / 3 if gain > 0.75 else 4 if gain < 0.25 else 1
        tried = tuning.evaluated(Network(vector, network.kept, network.buffers), sample)
        best = tried if tried.loss < best.loss else best
    return tuning, best


def _slopes(objective: Objective, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the mean loss, and the root of the mean square of those of the batches."""
    total, squares, count = torch.zeros_like(vector), torch.zeros_like(vector), 0
    for batch, size in objective.batches():
        _, slope = objective.losses_and_slopes(vector, batch, size)
        assert slope is not None
        total += slope
        squares += slope.square() / size
        count += size
    return total / count, (squares / count).sqrt()


def layer_by_layer(masked: Callable[[nn.Module, Tensor, dict[str, int]], Masks]) -> Any:
    """Return a pruner that goes by the inputs of layers; statistics of normalisation are measured anew."""

    def run(cell: Cell, seconds: Mapping[str, float]) -> tuple[FineTuning, Network]:
        tuning = cell.tuning(of_labels=True)
        count = cell.count(tuning)
        sample = tuning.sample(count)
        x = torch.cat([batch[0] for batch, _ in sample.training])
        twin = copy.deepcopy(cell.subject.model).eval()
        masks = masked(twin, x, magnitude_counts(twin, cell.sparsity))
        apply_masks(twin, masks)
        vector = torch.cat([dict(twin.named_parameters())[name].detach().flatten() for name in tuning.objective.names])
        network = tuning.evaluated(Network(vector, ~tuning.prunable | (vector != 0), {}), sample)
        if normalising(twin):
            anew = tuning.evaluated(tuning.normalised(network, sample), sample)
            network = anew if anew.loss < network.loss else network
        return tuning, network

    return run


def reconstructed_first(cell: Cell, seconds: Mapping[str, float]) -> tuple[FineTuning, Network]:
    """Reconstruct layer by layer, then fine-tune to the dense scores with one pass less."""
    tuning, network = layer_by_layer(reconstruct)(cell, seconds)
    whole = cell.tuning(of_labels=False, passes=max(1, PASSES - 1))
    return whole, whole.stage(network, cell.count(tuning))


def as_long(cell: Cell, seconds: Mapping[str, float]) -> tuple[FineTuning, Network]:
    """Fine-tune to the dense scores for as many passes as take the time of the reconstruction and its fine-tuning."""
    passes = max(PASSES, round(PASSES * seconds[LAYERWISE] / seconds[BRIEF]))
    tuning = cell.tuning(of_labels=False, passes=passes)
    return tuning, tuning.stage(tuning.dense, cell.count(tuning))


METHODS: dict[str, Callable[[Cell, Mapping[str, float]], tuple[FineTuning, Network]]] = {
    "one-shot": one_shot,
    "biases and statistics": biases,
    "SGD, labels": fine_tuned(True, Descent),
    "Adam, labels": fine_tuned(True, Adam),
    BRIEF: fine_tuned(False, Descent),
    f"Adam, {RUNG}": fine_tuned(False, Adam),
    "SGD, in two stages": in_two_stages,
    "damped GGN": trust_region,
    "obs-layerwise": layer_by_layer(reconstruct),
    LAYERWISE: reconstructed_first,
    "SGD, as long": as_long,
    "wanda": layer_by_layer(wanda_masks),
}


# --------------------------------------------------------------------------------------------------------- the table


def sparsities(name: str, own: Subject, runs: Path) -> dict[str, float]:
    """Find where pruning alone has lost so many points of held-out accuracy; the dense accuracy is beside them."""
    file = run_folder(runs, "retuned-sparsities", {"name": name, "lost": list(LOST), "held_out": HELD_OUT}) / "row.json"
    levels: dict[str, float] | None = read_json(file)
    if levels is not None:
        return levels
    cell = Cell(own, 0.0, 1, 0)
    tuning = cell.tuning(of_labels=True)
    dense = cell.accuracy(tuning, tuning.dense)
    levels = {"dense": dense}
    for lost in LOST:
        low, high = 0.0, math.log(2000.0)
        for _ in range(12):
            middle = (low + high) / 2
            network = tuning.pruned(tuning.dense, removed_count(1 - math.exp(-middle), tuning.dimension))
            low, high = (middle, high) if cell.accuracy(tuning, network) > dense - lost else (low, middle)
        levels[str(lost)] = 1 - math.exp(-high)
    write_json(file, levels)
    return levels


def row_of(cell: Cell, method: str, seconds: Mapping[str, float]) -> Row:
    """Run one method, knowing the processor time of those before it."""
    started = time.process_time()
    tuning, network = METHODS[method](cell, seconds)
    own = time.process_time() - started
    return {"method": method, "accuracy": cell.accuracy(tuning, network), "seconds": own}


def rows_of(name: str, runs: Path, samples: int, seed: int, losts: Sequence[float], finished: bool) -> list[Row]:
    """Return the rows of a network: every method at every sparsity, or those of the finished cells alone."""
    own = subject(name, runs)
    levels, rows = sparsities(name, own, runs), list[Row]()
    few = samples // FEW.get(name, 1)
    for lost in losts:
        settings = {
            "name": name,
            "lost": lost,
            "samples": few,
            "seed": seed,
            "passes": PASSES,
            "rate": RATE,
            "width": WIDTH_OF_BATCHES,
        }
        folder = run_folder(runs, "retuned", settings | {"held_out": HELD_OUT})
        done: list[Row] = read_json(folder / "rows.json") or []
        cell = Cell(own, levels[str(lost)], few, seed)
        if finished and len(done) < len(METHODS):
            continue
        for method in (BRIEF, *METHODS):
            if method not in {row["method"] for row in done}:
                done.append(row_of(cell, method, {row["method"]: row["seconds"] for row in done}))
                write_json(folder / "rows.json", done)
                print(name, lost, few, seed, done[-1], flush=True)
        base: Row = {"network": name, "lost": lost, "sparsity": cell.sparsity, "samples": samples, "seed": seed}
        base |= {"dense": levels["dense"], "group": "found" if name in FOUND else "others"}
        rows += [base | row for row in sorted(done, key=lambda row: list(METHODS).index(row["method"]))]
    return rows


def rule_rows(name: str, runs: Path) -> list[Row]:
    """Return what other rules of the steps reach where pruning alone has lost five points."""
    own = subject(name, runs)
    levels, rows = sparsities(name, own, runs), list[Row]()
    samples = 2048 // FEW.get(name, 1)
    for rate, passes in RULES:
        settings = {"name": name, "samples": samples, "rate": rate, "passes": passes, "width": WIDTH_OF_BATCHES}
        file = run_folder(runs, "retuned-rule", settings) / "row.json"
        row: Row | None = read_json(file)
        if row is None:
            cell = Cell(own, levels["5.0"], samples, 0)
            tuning = cell.tuning(False, lambda counted, rate=rate: Descent(counted, rate), passes)  # type: ignore[misc]
            row = {"accuracy": cell.accuracy(tuning, tuning.stage(tuning.dense, cell.count(tuning)))}
            write_json(file, row)
            print(name, rate, passes, row, flush=True)
        rows.append({"network": name, "rate": rate, "passes": passes, "dense": levels["dense"], **row})
    return rows


def averaged(rows: Sequence[Row]) -> list[Row]:
    """Return one row per network, loss of one-shot and number of samples: mean accuracy of every method over seeds."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["samples"], row["network"], row["lost"]), []).append(row)
    result = []
    for own in groups.values():
        first = own[0]
        line = {key: first[key] for key in ("network", "group", "lost", "sparsity", "samples", "dense")}
        line["seeds"] = len({row["seed"] for row in own})
        for method in METHODS:
            part = [row for row in own if row["method"] == method]
            line[method], line[f"{method} spread"] = mean_and_spread(part, "accuracy")
            line[f"{method} seconds"] = mean_and_spread(part, "seconds")[0]
        result.append(line)
    return result


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Say for every method how often it is best and how many points it loses to the dense network on average."""
    lines, sizes = [], sorted({row["samples"] for row in rows})
    for group in (*([size] for size in sizes), sizes) if len(sizes) > 1 else [sizes]:
        own = [row for row in rows if row["samples"] in group]
        said = []
        for method in METHODS:
            best = sum(row[method] >= max(row[rival] for rival in METHODS) - 1e-9 for row in own)
            fall = sum(row["dense"] - row[method] for row in own) / len(own)
            seconds = sum(row[f"{method} seconds"] for row in own) / len(own)
            said.append(f"{method} {fall:.2f} ({best}; {seconds:.1f} s)")
        lines.append(
            f"{' and '.join(f'{size:,}' for size in group)} samples: mean loss of accuracy in points over {len(own)} "
            f"cases, in brackets in how many it is best and its mean processor time: {'; '.join(said)}."
        )
    return lines


def figure(rows: Sequence[Row], path: Path) -> None:
    """Draw the points lost by each method against those that pruning alone has lost, a panel for every network."""
    sizes = {row["samples"] for row in rows}
    shown = SHOWN if SHOWN in sizes else max(sizes)
    own = [row for row in rows if row["samples"] == shown]
    names = [name for name in ORDER if any(row["network"] == name for row in own)]
    columns = 2
    shape = -(-len(names) // columns)
    drawn, axes = new_figure(shape, columns, size=(10.0, 3.0 * shape + 0.4), squeeze=False)
    best = min(METHODS, key=lambda method: sum(row["dense"] - row[method] for row in own))
    headline(drawn, f"{best} loses least accuracy on average of {len(own)} cases, {shown:,} samples")
    for place, panel in enumerate(axes.flat):
        if place >= len(names):
            panel.set_axis_off()
            continue
        part = [row for row in own if row["network"] == names[place]]
        across = [f"{row['sparsity']:.1%}" for row in part]
        for colour, method in zip(COLOURS, METHODS, strict=True):
            lost = [max(row["dense"] - row[method], LEAST_LOST) for row in part]
            wide = 2.5 if method == best else 1.2
            panel.plot(across, lost, marker="o", markersize=3.5, color=colour, linewidth=wide, label=method)
        panel.set(yscale="log", xlabel="sparsity", ylabel=f"points of accuracy lost (at least {LEAST_LOST})")
        panel.set_title(names[place], loc="left", fontsize=9)
        panel.grid(alpha=0.25)
    axes[0, 0].legend(fontsize=6.5, ncols=2)
    save(drawn, path)


def main() -> None:
    """Write the tables and the figure from all cells that are asked for."""
    parser = options(__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[SHOWN])
    parser.add_argument("--lost", type=float, nargs="+", default=list(LOST), help="Points that one-shot has lost.")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=list(ORDER), help="Names of networks.")
    parser.add_argument("--finished", action="store_true", help="Compute nothing: write what is finished.")
    parser.add_argument("--rule", action=BooleanOptionalAction, default=True, help="Also compare rules of the steps.")
    arguments = parser.parse_args()
    unknown = sorted({*arguments.only} - {*ORDER})
    if unknown:
        raise UserError(f"only: expected some of {'; '.join(ORDER)}, got {unknown[0]!r}")
    torch.set_num_threads(1)
    rows, rules = list[Row](), list[Row]()
    for samples in arguments.samples:
        for seed in range(arguments.seeds):
            for name in arguments.only:
                rows += rows_of(name, arguments.runs, samples, seed, arguments.lost, arguments.finished)
    lines = averaged(rows)
    columns = [Column("network", "network"), Column("group", "rule"), Column("lost", "one-shot lost, points", ".0f")]
    columns += [
        Column("sparsity", "sparsity", ".2%"),
        Column("samples", "samples", ",d"),
        Column("seeds", "seeds", "d"),
    ]
    columns += [Column("dense", "dense", ".2f"), *(Column(method, method, ".2f") for method in METHODS)]
    notes = [
        f"Made by `python benchmarks/retuned.py {shlex.join(sys.argv[1:])}`. {environment_note()}",
        f"Accuracy in per cent on {HELD_OUT:,} held-out images; of the character transformer the share of characters "
        f"in {HELD_OUT // 5:,} other windows of the same text. All methods see the same training samples, of which a "
        "quarter as many again tell when to stop. Of the character transformer there are a quarter as many windows. "
        f"SGD takes {PASSES} passes; the damped GGN solve goes on until it has had the processor time of SGD to the "
        "dense scores. *SGD, as long* is SGD to the dense scores with as many passes as take the time of "
        f"*{LAYERWISE}*. What needs less time has it over.",
        "The rule of the steps was looked for on the networks marked found and on networks on digits; its rate was "
        "halved after a look at ResNet-8, so that only the others confirm it. A solve of the damped GGN takes at least "
        "one step, which can be longer than the time that SGD has.",
        "The rung of the library begins with the layer-wise reconstruction where that is better, and goes on with SGD "
        "to the dense scores; its reconstruction takes one pass over the samples, that of this table one for every "
        "layer.",
        *verdicts(lines),
    ]
    extra = {"environment": environment(), "cells": rows}
    write_table(arguments.out, Page("retuned", "Re-tuning and its rivals", notes, columns), lines, **extra)
    figure(lines, arguments.out / "retuned.png")
    if arguments.rule:
        for name in arguments.only:
            rules += rule_rows(name, arguments.runs)
        own = [Column("network", "network"), Column("rate", "step / norm", ".3f"), Column("passes", "passes", "d")]
        own += [Column("dense", "dense", ".2f"), Column("accuracy", "accuracy", ".2f")]
        note = "Where pruning alone has lost five points, 2,048 samples, SGD to the dense scores, one stage, one seed."
        write_table(
            arguments.out,
            Page("retuned-rule", "Other rules of the steps", [notes[0], note], own),
            rules,
            environment=environment(),
        )


if __name__ == "__main__":
    main()
