"""What is stored of a network: its limits, errors, spectra and products, every number under its path."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from estimators import GGN, Hessian, Objective, SpectralMeasure
from pruning_limits import predict_limit
from pruning_limits.answers import ggn_formula

from .networks import Network

Numbers = dict[str, Any]
MOST_NODES, FIRST_ENTRIES = 40, 8


def environment() -> dict[str, Any]:
    """Return what the last bits of the numbers depend on."""
    return {
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "machine": platform.machine(),
        "processor": processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def processor() -> str:
    """Return maker, family, model and stepping of the processor, by which libraries choose their kernels."""
    facts = Path("/proc/cpuinfo")
    if not facts.exists():
        return platform.processor()
    lines = facts.read_text().partition("\n\n")[0].splitlines()
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return ", ".join(values.get(key, "") for key in ("vendor_id", "cpu family", "model", "stepping"))


def numbers_of(network: Network) -> Numbers:
    """Predict the limit of a network and take products with its curvature."""
    limit = predict_limit(network.model, network.batches, progress=False, **network.options)
    names = ("sparsity", "lower", "upper", "directional", "achieved")
    numbers: Numbers = {f"limit.{name}": getattr(limit, name) for name in (*names, "epsilon", "objective")}
    numbers["limit.retrained"] = ggn_formula(limit.evidence, limit.allowed).sparsity
    numbers["limit.already_removed"] = limit.evidence.already_removed
    numbers["limit.interval"] = list(limit.interval)
    numbers["limit.rises"] = [value for point in limit.evidence.points for value in (point.sparsity, point.rise)]
    numbers["limit.sharpness.top_eigenvalue"] = limit.sharpness.top_eigenvalue
    numbers["limit.sharpness.negative_share"] = limit.sharpness.negative_share
    numbers["limit.cost.products"] = limit.cost.products
    for name, estimate in (("limit.hessian", limit.evidence.hessian), ("limit.ggn", limit.evidence.ggn)):
        for error in ("step_error", "sample_error", "growth", "samples", "steps"):
            numbers[f"{name}.{error}"] = getattr(estimate, error)
        low, high = estimate.bracket or (None, None)
        measures = {"measure": estimate.measure, "above": estimate.above, "bracket.low": low, "bracket.high": high}
        for kind, measure in measures.items():
            numbers |= spectrum(f"{name}.{kind}", measure)
    layers = limit.layers()
    for name in ("sparsity", "norm", "trace", "trace_error"):
        numbers[f"limit.layers.{name}"] = [getattr(layer, name) for layer in layers]
    options = {name: network.options.get(name) for name in ("loss_fn", "penalty", "parameters")}
    objective = Objective(network.model, network.batches, **options)
    vector, *others = vectors(objective.dimension)
    numbers["dtype"] = str(objective.dtype).removeprefix("torch.")
    numbers["objective.value"] = objective.value()
    for name, result in (
        ("gradient", objective.gradient()),
        ("hessian", Hessian(objective) @ vector.to(objective.dtype)),
        ("ggn", GGN(objective) @ vector.to(objective.dtype)),
    ):
        result = result.double()
        numbers[f"{name}.dots"] = [float(result @ other) for other in others]
        numbers[f"{name}.entries"] = result[:FIRST_ENTRIES].tolist()
    return numbers


def vectors(dimension: int) -> list[Tensor]:
    """Draw four fixed vectors, the first for products, the others for dot products with them."""
    generator = torch.Generator().manual_seed(dimension)
    return list(torch.randn(4, dimension, generator=generator, dtype=torch.float64))


def spectrum(name: str, measure: SpectralMeasure | None) -> Numbers:
    r"""Return some nodes and weights, the moments 1 and 2, and means of :math:`c/(c+|x|)` for three c."""
    if measure is None:
        return {name: None}
    nodes, weights = measure.nodes, measure.weights
    shown = np.linspace(0, len(nodes) - 1, min(len(nodes), MOST_NODES)).round().astype(int)
    shares = np.abs(nodes).max() * np.array([1e-1, 1e-2, 1e-3])
    return {
        f"{name}.probes": measure.probes,
        f"{name}.count": len(nodes),
        f"{name}.nodes": nodes[shown].tolist(),
        f"{name}.weights": weights[shown].tolist(),
        f"{name}.moments": [float(weights @ nodes), float(weights @ nodes**2)],
        f"{name}.resolvents": [float(weights @ (c / (c + np.abs(nodes)))) for c in shares],
    }
