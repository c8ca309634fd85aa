"""How well predictors forecast the sparsity that re-training reaches, on families left out of the fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from estimators.errors import UserError
from pruning_limits.forecast import Rule
from validation.studies.limits.calibration import Case, calibrated, fitted, left_out, root_mean_square, usable, within
from validation.studies.limits.forecast_curves import Level, crossing
from validation.tables.writing import Row

FAMILIES = {
    "fc": "fully connected",
    "gelu-mlp": "fully connected",
    "lenet-300-100": "fully connected",
    "lenet": "LeNet",
    "small-cnn": "LeNet",
    "cnn-tiny": "LeNet",
    "mnistnet": "LeNet",
    "vgg": "VGG",
    "resnet": "residual",
    "mobilenet": "depthwise separable",
    "characters": "character transformer",
    "vit": "vision transformer",
    "recurrent": "recurrent",
    "conv-gru": "recurrent",
}
ASIDE = ("vision transformer", "recurrent")  # looked at after the rules were fixed
RULES = (("one-shot", "re-tuned"), ("one-shot",), ("hessian",), ("ggn",))
FALLING = ("epsilon", "loss", "weights")
DRAWS = 400
AGAIN = "again-"


@dataclass(frozen=True)
class Predictor:
    """Features that a rule may take.

    Attributes:
        name: What the table calls them.
        features: Their names.
        baseline: Whether no curvature and no training is behind them.
    """

    name: str
    features: tuple[str, ...]
    baseline: bool = False


PREDICTORS = (
    Predictor("a constant", (), True),
    Predictor("epsilon alone", ("epsilon",), True),
    Predictor("one-shot alone", ("one-shot",), True),
    Predictor("one-shot, at twice the loss too", ("one-shot", "one-shot, twice"), True),
    Predictor("one-shot, epsilon, weights", ("one-shot", "epsilon", "weights"), True),
    Predictor("re-tuned alone, 512 samples", ("re-tuned, 512",), True),
    Predictor("re-tuned alone, 2,048 samples", ("re-tuned",), True),
    Predictor("re-tuned, 512 and 2,048 samples", ("re-tuned", "re-tuned, 512"), True),
    Predictor("re-tuned, one-shot", ("re-tuned", "one-shot"), True),
    Predictor("Hessian", ("hessian",)),
    Predictor("Hessian, negative eigenvalues at zero", ("hessian clipped",)),
    Predictor("Hessian of the objective", ("hessian of the objective",)),
    Predictor("GGN", ("ggn",)),
    Predictor("GGN of the objective", ("ggn of the objective",)),
    Predictor("GGN, corrected for fitted networks", ("ggn, fitted",)),
    Predictor("directional", ("directional",)),
    Predictor("Hessian, GGN", ("hessian", "ggn")),
    Predictor("one-shot, Hessian", ("one-shot", "hessian")),
    Predictor("one-shot, GGN", ("one-shot", "ggn")),
    Predictor("one-shot, Hessian, GGN", ("one-shot", "hessian", "ggn")),
    Predictor("re-tuned, Hessian", ("re-tuned", "hessian")),
    Predictor("one-shot, re-tuned, Hessian", ("one-shot", "re-tuned", "hessian")),
)
MEASURED = {
    "one-shot": "alone",
    "re-tuned": "retuned-2048",
    "re-tuned, 512": "retuned-512",
    "hessian": "hessian",
    "hessian clipped": "hessian_clipped",
    "hessian of the objective": "hessian_objective",
    "ggn": "ggn",
    "ggn of the objective": "ggn_objective",
    "ggn, fitted": "ggn_fitted",
    "directional": "directional",
    "schur": "schur",
    "iterative": "iterative",
    "optimised": "optimised",
}


def family_of(model: str) -> str:
    """Return the family of a model of the suites; another model is a family of its own.

    Example:
        >>> family_of("lenet-slim"), family_of("lenet-300-100"), family_of("mine.py:net")
        ('LeNet', 'fully connected', 'mine.py:net')
    """
    names = [name for name in FAMILIES if model.startswith(name)]
    return FAMILIES[max(names, key=len)] if names else model


def network_name(row: Row) -> str:
    """Return what tells a network from others."""
    return f"{row['model']} on {row['dataset']}, {row['recipe']}, seed {row['seed']}"


def cases_of(rows: Sequence[Row]) -> list[Case]:
    """Return a case for every network and level whose end lies within the grid; the runs' geometric mean is true."""
    cases = []
    for row in rows:
        for level in row["levels"]:
            ends = [value for key, value in level.items() if key.startswith(AGAIN)]
            if not ends or None in ends or level["epsilon"] is None:
                continue
            features = {name: level.get(key) for name, key in MEASURED.items()}
            twice = Level(level["name"], level["key"], 2 * level["allowed"])
            features |= {
                "one-shot, twice": crossing(row["curves"]["alone"], twice),
                "epsilon": level["epsilon"],
                "weights": row["parameters"],
                "loss": row["dense"]["loss"],
                "hessian error": level.get("hessian_error"),
                "ggn error": level.get("ggn_error"),
            }
            known = {name: float(value) for name, value in features.items() if value is not None}
            kept = math.exp(float(np.mean(np.log(ends))))
            cases.append(Case(network_name(row), family_of(row["model"]), level["name"], known, kept))
    return cases


def spread_of_runs(rows: Sequence[Row]) -> float:
    """Standard deviation of one run's kept fraction over the levels of all networks, as a factor."""
    logarithms = [
        [math.log(value) for key, value in level.items() if key.startswith(AGAIN)]
        for row in rows
        for level in row["levels"]
        if all(value is not None for key, value in level.items() if key.startswith(AGAIN))
    ]
    variances = [float(np.var(values, ddof=1)) for values in logarithms if len(values) > 1]
    return math.exp(float(np.mean(variances)) ** 0.5) if variances else math.nan


def residuals_of(cases: Sequence[Case], predictor: Predictor) -> list[float]:
    """Residuals of a predictor, leaving families out."""
    return left_out(cases, lambda part: fitted(part, predictor.features, FALLING))


def bootstrapped(residuals: Sequence[float], networks: Sequence[str], draws: int = DRAWS) -> tuple[float, float]:
    """Central 90 % of the root mean square over draws of networks with replacement, as factors."""
    names = sorted(set(networks))
    squares = np.array(
        [np.mean([r**2 for r, other in zip(residuals, networks, strict=True) if other == name]) for name in names]
    )
    generator = np.random.default_rng(0)
    picked = generator.integers(len(names), size=(draws, len(names)))
    low, high = np.quantile(np.sqrt(squares[picked].mean(axis=1)), (0.05, 0.95))
    return math.exp(float(low)), math.exp(float(high))


@dataclass(frozen=True)
class Coverage:
    """How intervals fare on families that neither fit nor residuals have seen.

    Attributes:
        share: Share of the cases within, every network with the same weight.
        factor: Median of the ratio of the interval's ends, as a factor to either side of its middle.
    """

    share: float
    factor: float


def covered(cases: Sequence[Case], features: tuple[str, ...]) -> Coverage:
    """Leave every family out, calibrate on the others, and look whether its networks end within the intervals."""
    known = usable(cases, features)
    rules = rules_without(known, features)
    shares: dict[str, list[bool]] = {}
    factors = []
    for case in known:
        rule = rules[case.family]
        shares.setdefault(case.network, []).append(holds(rule, case))
        factors.append(math.exp((rule.high - rule.low) / 2))
    return Coverage(float(np.mean([np.mean(values) for values in shares.values()])), float(np.median(factors)))


def holds(rule: Rule, case: Case) -> bool:
    """Tell whether a case ends within the interval of a rule."""
    return bool(rule.low <= math.log(case.kept) - rule.logarithm(case.features) <= rule.high)


def aside(cases: Sequence[Case], features: tuple[str, ...]) -> Row | None:
    """Return the skill on the families that were kept aside, by a rule of all others; None where either are too few."""
    known = usable(cases, features)
    apart = [case for case in known if case.family in ASIDE]
    others = [case for case in known if case.family not in ASIDE]
    if not apart:
        return None
    try:
        rule = calibrated(others, features)
    except UserError:
        return None
    residuals = [math.log(case.kept) - rule.logarithm(case.features) for case in apart]
    networks = [case.network for case in apart]
    shares = [
        np.mean([holds(rule, case) for case in apart if case.network == name]) for name in dict.fromkeys(networks)
    ]
    return {
        "rms": root_mean_square(residuals, networks),
        "within": within(residuals),
        "coverage": float(np.mean(shares)),
        "bias": math.exp(float(np.mean(residuals))),
    }


def shared(cases: Sequence[Case]) -> list[Case]:
    """Return the cases that all predictors know."""
    return usable(cases, sorted({name for predictor in PREDICTORS for name in predictor.features}))


def rules_without(cases: Sequence[Case], features: tuple[str, ...]) -> dict[str, Rule]:
    """Return for every family the rule of all others."""
    families = dict.fromkeys(case.family for case in cases)
    return {family: calibrated([case for case in cases if case.family != family], features) for family in families}


def skill_rows(cases: Sequence[Case]) -> list[Row]:
    """Return the skill of every predictor on the cases that all predictors know."""
    known = shared(cases)
    networks = [case.network for case in known]
    rows = []
    for predictor in PREDICTORS:
        residuals = residuals_of(known, predictor)
        low, high = bootstrapped(residuals, networks)
        rows.append(
            {
                "predictor": predictor.name,
                "baseline": predictor.baseline,
                "cases": len(known),
                "networks": len(set(networks)),
                "rms": root_mean_square(residuals, networks),
                "rms_low": low,
                "rms_high": high,
                "within": within(residuals),
                "fit": list(fitted(known, predictor.features, FALLING).slopes),
            }
        )
    return rows


def ratios(cases: Sequence[Case], first: str, second: str) -> tuple[float, float, int] | None:
    """Mean ratio of two kept fractions as a factor, its spread, and the number of cases; ``"again"`` is the truth."""
    pairs = [(_number(case, first), _number(case, second)) for case in cases]
    logarithms = [math.log(a / b) for a, b in pairs if a and b]
    if len(logarithms) < 2:
        return None
    return math.exp(float(np.mean(logarithms))), math.exp(float(np.std(logarithms, ddof=1))), len(logarithms)


def _number(case: Case, name: str) -> float | None:
    return case.kept if name == "again" else case.features.get(name)


def by_family(cases: Sequence[Case], features: tuple[str, ...]) -> Iterator[Row]:
    """Return the skill on every family that is left out."""
    known = usable(cases, features)
    residuals = left_out(known, lambda part: fitted(part, features))
    for family in dict.fromkeys(case.family for case in known):
        own = [(value, case.network) for value, case in zip(residuals, known, strict=True) if case.family == family]
        values, networks = [value for value, _ in own], [name for _, name in own]
        yield {
            "family": family,
            "networks": len(set(networks)),
            "cases": len(values),
            "rms": root_mean_square(values, networks),
            "bias": math.exp(float(np.mean(values))),
        }


def ladder_rows(rows: Sequence[Row], level: str) -> list[Row]:
    """Return the ladder of every network at one level, the forecast by rules of all other families, and the truth.

    Args:
        rows: Rows of the bench.
        level: Name of the level.

    Returns:
        Sparsities; a network whose end lies beyond the grid is left out.
    """
    cases = usable(cases_of(rows), RULES[0])
    own = {case.network: case for case in cases if case.level == level}
    rules = rules_without(cases, RULES[0])
    lines = []
    for row in rows:
        case = own.get(network_name(row))
        if case is None:
            continue
        rule = rules[case.family]
        centre = rule.logarithm(case.features)
        told = next(entry for entry in row["levels"] if entry["name"] == level)
        edge = told.get("bound")
        kept = {"sparsity": 0.0, "low": rule.high, "high": rule.low}
        lines.append(
            {key: row[key] for key in ("model", "dataset", "recipe", "penalty", "parameters")}
            | {key: 1 - min(1.0, math.exp(centre + end)) for key, end in kept.items()}
            | {
                "family": case.family,
                "one_shot": 1 - case.features["one-shot"],
                "retuned": 1 - case.features["re-tuned"],
                "formula": 1 - case.features["hessian"],
                "bound": None if edge is None else 1 - edge,
                "true": 1 - case.kept,
                "within": "yes" if holds(rule, case) else "no",
            }
        )
    return lines


def told_with(rows: Sequence[Row], name: str) -> Row:
    """Return the row of a predictor."""
    return next(row for row in rows if row["predictor"] == name)
