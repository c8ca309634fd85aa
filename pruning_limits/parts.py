"""The parts of a prediction: the dense network, layers, sharpness, cost and spectral estimates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from estimators import SpectralMeasure

Floats = NDArray[np.float64]
CLEARLY = 2.0


@dataclass(frozen=True)
class LayerCurvature:
    """Weights and curvature of one layer, whatever is allowed.

    Attributes:
        name: Parameter name.
        weights: Number of weights.
        norm: Euclidean norm of the weights.
        trace: Trace of the layer's block of the curvature.
        trace_error: Standard error of the trace, of which two cover it in about 95 % of seeds.
        macs: Multiply-accumulates of the layer for one sample, or None where they are unknown.
    """

    name: str
    weights: int
    norm: float
    trace: float
    trace_error: float
    macs: float | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Layer(LayerCurvature):
    """One row of the per-layer table.

    Attributes:
        sparsity: Share of the weights removed by global magnitude pruning at the limit.
    """

    sparsity: float


@dataclass(frozen=True)
class Dense:
    """The network before pruning, on its data.

    Attributes:
        objective: The criterion.
        objective_error: Its standard error where a draw of the data was passed; 0 for all data.
        samples: Number of training samples.
        metric: Mean metric, or None.
        metric_error: Its standard error, or None.
        metric_samples: Number of samples that the metric was measured on, or None.
        resolution: Least change of the mean metric where it counts samples, or None.
        constant_gain: By how much the mean loss is lower than that of constant outputs, or than with the inputs of
            other samples where that is less; None where this is unknown.
        constant_error: Its paired standard error, or None.
        constant_metric: The metric of constant outputs, or None.
    """

    objective: float
    objective_error: float
    samples: int
    metric: float | None = None
    metric_error: float | None = None
    metric_samples: int | None = None
    resolution: float | None = None
    constant_gain: float | None = None
    constant_error: float | None = None
    constant_metric: float | None = None

    @property
    def chance(self) -> str:
        """The words for a network at chance, with the numbers."""
        return (
            f"the network is no better than constant outputs: its loss is lower by {self.constant_gain:.2g} +- "
            f"{self.constant_error:.2g} only"
        )

    @property
    def at_chance(self) -> bool:
        """Whether the network is no better than constant outputs, by its loss and, where there is one, its metric."""
        if self.constant_gain is None or self.constant_error is None:
            return False
        if self.constant_gain > CLEARLY * self.constant_error:
            return False
        if self.metric is None or self.constant_metric is None:
            return True
        return self.metric <= self.constant_metric + CLEARLY * (self.metric_error or 0.0)


@dataclass(frozen=True)
class Origin:
    """Of what, by what and when a limit was predicted.

    Attributes:
        model: Name of the network; the class of the model where nobody named it.
        data: The data in words.
        version: Version of this library.
        date: Day of the prediction, ISO 8601.
    """

    model: str
    data: str
    version: str
    date: str


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
        forward_samples: Samples seen by plain forward passes, without those of re-tuning.
        seconds: Wall time.
        peak_memory: Largest memory of a process in bytes, the caller's share included.
        epochs: Passes in epochs of training, one epoch counted as three forward passes over all data, and re-tuning; 0
            where unknown.
    """

    products: int
    samples: int
    forward_samples: int
    seconds: float
    peak_memory: int
    epochs: float = 0.0


CERTAIN_SHARE = 0.4


@dataclass(frozen=True)
class Estimate:
    """One spectrum and the error of the limit read off it.

    Attributes:
        measure: Spectral measure of the curvature; of the GGN by the Gauss rule, which errs to lower sparsity.
        samples: Data samples behind it.
        steps: Lanczos steps.
        step_error: Half-width from the number of steps, in sparsity.
        sample_error: Half-width from the data sub-sample, in sparsity, zero for all data; and from products that are
            finite differences.
        growth: Factor from the kept fraction on the sub-sample to that on all data, extrapolated: at least 1 for the
            GGN, at most 1 for the Hessian.
        above: The GGN's measure by the Gauss-Radau rule, which errs to higher sparsity; None where one measure does.
        bracket: Measures of the Hessian's absolute value that err to lower and to higher sparsity, or None.
        certain: Share of the width of the bracket that is reported as half-width.
    """

    measure: SpectralMeasure
    samples: int
    steps: int
    step_error: float
    sample_error: float
    growth: float = 1.0
    above: SpectralMeasure | None = None
    bracket: tuple[SpectralMeasure, SpectralMeasure] | None = None
    certain: float = CERTAIN_SHARE

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
        the error is a share of the width of its bracket, ``certain``.

        Args:
            solve: From a measure to a limit, in sparsity.

        Returns:
            The estimate; unchanged where no measures enclose the limit.
        """
        if self.bracket is not None:
            low, high = (solve(measure) for measure in self.bracket)
            return replace(self, step_error=self.growth * self.certain * abs(high - low))
        if self.above is not None:
            middle = self.limit(solve)
            ends = [1 - self.growth * (1 - solve(measure)) for measure in self.measures]
            return replace(self, step_error=max(abs(end - middle) for end in ends))
        return self

    def scaled(self, factor: float) -> Estimate:
        """Return the estimate of ``factor`` times the matrix."""
        return self._with(lambda measure: measure.scaled(factor))

    def moved(self, error: float, up: bool, negative: Literal["abs", "clip"] = "abs") -> Estimate:
        r"""Return the estimate with all eigenvalues, as they count, moved as far as an error of products can move them.

        An error matrix E with :math:`\|E v\| = \rho \|A v\|` for random v moves the eigenvalues of A by
        :math:`\rho` times their root mean square in the root mean square, and large ones by :math:`\rho` times
        themselves. Both are added.

        Args:
            error: Relative error :math:`\rho` of products, in [0, 1].
            up: Whether to larger eigenvalues, or towards zero.
            negative: What a negative eigenvalue counts as: its absolute value, or zero.

        Source: Hoffman and Wielandt, The variation of the spectrum of a normal matrix, Duke Math. J. 20, 1953.
        """
        shift = error * math.sqrt(self.measure.moment(2)[0])
        sign = 1 if up else -1

        def moved(nodes: Floats) -> Floats:
            size = np.abs(nodes) if negative == "abs" else np.maximum(nodes, 0.0)
            return np.maximum(size + sign * (error * size + shift), 0.0)

        return self._with(lambda measure: measure.mapped(moved))

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
