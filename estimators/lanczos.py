"""Lanczos tridiagonalisation of a symmetric operator, for several start vectors in lockstep."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from estimators.errors import UserError
from estimators.memory import refuse_beyond
from estimators.operator import Operator
from estimators.vectors import aligned_rows, columns

Reorthogonalise = Literal["full", "none"]
PIECE = 1 << 17
GROUP = 8
MOST_TURNS = 5


@dataclass(frozen=True)
class Tridiagonal:
    """The matrix T of one Lanczos run, ``A Q = Q T + beta_m q_{m+1} e_m^T``.

    Attributes:
        alpha: Diagonal, float64 ``[m]``.
        beta: Off-diagonal, float64 ``[m - 1]``.
        residual: The next off-diagonal entry ``beta_m``; zero after a breakdown.
        exhausted: True when the Krylov space is exhausted; the rule is then exact for the start vector.
        basis: The vectors ``Q^T`` as rows ``[m, D]``, or None without reorthogonalisation.
    """

    alpha: NDArray[np.float64]
    beta: NDArray[np.float64]
    residual: float
    exhausted: bool
    basis: Tensor | None = None

    @property
    def steps(self) -> int:
        """Number m of steps."""
        return len(self.alpha)

    def head(self, steps: int) -> Tridiagonal:
        """Return the matrix that a run of fewer steps would have given."""
        if steps < 1:
            raise UserError(f"steps: expected at least 1, got {steps}")
        if steps >= self.steps:
            return self
        basis = None if self.basis is None else self.basis[:steps]
        return Tridiagonal(self.alpha[:steps], self.beta[: steps - 1], float(self.beta[steps - 1]), False, basis)

    def ritz(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        r"""Return Ritz values and the residual norms :math:`\|A v - \theta v\| = \beta_m |s_m|` of their vectors.

        Returns:
            Values ascending ``[m]`` and norms ``[m]``. Every value lies within its norm, plus rounding, of an
            eigenvalue.

        Source: Paige 1971; Parlett, The Symmetric Eigenvalue Problem, 1998, section 13.2.
        """
        values, vectors = eigh_tridiagonal(self.alpha, self.beta)
        return values, self.residual * np.abs(vectors[-1])


class Lanczos:
    """A Lanczos recurrence that can be advanced, stopped, saved and continued.

    All start vectors advance together: one pass over the data per step. Scalars are float64, vectors have the
    operator's type. A run whose Krylov space is exhausted stops by itself while the others go on.

    Args:
        operator: Symmetric operator with ``matmat``.
        starts: Start vectors as columns ``[D, K]``, each non-zero.
        reorthogonalise: ``"full"`` keeps all basis vectors (D x steps memory) and orthogonalises against them;
            ``"none"`` keeps three vectors: repeated eigenvalues appear in T, but integrals stay accurate. Both per
            start vector.
        images: The operator times the start vectors ``[D, K]``, if known; this saves the first product.

    Source: Lanczos 1950; Paige 1980 for the recurrence without reorthogonalisation.
    """

    def __init__(
        self,
        operator: Operator,
        starts: Tensor,
        reorthogonalise: Reorthogonalise = "full",
        images: Tensor | None = None,
    ) -> None:
        if reorthogonalise not in ("full", "none"):
            raise UserError(f"reorthogonalise: expected 'full' or 'none', got {reorthogonalise!r}")
        if starts.dim() != 2 or starts.shape[0] != operator.shape[0]:
            raise UserError(f"starts: expected shape ({operator.shape[0]}, K), got {tuple(starts.shape)}")
        vectors = columns(starts)
        norms = [float(torch.linalg.vector_norm(vector, dtype=torch.float64)) for vector in vectors]
        if not all(0 < norm < float("inf") for norm in norms):
            raise UserError("starts: every start vector must be finite and non-zero")
        self.operator, self.reorthogonalise = operator, reorthogonalise
        self._current = [
            (vector.double() / norm).to(operator.device, operator.dtype)
            for vector, norm in zip(vectors, norms, strict=True)
        ]
        self._previous = [torch.zeros_like(vector) for vector in self._current]
        self._first = None if images is None else images / images.new_tensor(norms)
        self._blocks: list[list[Tensor]] = [[] for _ in norms]
        self._alpha: list[list[float]] = [[] for _ in norms]
        self._beta: list[list[float]] = [[] for _ in norms]
        self._exhausted = [False] * len(norms)
        self.steps = 0

    def advance(self, steps: int) -> None:
        """Take the given number of further steps, or fewer if every Krylov space is exhausted.

        Raises:
            UserError: The basis for these steps does not fit into memory, or the loaded state has no vectors.
        """
        self._reserve(steps)
        for _ in range(steps):
            alive = self._alive()
            if not alive:
                return
            if not self._current:
                raise UserError("checkpoint: holds no vectors to continue from; delete it and start again")
            products = self.operator.matmat(self._together(alive)) if self.steps or self._first is None else self._first
            for k, product in zip(alive, columns(products), strict=True):
                self._step(k, product)
            self._first = None
            self.steps += 1

    def tridiagonals(self, vectors: bool = True) -> list[Tridiagonal]:
        """Return T for every start vector.

        Args:
            vectors: Include the basis.
        """
        result = []
        for alpha, beta, done, blocks in zip(self._alpha, self._beta, self._exhausted, self._blocks, strict=True):
            basis = (blocks[0] if len(blocks) == 1 else torch.cat(blocks))[: len(alpha)] if blocks and vectors else None
            result.append(
                Tridiagonal(np.array(alpha), np.array(beta[: len(alpha) - 1]), beta[-1] if beta else 0.0, done, basis)
            )
        return result

    def state(self, vectors: bool = True) -> dict[str, Any]:
        """Return everything needed to continue, as tensors and numbers.

        Args:
            vectors: Include the vectors; a state without them restores only the matrices.
        """
        return {
            "steps": self.steps,
            "reorthogonalise": self.reorthogonalise,
            "current": [vector.clone() for vector in self._current] if vectors else [],
            "previous": [vector.clone() for vector in self._previous] if vectors else [],
            "basis": [self._written(k) if vectors else [] for k in range(len(self._alpha))],
            "alpha": [list(entries) for entries in self._alpha],
            "beta": [list(entries) for entries in self._beta],
            "exhausted": list(self._exhausted),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what ``state`` returned, reorthogonalised as it was.

        Raises:
            UserError: The state is damaged or belongs to another operator; this run stays as it was.
        """
        try:
            fits = self._fits(state)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
            fits = False
        if not fits:
            raise UserError("checkpoint: the state of the recurrence is damaged; delete it and start again")
        self.steps = state["steps"]
        self.reorthogonalise = state.get("reorthogonalise", self.reorthogonalise)
        device = self.operator.device  # a state read from a file lies on the CPU
        self._current = [vector.to(device) for vector in state["current"]]
        self._previous = [vector.to(device) for vector in state["previous"]]
        self._blocks = [[self._room(len(rows))] if rows else [] for rows in state["basis"]]
        for blocks, rows in zip(self._blocks, state["basis"], strict=True):
            for place, row in zip(blocks[0] if blocks else (), rows, strict=False):
                place.copy_(row)
        self._alpha = [list(entries) for entries in state["alpha"]]
        self._beta = [list(entries) for entries in state["beta"]]
        self._exhausted = list(state["exhausted"])

    def _fits(self, state: dict[str, Any]) -> bool:
        """Tell whether a state can be one of this operator and as many start vectors."""
        count, dimension = len(self._alpha), self.operator.shape[0]
        alpha, beta, exhausted, basis = (state[key] for key in ("alpha", "beta", "exhausted", "basis"))
        current, previous = state["current"], state["previous"]
        vectors = [*current, *previous, *(vector for rows in basis for vector in rows)]
        return (
            isinstance(state["steps"], int)
            and state.get("reorthogonalise", "full") in ("full", "none")
            and len(alpha) == len(beta) == len(exhausted) == len(basis) == count
            and isinstance(current, list)
            and isinstance(previous, list)
            and len(current) == len(previous)
            and len(current) in (0, count)
            and all(flag is True or flag is False for flag in exhausted)
            and all(len(a) == len(b) <= state["steps"] for a, b in zip(alpha, beta, strict=True))
            and all(len(a) == state["steps"] or flag for a, flag in zip(alpha, exhausted, strict=True))
            and all(len(rows) in (0, len(a)) for rows, a in zip(basis, alpha, strict=True))
            and all(isinstance(x, float) and math.isfinite(x) for entries in (*alpha, *beta) for x in entries)
            and all(
                vector.shape == (dimension,) and vector.dtype == self.operator.dtype and bool(vector.isfinite().all())
                for vector in vectors
            )
        )

    def _alive(self) -> list[int]:
        return [k for k, done in enumerate(self._exhausted) if not done]

    def _together(self, alive: list[int]) -> Tensor:
        """Current vectors as columns; one alone is not copied."""
        if len(alive) == 1:
            return self._current[alive[0]][:, None]
        rows = aligned_rows(len(alive), self.operator.shape[0], self.operator.dtype, self.operator.device)
        return torch.stack([self._current[k] for k in alive], out=rows).T

    def _groups(self, k: int) -> Iterator[Tensor]:
        """Basis vectors so far as rows, in groups, and so with rounding errors, that depend on their number only."""
        left = len(self._alpha[k])
        for block in self._blocks[k]:
            for start in range(0, min(left, len(block)), GROUP):
                yield block[start : min(start + GROUP, left)]
            left = max(0, left - len(block))

    def _written(self, k: int) -> list[Tensor]:
        """Basis vectors so far, one by one, with nothing but zeros behind them in memory."""
        if self._blocks[k]:
            used = sum(len(block) for block in self._blocks[k][:-1])
            self._blocks[k][-1][len(self._alpha[k]) - used :].zero_()
        return [row for group in self._groups(k) for row in group]

    def _room(self, vectors: int) -> Tensor:
        """Make room for so many basis vectors, in whole groups; what is not written takes no memory on a CPU."""
        rows = -(-vectors // GROUP) * GROUP
        return aligned_rows(rows, self.operator.shape[0], self.operator.dtype, self.operator.device)

    def _orthogonalise(self, k: int, vector: Tensor) -> float:
        """Take the basis out of a vector, again for as long as it shrinks: then rounding errors weigh more.

        Returns:
            The squared length that is left.
        """
        before = _dot(vector, vector)
        for _ in range(MOST_TURNS):
            for group in self._groups(k):
                vector.addmv_(group.T, group @ vector, alpha=-1)
            length = _dot(vector, vector)
            if length > before / 2:
                break
            before = length
        return length

    def _reserve(self, steps: int) -> None:
        if self.reorthogonalise == "none":
            return
        alive, dimension, type_ = self._alive(), self.operator.shape[0], self.operator.dtype
        steps = min(steps, dimension - self.steps)
        refuse_beyond(
            len(alive) * steps * dimension * type_.itemsize,
            self.operator.device,
            f"reorthogonalise: 'full' over {steps} steps of {len(alive)} vectors of {dimension:,}",
            "use reorthogonalise='none' or fewer steps",
        )
        for k in alive:
            missing = self.steps + steps - sum(len(block) for block in self._blocks[k])
            if missing > 0:
                self._blocks[k].append(self._room(missing))

    def _step(self, k: int, product: Tensor) -> None:
        current, previous = self._current[k], self._previous[k]
        alpha = _dot(current, product)
        beta = self._beta[k][-1] if self._beta[k] else 0.0
        vector = product - alpha * current
        vector -= beta * previous
        self._alpha[k].append(alpha)
        if self.reorthogonalise == "full":
            *_, last = self._groups(k)
            last[-1].copy_(current)
            squared = self._orthogonalise(k, vector)
        else:
            squared = _dot(vector, vector)
        length = squared**0.5
        scale = max(map(abs, [*self._alpha[k], *self._beta[k]]), default=0.0)
        tiny = torch.finfo(vector.dtype).eps * 4 * max(scale, torch.finfo(vector.dtype).tiny)
        complete = self.reorthogonalise == "full" and len(self._alpha[k]) == self.operator.shape[0]
        if length <= tiny or complete:
            self._exhausted[k] = True
            self._beta[k].append(0.0)
            return
        self._beta[k].append(length)
        self._previous[k] = current
        self._current[k] = vector / length


def lanczos(operator: Operator, start: Tensor, steps: int, reorthogonalise: Reorthogonalise = "full") -> Tridiagonal:
    """Tridiagonalise a symmetric operator from one start vector.

    Args:
        operator: Symmetric operator with ``matmat``, for instance ``Hessian`` or ``GGN``.
        start: Non-zero start vector ``[D]``; it is normalised.
        steps: Number of steps, 1 to D.
        reorthogonalise: ``"full"`` or ``"none"``.

    Returns:
        The tridiagonal matrix; it has fewer steps if the Krylov space is exhausted earlier.

    Raises:
        UserError: ``steps`` is outside 1..D or the start vector is zero or of another length.
    """
    if not 1 <= steps <= operator.shape[0]:
        raise UserError(f"steps: expected 1 to {operator.shape[0]}, got {steps}")
    if start.dim() != 1:
        raise UserError(f"start: expected shape ({operator.shape[0]},), got {tuple(start.shape)}")
    run = Lanczos(operator, start[:, None], reorthogonalise)
    run.advance(steps)
    return run.tridiagonals()[0]


def _dot(a: Tensor, b: Tensor) -> float:
    """Multiply and sum in float64, piece by piece so that no copy of a large vector leaves the cache."""
    pairs = zip(torch.split(a, PIECE), torch.split(b, PIECE), strict=True)
    return float(torch.stack([torch.dot(left.double(), right.double()) for left, right in pairs]).sum())
