"""How often draws give the same answer as all data, and how many passes over the data they take.

``python benchmarks/one_shot.py --out docs/results/benchmarks``, with the data in ``PRUNING_LIMITS_DATA``. It takes
eight minutes. The trained network is read from ``runs``; if it is missing, it is trained first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from networks import CASES
from timing import environment, environment_note, options
from torch import nn

from estimators import Objective
from pruning_limits.losses import all_losses
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.measured import DEVIATIONS, Bar, crossing
from pruning_limits.one_shot import DRAWS, LIKELY, PairedDifferences, draws_of, measured_points
from validation.tables.writing import Column, Page, Row, write_table

SIMULATED, REAL = 1000, 30
SAMPLES, WIDTH = 40_000, 0.005  # of the simulated problem; width of the last bracket, in sparsity
NETWORKS = ("LeNet-300-100, MNIST",)


def simulated() -> Objective:
    """Train a small network whose loss does not rise steadily when weights are removed."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(SAMPLES) % 3
    x = torch.randn(3, 12, generator=generator)[y] + torch.randn(SAMPLES, 12, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(x[:1000]), y[:1000])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return Objective(model, list(zip(x.split(1000), y.split(1000), strict=True)))


def repeated(name: str, objective: Objective, allowed: Sequence[float], width: float) -> Row:
    """Measure with one draw per allowed rise, and hold both ends of every answer against all data."""
    losses, profile = all_losses(objective), MagnitudeProfile(objective.chosen)
    scores = None if losses.shares is None else losses.shares + losses.shares.mean()
    known: dict[int, float] = {}

    def rise(count: int) -> float:
        if count not in known:
            values, _ = objective.sample_losses(profile.vector - profile.removed(count / profile.dimension))
            known[count] = float((values - losses.values).mean())
        return known[count]

    right, passes, drawn = [], [], []
    for seed, epsilon in enumerate(allowed):
        differences = PairedDifferences(draws_of(objective, seed, scores), profile, (losses.values, losses.sizes))
        points = measured_points(differences, None, Bar(epsilon), width)
        where = crossing(points, Bar(epsilon), profile.zeros / profile.dimension)
        ends = [round(end * profile.dimension) for end in (where.low, where.high)]
        right.append((ends[0] == 0 or rise(ends[0]) <= epsilon) and (where.low == 1 or rise(ends[1]) > epsilon))
        passes.append(differences.samples / objective.samples)
        drawn.append(sum(not differences.at(count).complete for count in differences.counts) / len(differences.counts))
        print(name, seed, where, right[-1], passes[-1], flush=True)
    return {
        "network": name,
        "weights": profile.dimension,
        "samples": objective.samples,
        "repetitions": len(allowed),
        "right": float(np.mean(right)),
        "passes": float(np.mean(passes)),
        "most": float(np.max(passes)),
        "drawn": float(np.mean(drawn)),
    }


def problems(runs: Path, repetitions: Callable[[str], int]) -> list[Row]:
    """Measure the simulated problem, whose allowed rise differs from draw to draw, and the networks at epsilon."""
    generator = torch.Generator().manual_seed(1)
    rises = [0.002 * 250 ** float(torch.rand(1, generator=generator)) for _ in range(repetitions("simulated"))]
    rows = [repeated("simulated", simulated(), rises, WIDTH)]
    for name in NETWORKS:
        trained = CASES[name].trained(runs)
        objective = Objective(trained.model, trained.batches)  # type: ignore[arg-type]
        rows.append(repeated(name, objective, [all_losses(objective).epsilon()] * repetitions(name), WIDTH))
    return rows


def main() -> None:
    """Write the table."""
    parser = options(__doc__)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = problems(arguments.runs, lambda name: SIMULATED if name == "simulated" else REAL)
    columns = [
        Column("network", "network"),
        Column("weights", "weights", ",d"),
        Column("samples", "samples", ",d"),
        Column("repetitions", "draws", ",d"),
        Column("right", "right answers", ".2%"),
        Column("passes", "passes over all data, mean", ".2f"),
        Column("most", "largest", ".2f"),
        Column("drawn", "networks decided by a draw", ".0%"),
    ]
    notes = [
        f"Made by `python benchmarks/one_shot.py --out {arguments.out}`. {environment_note()}",
        f"One-shot pruning measured with draws of {' and '.join(f'{size:,}' for size in DRAWS)} samples that decide at "
        f"{LIKELY:g} standard errors, and beside a network that all data were passed through at {DEVIATIONS:g}, to a "
        f"bracket of {100 * WIDTH:g} points. An answer is right where all data "
        "say that its lower end keeps the criterion and its upper end does not. Passes are those of pruned networks, "
        "without that of the dense network. Aimed at: 99.9 % right in at most 2 passes.",
    ]
    write_table(
        arguments.out, Page("one-shot", "One-shot pruning by draws", notes, columns), rows, environment=environment()
    )


if __name__ == "__main__":
    main()
