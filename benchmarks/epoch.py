"""The cost of a prediction in epochs of the training of its network, and the precision of its rungs.

``python benchmarks/epoch.py --out docs/results/benchmarks``, with the data in ``PRUNING_LIMITS_DATA``. It takes an
hour. Trained networks are read from ``runs``; missing networks are trained first. Every measurement runs in a process
of its own. Rows that are not measured again are kept from the existing table.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from networks import CASES
from timing import environment, environment_note, in_own_process, options, seconds_of

from validation.tables.storage import read_json
from validation.tables.writing import Column, Page, Row, write_table

SMALL_BUDGET = 0.25
CODES = ("default", f"budget {SMALL_BUDGET}", "default, before")
RUNGS = ("one-shot", "re-trained", "bound", "formula")
PARTS = ("steps", "sub-sample", "probes")  # of the half-width of the formula


def child(name: str, runs: Path, task: str) -> None:
    """Measure an epoch, or one prediction, and print the numbers."""
    torch.set_num_threads(1)
    trained = CASES[name].trained(runs)
    if task == "epoch":
        print(json.dumps({"seconds": seconds_of(trained.epoch)}))
        return
    from pruning_limits import predict_limit
    from pruning_limits.isotropic import isotropic_limit

    asked: dict[str, Any] = {} if task == "default" else {"budget": float(task)}
    started = time.process_time()
    limit = predict_limit(trained.model, trained.batches, penalty=trained.penalty, progress=False, **asked)
    row: Row = {"seconds": time.process_time() - started, "products": limit.cost.products}
    row |= {"weights": limit.parameters, "samples": limit.evidence.dense.samples}
    row |= {"memory": limit.cost.peak_memory / (1 << 20), "passes": getattr(limit.cost, "epochs", None)}
    for rung in RUNGS:
        answer = limit.answer(rung)
        row[rung] = answer.sparsity
        known = answer.low is not None and answer.high is not None
        row[f"{rung} half"] = 50 * (answer.high - answer.low) if known else None
    bound = limit.answer("bound")
    if bound.sparsity is not None and bound.low is not None and bound.high is not None:
        kept = 1 - bound.sparsity
        row["factor"] = max((1 - bound.low) / kept, kept / (1 - bound.high))
    if limit.evidence.directions is not None:
        row["samples factor"] = 1 + limit.evidence.directions.spread
    hessian = limit.evidence.hessian
    probes = isotropic_limit(hessian.measure, limit.evidence.curve, limit.epsilon, limit.settings.negative)
    errors = (hessian.step_error, hessian.sample_error, 2 * probes.standard_error)
    row |= {f"{part} half": 100 * error for part, error in zip(PARTS, errors, strict=True)}
    print(json.dumps(row))


def measured(name: str, runs: Path, task: str, against: Path | None = None) -> Row:
    """Run one measurement in a new process, with this code or that of another checkout."""
    here = Path(__file__).resolve().parent
    path = os.pathsep.join(map(str, [against or here.parent, here]))
    row = in_own_process(__file__, name, task, "--runs", str(runs), PYTHONPATH=path)
    print(name, task, row, flush=True)
    return row


def columns() -> list[Column]:
    """Columns of the table."""
    rows = [
        Column("network", "network"),
        Column("code", "prediction"),
        Column("weights", "weights", ",d"),
        Column("samples", "samples", ",d"),
        Column("epoch", "one epoch, s", ".1f"),
        Column("seconds", "prediction, s", ".1f"),
        Column("ratio", "in epochs", ".2f"),
        Column("passes", "in epochs, counted in passes", ".2f"),
        Column("products", "products", ",d"),
        Column("memory", "peak memory, MiB", ",.0f"),
    ]
    for rung in RUNGS:
        rows += [Column(rung, rung, ".2%"), Column(f"{rung} half", "half-width, points", ".2f")]
    rows += [Column(f"{part} half", f"of {part}", ".2f") for part in PARTS]
    rows.append(Column("factor", "what the bound keeps is known within a factor", ".2f"))
    return [*rows, Column("samples factor", "of the sub-sample", ".2f")]


def main() -> None:
    """Write the table, or measure once."""
    parser = options(__doc__)
    parser.add_argument("--child", nargs=2, metavar=("NETWORK", "TASK"))
    parser.add_argument("--networks", nargs="+", default=list(CASES), help="Names, all by default.")
    parser.add_argument("--against", type=Path, help="Another checkout, whose default prediction is measured, too")
    parser.add_argument("--repeats", type=int, default=1, help="Measurements of each time; the shortest counts.")
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child[0], arguments.runs, arguments.child[1])
        return
    kept = (read_json(arguments.out / "epoch.json") or {"rows": []})["rows"]
    rows = list[Row]()
    for name in arguments.networks:
        tasks = [(CODES[0], "default", None), (CODES[1], str(SMALL_BUDGET), None)]
        tasks += [(CODES[2], "default", arguments.against)] if arguments.against else []
        epochs, runs = list[float](), dict[str, Row]()
        for _ in range(arguments.repeats):
            epochs.append(measured(name, arguments.runs, "epoch")["seconds"])
            for label, task, against in tasks:
                row = measured(name, arguments.runs, task, against)
                runs[label] = min(row, runs.get(label, row), key=lambda values: values["seconds"])
        for label, row in runs.items():
            ratio = row["seconds"] / min(epochs)
            rows.append({"network": name, "code": label, "epoch": min(epochs), "ratio": ratio, **row})
    measured_again = {(row["network"], row["code"]) for row in rows}
    rows += [row for row in kept if (row["network"], row["code"]) not in measured_again]
    rows.sort(key=lambda row: (list(CASES).index(row["network"]), CODES.index(row["code"])))
    notes = [
        f"Made by `python benchmarks/epoch.py {shlex.join(sys.argv[1:])}`. {environment_note()}",
        "`predict_limit(model, batches, penalty=...)` with measuring, batches of 1,000 images or 250 windows; an epoch"
        " is one of the training that made the network, in batches of 128 images or 64 windows. Processor times on one "
        f"thread, the shortest of {arguments.repeats}. Aimed at: 1.0 epoch, or 10 s where an epoch is shorter, and a "
        "factor of 1.3 for the bound. The half-width of the formula is the sum of its three parts, cut where it passes "
        "0 or 100 %. Rows *before* are kept from the run that compared this code with an older one.",
    ]
    write_table(
        arguments.out,
        Page("epoch", "A prediction in epochs of training", notes, columns()),
        rows,
        environment=environment(),
    )


if __name__ == "__main__":
    main()
