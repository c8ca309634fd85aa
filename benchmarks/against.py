"""Time of one product in this checkout and in another checkout of the same repository, both in one run.

Run by hand: ``python benchmarks/against.py --against CHECKOUT --out docs/results/benchmarks``. It takes some minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from products import WORK
from timing import environment, environment_note, options

from validation.tables.writing import Column, Page, Row, write_table

REPEATS = 11
KINDS = [f"{matrix} {how}" for matrix in ("Hessian", "GGN") for how in ("rebuilt", "kept")]
WORKER = """
import json, sys, time
import torch
from estimators import GGN, Hessian, Objective
from validation.models import build_model

torch.set_num_threads(1)
name, shape, samples, size = json.loads(sys.argv[1])
generator = torch.Generator().manual_seed(0)
x, y = torch.randn(samples, *shape, generator=generator), torch.arange(samples) % 10
data = [(x[start : start + size], y[start : start + size]) for start in range(0, samples, size)]
objective = Objective(build_model(name, shape, 10).eval(), data)
vector = torch.randn(objective.dimension, generator=torch.Generator().manual_seed(1))
kept = {"Hessian": Hessian(objective, memory=8 << 30), "GGN": GGN(objective, memory=8 << 30)}
kinds = {"Hessian": Hessian, "GGN": GGN}
for line in sys.stdin:
    matrix, how = line.split()
    began = time.process_time()
    operator = kept[matrix] if how == "kept" else kinds[matrix](objective, memory=0)
    product = operator @ vector
    spent = time.process_time() - began
    print(json.dumps([spent, float(product.double().norm())]), flush=True)
"""


class Worker:
    """A process that computes products with the packages of one checkout, one at a time and when asked."""

    def __init__(self, checkout: Path, work: list[Any]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", WORKER, json.dumps(work)]
        self.process = subprocess.Popen(
            command, cwd=checkout, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def product(self, kind: str) -> tuple[float, float]:
        """Compute one product; return its processor time and its norm."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(kind + "\n")
        self.process.stdin.flush()
        seconds, norm = json.loads(self.process.stdout.readline())
        return seconds, norm

    def end(self) -> None:
        """End the process."""
        self.process.communicate()


def rows(name: str, here: Path, there: Path) -> list[Row]:
    """Time the products of one network, both checkouts in turn."""
    workers = [Worker(checkout, [name, *WORK[name]]) for checkout in (here, there)]
    result = []
    for kind in KINDS:
        norms = [worker.product(kind)[1] for worker in workers]
        pairs = [[worker.product(kind)[0] for worker in workers] for _ in range(REPEATS)]
        ours, theirs = (min(column) for column in zip(*pairs, strict=True))
        result.append(
            {
                "model": name,
                "product": kind,
                "here": ours,
                "there": theirs,
                "shortest": 100 * (ours / theirs - 1),
                "median": 100 * (median(new / old for new, old in pairs) - 1),
                "apart": abs(norms[0] / norms[1] - 1),
            }
        )
        print(result[-1], flush=True)
    for worker in workers:
        worker.end()
    return result


def main() -> None:
    """Write the table."""
    parser = options(__doc__, runs=False)
    parser.add_argument("--against", type=Path, required=True, help="Another checkout of this repository.")
    arguments = parser.parse_args()
    there = arguments.against.resolve()
    commit = subprocess.run(
        ["git", "-C", there, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    columns = [
        Column("model", "model"),
        Column("product", "product"),
        Column("here", "this checkout, s", ".4f"),
        Column("there", f"{commit}, s", ".4f"),
        Column("shortest", "change of the shortest time, %", "+.1f"),
        Column("median", "median change of pairs, %", "+.1f"),
        Column("apart", "relative difference of the norms", ".1e"),
    ]
    notes = [
        f"Made by `python benchmarks/against.py --against CHECKOUT --out {arguments.out}`, CHECKOUT at {commit}.",
        f"Processor time of one product with a vector, {REPEATS} pairs after one that does not count; two processes of "
        "one thread take turns. Networks and samples are those of `benchmarks/products.py`.",
        environment_note(),
    ]
    here = Path(__file__).resolve().parent.parent
    table = [row for name in WORK for row in rows(name, here, there)]
    write_table(
        arguments.out,
        Page("against", "One product, before and after", notes, columns),
        table,
        environment=environment(),
    )


if __name__ == "__main__":
    main()
