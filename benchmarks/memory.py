"""Peak resident memory and time of curvature work on two large networks.

Every row is measured in a process of its own: ``python benchmarks/memory.py > docs/results/benchmarks/memory.md``.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time

import torch
import torchvision
from torch import nn

from estimators import Hessian, Lanczos, Objective, sphere_probes
from estimators.trace import block_traces

NETWORKS = {"resnet50": (2, 224), "alexnet": (2, 224)}
TASKS = {
    "nothing": "the model and its data only",
    "product": "one Hessian product",
    "trace": "trace from 2 random vectors",
    "none": "4 Lanczos steps, `reorthogonalise='none'`",
    "full": "4 Lanczos steps, `reorthogonalise='full'`",
}
GIB = 1 << 30


def objective(name: str) -> Objective:
    torch.manual_seed(0)
    samples, side = NETWORKS[name]
    model: nn.Module = getattr(torchvision.models, name)(num_classes=1000)
    return Objective(model, [(torch.randn(samples, 3, side, side), torch.arange(samples))])


def work(operator: Hessian, task: str) -> None:
    if task == "trace":
        block_traces(operator, [operator.shape[0]], probes=2)
    elif task == "product":
        operator @ sphere_probes(operator, 1)[:, 0]
    elif task != "nothing":
        Lanczos(operator, sphere_probes(operator, 1), task).advance(4)


def child(name: str, task: str) -> None:
    operator = Hessian(objective(name))
    start = time.perf_counter()
    work(operator, task)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(json.dumps({"D": operator.shape[0], "peak": peak, "seconds": time.perf_counter() - start}))


def measure(name: str, task: str) -> dict[str, float]:
    command = [sys.executable, __file__, name, task]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    print("# Memory of curvature products on large networks\n")
    print("Made by `python benchmarks/memory.py`. Largest resident size of a process that does nothing else,")
    print("`ru_maxrss`, Python and PyTorch included. Two random images of 224 x 224 in one batch, random weights,")
    print("weights of convolution and linear layers, float32, kept graphs up to 2 GiB. The excess over a process that")
    print("only builds the model is also given in vectors of D float32 numbers, activations and libraries included.\n")
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores shared with other work, one thread,")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}.\n")
    print("| network | D | task | peak GiB | above the model, in vectors | seconds |")
    print("|---|---|---|---|---|---|")
    for name in NETWORKS:
        base = 0.0
        for task, words in TASKS.items():
            row = measure(name, task)
            base = base or row["peak"]
            vectors = (row["peak"] - base) / (4 * row["D"])
            print(
                f"| {name} | {row['D'] / 1e6:.1f} M | {words} | {row['peak'] / GIB:.2f} | {vectors:.1f} "
                f"| {row['seconds']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    child(*sys.argv[1:]) if len(sys.argv) > 1 else main()
