"""What several test modules share: tolerances, dense operators, models and dense float64 references."""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from pruning_limits import PruningLimit, predict_limit
from pruning_limits.answers import ggn_formula

ROOT = Path(__file__).parent.parent
Pair = namedtuple("Pair", ["x", "y"])
MASKED = 40

OLD_TORCH = torch.__version__.startswith(("2.3.", "2.4."))  # what tests of newer features are skipped with


def tolerance(dtype: torch.dtype) -> float:
    """Error allowed relative to the largest reference entry: two thirds of the digits of the type."""
    return float(torch.finfo(dtype).eps ** (2 / 3))


def assert_close(actual: Any, expected: Any, dtype: torch.dtype = torch.float64, scale: float | None = None) -> None:
    """Compare to ``tolerance(dtype)`` times ``scale``, by default the largest entry of ``expected``."""
    actual, expected = (torch.as_tensor(value, dtype=torch.float64).detach() for value in (actual, expected))
    assert actual.shape == expected.shape, f"shapes {tuple(actual.shape)} and {tuple(expected.shape)}"
    if not expected.numel():
        return
    unit = float(expected.abs().max()) if scale is None else scale
    error = float((actual - expected).abs().max())
    assert error <= tolerance(dtype) * unit, f"error {error:.3g} exceeds {tolerance(dtype):.3g} times {unit:.3g}"


class Dense:
    """A symmetric matrix as an operator that counts its products; a vector stands for a diagonal matrix."""

    outside = 0.0  # it acts on the whole space

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.shape = matrix, (len(matrix), len(matrix))
        self.dtype, self.device = matrix.dtype, matrix.device
        self.calls = 0

    def matmat(self, vectors: Tensor) -> Tensor:
        self.calls += 1
        return self.matrix @ vectors if self.matrix.dim() == 2 else self.matrix[:, None] * vectors

    def project(self, vectors: Tensor) -> Tensor:
        return vectors


def random(*shape: int, seed: int = 0) -> Tensor:
    """Draw standard normal float64 numbers from their own generator."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_spectrum(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    """Build a dense symmetric matrix with the given eigenvalues and random eigenvectors."""
    q, _ = torch.linalg.qr(random(len(eigenvalues), len(eigenvalues), seed=seed))
    matrix = (q * eigenvalues.double()) @ q.T
    return (matrix + matrix.T) / 2


def schur_complement(
    matrix: Tensor, weights: Tensor, kept: Tensor, gradient: Tensor | None = None, damping: float = 0.0
) -> tuple[float, Tensor]:
    """Minimum of the damped model over the kept coordinates and the minimiser, by a pseudo-inverse."""
    d = torch.where(kept, 0.0, weights)
    g = torch.zeros_like(d) if gradient is None else gradient
    block = matrix[kept][:, kept] + damping * torch.eye(int(kept.sum()), dtype=torch.float64)
    x = -d.clone()
    b = torch.linalg.pinv(block, hermitian=True, rtol=1e-11) @ (matrix @ d - g)[kept]
    x[kept] += b
    return float(g @ x + 0.5 * x @ matrix @ x), b


def isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Weighted isotonic fit by its min-max formula: the largest over beginnings of the least mean over ends."""

    def mean(first: int, last: int) -> float:
        part = slice(first, last + 1)
        return float(np.average(values[part], weights=weights[part]))

    n = len(values)
    return [max(min(mean(first, last) for last in range(k, n)) for first in range(k + 1)) for k in range(n)]


def masked_problem(seed: int, rank: int = MASKED, kept: float = 0.4) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a matrix of some rank, weights ``[MASKED]`` and a mask, True where kept."""
    eigenvalues = torch.cat([torch.zeros(MASKED - rank), torch.logspace(-3, 1, rank)])
    mask = torch.rand(MASKED, generator=torch.Generator().manual_seed(seed)) < kept
    return with_spectrum(eigenvalues, seed), random(MASKED, seed=seed + 1), mask


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a float64 model from a seed without touching the global random state."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().double()


def small_limit(**options: Any) -> PruningLimit:
    """Predict the limit of a network of 108 weights that fits most of its labels."""
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)))
    x = random(60, 6, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        y = (model(x) + 0.3 * random(60, 3, seed=2)).argmax(1)
    return predict_limit(model, [(x, y)], **({"epsilon": 0.02} | options))


def unknown_limit(**options: Any) -> PruningLimit:
    """Predict the limit of the same network with the hinge loss, of which the GGN says nothing."""

    def hinge(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        scores = model(batch[0])
        return (1 + scores - scores.gather(1, batch[1][:, None])).clamp(min=0).mean(1)

    return small_limit(loss_fn=hinge, **options)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Copy everything of a model that a computation must leave alone."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    parameters = dict(model.named_parameters())
    return {
        "identity": [(name, id(tensor)) for name, tensor in (*parameters.items(), *model.named_buffers())],
        "values": {name: tensor.detach().clone() for name, tensor in model.state_dict().items()},
        "grads": {name: None if p.grad is None else p.grad.clone() for name, p in parameters.items()},
        "requires_grad": [p.requires_grad for p in parameters.values()],
        "training": [module.training for module in model.modules()],
        "hooks": [list(getattr(module, hook)) for module in model.modules() for hook in hooks],
        "random": torch.get_rng_state(),
    }


def same(a: Any, b: Any) -> bool:
    """Compare nested snapshots bit by bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(*pair) for pair in zip(a, b, strict=True))
    return bool(a == b)


def python(*arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, with this project's packages on its path and warnings as errors."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


class Loader:
    """A list of batches that counts its passes and, like persistent workers, has one iterator only."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches, self.passes, self.position = list(batches), 0, 0

    def __iter__(self) -> Loader:
        self.passes, self.position = self.passes + 1, 0
        return self

    def __next__(self) -> Any:
        if self.position >= len(self.batches):
            raise StopIteration
        self.position += 1
        return self.batches[self.position - 1]


# ---------------------------------------------------------------------------------------------------- models


class BatchNormNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(12, 3)
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.first(x))).flatten(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 4), nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.sigmoid(self.encoder(x)))


class Idle(nn.Module):
    """One layer has no influence on the output."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle, self.head = nn.Linear(3, 4), nn.Linear(2, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.used(x)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attend(x, x, x, need_weights=False)[0].mean(1))


class DotProduct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maps, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.maps(x).chunk(3, dim=-1)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 2, groups=2), nn.SiLU(), nn.Conv2d(4, 4, 2, groups=4), nn.Flatten())


# ----------------------------------------------------------------------------------------------------- cases


@dataclass
class Batch:
    images: Tensor
    targets: Tensor


def classification(*shape: int, classes: int = 3, sizes: Sequence[int] = (5, 3, 1)) -> Callable[[], list[Any]]:
    """Make ``(x, y)`` batches of unequal sizes."""

    def build() -> list[Any]:
        batches = []
        for k, size in enumerate(sizes):
            labels = torch.randint(0, classes, (size,), generator=torch.Generator().manual_seed(50 + k))
            batches.append((random(size, *shape, seed=100 + k), labels))
        return batches

    return build


def regression(features: int, targets: int, sizes: Sequence[int] = (4, 1, 2)) -> Callable[[], list[Any]]:
    return lambda: [(random(n, features, seed=n), random(n, targets, seed=30 + n)) for n in sizes]


def each(criterion: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, y: criterion(z, y, reduction="none").reshape(len(y), -1).mean(1)


per_sample_entropy = each(nn.functional.cross_entropy)
per_sample_square = each(nn.functional.mse_loss)


@dataclass(frozen=True, eq=False)
class Case:
    """A model, its data and its loss, split into ``unpack`` and ``criterion`` so that references need no package."""

    build: Callable[[], nn.Module]
    batches: Callable[[], list[Any]]
    criterion: Callable[[Tensor, Tensor], Tensor] = per_sample_entropy
    wrap: Callable[[Tensor, Tensor], Any] = lambda x, y: (x, y)
    unpack: Callable[[Any], tuple[Tensor, Tensor]] = lambda batch: (batch[0], batch[1])
    options: dict[str, Any] = field(default_factory=dict)
    default_loss: bool = False

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        return seeded(self.build).to(dtype).train()

    def loader(self, dtype: torch.dtype = torch.float64) -> list[Any]:
        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        return [self.wrap(cast(x), cast(y)) for x, y in self.batches()]

    @property
    def loss_fn(self) -> Callable[[nn.Module, Any], Tensor] | None:
        if self.default_loss:
            return None

        def loss(model: nn.Module, batch: Any) -> Tensor:
            x, y = self.unpack(batch)
            return self.criterion(model(x), y)

        return loss


def _mean_entropy(z: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(z, y)


def _mean_square(z: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(z, y)


def _tokens() -> list[Any]:
    labels = [torch.randint(0, 3, (n, 2), generator=torch.Generator().manual_seed(n)) for n in (3, 2)]
    return [(random(len(y), 4, 2, seed=len(y)), y) for y in labels]


CASES: dict[str, Case] = {
    "ragged": Case(mlp, classification(4), default_loss=True),
    "scalar mean": Case(mlp, classification(4), criterion=_mean_entropy),
    "dict": Case(mlp, classification(4), wrap=lambda x, y: {"x": x, "y": y}, unpack=lambda b: (b["x"], b["y"])),
    "dataclass": Case(mlp, classification(4), wrap=Batch, unpack=lambda b: (b.images, b.targets)),
    "namedtuple": Case(mlp, classification(4), wrap=Pair, unpack=lambda b: (b.x, b.y)),
    "nested list": Case(
        mlp, classification(4), wrap=lambda x, y: [[x], {"y": y}], unpack=lambda b: (b[0][0], b[1]["y"])
    ),
    "batch norm": Case(BatchNormNet, classification(1, 4, 4)),
    "every parameter": Case(BatchNormNet, classification(1, 4, 4), options={"parameters": "*"}),
    "subset": Case(mlp, classification(4), options={"parameters": ["0.bias", "2.*"]}),
    "grouped": Case(grouped, classification(4, 3, 3, classes=4)),
    "tied": Case(Tied, regression(4, 4), criterion=per_sample_square),
    "idle layer": Case(Idle, classification(3, classes=2)),
    "regression": Case(mlp, regression(4, 3), criterion=per_sample_square),
    "regression mean": Case(mlp, regression(4, 3), criterion=_mean_square),
    "linear": Case(lambda: nn.Linear(5, 3), classification(5), options={"parameters": "*"}),
    "multi-head attention": Case(Attention, classification(3, 4), options={"parameters": "*"}),
    "dot product attention": Case(DotProduct, classification(3, 4)),
    "tokens": Case(lambda: nn.Conv1d(4, 3, 1), _tokens, default_loss=True),
}


# ------------------------------------------------------------------------------------------------- reference


@cache
def reference(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, float]:
    """Compute Hessian, GGN, gradient and value of a case's data loss densely in float64.

    The weights and the data are first rounded to ``dtype``.
    """
    from estimators.parameters import choose_parameters

    case = CASES[name]
    model = copy.deepcopy(case.model(dtype)).double().eval()
    batches = [tuple(t.double() if t.is_floating_point() else t for t in case.unpack(b)) for b in case.loader(dtype)]
    chosen = choose_parameters(model, case.options.get("parameters"))
    shapes = {key: p.shape for key, p in chosen.items()}
    flat = torch.cat([p.detach().reshape(-1) for p in chosen.values()])
    total = sum(len(y) for _, y in batches)

    def outputs(weights: Tensor, x: Tensor) -> Tensor:
        parts = weights.split([shape.numel() for shape in shapes.values()])
        state = {key: part.reshape(shape) for (key, shape), part in zip(shapes.items(), parts, strict=True)}
        return functional_call(model, state, (x,))

    def summed(z: Tensor, y: Tensor) -> Tensor:
        loss = case.criterion(z, y)
        return loss.sum() if loss.dim() else loss * len(y)

    def value(weights: Tensor) -> Tensor:
        return torch.stack([summed(outputs(weights, x), y) for x, y in batches]).sum() / total

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        hessian = torch.autograd.functional.hessian(value, flat)
        (gradient,) = torch.autograd.grad(value(weights := flat.clone().requires_grad_()), weights)
        ggn = torch.zeros_like(hessian)
        for x, y in batches:
            z = outputs(flat, x).detach()
            jacobian = torch.autograd.functional.jacobian(lambda w, x=x: outputs(w, x), flat).reshape(z.numel(), -1)
            inner = torch.autograd.functional.hessian(lambda z, y=y: summed(z, y), z).reshape(z.numel(), -1)
            ggn += jacobian.T @ inner @ jacobian / total
        return hessian, ggn, gradient, float(value(flat).detach())


def shrinking(batches: Sequence[Any]) -> Any:
    """Return a loader that loses its last batch after the first pass."""

    class Shrinking:
        passes = 0

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            return iter(batches if self.passes == 1 else batches[:-1])

    return Shrinking()


def with_bounds(limit: PruningLimit, lower: float, upper: float | None, numerical: float = 0.0) -> PruningLimit:
    """Return a limit whose verdicts rest on other bounds: what pruning alone reaches, the bound, and its error.

    Without an upper bound none is established.
    """
    ends: dict[str, Any] = {"sparsity": None, "low": None, "high": None, "basis": "unknown", "status": "no reason"}
    if upper is not None:
        ends = {"sparsity": upper, "low": max(lower, upper - numerical), "high": upper + numerical, "basis": "bound"}
    answers = tuple(
        dataclasses.replace(answer, sparsity=lower, low=lower, high=lower)
        if answer.rung == "one-shot"
        else dataclasses.replace(answer, **ends)
        if answer.rung == "bound"
        else answer
        for answer in limit.answers
    )
    achieved = None if limit.achieved is None else lower
    upper = 1.0 if upper is None else upper
    return dataclasses.replace(limit, lower=lower, achieved=achieved, upper=upper, answers=answers)


def ggn_limit(limit: PruningLimit) -> float | None:
    """Return what the formula with the GGN says."""
    return ggn_formula(limit.evidence, limit.allowed).sparsity


def without_cost(limit):
    """Return a limit as if its computation had taken nothing, so that two runs can be compared."""
    nothing = type(limit.cost)(0, 0, 0, 0.0, 0)
    return dataclasses.replace(limit, evidence=dataclasses.replace(limit.evidence, cost=nothing))
