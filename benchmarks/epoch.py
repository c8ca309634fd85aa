"""What a prediction of FC5 on CIFAR-10 costs, in epochs of training, and how far it is from a far dearer one.

``python benchmarks/epoch.py --out docs/results/benchmarks``, with the data in ``PRUNING_LIMITS_DATA``. About half an
hour once the networks of the suite ``cpu`` are trained, which are looked for in ``runs``.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from timing import environment, environment_note, seconds_of

from estimators import Objective
from pruning_limits import MagnitudeProfile, PruningLimit, predict_limit
from pruning_limits.predict import batch_deviation
from pruning_limits.result import isotropic
from pruning_limits.spectra import Spectra
from validation.data import ImageData, load_data
from validation.models import build_model
from validation.suite import load_suite
from validation.tables import Column, Row, write_table
from validation.training import Network, train, trained_network

DEAR_STEPS = 16


def predicted(network: Network, data: ImageData, runs: Path, **options: object) -> tuple[PruningLimit, float]:
    """Predict the limit and take the processor time."""
    model, found = trained_network(network, data, runs), []
    loader = data.batches("train", 1000)
    spent = seconds_of(
        lambda: found.append(predict_limit(model, loader, penalty=network.recipe.penalty, progress=False, **options))
    )
    return found[0], spent


def epoch_seconds(network: Network, data: ImageData) -> float:
    """Processor time of one epoch of the training that made the network."""
    model = build_model(network.model, data.shape, data.classes, network.seed)
    recipe = replace(network.recipe, epochs=1, warmup=0)
    return seconds_of(lambda: train(model, data, recipe, network.seed))


def from_all_data(network: Network, data: ImageData, runs: Path) -> tuple[float, float]:
    """Limits with the Hessian and the GGN of all training data."""
    model, penalty = trained_network(network, data, runs), network.recipe.penalty
    objective = Objective(model, data.batches("train", 1000), penalty=penalty)
    losses, sizes = objective.sample_losses()
    curve, allowed = MagnitudeProfile(objective.chosen).curve(), batch_deviation(losses, sizes)
    asked = {"samples": objective.samples, "steps": DEAR_STEPS, "probes": 1, "seed": 0, "tolerance": 0.005}
    asked |= {"curvature": "hessian", "negative": "abs"}
    spectra = Spectra(objective, curve, allowed, asked, False, None, losses)
    hessian, ggn = (isotropic(spectra.estimate(kind), curve, allowed, "abs") for kind in ("hessian", "ggn"))
    return hessian, ggn


def row(network: Network, data: ImageData, runs: Path, dear: bool) -> Row:
    """Compare one network's predictions with an epoch before and one after them."""
    before = epoch_seconds(network, data)
    limit, spent = predicted(network, data, runs, measure=False)
    epoch = (before + epoch_seconds(network, data)) / 2
    measured, all_spent = predicted(network, data, runs, measure=True)
    found: Row = {
        "seed": network.seed,
        "limit": limit.sparsity,
        "half": 100 * (limit.interval[1] - limit.interval[0]) / 2,
        "samples": limit.hessian.samples,
        "steps": limit.hessian.steps,
        "products": limit.cost.products,
        "epoch": epoch,
        "seconds": spent,
        "ratio": spent / epoch,
        "measured_ratio": all_spent / epoch,
        "achieved": measured.achieved,
        "retrained": limit.retrained,
    }
    if dear:
        found["dear"], found["dear_retrained"] = from_all_data(network, data, runs)
    return found


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--networks", type=int, default=3, help="Number of networks, by seed.")
    parser.add_argument("--dear", type=int, default=1, help="Number of networks whose limits all data also give.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("cifar10")
    networks = [one for one in load_suite("cpu").networks if (one.model, one.dataset) == ("fc5", "cifar10")]
    networks = networks[: arguments.networks]
    rows = [row(one, data, arguments.runs, number < arguments.dear) for number, one in enumerate(networks)]
    columns = [
        Column("seed", "seed", "d"),
        Column("limit", "limit", ".2%"),
        Column("half", "half-width, points", ".2f"),
        Column("samples", "samples", ",d"),
        Column("steps", "steps", "d"),
        Column("products", "products", "d"),
        Column("epoch", "one epoch, s", ".1f"),
        Column("seconds", "prediction, s", ".1f"),
        Column("ratio", "prediction, epochs", ".2f"),
        Column("measured_ratio", "with measuring, epochs", ".2f"),
        Column("achieved", "measured one-shot", ".2%"),
        Column("retrained", "re-trained limit", ".2%"),
    ]
    if arguments.dear:
        columns.append(Column("dear", f"limit from all data, {DEAR_STEPS} steps", ".2%"))
        columns.append(Column("dear_retrained", "re-trained limit from all data", ".2%"))
    notes = [
        f"Made by `python benchmarks/epoch.py --out {arguments.out} --networks {arguments.networks} "
        f"--dear {arguments.dear}`. "
        f"{environment_note()}",
        "FC5 on CIFAR-10 (JPEG) of the suite `cpu`, 3,883,000 weights. `predict_limit(..., penalty=L1(5e-5))`: "
        "spectra of Hessian and GGN, directions, notes and layers; without and with `measure`, which evaluates "
        "pruned networks on all training data. Processor times on one thread.",
    ]
    write_table(
        arguments.out, "epoch", "A prediction in epochs of training", notes, columns, rows, environment=environment()
    )


if __name__ == "__main__":
    main()
