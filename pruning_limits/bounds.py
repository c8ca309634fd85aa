"""Limits on the sparsity: isotropic prediction, quadratic model, and measurement."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from torch import Tensor

from estimators import Objective, SpectralMeasure, UserError
from estimators.operator import SubspaceOperator
from pruning_limits.magnitude import MagnitudeCurve, MagnitudeProfile, removed_count

Negative = Literal["abs", "clip"]
Floats = NDArray[np.float64]
NEARBY, BEYOND = 0.1, 0.4


@dataclass(frozen=True)
class IsotropicLimit:
    r"""Root of the isotropic equation.

    Attributes:
        sparsity: The limit, in [0, 1].
        standard_error: Error from the choice of probes, in sparsity.
        scale: The curvature :math:`c = 2\varepsilon/R^2` at the root.
    """

    sparsity: float
    standard_error: float
    scale: float


def removable_fraction(measure: SpectralMeasure, scale: float, negative: Negative = "abs") -> tuple[float, float]:
    r"""Evaluate :math:`\frac1D \operatorname{tr} f(H)` with :math:`f(x) = c/(c+|x|)` and its standard error.

    This is the statistical dimension of the sublevel ellipsoid seen from distance R, divided by D, when the direction
    of the removed weights is ignored; D times one minus it is the effective dimension of H at scale c.

    Args:
        measure: Spectral measure of the curvature.
        scale: The number c > 0, in units of the eigenvalues; infinity gives 1.
        negative: What a negative eigenvalue counts as: its absolute value, or zero.

    Returns:
        Value in [0, 1] and standard error.

    Source: Zhang, Zhang, Sun and Liu, NeurIPS 2024; MacKay 1992 for the effective dimension.
    """
    if np.isinf(scale):
        return 1.0, 0.0
    least = max(scale, float(np.finfo(np.float64).tiny))  # flat directions count whole at any scale

    def weight(x: Floats) -> Floats:
        curvature = np.abs(x) if negative == "abs" else np.maximum(x, 0.0)
        return least / (least + curvature)

    return measure.integrate(weight)


def isotropic_limit(
    measure: SpectralMeasure, curve: MagnitudeCurve, epsilon: float, negative: Negative = "abs"
) -> IsotropicLimit:
    r"""Solve :math:`s = \frac1D \operatorname{tr} f_s(H)` for the sparsity s.

    Here :math:`f_s(x) = c/(c+|x|)` and :math:`c = 2\varepsilon/R(s)^2`. The left side rises in s and the right side
    falls, so the root is unique.

    Args:
        measure: Spectral measure of the curvature.
        curve: R(s)^2 of the weights.
        epsilon: Allowed rise of the objective, > 0, in its units.
        negative: What a negative eigenvalue counts as: ``"abs"`` or ``"clip"`` (to zero).

    Returns:
        The limit with its error from the choice of probes.

    Raises:
        UserError: ``epsilon`` is not positive or ``negative`` is unknown.

    Source: Zhang, Zhang, Sun and Liu, How sparse can we prune a deep network, NeurIPS 2024.

    Example:
        >>> import torch
        >>> profile = MagnitudeProfile({"w": torch.ones(100)})
        >>> measure = SpectralMeasure.from_eigenvalues(np.ones(100))
        >>> round(isotropic_limit(measure, profile.curve(), epsilon=50.0).sparsity, 4)
        0.618
    """
    if not 0 < epsilon < float("inf"):
        raise UserError(f"epsilon: expected a positive number (the allowed rise of the objective), got {epsilon}")
    if negative not in ("abs", "clip"):
        raise UserError(f"negative: expected 'abs' or 'clip', got {negative!r}")

    def scale(sparsity: float) -> float:
        squared = curve.squared_norm(sparsity)
        return 2 * epsilon / squared if squared > 0 else float("inf")

    def excess(sparsity: float) -> float:
        return removable_fraction(measure, scale(sparsity), negative)[0] - sparsity

    root = 1.0 if excess(1.0) >= 0 else float(brentq(excess, 0.0, 1.0, xtol=1e-14, rtol=1e-14))
    error = removable_fraction(measure, scale(root), negative)[1]
    step = min(1e-4, (1 - root) / 2, root / 2)
    slope = (excess(root + step) - excess(root - step)) / (2 * step) if step > 0 else -1.0
    return IsotropicLimit(root, error / max(1.0, -slope), scale(root))


def largest_passing(
    rise: Callable[[float], float],
    allowed: float,
    guess: float,
    dimension: int,
    resolution: float = 1e-4,
    power: float | None = None,
) -> float:
    """Find up to which sparsity a rising function stays within what is allowed, in few evaluations.

    From the guess on a bracket is sought, then narrowed by interpolation between the logarithms of rise and kept count,
    and by halving where that does not halve it.

    Args:
        rise: Function of sparsity; assumed to pass below and fail above some point, by whatever values.
        allowed: Largest value that passes.
        guess: Where the point may lie.
        dimension: Number D of weights; the answer is a multiple of 1/D.
        resolution: Wanted width of the final bracket, in sparsity.
        power: Power p, > 0, by which the function is thought to go near the guess, as the kept count to the -p; the
            bracket is sought from where it then passes. None seeks it from the guess, in longer strides.

    Returns:
        The largest sparsity that passed; 0 when none did.
    """
    width = max(1, round(resolution * dimension))
    stride = max(width, dimension // 128)
    low, high = 0, dimension + 1
    values: dict[int, float] = {}

    def probe(count: int) -> None:
        nonlocal low, high
        values[count] = rise(count / dimension)
        if values[count] <= allowed:
            low = count
        else:
            high = count

    first = min(dimension, max(1, round(guess * dimension)))
    probe(first)
    if power and 1 < first < dimension and 0 < values[first] < math.inf:
        longer = min(math.log(values[first] / allowed) / power, math.log(dimension))
        crossing, beyond = round(dimension - (dimension - first) * math.exp(longer)), math.ceil(BEYOND * width)
        probe(min(dimension, crossing + beyond) if low else max(1, crossing - beyond))
        stride = max(width, abs(crossing - first) // 4)
    while low and high > dimension > low:
        probe(min(dimension, low + stride))
        stride *= 4
    while low == 0 and high > 1:
        probe(max(1, high - stride))
        stride *= 4
    halved = True
    while (before := high - low) > width:
        middle = (low + high) // 2
        probe(_beyond(low, high, values, allowed, dimension, width) if halved else middle)
        halved = not halved or 2 * (high - low) <= before + 1
    return low / dimension


def _power(more: float, less: float) -> float | None:
    """Power by which a rise goes, from those where ``NEARBY`` more and less weights are kept; None where it is none."""
    if not 0 < more < less < math.inf:
        return None
    return math.log(less / more) / math.log((1 + NEARBY) / (1 - NEARBY))


def _beyond(low: int, high: int, values: dict[int, float], allowed: float, dimension: int, width: int) -> int:
    """Return a count a part of a width beyond the interpolated crossing, from the nearer end; else the middle."""
    middle = (low + high) // 2
    if low == 0 or not (0 < values[low] <= allowed < values[high] < math.inf):
        return middle
    ends = [math.log(max(dimension - count, 0.5)) for count in (low, high)]
    share = math.log(allowed / values[low]) / math.log(values[high] / values[low])
    crossing = dimension - math.exp(ends[0] + share * (ends[1] - ends[0]))
    beyond = BEYOND * width if crossing < middle else -BEYOND * width
    return min(high - 1, max(low + 1, round(crossing + beyond)))


@dataclass(frozen=True)
class Measured:
    """What one-shot magnitude pruning does to the objective.

    Attributes:
        sparsity: Largest sparsity with a rise of at most epsilon.
        points: Evaluated ``(sparsity, rise)`` pairs on all data, sorted.
        samples: Samples passed through the model, all evaluations together.
    """

    sparsity: float
    points: tuple[tuple[float, float], ...]
    samples: int = 0


class _Rise:
    """Rise of an objective by one-shot magnitude pruning, each sparsity evaluated once."""

    def __init__(self, objective: Objective, profile: MagnitudeProfile, dense: float | None) -> None:
        self.objective, self.profile = objective, profile
        self.dense = objective.value() if dense is None else dense
        self.found: dict[float, float] = {0.0: 0.0}
        self.samples = objective.samples * (dense is None)

    def __call__(self, sparsity: float) -> float:
        if sparsity not in self.found:
            weights = self.profile.vector - self.profile.removed(sparsity)
            self.found[sparsity] = self.objective.value(weights) - self.dense
            self.samples += self.objective.samples
        return self.found[sparsity]

    def outside(self, sparsity: float, kept: float) -> float:
        """Evaluate at a multiple of what is kept at a sparsity; 0 where that is all, or no weight."""
        removed = 1 - kept * (1 - sparsity)
        return self(removed_count(removed, self.profile.dimension) / self.profile.dimension) if 0 < removed < 1 else 0.0


def measured_limit(
    objective: Objective,
    profile: MagnitudeProfile,
    epsilon: float,
    guess: float,
    dense: float | None = None,
    part: Objective | None = None,
) -> Measured:
    r"""Measure the largest sparsity at which one-shot magnitude pruning keeps :math:`F \le F(w^*) + \varepsilon`.

    Args:
        objective: The training objective on all its data.
        profile: Magnitude profile of the objective's weights.
        epsilon: Allowed rise, > 0.
        guess: Where to start looking.
        dense: The objective at the unpruned weights, if known.
        part: The objective on a sub-sample, where the search begins; what it finds is the guess for all data.

    Returns:
        The sparsity, to a resolution of 1e-4 or one weight, and the rise at every sparsity that was evaluated, among
        them those that keep twice and half as much.
    """
    whole, power, spent = _Rise(objective, profile, dense), None, 0
    if part is not None and part is not objective:
        sketch = _Rise(part, profile, None)
        guess = largest_passing(sketch, epsilon, guess, profile.dimension)
        power = _power(sketch.outside(guess, 1 + NEARBY), sketch.outside(guess, 1 - NEARBY))
        spent = sketch.samples
    sparsity = largest_passing(whole, epsilon, guess, profile.dimension, power=power)
    for kept in (2.0, 0.5):
        whole.outside(sparsity, kept)
    return Measured(sparsity, tuple(sorted(whole.found.items())), spent + whole.samples)


class QuadraticRise:
    r"""Rise :math:`-g^\top d + \frac12 d^\top H d` of the quadratic model, each sparsity evaluated once.

    Args:
        operator: Curvature H; where it acts in a subspace, that of all weights is meant.
        gradient: Gradient g of the objective at the weights, ``[D]``.
        profile: Magnitude profile; d(s) are the weights that are removed at sparsity s.

    Example:
        >>> import torch
        >>> from estimators import Hessian
        >>> half = lambda model, batch: 0.5 * model.weight.square().sum()
        >>> objective = Objective(torch.nn.Linear(2, 1, bias=False), [torch.zeros(1, 2)], half)
        >>> profile = MagnitudeProfile({"weight": torch.tensor([[1.0, 2.0]])})
        >>> round(QuadraticRise(Hessian(objective), torch.tensor([0.1, 0.0]), profile)(0.5), 6)
        0.4
    """

    def __init__(self, operator: SubspaceOperator, gradient: Tensor, profile: MagnitudeProfile) -> None:
        self.operator, self.gradient, self.profile = operator, gradient, profile
        self._curved: dict[int, float] = {}

    def __call__(self, sparsity: float) -> float:
        """Return the rise at a sparsity, to the nearest weight."""
        return self.linear(sparsity) + self.quadratic(sparsity)

    def linear(self, sparsity: float) -> float:
        """Return the part of the rise that is linear in the removed weights."""
        return -float(self.gradient.double().dot(self.removed(sparsity).double()))

    def removed(self, sparsity: float) -> Tensor:
        """Return the weights that are removed at a sparsity, to the nearest weight, ``[D]``."""
        return self._removed(self._count(sparsity))

    def quadratic(self, sparsity: float) -> float:
        """Return the other part of the rise."""
        count = self._count(sparsity)
        if count not in self._curved:
            self._curved[count] = self._half_curved(self._removed(count))
        return self._curved[count]

    def _count(self, sparsity: float) -> int:
        return round(sparsity * self.profile.dimension)

    def _removed(self, count: int) -> Tensor:
        return self.profile.removed(count / self.profile.dimension)

    def _half_curved(self, removed: Tensor) -> float:
        vector, left_out = self.operator.project(removed[:, None])[:, 0], 0.0
        if self.operator.outside:
            lost = float(removed.double().square().sum()) - float(vector.double().square().sum())
            left_out = self.operator.outside * lost
        return 0.5 * (float(vector.double().dot(self.operator.matmat(vector[:, None])[:, 0].double())) + left_out)


def quadratic_limit(rise: QuadraticRise, epsilon: float, guess: float) -> float:
    """Largest sparsity at which the quadratic model rises by at most epsilon.

    Args:
        rise: Rise of the model.
        epsilon: Allowed rise, > 0.
        guess: Where to start looking.

    Returns:
        The sparsity, to a resolution of 1e-3 or one weight.
    """
    profile = rise.profile
    near = [profile.removed_norm(max(0.0, 1 - kept * (1 - guess))) ** 2 for kept in (1 + NEARBY, 1 - NEARBY)]
    return largest_passing(rise, epsilon, guess, profile.dimension, resolution=1e-3, power=_power(*near))
