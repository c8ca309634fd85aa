"""Time of one product with the Hessian and the GGN against PyHessian and curvlinops, all in one run.

Run by hand: ``python benchmarks/products.py --out docs/results/benchmarks``. It takes about half an hour.
"""

from __future__ import annotations

import torch
from curvlinops import GGNLinearOperator, HessianLinearOperator
from gpu import equal_terms
from networks import LENGTH, CharacterTransformer
from pyhessian import hessian as PyHessian
from pyhessian.utils import hessian_vector_product
from timing import environment, environment_note, interleaved, options
from torch import Tensor, nn

from estimators import GGN, Hessian, Objective
from validation.models import build_model
from validation.tables.writing import Column, Page, Row, write_table

WORK = {
    "fc5": ((3, 32, 32), 2000, 1000),
    "mnistnet": ((1, 28, 28), 1000, 500),
    "resnet20": ((3, 32, 32), 128, 64),
    "resnet18": ((3, 32, 32), 32, 16),
    "transformer": ((LENGTH,), 32, 16),
}
CHARACTERS = 100
MATRICES = {"Hessian": (Hessian, HessianLinearOperator), "GGN": (GGN, GGNLinearOperator)}
REPEATS = 15


def problem(name: str) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Build a network and draw random images with labels, or random text."""
    (shape, samples, size), generator = WORK[name], torch.Generator().manual_seed(0)
    if name == "transformer":
        torch.manual_seed(0)
        model: nn.Module = CharacterTransformer(CHARACTERS)
        text = torch.randint(CHARACTERS, (samples, LENGTH + 1), generator=generator)
        x, y = text[:, :-1], text[:, 1:]
    else:
        model = build_model(name, shape, 10)
        x, y = torch.randn(samples, *shape, generator=generator), torch.arange(samples) % 10
    return model.eval(), [(x[start : start + size], y[start : start + size]) for start in range(0, samples, size)]


def row(name: str, matrix: str) -> Row:
    """Time one product of every library that has the matrix on the same weights and samples."""
    _, samples, size = WORK[name]
    model, data = problem(name)
    objective = Objective(model, data)
    chosen = [model.get_parameter(key) for key in objective.names]
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is weight for weight in chosen))
    vector = torch.randn(objective.dimension, generator=torch.Generator().manual_seed(1))
    parts = [
        part.view_as(weight) for part, weight in zip(vector.split([p.numel() for p in chosen]), chosen, strict=True)
    ]
    loss = nn.CrossEntropyLoss()
    ours, curvlinops = MATRICES[matrix]
    kept = ours(objective, memory=8 << 30)
    with equal_terms():
        linear = curvlinops(model, loss, chosen, data, check_deterministic=False)
        works = {
            "rebuilt": lambda: ours(objective, memory=0) @ vector,
            "kept": lambda: kept @ vector,
            "curvlinops": lambda: linear @ parts,
        }
        if matrix == "Hessian":
            theirs = PyHessian(model, loss, dataloader=data, cuda=False)
            whole = tuple(torch.cat(column) for column in zip(*data, strict=True))
            single = PyHessian(model, loss, data=whole, cuda=False)
            works |= {
                "pyhessian": lambda: theirs.dataloader_hv_product(parts),
                "single": lambda: hessian_vector_product(single.gradsH, single.params, parts),
            }
        seconds = interleaved(works, REPEATS)
    entry: Row = {"model": name, "matrix": matrix, "dimension": objective.dimension, "samples": samples, "batch": size}
    best = min(seconds[which] for which in ("pyhessian", "curvlinops") if which in seconds)
    entry |= seconds | {"ratio_rebuilt": best / seconds["rebuilt"], "ratio_kept": best / seconds["kept"]}
    print(entry, flush=True)
    return entry


def main() -> None:
    """Write the table."""
    arguments = options(__doc__, runs=False).parse_args()
    torch.set_num_threads(1)
    columns = [
        Column("model", "model"),
        Column("matrix", "matrix"),
        Column("dimension", "D", ",d"),
        Column("samples", "samples", ",d"),
        Column("batch", "batch", "d"),
        Column("rebuilt", "graphs rebuilt, s", ".3f"),
        Column("kept", "graphs kept, s", ".3f"),
        Column("pyhessian", "PyHessian, s", ".3f"),
        Column("single", "PyHessian, all samples as one batch, graph kept, s", ".3f"),
        Column("curvlinops", "curvlinops, s", ".3f"),
        Column("ratio_rebuilt", "faster than the better one, rebuilt", ".2f"),
        Column("ratio_kept", "faster than the better one, kept", ".2f"),
    ]
    notes = [
        f"Made by `python benchmarks/products.py --out {arguments.out}`.",
        f"Shortest processor time of one product with a vector over {REPEATS} calls after one that does not count; "
        "all take turns in one process. Random images, and random text for the transformer, whose attention all "
        "compute in its plain form; all get the same weights, the same batches in memory and the same vector, and "
        "differentiate with respect to the weights of convolution and linear layers only. "
        "curvlinops is built without its check for determinism, which would cost further passes. Kept graphs are "
        "built in the call that does not count; PyHessian keeps one only where all samples are a single batch, and "
        "that column is outside the ratios. It has no GGN.",
        environment_note(),
    ]
    rows = [row(name, matrix) for name in WORK for matrix in MATRICES]
    write_table(arguments.out, Page("products", "Time of one product", notes, columns), rows, environment=environment())


if __name__ == "__main__":
    main()
