"""Rules for the kept fraction fitted on logarithms, and intervals by conformal residuals grouped by network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from estimators.errors import UserError
from pruning_limits.forecast import Rule

Floats = NDArray[np.float64]
COVERAGE = 0.9


@dataclass(frozen=True)
class Case:
    """One network at one level.

    Attributes:
        network: Which network; its levels belong together.
        family: Kind of network.
        level: Name of the level.
        features: Positive numbers by name.
        kept: Kept fraction that is to be told, in (0, 1].
    """

    network: str
    family: str
    level: str
    features: Mapping[str, float]
    kept: float


@dataclass(frozen=True)
class Fit:
    """An intercept and one slope for each feature, on logarithms."""

    features: tuple[str, ...]
    intercept: float
    slopes: tuple[float, ...]

    def logarithm(self, case: Case) -> float:
        """Return the logarithm of the kept fraction that is told of a case."""
        return self.intercept + sum(
            slope * math.log(case.features[name]) for name, slope in zip(self.features, self.slopes, strict=True)
        )

    def residual(self, case: Case) -> float:
        """Return the logarithm of the true kept fraction over the one that is told."""
        return math.log(case.kept) - self.logarithm(case)


def usable(cases: Iterable[Case], features: Sequence[str]) -> list[Case]:
    """Return the cases that have all of some features."""
    return [case for case in cases if all(case.features.get(name, 0.0) > 0 for name in features)]


def fitted(cases: Sequence[Case], features: tuple[str, ...], falling: Sequence[str] = ()) -> Fit:
    """Fit slopes by least squares on logarithms, every network with the same weight.

    Args:
        cases: Cases with all features.
        features: Names of the features; none fits a constant.
        falling: Features whose slope is at most 0; those of the others are at least 0.

    Returns:
        The fit.

    Raises:
        UserError: There are no cases.

    Example:
        >>> cases = [Case(str(n), "any", "", {"x": 0.1 * n}, 0.5 * (0.1 * n) ** 2) for n in range(1, 9)]
        >>> [round(number, 6) for number in (math.exp(fitted(cases, ("x",)).intercept), *fitted(cases, ("x",)).slopes)]
        [0.5, 2.0]
    """
    from scipy.optimize import lsq_linear

    if not cases:
        raise UserError(f"forecast: no case has all of {', '.join(features)}")
    counts = {name: sum(case.network == name for case in cases) for name in {case.network for case in cases}}
    weights = np.array([counts[case.network] ** -0.5 for case in cases])
    columns = [[1.0, *(math.log(case.features[name]) for name in features)] for case in cases]
    truth = np.array([math.log(case.kept) for case in cases])
    low = [-np.inf, *(-np.inf if name in falling else 0.0 for name in features)]
    high = [np.inf, *(0.0 if name in falling else np.inf for name in features)]
    solution = lsq_linear(weights[:, None] * np.array(columns), weights * truth, (low, high), method="bvls").x
    return Fit(features, float(solution[0]), tuple(solution[1:].tolist()))


def left_out(cases: Sequence[Case], fit: Callable[[Sequence[Case]], Fit]) -> list[float]:
    """Residual of every case by a fit on all other families.

    Args:
        cases: Cases of two families at least.
        fit: From cases to a fit.

    Raises:
        UserError: All cases are of one family.
    """
    families = {case.family for case in cases}
    if len(families) < 2:
        raise UserError(f"forecast: needs networks of two families at least, got {', '.join(sorted(families))}")
    fits = {family: fit([case for case in cases if case.family != family]) for family in families}
    return [fits[case.family].residual(case) for case in cases]


def grouped_quantile(values: Sequence[float], groups: Sequence[str], share: float) -> float:
    """Upper bound of a new value of a new group with a probability, whatever the distribution.

    Every group has the same weight, and one more group might be anything. For groups that are exchangeable the bound
    holds with at least the probability asked for.

    Args:
        values: One value per case.
        groups: Its group.
        share: The probability in (0, 1).

    Returns:
        The least value that enough of the weight lies at or below; infinite where the groups are too few.

    Source: Lee, Barber and Willett, Distribution-free inference with hierarchical data, arXiv:2306.06342, 2023.

    Example:
        >>> grouped_quantile([1.0, 2.0, 3.0, 4.0], ["a", "b", "c", "d"], 0.6)
        3.0
    """
    counts = {name: groups.count(name) for name in set(groups)}
    weights = np.array([1 / counts[name] for name in groups]) / (len(counts) + 1)
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    place = int(np.searchsorted(reached, share - 1e-12))
    return float(np.asarray(values)[order][place]) if place < len(values) else math.inf


def interval(residuals: Sequence[float], groups: Sequence[str], coverage: float = COVERAGE) -> tuple[float, float]:
    """Ends of residuals of a new group, as far to either side: with few groups the tails of one side are too few."""
    half = grouped_quantile([abs(value) for value in residuals], list(groups), coverage)
    return -half, half


def calibrated(cases: Sequence[Case], features: tuple[str, ...], coverage: float = COVERAGE) -> Rule:
    """Fit a rule on all cases, with an interval from the residuals of families that were left out.

    Args:
        cases: Cases of two families at least; those without a feature are left out.
        features: Names of the features.
        coverage: Share of new networks whose truth the interval shall contain.

    Returns:
        The rule.

    Raises:
        UserError: There are too few networks for such an interval.
    """
    known = usable(cases, features)
    whole = fitted(known, features)
    residuals = left_out(known, lambda part: fitted(part, features))
    low, high = interval(residuals, [case.network for case in known], coverage)
    if math.isinf(low) or math.isinf(high):
        fewest = math.ceil(1 / (1 - coverage) - 1e-9) - 1
        raise UserError(
            f"forecast: {len({case.network for case in known})} networks are too few for an interval of "
            f"{coverage:.0%}; at least {fewest} are needed"
        )
    return Rule(features, whole.intercept, whole.slopes, min(low, 0.0), max(high, 0.0))


def root_mean_square(residuals: Sequence[float], groups: Sequence[str]) -> float:
    """Root mean square of residuals, every group with the same weight, as a factor."""
    means = [
        np.mean([value**2 for value, group in zip(residuals, groups, strict=True) if group == name])
        for name in dict.fromkeys(groups)
    ]
    return math.exp(float(np.mean(means)) ** 0.5)


def within(residuals: Sequence[float], share: float = 0.9) -> float:
    """Factor that so many of the cases lie within."""
    return math.exp(float(np.quantile(np.abs(residuals), share)))
