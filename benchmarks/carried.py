"""Limits extrapolated from sub-samples, against the limits of all data, on networks of which two set the rules.

``python benchmarks/carried.py --out docs/results/benchmarks``, with the data in ``PRUNING_LIMITS_DATA``. It takes five
minutes, and ten more for the Hessian. Trained networks are read from ``runs``; missing networks are trained first. The
rows of a curvature that is not requested are kept from the existing table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from networks import CASES, Images
from timing import environment, environment_note, options

from estimators import Objective
from pruning_limits.estimates import Estimates
from pruning_limits.losses import all_losses
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.removed_directions import removed_directions
from pruning_limits.settings import Settings
from pruning_limits.stopping import STOPPING, Kind
from pruning_limits.subsamples import Subsamples
from validation.tables.storage import read_json
from validation.tables.writing import Column, Page, Row, write_table
from validation.training import Network, Recipe

BATCH = 256
PARTS = (32, 16, 8, 4)
OTHERS = {
    "LeNet-300-100, Fashion-MNIST": Images(Network("lenet-300-100", "fashion-mnist", Recipe(4, 0.05, warmup=1), 0)),
}
SETTING = ("LeNet-300-100, MNIST", "MnistNet, Fashion-MNIST")  # on which the rules were chosen
KINDS = ["ggn", "hessian", "bound"]
SAMPLES = {  # that count as all data, so that all data can be passed
    "LeNet-300-100, MNIST": 16384,
    "MnistNet, Fashion-MNIST": 4096,
    "LeNet-300-100, Fashion-MNIST": 16384,
    "small-cnn, digits": 1437,
    "fc5-mini, digits": 1437,
    "FC5, CIFAR-10": 4096,
    "ResNet-8, CIFAR-10, 10,000 images": 2048,
    "MnistNet, MNIST": 4096,
}


def first(batches: object, samples: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the first samples of a loader in batches."""
    x, y = (torch.cat(parts) for parts in zip(*_enough(batches, samples), strict=True))
    return list(zip(x[:samples].split(BATCH), y[:samples].split(BATCH), strict=True))


def _enough(batches: object, samples: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    left = samples
    for x, y in batches:  # type: ignore[attr-defined]
        yield x, y
        left -= len(y)
        if left <= 0:
            return


def rows_of(name: str, runs: Path, kind: Kind) -> list[Row]:
    """Compare the kept fractions that sub-samples are carried to with that of all data."""
    trained = (CASES | OTHERS)[name].trained(runs)
    objective = Objective(trained.model, first(trained.batches, SAMPLES[name]))
    losses, curve = all_losses(objective), MagnitudeProfile(objective.chosen).curve()
    epsilon, total = losses.epsilon(), objective.samples
    steps, rows, truth = STOPPING.steps(kind), list[Row](), 0.0
    for samples in (total, *(total // part for part in PARTS)):
        settings = Settings(samples=samples, steps=steps, probes=1)
        estimates = Estimates(Subsamples(losses, settings), curve, epsilon, progress=False)
        estimate = estimates.estimate(kind)
        limit = estimate.limit(estimates._isotropic)
        if samples == total:
            truth = 1 - limit
            continue
        sample, error = 1 - estimates.root(estimate), estimate.sample_error
        role = "chosen with" if name in SETTING else "held out"
        row: Row = {
            "network": name,
            "role": role,
            "kind": kind,
            "total": total,
            "samples": samples,
            "truth": truth,
            "sample": sample,
        }
        row |= {"carried": 1 - limit, "before": sample / truth, "ratio": (1 - limit) / truth, "error": error}
        rows.append(row | {"holds": abs(1 - limit - truth) <= error})
        print(rows[-1], flush=True)
    return rows


def bound_rows(name: str, runs: Path) -> list[Row]:
    """Compare what sub-samples keep at the directional limit, carried, with that of all data."""
    trained = (CASES | OTHERS)[name].trained(runs)
    objective = Objective(trained.model, first(trained.batches, SAMPLES[name]))
    losses, profile = all_losses(objective), MagnitudeProfile(objective.chosen)
    curve, total, gradient = profile.curve(), objective.samples, objective.gradient()
    rows, truth = list[Row](), 0.0
    for samples in (total, *(total // part for part in PARTS)):
        settings = Settings(samples=samples, steps=STOPPING.ggn_most, probes=1)
        estimates = Estimates(Subsamples(losses, settings), curve, losses.epsilon(), False)
        ggn = estimates.estimate("ggn")
        directions = removed_directions(estimates, ggn, profile, gradient)
        drawn, solve = replace(ggn, growth=1.0), directions.solver(curve, losses.epsilon())
        sample = 1 - drawn.limit(solve)
        carried, steps = directions.growth * sample, directions.step_error + drawn.certified(solve).step_error
        if samples == total:
            truth = carried
            print(name, "kept at the directional limit of all data", truth, "steps", steps, flush=True)
            continue
        times, error = 1 + directions.spread, directions.growth * steps
        row: Row = {"network": name, "role": "chosen with", "kind": "bound", "total": total, "samples": samples}
        row |= {"truth": truth, "sample": sample, "carried": carried, "before": sample / truth}
        row |= {"ratio": carried / truth, "error": (carried + error) * times - carried}
        rows.append(row | {"holds": (carried - error) / times <= truth <= (carried + error) * times})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Write the table."""
    parser = options(__doc__)
    parser.add_argument("--kinds", nargs="+", default=["ggn"], choices=KINDS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = (read_json(arguments.out / "carried.json") or {"rows": []})["rows"]
    rows = [row for row in kept if row["kind"] not in arguments.kinds]
    for kind in arguments.kinds:
        for name in SAMPLES:
            rows += bound_rows(name, arguments.runs) if kind == "bound" else rows_of(name, arguments.runs, kind)
    rows.sort(key=lambda row: KINDS.index(row["kind"]))
    columns = [
        Column("network", "network"),
        Column("role", "rules"),
        Column("kind", "curvature"),
        Column("total", "all samples", ",d"),
        Column("samples", "sub-sample", ",d"),
        Column("truth", "kept, all data", ".3%"),
        Column("sample", "kept, sub-sample", ".3%"),
        Column("carried", "kept, carried", ".3%"),
        Column("before", "sub-sample / all data", ".2f"),
        Column("ratio", "carried / all data", ".2f"),
        Column("error", "stated error of the sub-sample", ".3%"),
        Column("holds", "holds"),
    ]
    notes = [
        f"Made by `python benchmarks/carried.py --out {arguments.out} --kinds KIND`, one kind of curvature after the "
        f"other. {environment_note()}",
        f"Isotropic limits at the default epsilon from {STOPPING.ggn_steps} steps (GGN) and {STOPPING.hessian_steps} "
        "steps (Hessian), one probe. All data are the first samples of the data set, so many that they can be passed. "
        "The rules were chosen with two of the networks, marked; the others were held out. The stated error is that of "
        "the samples; the interval of a prediction adds those of steps and probes.",
        "Bound: what is kept at the directional limit of the GGN, carried by the rule of the isotropic limit, which was"
        " chosen without it. The whole factor is error, so that the sub-sample's own kept fraction lies within. This "
        "was chosen after a smaller error had been seen to miss: no network is held out. Steps: at most "
        f"{STOPPING.ggn_most}. The stated error is that of samples and steps, upwards; the last column takes the "
        "smaller one downwards, too.",
    ]
    write_table(
        arguments.out, Page("carried", "Limits carried to all data", notes, columns), rows, environment=environment()
    )


if __name__ == "__main__":
    main()
