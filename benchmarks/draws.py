"""How well the losses of a random draw estimate the losses of all data, against the error that is stated.

``python benchmarks/draws.py --out docs/results/benchmarks``, with CIFAR-10 and MNIST in ``PRUNING_LIMITS_DATA``. It
takes one pass over all data per network. The trained networks of the suite ``cpu`` are read from ``runs``; missing
networks are trained first.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from timing import environment, environment_note, options

from estimators import Objective
from pruning_limits.losses import DRAWN_ERROR, DRAWN_SAMPLES, all_losses
from validation.data import load_data
from validation.tables.reading import load_suite
from validation.tables.writing import Column, Page, Row, write_table
from validation.training import Network, trained_network

MODELS = ("fc5", "lenet-300-100", "cnn-tiny")
DRAWS = 1000


def row(network: Network, runs: Path) -> Row:
    """Draw from the losses of one network many times."""
    data = load_data(network.dataset)
    whole = all_losses(
        Objective(trained_network(network, data, runs), data.batches("train", 1000), penalty=network.recipe.penalty)
    )
    ratio = whole.deviation() / float(whole.shares.mean())
    missed, stated = torch.empty(DRAWS), torch.empty(DRAWS)
    for seed in range(DRAWS):
        rows = torch.randperm(whole.total, generator=torch.Generator().manual_seed(seed))[:DRAWN_SAMPLES]
        draw = replace(whole, values=whole.values[rows], sizes=whole.sizes[rows], shares=whole.shares[rows])
        missed[seed] = draw.deviation() / float(draw.shares.mean()) / ratio - 1
        stated[seed] = math.hypot(draw.deviation_error, draw.curvature_error)
    accepted = stated <= DRAWN_ERROR
    entry: Row = {"model": network.model, "dataset": network.dataset, "samples": whole.total}
    entry |= {"kurtosis": whole.kurtosis, "epsilon": whole.deviation()}
    entry |= {"missed": float(missed.square().mean().sqrt()), "stated": float(stated.square().mean().sqrt())}
    entry |= {"held": float((missed.abs() <= 2 * stated).double().mean()), "accepted": float(accepted.double().mean())}
    entry["worst"] = float(missed[accepted].abs().max()) if accepted.any() else None
    print(entry, flush=True)
    return entry


def main() -> None:
    """Write the table."""
    arguments = options(__doc__).parse_args()
    torch.set_num_threads(1)
    networks = {network.model: network for network in reversed(load_suite("cpu").networks) if network.model in MODELS}
    rows = [row(networks[model], arguments.runs) for model in MODELS]
    columns = [
        Column("model", "model"),
        Column("dataset", "data"),
        Column("samples", "samples", ",d"),
        Column("kurtosis", "kurtosis of the losses", ",.0f"),
        Column("epsilon", "epsilon", ".4f"),
        Column("missed", "miss of epsilon over curvature, root mean square", ".2%"),
        Column("stated", "its stated standard error", ".2%"),
        Column("held", "within two of them", ".1%"),
        Column("accepted", "draws that serve", ".1%"),
        Column("worst", "worst miss among these", ".2%"),
    ]
    notes = [
        f"Made by `python benchmarks/draws.py --out {arguments.out}`. {environment_note()}",
        f"{DRAWS:,} random draws of {DRAWN_SAMPLES:,} losses of the networks of the suite `cpu`, seed 0, as "
        "`predict_limit(measure=False)` takes one of them; curvature is the mean probability of a wrong label, with "
        f"which it goes. Draws whose stated error exceeds {DRAWN_ERROR:.0%} do not serve: all data are passed instead.",
    ]
    write_table(
        arguments.out,
        Page("draws", "Draws of losses against all of them", notes, columns),
        rows,
        environment=environment(),
    )


if __name__ == "__main__":
    main()
