"""The cost of losses, gradients and products in forward passes, and how many samples to pass at once.

``python benchmarks/parts.py --out docs/results/benchmarks``, with the data in ``PRUNING_LIMITS_DATA``. It takes five
minutes. Trained networks are read from ``runs``; missing networks are trained first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from networks import CASES
from timing import environment, environment_note, interleaved, options

from estimators import GGN, Hessian, Objective, samples, sphere_probes
from validation.tables.writing import Column, Page, Row, write_table

NETWORKS = ("LeNet-300-100, MNIST", "MnistNet, MNIST", "FC5, CIFAR-10", "ResNet-8, CIFAR-10, 10,000 images")
SIZES = (64, 128, 256, 512, 1000)
SAMPLES, REPEATS = 1000, 3
TASKS = {
    "forward": "model alone",
    "losses": "losses",
    "gradient": "losses and gradient",
    "ggn": "GGN product, rebuilt",
    "ggn kept": "kept",
    "hessian": "Hessian product, rebuilt",
    "hessian kept": "kept",
}


def rows_of(name: str, runs: Path) -> list[Row]:
    """Time everything with every number of samples at once; all take turns."""
    trained = CASES[name].trained(runs)
    x, y = next(iter(trained.batches))  # type: ignore[call-overload]
    calls: dict[str, Callable[[], object]] = {}
    for size in SIZES:
        data = list(zip(x.split(size), y.split(size), strict=True))
        objective = Objective(trained.model, data)
        vector = sphere_probes(Hessian(objective), 1)
        kept = {"ggn kept": GGN(objective), "hessian kept": Hessian(objective)}
        rebuilt = {"ggn": GGN(objective, memory=0), "hessian": Hessian(objective, memory=0)}
        calls[f"{size} losses"] = lambda objective=objective: objective.sample_losses(objective.vector())
        calls[f"{size} gradient"] = objective.losses_and_gradient
        calls[f"{size} forward"] = lambda data=data: forward(trained.model, data)
        for task, operator in (kept | rebuilt).items():
            calls[f"{size} {task}"] = lambda operator=operator, vector=vector: operator.matmat(vector)
    seconds = interleaved(calls, REPEATS)
    rows = []
    for size in SIZES:
        row: Row = {"network": name, "size": size} | {task: seconds[f"{size} {task}"] for task in TASKS}
        rows.append(row | {f"{task} ratio": row[task] / row["forward"] for task in TASKS})
        print(rows[-1], flush=True)
    return rows


@torch.no_grad()
def forward(model: torch.nn.Module, data: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Pass all batches."""
    for x, _ in data:
        model(x)


def main() -> None:
    """Write the table."""
    parser = options(__doc__)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    samples.PART_SAMPLES = max(SIZES)  # batches are passed as they come
    rows = [row for name in NETWORKS for row in rows_of(name, arguments.runs)]
    columns = [Column("network", "network"), Column("size", "samples at once", "d")]
    for task, words in TASKS.items():
        columns += [Column(task, f"{words}, s", ".3f"), Column(f"{task} ratio", "forward passes", ".1f")]
    notes = [
        f"Made by `python benchmarks/parts.py --out {arguments.out}`. {environment_note()}",
        f"{SAMPLES:,} samples, shortest processor time of {REPEATS} after one that does not count; all take turns. One "
        "forward pass is that of the model alone with as many samples at once.",
    ]
    write_table(
        arguments.out, Page("parts", "Costs in forward passes", notes, columns), rows, environment=environment()
    )


if __name__ == "__main__":
    main()
