"""What a prediction is made of: verdict, layers, sharpness, cost, spectral estimates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from estimators import SpectralMeasure


@dataclass(frozen=True)
class Verdict:
    """Answer to the question whether a sparsity can be reached.

    Attributes:
        status: ``"achievable"`` at or below the lower bound, ``"infeasible"`` above the upper bound and its numerical
            error, ``"open"`` in between.
        reason: One sentence with the numbers.
        margin: Distance in sparsity to the nearest bound that would change the status.
    """

    status: Literal["achievable", "open", "infeasible"]
    reason: str
    margin: float


@dataclass(frozen=True)
class Layer:
    """One row of the per-layer table.

    Attributes:
        name: Parameter name.
        weights: Number of weights.
        sparsity: Share of them removed by global magnitude pruning at the limit.
        norm: Euclidean norm of the weights.
        trace: Trace of the layer's block of the curvature.
        trace_error: Standard error of the trace, of which two cover it in about 95 % of seeds.
    """

    name: str
    weights: int
    sparsity: float
    norm: float
    trace: float
    trace_error: float


@dataclass(frozen=True)
class Sharpness:
    """Summary of the curvature's spectrum.

    Attributes:
        trace: Trace of the curvature.
        top_eigenvalue: Largest Ritz value, a lower bound of the largest eigenvalue.
        effective_dimension: :math:`D (1 - s)` at the limit, the number of directions that hold the objective.
        negative_share: Share of the spectrum's absolute mass that lies below zero.
        trace_error: Standard error of the trace; 0 where none is known, as in files of earlier versions.
    """

    trace: float
    top_eigenvalue: float
    effective_dimension: float
    negative_share: float
    trace_error: float = 0.0


@dataclass(frozen=True)
class Cost:
    """What a prediction took.

    Attributes:
        products: Curvature-vector products.
        samples: Samples seen by them, counted once per product.
        forward_samples: Samples seen by plain forward passes.
        seconds: Wall time.
        peak_memory: Largest memory of a process in bytes, the caller's share included.
    """

    products: int
    samples: int
    forward_samples: int
    seconds: float
    peak_memory: int


CERTAIN_SHARE = 0.4


@dataclass(frozen=True)
class Estimate:
    """One spectrum and the error of the limit read off it.

    Attributes:
        measure: Spectral measure of the curvature; of the GGN by the Gauss rule, which errs to lower sparsity.
        samples: Data samples behind it.
        steps: Lanczos steps.
        step_error: Half-width from the number of steps, in sparsity.
        sample_error: Half-width from the data sub-sample, in sparsity; zero for all data.
        growth: Factor from the kept fraction on the sub-sample to that on all data, extrapolated: at least 1 for the
            GGN, at most 1 for the Hessian.
        above: The GGN's measure by the Gauss-Radau rule, which errs to higher sparsity; None where one measure does.
        bracket: Measures of the Hessian's absolute value that err to lower and to higher sparsity, or None.
    """

    measure: SpectralMeasure
    samples: int
    steps: int
    step_error: float
    sample_error: float
    growth: float = 1.0
    above: SpectralMeasure | None = None
    bracket: tuple[SpectralMeasure, SpectralMeasure] | None = None

    @property
    def measures(self) -> list[SpectralMeasure]:
        """The measures that the limit lies between; one where one does."""
        return [self.measure] if self.above is None else [self.measure, self.above]

    def limit(self, solve: Callable[[SpectralMeasure], float]) -> float:
        """Combine the limits read off the measures: the geometric mean of their kept fractions, carried to all data.

        Args:
            solve: From a measure to a limit, in sparsity.

        Returns:
            A sparsity in [0, 1].
        """
        kept = [max(0.0, 1 - solve(measure)) for measure in self.measures]
        return max(0.0, 1 - self.growth * math.prod(kept) ** (1 / len(kept)))

    def on_samples(self, sparsity: float) -> float:
        """Return the limit on the sub-sample that ``limit`` carries to this one."""
        return 1 - (1 - sparsity) / self.growth

    def certified(self, solve: Callable[[SpectralMeasure], float]) -> Estimate:
        """Return the estimate with the step error of one limit, as far as measures enclose it.

        The GGN's limit lies at the geometric mean of its ends. That of the Hessian comes from a rule of its own, and
        the error is ``CERTAIN_SHARE`` of the width of its bracket.

        Args:
            solve: From a measure to a limit, in sparsity.

        Returns:
            The estimate; unchanged where no measures enclose the limit.
        """
        if self.bracket is not None:
            low, high = (solve(measure) for measure in self.bracket)
            return replace(self, step_error=self.growth * CERTAIN_SHARE * abs(high - low))
        if self.above is not None:
            middle = self.limit(solve)
            ends = [1 - self.growth * (1 - solve(measure)) for measure in self.measures]
            return replace(self, step_error=max(abs(end - middle) for end in ends))
        return self

    def scaled(self, factor: float) -> Estimate:
        """Return the estimate of ``factor`` times the matrix."""
        return self._with(lambda measure: measure.scaled(factor))

    def among(self, known: Sequence[tuple[float, float]]) -> Estimate:
        """Return the estimate of a matrix of which this one saw a block, see ``SpectralMeasure.among``."""
        return self._with(lambda measure: measure.among(known))

    def _with(self, change: Callable[[SpectralMeasure], SpectralMeasure]) -> Estimate:
        above = None if self.above is None else change(self.above)
        bracket = None if self.bracket is None else (change(self.bracket[0]), change(self.bracket[1]))
        return replace(self, measure=change(self.measure), above=above, bracket=bracket)

    def half_width(self, standard_error: float) -> float:
        """Sum of two standard errors over probes, the step error and the sample error."""
        return 2 * standard_error + self.step_error + self.sample_error
