"""What a prediction of FC5 on CIFAR-10 costs, in epochs of training.

``python benchmarks/epoch.py --out docs/results/benchmarks``, with the data in ``PRUNING_LIMITS_DATA``. About ten
minutes once the networks of the suite ``cpu`` are trained, which are looked for in ``runs``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from timing import environment, environment_note, interleaved, options

from pruning_limits import predict_limit
from validation.data import ImageData, load_data
from validation.models import build_model
from validation.suite import load_suite
from validation.tables import Column, Row, write_table
from validation.training import Network, train, trained_network

REPEATS = 2


def row(network: Network, data: ImageData, runs: Path) -> Row:
    """Compare one network's predictions with an epoch of the training that made it."""
    trained, loader = trained_network(network, data, runs), data.batches("train", 1000)
    recipe, limits = replace(network.recipe, epochs=1, warmup=0), {}

    def epoch() -> None:
        train(build_model(network.model, data.shape, data.classes, network.seed), data, recipe, network.seed)

    def predict(measure: bool) -> None:
        options = {"penalty": network.recipe.penalty, "measure": measure, "progress": False}
        limits[measure] = predict_limit(trained, loader, **options)

    seconds = interleaved(
        {"epoch": epoch, "alone": lambda: predict(measure=False), "measured": lambda: predict(measure=True)}, REPEATS
    )
    limit, measured = limits[False], limits[True]
    return {
        "seed": network.seed,
        "limit": limit.sparsity,
        "half": 100 * (limit.interval[1] - limit.interval[0]) / 2,
        "samples": limit.evidence.hessian.samples,
        "steps": limit.evidence.hessian.steps,
        "products": limit.cost.products,
        "epoch": seconds["epoch"],
        "seconds": seconds["alone"],
        "ratio": seconds["alone"] / seconds["epoch"],
        "measured_ratio": seconds["measured"] / seconds["epoch"],
        "achieved": measured.achieved,
        "retrained": limit.retrained,
    }


def main() -> None:
    """Write the table."""
    parser = options(__doc__)
    parser.add_argument("--networks", type=int, default=3, help="Number of networks, by seed.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("cifar10")
    networks = [one for one in load_suite("cpu").networks if (one.model, one.dataset) == ("fc5", "cifar10")]
    networks = networks[: arguments.networks]
    rows = [row(one, data, arguments.runs) for one in networks]
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
    notes = [
        f"Made by `python benchmarks/epoch.py --out {arguments.out} --networks {arguments.networks}`. "
        f"{environment_note()}",
        "FC5 on CIFAR-10 (JPEG) of the suite `cpu`, 3,883,000 weights. `predict_limit(..., penalty=L1(5e-5))`: "
        "spectra of Hessian and GGN, directions, notes and layers; without and with `measure`, which evaluates "
        "pruned networks on all training data. Without it the losses are those of a draw of 16,384 images. Processor "
        f"times on one thread, the shortest of {REPEATS} after one that does not count; all take turns.",
    ]
    write_table(
        arguments.out, "epoch", "A prediction in epochs of training", notes, columns, rows, environment=environment()
    )


if __name__ == "__main__":
    main()
