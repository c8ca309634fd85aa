"""Compare products, top eigenvalues and traces with PyHessian and curvlinops, on the same model and data."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, Protocol

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from estimators import GGN, Hessian, Objective, UserError, eigenpairs, hutchinson
from estimators.default_loss import cross_entropy
from estimators.vectors import flatten, unflatten

SAMPLES = 256
EIGENVALUES = 3
PROBES = 32


@dataclass(frozen=True)
class Comparison:
    """One number of this package next to that of another library.

    Attributes:
        library: Name and version of the other library.
        quantity: What is compared.
        ours: This package's number; the norm, for a product.
        theirs: The other library's.
        difference: Relative difference; for a product, norm of the difference over the norm.
        allowed: Relative difference that rounding, unfinished convergence or sampling noise explain.
    """

    library: str
    quantity: str
    ours: float
    theirs: float
    difference: float
    allowed: float

    @property
    def agrees(self) -> bool:
        """Whether the difference is explained."""
        return self.difference <= self.allowed


class Peer(Protocol):
    """The same matrix in another library."""

    convergence: float

    def product(self, vector: Tensor) -> Tensor:
        """Multiply with a vector ``[D]``."""

    def eigenvalues(self, count: int) -> list[float]:
        """Return the eigenvalues of largest absolute value."""

    def trace(self, probes: int) -> float:
        """Return Hutchinson's estimate from so many random signs."""


class _PyHessian:
    convergence = 0.02  # power iteration that stops where two steps differ by less than 1e-4

    def __init__(self, package: Any, objective: Objective, kind: str, model: nn.Module, batches: list[Any]) -> None:
        if kind == "ggn":
            raise UserError("has no Gauss-Newton matrix")
        self._peer = package.hessian(model, nn.CrossEntropyLoss(), dataloader=batches, cuda=False)
        self._peer.device = objective.device

    def product(self, vector: Tensor) -> Tensor:
        return flatten(self._peer.dataloader_hv_product(unflatten(vector, self._peer.params))[1])

    def eigenvalues(self, count: int) -> list[float]:
        values: list[float] = self._peer.eigenvalues(maxIter=100, tol=1e-4, top_n=count)[0]
        return values

    def trace(self, probes: int) -> float:
        return float(np.mean(self._peer.trace(maxIter=probes, tol=-np.inf)))


class _Curvlinops:
    convergence = 1e-3

    def __init__(self, package: Any, objective: Objective, kind: str, model: nn.Module, batches: list[Any]) -> None:
        library = package.HessianLinearOperator if kind == "hessian" else package.GGNLinearOperator
        self._package = package
        self._chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._peer = library(model, nn.CrossEntropyLoss(), self._chosen, batches, check_deterministic=False)

    def product(self, vector: Tensor) -> Tensor:
        return flatten(self._peer @ unflatten(vector, self._chosen))

    def eigenvalues(self, count: int) -> list[float]:
        start = np.random.default_rng(0).standard_normal(self._peer.shape[0])
        values = eigsh(self._peer.to_scipy(), count, v0=start, tol=1e-5, return_eigenvectors=False)
        return sorted(map(float, values), key=abs, reverse=True)

    def trace(self, probes: int) -> float:
        return float(self._package.hutchinson_trace(self._peer, probes))


PEERS: dict[str, tuple[str, str, type[_PyHessian | _Curvlinops]]] = {
    "PyHessian": ("pyhessian", "pyhessian", _PyHessian),
    "curvlinops": ("curvlinops", "curvlinops-for-pytorch", _Curvlinops),
}


def cross_check(
    objective: Objective, kind: Literal["hessian", "ggn"] = "hessian", seed: int = 0
) -> tuple[list[Comparison], list[str]]:
    """Compare a product, the top eigenvalues and the trace with those of other libraries.

    The libraries work on a copy of the model in evaluation mode in which the chosen weights alone require gradients,
    on the same batches, with the mean cross-entropy. The model and the global random state are left alone.

    Args:
        objective: Cross-entropy without penalty, on few samples: every product of PyHessian passes them anew.
        kind: ``"hessian"`` or ``"ggn"``; PyHessian has the Hessian only.
        seed: Seed of the random vectors.

    Returns:
        Comparisons, and one line for every library that is missing or that failed.

    Raises:
        UserError: The objective has another loss or a penalty, or three weights or fewer.
    """
    if objective.loss_fn is not cross_entropy or objective.penalty is not None:
        raise UserError("objective: the cross-check needs the default cross-entropy and no penalty")
    if objective.dimension <= EIGENVALUES:
        raise UserError(f"parameters: the cross-check needs more than {EIGENVALUES} weights, got {objective.dimension}")
    batches = [batch for batch, _ in objective.batches()]
    rows: list[Comparison] = []
    notes: list[str] = []
    ours: _Ours | None = None
    for name, (module, distribution, peer_type) in PEERS.items():
        with _surroundings(objective.dtype, seed):
            try:
                package = importlib.import_module(module)
                label = f"{name} {version(distribution)}"
            except ImportError:
                notes.append(f"{name} is not installed: pip install {distribution}")
                continue
            ours = ours or _Ours.of(objective, kind, seed)
            try:
                peer = peer_type(package, objective, kind, _copy(objective), batches)
                rows += _compare(label, ours, peer)
            except Exception as error:  # whatever ails it
                notes.append(f"{name}: {(str(error).strip() or type(error).__name__).splitlines()[0]}")
    if any("PyHessian" in row.library and "eigenvalue" in row.quantity and not row.agrees for row in rows):
        notes.append("PyHessian: its power iteration does not separate eigenvalues of nearly equal absolute value")
    return rows, notes


def comparison_table(rows: list[Comparison]) -> str:
    """Lay comparisons out as text, one line each."""
    lines = [f"{'library':<18} {'quantity':<18} {'ours':>12} {'theirs':>12} {'difference':>11} {'allowed':>9}"]
    lines += [
        f"{row.library:<18} {row.quantity:<18} {row.ours:>12.6g} {row.theirs:>12.6g} {row.difference:>11.2g} "
        f"{row.allowed:>9.2g}{'' if row.agrees else '  differs'}"
        for row in rows
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Ours:
    """What this package computes, once for all libraries."""

    vector: Tensor
    product: Tensor
    eigenvalues: list[float]
    residual: float
    probes: int
    trace: float
    trace_error: float

    @classmethod
    def of(cls, objective: Objective, kind: str, seed: int) -> _Ours:
        operator = (Hessian if kind == "hessian" else GGN)(objective)
        generator = torch.Generator().manual_seed(seed)
        vector = torch.randn(objective.dimension, generator=generator, dtype=torch.float64)
        vector = (vector / vector.norm()).to(objective.device, objective.dtype)
        pairs = eigenpairs(operator, EIGENVALUES, seed)
        trace = hutchinson(operator, min(PROBES, objective.dimension - 1), seed)
        return cls(
            vector=vector,
            product=operator @ vector,
            eigenvalues=pairs.values.tolist(),
            residual=float(pairs.residuals.max()),
            probes=trace.products,
            trace=trace.value,
            trace_error=trace.standard_error,
        )


def _compare(label: str, ours: _Ours, peer: Peer) -> Iterator[Comparison]:
    rounding = float(torch.finfo(ours.vector.dtype).eps) ** 0.5
    product = peer.product(ours.vector).double()
    norm = float(ours.product.double().norm())
    difference = float((product - ours.product.double()).norm()) / max(norm, 1e-300)
    yield Comparison(label, "norm of a product", norm, float(product.norm()), difference, rounding)
    theirs = sorted(peer.eigenvalues(len(ours.eigenvalues)), key=abs, reverse=True)
    for k, (value, peer_value) in enumerate(zip(ours.eigenvalues, theirs, strict=True), start=1):
        allowed = peer.convergence + ours.residual / max(abs(value), 1e-300)
        yield Comparison(label, f"eigenvalue {k}", value, peer_value, _relative(value, peer_value), allowed)
    noise = 4 * 2**0.5 * ours.trace_error / max(abs(ours.trace), 1e-300)  # theirs has as much
    trace, name = peer.trace(ours.probes), f"trace, {ours.probes} probes"
    yield Comparison(label, name, ours.trace, trace, _relative(ours.trace, trace), noise + rounding)


def _relative(ours: float, theirs: float) -> float:
    return abs(theirs - ours) / max(abs(ours), 1e-300)


def _copy(objective: Objective) -> nn.Module:
    """Copy the model in evaluation mode; of its parameters, the chosen ones alone require gradients."""
    model = copy.deepcopy(objective.model).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in objective.names)
        parameter.grad = None
    return model


@contextmanager
def _surroundings(dtype: torch.dtype, seed: int) -> Iterator[None]:
    """Give other libraries seeded global random numbers of the model's type, and the differentiable attention."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(), warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
