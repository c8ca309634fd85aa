"""Forecast of what re-training reaches: an empirical rule with its interval, calibrated on trained networks."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from estimators.errors import UserError
from estimators.files import path_of

FORMAT = "pruning-forecast/1"
FILE = "forecast.json"
FEATURES = ("one-shot", "re-tuned", "hessian", "ggn")
RANGED = (*FEATURES, "weights", "hessian error", "ggn error")
OUTSIDE = 2.0  # times as wide, in logarithms, outside the bench
MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class Rule:
    r"""A rule for what is known of a network, :math:`\log k = a + \sum_j b_j \log x_j` of its kept fractions.

    Attributes:
        features: Names of the kept fractions :math:`x_j`, of ``FEATURES``.
        intercept: a.
        slopes: :math:`b_j \ge 0`, so that the forecast keeps fewer weights where more may be lost.
        low: Logarithm of the factor from the forecast to the lower end of the kept fraction, <= 0.
        high: The same for the upper end, >= 0.
    """

    features: tuple[str, ...]
    intercept: float
    slopes: tuple[float, ...]
    low: float
    high: float

    def __post_init__(self) -> None:
        numbers = (self.intercept, *self.slopes, self.low, self.high)
        if not all(math.isfinite(number) for number in numbers) or not self.low <= 0 <= self.high:
            raise ValueError("numbers of a rule are not finite, or the ends of its interval are not around it")
        if len(self.slopes) != len(self.features) or not set(self.features) <= set(FEATURES) or not self.features:
            raise ValueError(f"a rule needs one slope for each of some of {', '.join(FEATURES)}")
        if min(self.slopes) < 0:
            raise ValueError("a slope is negative")

    def logarithm(self, features: Mapping[str, float]) -> float:
        """Return the logarithm of the kept fraction."""
        terms = zip(self.features, self.slopes, strict=True)
        return self.intercept + sum(slope * math.log(features[name]) for name, slope in terms)


@dataclass(frozen=True)
class Forecasted:
    """Where re-training ends by a forecast, as kept fractions.

    Attributes:
        kept: Centre.
        low: Fewest that may be needed.
        high: Most that may be needed.
        outside: Which features lie outside what was seen, in words; the interval is then wider.
    """

    kept: float
    low: float
    high: float
    outside: tuple[str, ...]


@dataclass(frozen=True)
class Forecast:
    """Rules of one calibration, the one of most features first.

    Attributes:
        version: Name of the calibration.
        networks: Number of networks that it rests on.
        families: Number of their families.
        coverage: Share of networks that the intervals shall contain.
        ranges: Name, least and largest value of what was seen, see ``RANGED``.
        rules: The rules.

    Example:
        >>> forecast = Forecast.shipped()
        >>> result = forecast.of({"one-shot": 0.4, "hessian": 0.2, "weights": 20_000, "hessian error": 0.01})
        >>> result.low <= result.kept <= result.high
        True
    """

    version: str
    networks: int
    families: int
    coverage: float
    ranges: tuple[tuple[str, float, float], ...]
    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        if not self.rules or not 0 < self.coverage < 1 or min(self.networks, self.families) < 1:
            raise ValueError("a forecast needs rules, a coverage between 0 and 1, and networks")
        for name, low, high in self.ranges:
            if name not in RANGED or not 0 <= low <= high < math.inf:
                raise ValueError(f"the range of {name!r} is not that of a feature")

    @classmethod
    def shipped(cls) -> Forecast:
        """Return the calibration that comes with this package."""
        return _shipped()

    @classmethod
    def read(cls, path: str | Path) -> Forecast:
        """Read a calibration that ``pruning-limits validate --table forecast`` wrote.

        Raises:
            UserError: The file cannot be read, is damaged, or is of another format.
        """
        try:
            with path_of("forecast", path).open("rb") as file:
                content = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise UserError(f"forecast: cannot read {path}: {error.strerror}") from None
        try:
            plain = json.loads(content[:MOST_BYTES].decode())
            if plain["format"] != FORMAT:
                raise ValueError(f"its format is {plain['format']!r}")
            return cls.from_plain(plain)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"forecast: {path} is no calibration of format {FORMAT} ({reason}); write one with "
                "pruning-limits validate --table forecast"
            ) from None

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Forecast:
        """Build the forecast from plain values; rows and residuals beside them are left out.

        Raises:
            ValueError: A value is out of range.
            KeyError: A value is missing.
            TypeError: A value is of another type.
        """
        rules = tuple(
            Rule(
                tuple(str(name) for name in rule["features"]),
                float(rule["intercept"]),
                tuple(float(slope) for slope in rule["slopes"]),
                float(rule["low"]),
                float(rule["high"]),
            )
            for rule in plain["rules"]
        )
        ranges = tuple((str(name), float(low), float(high)) for name, low, high in plain["ranges"])
        numbers = (int(plain["networks"]), int(plain["families"]), float(plain["coverage"]))
        return cls(str(plain["version"]), *numbers, ranges, rules)

    def of(self, features: Mapping[str, float], strange: tuple[str, ...] = ()) -> Forecasted | None:
        """Forecast what re-training reaches.

        Args:
            features: What is known of the network: kept fractions in (0, 1] by the names of ``FEATURES``, and
                ``"weights"``, the number of its weights, and ``"ggn error"`` and ``"hessian error"``, half-widths of
                the formulas.
            strange: What else of the network was not seen, in words.

        Returns:
            The forecast by the first rule whose features are all known; None where there is none.
        """
        rule = next((rule for rule in self.rules if all(features.get(name, 0.0) > 0 for name in rule.features)), None)
        if rule is None:
            return None
        outside = strange + tuple(
            f"{name} {features[name]:.3g}, the bench has {low:.3g} to {high:.3g}"
            for name, low, high in self.ranges
            if name in features and _counts(name, rule) and not low <= features[name] <= high
        )
        centre = rule.logarithm(features)
        times = OUTSIDE if outside else 1.0
        kept, low, high = (math.exp(min(0.0, centre + end)) for end in (0.0, times * rule.low, times * rule.high))
        return Forecasted(kept, low, high, outside)


def _counts(name: str, rule: Rule) -> bool:
    """Tell whether a rule cares for a feature; an error belongs to the formula of the same name."""
    return name == "weights" or name.removesuffix(" error") in rule.features


@functools.cache
def _shipped() -> Forecast:
    with (files("pruning_limits") / FILE).open("rb") as file:
        return Forecast.from_plain(json.load(file))
