"""How long the suite ``paper`` takes: measured steps on this processor, and the whole on one GPU by extrapolation.

``python benchmarks/paper_time.py --out docs/results/benchmarks``, with CIFAR-10 in ``PRUNING_LIMITS_DATA``. It takes at
most an hour of one core. It counts the trainings of the tables in the suite's own sections: ``theory-vs-actual`` and
``bounds`` (the dense network, one prediction, re-training at the limit) and ``algorithms`` with ``sota``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from timing import environment_note, options

from validation.data import ImageData, load_data
from validation.macs import layer_macs
from validation.models import build_model
from validation.studies.limits.actual import RetrainSettings
from validation.studies.limits.algorithms import CompareSettings
from validation.tables.reading import load_suite
from validation.tables.suite import Suite
from validation.tables.writing import Column, Page, Row, write_table
from validation.training import Course, Network, accuracy, fresh_network, train

SIZES = {"cifar10": (32, 10, 50_000), "cifar100": (32, 100, 50_000), "tiny-imagenet-200": (64, 200, 100_000)}
PASSES = 3  # a step of training in forward passes: one forward, two backward
TERA = 1e12
SUSTAINED = (10.0, 20.0, 50.0)  # assumed operations per second of one GPU, in 10^12, float32 on small images
CHOSEN = 20.0
STEP = 0.005  # assumed least seconds of a step: hundreds of small kernels are started one after another
FROM_NEW_WEIGHTS = {"imp", "rare-gems", "smart-ratio"}  # they spend the whole budget at every sparsity
UNTRAINED = {"lomp"}
PREDICTION = 1.0  # epochs, the default budget
MEASURED = {"fc5": None, "resnet18": 8}  # steps; None for a whole epoch
COLUMNS = (
    Column("pair", "network and data"),
    Column("weights", "weights", ",d"),
    Column("macs", "10^6 multiply-adds per image", ",.1f"),
    Column("epoch", "10^12 operations per epoch", ",.1f"),
    Column("epochs", "epochs per seed", ",.0f"),
    Column("seeds", "seeds", "d"),
    *(Column(f"hours {rate:g}", f"GPU hours at {rate:g} x 10^12 per second", ",.1f") for rate in SUSTAINED),
)


def epochs_of(network: Network, suite: Suite) -> float:
    """Epochs of training that one network of the suite asks for, its prediction included."""
    compare, retrain = suite.settings(CompareSettings), suite.settings(RetrainSettings)
    whole = network.recipe.epochs + compare.epochs
    spent = {
        name: 0 if name in UNTRAINED else whole if name in FROM_NEW_WEIGHTS else compare.epochs
        for name in compare.pruners
    }
    pruned = sum(spent.values()) * len(compare.sparsities)
    return network.recipe.epochs + PREDICTION + retrain.evaluations * retrain.epochs + compare.epochs + pruned


@dataclass(frozen=True)
class Pair:
    """A network and its data, with what one epoch of training costs."""

    network: Network
    weights: int
    macs: int
    images: int

    @classmethod
    def of(cls, network: Network) -> Pair:
        """Count on the device ``meta``, without data."""
        side, classes, images = SIZES[network.dataset]
        with torch.device("meta"):
            model = build_model(network.model, (3, side, side), classes).to("meta")
        layers = layer_macs(model, (3, side, side))
        return cls(network, sum(layer.weights for layer in layers), sum(layer.macs for layer in layers), images)

    @property
    def operations(self) -> int:
        """Operations of one epoch of training."""
        return 2 * PASSES * self.macs * self.images

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        return -(-self.images // self.network.recipe.batch_size)

    def hours(self, epochs: float, rate: float) -> float:
        """Hours of some epochs at a rate in 10^12 operations per second; small steps take ``STEP`` all the same."""
        return epochs * max(self.operations / (rate * TERA), self.steps * STEP) / 3600


def measured(network: Network, data: ImageData, steps: int | None) -> Row:
    """Time some steps of a training on this processor."""
    model = fresh_network(network, data)
    train(model, data, network.recipe, network.seed, course=Course(last=1))
    per_epoch = len(data.batches("train", network.recipe.batch_size))
    last = per_epoch if steps is None else steps + 1
    wall, started = time.perf_counter(), time.process_time()
    train(model, data, network.recipe, network.seed, course=Course(first=1, last=last))
    seconds, wall = time.process_time() - started, time.perf_counter() - wall
    row: Row = {"model": network.model, "dataset": data.name, "steps": last - 1, "per_epoch": per_epoch}
    row |= {"seconds": seconds, "wall": wall, "epoch_seconds": seconds / (last - 1) * per_epoch}
    return row | ({"accuracy": accuracy(model, data)} if steps is None else {})


def said(row: Row, pair: Pair) -> str:
    """Return what was measured, in a sentence."""
    part = f"{row['steps']} of {row['per_epoch']} steps"
    rate = pair.operations * row["steps"] / row["per_epoch"] / row["seconds"] / 1e9
    text = (
        f"{row['model']} on {row['dataset']}: {part} of the first epoch took {row['seconds']:,.0f} s of processor time "
        f"({row['wall']:,.0f} s by the clock, beside other work), {rate:,.0f} x 10^9 operations per second; a whole "
        f"epoch takes {row['epoch_seconds'] / 60:,.1f} minutes"
    )
    return text + (f" and ends at {row['accuracy']:.1%} test accuracy." if "accuracy" in row else " at that rate.")


def main() -> None:
    """Measure, extrapolate, and write the table."""
    parser = options(__doc__, runs=False)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    suite = load_suite("paper")
    kinds: dict[tuple[str, str], list[Network]] = {}
    for network in suite.networks:
        kinds.setdefault((network.model, network.dataset), []).append(network)
    pairs = {kind: Pair.of(networks[0]) for kind, networks in kinds.items()}
    rows = []
    for kind, pair in pairs.items():
        epochs = epochs_of(pair.network, suite)
        row = {"pair": ", ".join(kind), "weights": pair.weights, "macs": pair.macs / 1e6, "epochs": epochs}
        row |= {"epoch": pair.operations / TERA, "seeds": len(kinds[kind])}
        rows.append(row | {f"hours {r:g}": len(kinds[kind]) * pair.hours(epochs, r) for r in SUSTAINED})
    total: Row = {"pair": "**all**", "weights": None, "macs": None, "epoch": None, "epochs": None, "seeds": None}
    rows.append(total | {f"hours {r:g}": sum(row[f"hours {r:g}"] for row in rows) for r in SUSTAINED})
    data = load_data("cifar10")
    tried = []
    for name, steps in MEASURED.items():
        network = next(network for network in suite.networks if network.model == name)
        tried.append(measured(replace(network, dataset="cifar10"), data, steps))
        print(tried[-1], flush=True)
    dense = sum(len(kinds[kind]) * pair.hours(pair.network.recipe.epochs, CHOSEN) for kind, pair in pairs.items())
    whole = rows[-1][f"hours {CHOSEN:g}"]
    compare = suite.settings(CompareSettings)
    notes = [
        "Made by `python benchmarks/paper_time.py --out docs/results/benchmarks`.",
        f"At an assumed {CHOSEN:g} x 10^12 operations per second the suite takes {whole:,.0f} hours of one GPU "
        f"({whole / 24:,.0f} days), of which the {len(suite.networks)} dense networks take {dense:,.0f}. **No GPU was "
        "at hand: these hours are extrapolated, not measured.**",
        f"A step of training counts {PASSES} forward passes and a multiply-add two operations. A step takes at least "
        f"{1000 * STEP:g} ms whatever it computes, which is what small networks wait for. Both that and the rate are "
        "assumptions. Data lie on the GPU, so that loading them takes no time.",
        f"Epochs per seed: the dense network, its prediction ({PREDICTION:g} epoch), re-training at the limit, and the "
        f"table of {len(compare.pruners)} pruners at {len(compare.sparsities)} sparsities with {compare.epochs} epochs "
        f"beyond the recipe's; {', '.join(sorted(FROM_NEW_WEIGHTS))} start from new weights at every sparsity.",
        *(said(row, pairs_by_model(pairs, row["model"])) for row in tried),
        environment_note(),
    ]
    write_table(out, Page("paper-time", "How long the suite paper takes", notes, COLUMNS), rows, measured=tried)
    print((out / "paper-time.md").read_text())


def pairs_by_model(pairs: dict[tuple[str, str], Pair], model: str) -> Pair:
    """Return the first pair of a model; ten classes or a hundred hardly change what an epoch costs."""
    return next(pair for (name, _), pair in pairs.items() if name == model)


if __name__ == "__main__":
    main()
