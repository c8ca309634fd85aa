"""Limits with products in bfloat16 against those in float32.

``python benchmarks/precision.py > docs/results/benchmarks/precision.md``
"""

from __future__ import annotations

import platform

import torch

from estimators import GGN, L1, Hessian, Objective, sphere_probes
from pruning_limits import PruningLimit, predict_limit
from validation.data import ImageData, load_data
from validation.models import build_model
from validation.training import Recipe, train

NETWORKS = ("fc5-mini",)
RECIPE = Recipe(epochs=10, lr=0.05, l1=1e-3)
PENALTY = L1(1e-3)
SEEDS = (0, 1)
SAMPLES, STEPS = 512, 64


def trained(name: str, data: ImageData, seed: int) -> torch.nn.Module:
    model = build_model(name, data.shape, data.classes, seed=seed)
    train(model, data, RECIPE, seed=seed)
    return model.eval()


def errors(model: torch.nn.Module, batches: list[object]) -> list[float]:
    """Relative error of a product with a random vector, for both curvatures."""
    objective = Objective(model, batches)
    relative = []
    for kind in (Hessian, GGN):
        vector = sphere_probes(kind(objective), 1)[:, 0]
        exact, rounded = (kind(objective, precision=precision) @ vector for precision in ("full", "bfloat16"))
        relative.append(float((rounded - exact).norm() / exact.norm()))
    return relative


def cells(limit: PruningLimit) -> str:
    return f"{limit.sparsity:.4f} ({limit.interval[0]:.4f} to {limit.interval[1]:.4f}) | {limit.retrained:.4f}"


def main() -> None:
    torch.set_num_threads(1)
    data = load_data("digits")
    print("# Effect of bfloat16 products on the limit\n")
    print("Made by `python benchmarks/precision.py`. Networks trained on the digits with an L1 penalty of 1e-3 for 10")
    print(f"epochs; `predict_limit` with {STEPS} Lanczos steps and {SAMPLES} samples, once with `precision='full'` and")
    print("once with `precision='bfloat16'`: products in bfloat16, recurrence in float32, scalars in float64. The last")
    print("two columns are relative errors of one product with the Hessian and with the GGN on all training data.\n")
    print(f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}.\n")
    print("| network | seed | precision | limit (interval) | re-trained | error of Hv | error of Gv |")
    print("|---|---|---|---|---|---|---|")
    for name in NETWORKS:
        for seed in SEEDS:
            model, batches = trained(name, data, seed), list(data.batches("train", 256))
            relative_errors = errors(model, batches)
            for precision in ("full", "bfloat16"):
                limit = predict_limit(
                    model,
                    batches,
                    penalty=PENALTY,
                    samples=SAMPLES,
                    steps=STEPS,
                    probes=2,
                    measure=False,
                    progress=False,
                    precision=precision,
                )
                shown = " | ".join("" if precision == "full" else f"{error:.1%}" for error in relative_errors)
                print(f"| {name} | {seed} | {precision} | {cells(limit)} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
