"""Lanczos recurrences that tell their progress and keep their states, and estimates read off their matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from torch import Tensor

from estimators import (
    Lanczos,
    Operator,
    SpectralMeasure,
    Tridiagonal,
    even_bracket,
    gauss,
    gauss_radau,
    measure_of,
    steady_gauss,
)
from estimators.distributed import gathered
from estimators.lanczos import Reorthogonalise
from estimators.memory import available
from pruning_limits.isotropic import Negative
from pruning_limits.parts import Estimate
from pruning_limits.progress import Progress, told
from pruning_limits.states import Known, States
from pruning_limits.stopping import Kind
from pruning_limits.subsamples import Subsamples

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """How a recurrence goes on.

    Attributes:
        key: Name of its state.
        stage: What the progress is told of.
        most: Largest number of steps, at least 1.
        pace: From the steps taken to the number of those before the next reading, at least 1.
        known: Eigenvalues that the start vectors leave out, with their shares in all D; kept with the state.
    """

    key: str
    stage: str
    most: int
    pace: Callable[[int], int]
    known: Known


class Recurrences:
    """Lanczos recurrences of one prediction.

    Args:
        subsamples: Sub-samples of the prediction, whose D and device say whether a basis fits.
        states: States of earlier recurrences, from which they continue.
        progress: See ``predict_limit``.
    """

    def __init__(self, subsamples: Subsamples, states: States, progress: Progress = None) -> None:
        self.subsamples, self.states, self.progress = subsamples, states, progress

    def advance(
        self,
        plan: Plan,
        operator: Operator,
        starts: Tensor,
        read: Callable[[list[Tridiagonal], bool], T | None],
        images: Tensor | None = None,
    ) -> T:
        """Advance a recurrence, from its state where there is one, until what is read off its matrices is enough.

        Args:
            plan: How it goes on.
            operator: Symmetric operator.
            starts: Start vectors as columns ``[D, K]``, each non-zero.
            read: Returns a result from the K matrices, given whether they are the last, or None to go on.
            images: The operator times the start vectors ``[D, K]``, where known.

        Returns:
            What ``read`` returned.
        """
        run = Lanczos(operator, starts, self.basis(plan.most, starts.shape[1]), images)
        self.states.restore(plan.key, run)
        with told(self.progress, plan.stage, plan.most) as tell:
            while True:
                tell(run.steps)
                if run.steps:
                    matrices = run.tridiagonals(vectors=False)  # the basis may be large
                    ended = run.steps >= plan.most or all(matrix.exhausted for matrix in matrices)
                    if (result := read(matrices, ended)) is not None:
                        self.states.save(plan.key, run, plan.known, finished=True)
                        return result
                run.advance(min(plan.pace(run.steps), plan.most - run.steps))
                self.states.save(plan.key, run, plan.known)

    def basis(self, steps: int, probes: int) -> Reorthogonalise:
        """Reorthogonalise where a basis of so many steps and probes fits on every rank."""
        objective = self.subsamples.objective
        size = objective.dimension * steps * probes * objective.dtype.itemsize
        fits = self.subsamples.stopping.basis_fits(size, min(gathered(available(objective.device))))
        return "full" if fits else "none"


@dataclass(frozen=True)
class Reader:
    """Reads one spectrum and the step error of its limit off the matrices.

    Attributes:
        subsamples: Sub-samples of the prediction.
        solve: From a measure to the limit, in sparsity.
        kind: ``"hessian"`` or ``"ggn"``.
        samples: Size of the sub-sample.
        known: Eigenvalues beside those of the matrices, with their shares in all D.
    """

    subsamples: Subsamples
    solve: Callable[[SpectralMeasure], float]
    kind: Kind
    samples: int
    known: Known

    def estimate(self, matrices: list[Tridiagonal]) -> Estimate:
        """Return the spectrum and the step error of its limit, as far as the matrices go."""
        estimate = self._spectrum(matrices).certified(self.solve)
        if all(matrix.exhausted for matrix in matrices):
            return replace(estimate, step_error=0.0)
        if self.kind == "hessian" and self.subsamples.settings.negative == "clip":
            return replace(estimate, step_error=self._change(matrices, estimate))
        if estimate.bracket is not None and estimate.steps >= self.subsamples.stopping.changes_from:
            low, high = (self.solve(measure) for measure in estimate.bracket)
            share = self._change(matrices, estimate) / max(abs(high - low), 1e-12)
            return replace(estimate, certain=min(estimate.certain, share)).certified(self.solve)
        return estimate

    def slowed(self, matrices: list[Tridiagonal], estimate: Estimate) -> bool:
        """Tell whether the second half of the steps narrowed the certified error too little, where steps are dear."""
        stopping = self.subsamples.stopping
        if not stopping.dear(self.subsamples.objective.dimension):
            return False
        heads = [matrix.head(estimate.steps // 2) for matrix in matrices]
        before, now = (self._spectrum(part).certified(self.solve).step_error for part in (heads, matrices))
        if not math.isfinite(now):  # no measures enclose it
            before, now = self.estimate(heads).step_error, estimate.step_error
        return stopping.slowed(now, before)

    def _spectrum(self, matrices: list[Tridiagonal]) -> Estimate:
        dimension, negative = self.subsamples.objective.dimension, self.subsamples.settings.negative
        estimate = estimate_of(self.kind, matrices, dimension, self.samples, self.subsamples.floor, negative)
        return estimate.among(self.known)

    def _change(self, matrices: list[Tridiagonal], last: Estimate) -> float:
        """Read the error off the changes of the limit since a third of the steps: no certificate."""
        heads = [[matrix.head(steps) for matrix in matrices] for steps in self.subsamples.stopping.earlier(last.steps)]
        limit = last.limit(self.solve)
        changes = (abs(self._spectrum(head).limit(self.solve) - limit) for head in heads)
        return self.subsamples.stopping.change(changes, last.steps)


def estimate_of(
    kind: Kind,
    matrices: list[Tridiagonal],
    dimension: int,
    samples: int,
    floor: float = 0.0,
    negative: Negative = "abs",
) -> Estimate:
    """Read a spectrum off Lanczos matrices: steady Gauss rule for the Hessian, Gauss and Gauss-Radau for the GGN.

    The geometric mean of the two kept fractions moves far less from step to step than either, because the small
    eigenvalues of the GGN spread over decades.

    Args:
        kind: ``"hessian"`` or ``"ggn"``.
        matrices: One matrix per probe.
        dimension: D.
        samples: Data samples behind the curvature.
        floor: Lower bound of the GGN's eigenvalues.
        negative: What a negative eigenvalue of the Hessian counts as; its absolute value can be enclosed.

    Returns:
        The estimate, its errors not yet known.

    Example:
        >>> import torch
        >>> from estimators import GGN, Objective, lanczos
        >>> operator = GGN(Objective(torch.nn.Linear(4, 2), [(torch.randn(64, 4), torch.randint(0, 2, (64,)))]))
        >>> estimate = estimate_of("ggn", [lanczos(operator, torch.ones(8), steps=3)], dimension=8, samples=64)
        >>> estimate.steps, estimate.step_error
        (3, inf)
    """
    steps = max(matrix.steps for matrix in matrices)
    if kind == "hessian":
        measure, bracket = measure_of(matrices, dimension, steady_gauss), None
        if negative == "abs":
            low, high = zip(*(even_bracket(matrix) for matrix in matrices), strict=True)
            bracket = SpectralMeasure(low, dimension), SpectralMeasure(high, dimension)
        return Estimate(measure, samples, steps, math.inf, 0.0, bracket=bracket)
    below, above = (measure_of(matrices, dimension, rule) for rule in (gauss, partial(gauss_radau, node=floor)))
    return Estimate(below, samples, steps, math.inf, 0.0, above=above)
