"""The rungs of an answer: for each a sparsity that can be reached, its interval, and how it is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pruning_limits.forecast import OUTSIDE
from pruning_limits.isotropic import Negative, carried_limit, isotropic_limit
from pruning_limits.kinematics import concentration_width
from pruning_limits.measured import DEVIATIONS, ERRORS, Bar, Crossing, Point, at_sparsity, crossing, level
from pruning_limits.settings import CROSS_ENTROPY, Retuning
from pruning_limits.stopping import STOPPING

if TYPE_CHECKING:
    from estimators import SpectralMeasure
    from pruning_limits.directions import Directions
    from pruning_limits.epsilon import Allowed
    from pruning_limits.evidence import Evidence
    from pruning_limits.forecast import Forecast
    from pruning_limits.parts import Estimate
    from pruning_limits.settings import Settings

Basis = Literal["measured", "forecast", "bound", "formula", "unknown"]
Rung = Literal["one-shot", "re-tuned", "re-trained", "bound", "formula"]
MOST_TIMES, MOST_COUNTED = 1e6, 1 << 62
REFUTED = "the quadratic model's bound is refuted"
NOT_RETUNED = "nothing was re-tuned under these conditions"
OUTSIDE_BENCH = "outside the bench"
NO_COVERAGE = "the paper's formula with the GGN; nothing is claimed about how often the truth lies within"


@dataclass(frozen=True)
class Answer:
    """One rung: a sparsity, its interval, and how it is known.

    Attributes:
        rung: ``"one-shot"``, ``"re-tuned"``, ``"re-trained"``, ``"bound"`` or ``"formula"``.
        sparsity: Removed fraction in [0, 1]; None where the basis is ``"unknown"``.
        low: Lower end of the interval; ``status`` says what the interval means. None where nothing is known.
        high: Upper end, likewise.
        basis: How it is known: ``"measured"``, ``"forecast"``, ``"bound"``, ``"formula"``, or ``"unknown"``.
        metric: Mean metric of the network pruned to ``sparsity``; None where it was not measured.
        status: One sentence: what the interval means and what is missing.
    """

    rung: Rung
    sparsity: float | None
    low: float | None
    high: float | None
    basis: Basis
    metric: float | None
    status: str

    def settled(self, tolerance: float) -> bool:
        """Tell whether the interval, in sparsity, is at most twice the tolerance wide."""
        if self.sparsity is None or self.low is None or self.high is None:
            return False
        return self.high - self.low <= 2 * tolerance + 1e-12


@dataclass(frozen=True)
class Verdict:
    """Answer to the question whether a sparsity can be reached.

    Attributes:
        status: ``"achievable"`` where pruning alone reaches the sparsity, as measured or, without a measurement, by the
            quadratic model; ``"infeasible"`` above the bound plus its numerical error; ``"open"`` in between.
        reason: One sentence with the numbers.
        margin: Distance in sparsity to the nearest bound that would change the status.
        metric: Mean metric of the network pruned in one shot to this sparsity, from the measured networks; or None.
    """

    status: Literal["achievable", "open", "infeasible"]
    reason: str
    margin: float
    metric: float | None = None


def points_of(evidence: Evidence) -> tuple[Point, ...]:
    """Return what one-shot pruning does: measured, or by the quadratic model where nothing was measured."""
    if evidence.points:
        return evidence.points
    return tuple(Point(point.sparsity, point.rise) for point in evidence.model_points)


def bar_of(settings: Settings, epsilon: float) -> Bar:
    """Return what a network pruned in one shot may lose."""
    return Bar(epsilon) if settings.max_drop is None else Bar(settings.max_drop, of_metric=True)


def crossed(evidence: Evidence, settings: Settings, epsilon: float) -> Crossing:
    """Return where one-shot pruning first loses more than is allowed."""
    return crossing(points_of(evidence), bar_of(settings, epsilon), evidence.already_removed)


def one_shot(evidence: Evidence, settings: Settings, allowed: Allowed) -> Answer:
    """Answer what pruning reaches alone."""
    where = crossed(evidence, settings, allowed.epsilon)
    low, high = where.low, where.high
    if not evidence.measured:
        status = "not measured: the quadratic model along the removed weights; the interval is that of its evaluation"
        return Answer("one-shot", where.low, low, high, "formula", None, status)
    metric = metric_at(evidence, where.low)
    between = f"the first point of the grid that fails is {where.high:.2%}"
    if where.high >= 1 and where.low >= 1:
        between = "no point of the grid fails"
    start = evidence.already_removed
    if settings.max_drop is None:
        bar = Bar(allowed.epsilon)
        low = crossing(evidence.points, bar, start, DEVIATIONS).low
        high = crossing(evidence.points, bar, start, -DEVIATIONS).high
        drawn = any(point.rise_error for point in evidence.points if low <= point.sparsity <= high)
        beside = "a draw of the data" if evidence.dense.objective_error else "draws beside all data"
        on = f"{beside}, right in 99.9 % of draws" if drawn else "all data"
        return Answer("one-shot", where.low, low, high, "measured", metric, f"measured on {on}; {between}")
    ends = [level(evidence.points, settings.max_drop, sign * ERRORS, start) for sign in (1, -1)]
    low, high = min(low, max(start, ends[0])), max(high, ends[1])
    held = f"{evidence.dense.metric_samples:,} {'held-out' if settings.held_out else 'training'} samples"
    status = f"measured on {held}; {between}; the interval holds two standard errors of the metric's fall"
    return Answer("one-shot", where.low, low, high, "measured", metric, status)


def retuned(evidence: Evidence, settings: Settings, allowed: Allowed, alone: Answer) -> tuple[Answer, ...]:
    """Answer what staged re-tuning reaches, where it was measured: what all of its runs reach.

    Args:
        evidence: What was computed.
        settings: What was asked for.
        allowed: The allowed rise of the criterion.
        alone: The answer of pruning alone, which is reached in any case.
    """
    tuning = evidence.retuned
    if settings.retune is not None and tuning is None:
        return (Answer("re-tuned", None, None, None, "unknown", None, NOT_RETUNED),)
    if tuning is None or alone.sparsity is None or alone.low is None or alone.high is None:
        return ()
    bar, start, ends = bar_of(settings, allowed.epsilon), evidence.already_removed, list[tuple[float, float, float]]()
    for seed in tuning.runs:
        points = tuning.run(seed)
        where = crossing(points, bar, start)
        low, high = where.low, where.high
        if settings.max_drop is not None and where.low > alone.sparsity:
            noise = [level(points, settings.max_drop, sign * ERRORS, start) for sign in (1, -1)]
            low, high = min(low, max(start, noise[0])), max(high, min(noise[1], points[-1].sparsity))
        ends.append((where.low, low, high))
    reached = min(at for at, _, _ in ends)
    runs = "" if len(ends) == 1 else f" in each of {len(ends)} runs"
    cost = f"{tuning.samples:,} training samples a stage, {tuning.seconds:.0f} s"
    if reached <= alone.sparsity:
        tried = min(point.sparsity for point in tuning.points)
        status = f"no re-tuned network passed, from {tried:.2%} on, so that pruning alone reaches as far; {cost}"
        return (
            Answer(
                "re-tuned", alone.sparsity, alone.low, max(alone.high, ends[0][2]), "measured", alone.metric, status
            ),
        )
    low, high = min(low for _, low, _ in ends), max(high for _, _, high in ends)
    drops = [point.drop for point in tuning.points if point.sparsity == reached and point.drop is not None]
    dense = evidence.dense.metric
    metric = None if dense is None or not drops else dense - max(drops)
    noise_text = "" if settings.max_drop is None else "; the interval holds two standard errors of the metric's fall"
    status = f"measured on networks that were pruned in stages and re-tuned{runs}; {cost}{noise_text}"
    return (Answer("re-tuned", reached, low, high, "measured", metric, status),)


def metric_at(evidence: Evidence, sparsity: float) -> float | None:
    """Return the mean metric of the network pruned in one shot to a sparsity, read off what was measured."""
    drop = at_sparsity(evidence.points, sparsity, "drop", evidence.already_removed)
    if drop is None or evidence.dense.metric is None:
        return None
    return evidence.dense.metric - drop


def tuned_to(answers: tuple[Answer, ...], sparsity: float) -> Answer | None:
    """Return the answer of re-tuning where it was measured to reach a sparsity; None elsewhere."""
    tuned = next((answer for answer in answers if answer.rung == "re-tuned"), None)
    return tuned if tuned is not None and tuned.sparsity is not None and sparsity <= tuned.sparsity else None


def retrained(evidence: Evidence, settings: Settings, allowed: Allowed, reached: tuple[Answer, ...]) -> Answer:
    """Answer what re-training the kept weights reaches: a forecast, or where there is none what the formula says.

    The forecast speaks of single weights and of the loss.

    Args:
        evidence: What was computed.
        settings: What was asked for.
        allowed: The allowed rise of the criterion.
        reached: The answers of pruning alone and of re-tuning.
    """
    if evidence.forecast is not None and evidence.own is None and settings.criterion == "loss":
        answer = _forecast(evidence.forecast, evidence, settings, allowed, reached)
        if answer is not None:
            return answer
    return ggn_formula(evidence, allowed)


def _forecast(
    forecast: Forecast, evidence: Evidence, settings: Settings, allowed: Allowed, reached: tuple[Answer, ...]
) -> Answer | None:
    features: dict[str, float] = {"weights": evidence.parameters}
    scaled = bool(evidence.points) and not evidence.measured
    features |= {
        answer.rung: 1 - answer.sparsity
        for answer in reached
        if (answer.basis == "measured" or (scaled and answer.rung == "one-shot")) and answer.sparsity is not None
    }
    features |= spectral_features(evidence, settings, allowed.epsilon)
    strange = list[str]()
    if settings.loss != CROSS_ENTROPY:
        strange.append(f"the loss is {settings.loss}, the bench has {CROSS_ENTROPY}")
    if "re-tuned" in features and settings.retune is not None and not settings.retune.usual:
        strange.append(f"re-tuning took {settings.retune}, the bench has {Retuning()}")
    ahead = forecast.of(features, tuple(strange))
    if ahead is None:
        return None
    already = max([1 - features[answer.rung] for answer in reached if answer.rung in features], default=0.0)
    sparsity, low, high = (max(already, 1 - kept) for kept in (ahead.kept, ahead.high, ahead.low))
    share = f"{10 * forecast.coverage:.3g} of 10 networks"
    status = (
        f"forecast of what the magnitude mask reaches after the whole recipe once more: {share} end within the "
        f"interval, by {forecast.networks} networks of {forecast.families} families (calibration {forecast.version})"
    )
    if scaled:
        status += "; under scaled conditions it takes what pruning alone reaches by the scaled rises"
        status += ", and leaves out what was re-tuned" if settings.retune is not None else ""
    if ahead.outside:
        status += f"; {OUTSIDE_BENCH}, so that the interval is {OUTSIDE:g} times as wide: {'; '.join(ahead.outside)}"
    return Answer("re-trained", sparsity, low, high, "forecast", None, status)


def spectral_features(evidence: Evidence, settings: Settings, epsilon: float) -> dict[str, float]:
    """Return what a forecast takes from spectra: kept fractions by the formula, and their half-widths.

    Args:
        evidence: What was computed.
        settings: What was asked for.
        epsilon: Allowed rise of the criterion, > 0.

    Returns:
        ``"ggn"`` and ``"hessian"`` where they are known, each with its error.
    """
    features: dict[str, float] = {}
    spectra: list[tuple[str, Estimate | None, Negative]] = [("ggn", evidence.ggn, "clip")]
    if settings.curvature == "hessian":
        spectra.append(("hessian", evidence.hessian, "abs"))
    for name, estimate, negative in spectra:
        if estimate is not None:
            (sparsity, low, high), _ = _isotropic(estimate, evidence, epsilon, negative)
            features |= {name: 1 - sparsity, f"{name} error": max(high - sparsity, sparsity - low)}
    return features


def ggn_formula(evidence: Evidence, allowed: Allowed) -> Answer:
    """Answer what the formula with the GGN says of re-training the kept weights."""
    if evidence.ggn is None:
        return Answer("re-trained", None, None, None, "unknown", None, evidence.unknown)
    ends, _ = _isotropic(evidence.ggn, evidence, allowed.epsilon, "clip")
    return Answer("re-trained", *ends, "formula", None, f"{NO_COVERAGE}; the interval is its numerical error")


def formula(evidence: Evidence, settings: Settings, allowed: Allowed) -> Answer:
    """Answer what the paper's isotropic formula says, with its numerical interval."""
    ends, error = _isotropic(evidence.hessian, evidence, allowed.epsilon, settings.negative)
    status = _numerical_status(evidence.hessian, error, settings, evidence.dense.samples)
    return Answer("formula", *ends, "formula", None, status)


def _isotropic(
    estimate: Estimate, evidence: Evidence, epsilon: float, negative: Negative
) -> tuple[tuple[float, float, float], float]:
    """Return an isotropic limit with the ends of its numerical interval, and its standard error from the probes."""
    sparsity = carried_limit(estimate, evidence.curve, epsilon, negative)
    error = isotropic_limit(estimate.measure, evidence.curve, epsilon, negative).standard_error
    half = estimate.half_width(error)
    ends = (sparsity, max(0.0, sparsity - half), sparsity + half)
    return tuple(min(evidence.most, end) for end in ends), error  # type: ignore[return-value]


def _numerical_status(estimate: Estimate, standard_error: float, settings: Settings, total: int) -> str:
    half = estimate.half_width(standard_error)
    if half <= settings.tolerance:
        return "converged"
    samples = min(total, _needed(estimate.samples, estimate.sample_error, settings.tolerance / 2))
    probes = _needed(estimate.measure.probes, 2 * standard_error, settings.tolerance / 2)
    bulk = f"{estimate.steps} steps do not resolve the bulk of the spectrum; "
    if settings.steps is None and estimate.steps < STOPPING.fewest_at_most:
        accepted = math.ceil(1000 * min(half, 1.0)) / 1000
        bulk += f"more would hardly help: accept tolerance={accepted}, or take curvature='ggn'"
    else:
        bulk += f"try steps={2 * estimate.steps}"
    few = f"{estimate.samples} of {total} samples are too few; try samples={samples}"
    if estimate.samples == total:
        few = "products by finite differences are too coarse; give the model in a longer floating point type"
    causes = {
        bulk: estimate.step_error,
        few: estimate.sample_error,
        f"the probes disagree; try probes={probes}": 2 * standard_error,
    }
    cause = max(causes, key=lambda text: causes[text])
    return f"unresolved: half-width {half:.4f} exceeds tolerance {settings.tolerance}; {cause}"


def _needed(count: int, error: float, wanted: float) -> int:
    """Return the number for which an error that goes with its root is as small as wanted."""
    ratio = error / wanted if wanted > error / MOST_TIMES else MOST_TIMES
    return math.ceil(min(count, MOST_COUNTED) * ratio**2)


def directional(evidence: Evidence, allowed: Allowed) -> float | None:
    """Return the directional limit with the GGN, or None where the GGN says nothing."""
    if evidence.ggn is None or evidence.directions is None:
        return None
    directions = evidence.directions
    return directions.carried(evidence.ggn).limit(directions.solver(evidence.curve, allowed.epsilon))


def bound(evidence: Evidence, allowed: Allowed, at: float | None, lower: float, how: str = "pruning alone") -> Answer:
    """Answer beyond which sparsity re-tuning fails in the quadratic model.

    Args:
        evidence: What was computed.
        allowed: The allowed rise of the criterion.
        at: The directional limit.
        lower: What was measured to be reached.
        how: What reaches it.
    """
    if at is None or evidence.ggn is None or evidence.directions is None:
        return Answer("bound", None, None, None, "unknown", None, evidence.unknown)
    upper = with_window(at, evidence.parameters)
    solve = evidence.directions.solver(evidence.curve, allowed.epsilon)
    fewer, more = _bound_errors(evidence.ggn, evidence.directions, solve, at)
    low, high = (with_window(end, evidence.parameters) for end in (at - more, at + fewer))
    if lower > high:
        reason = f"{REFUTED}: it is {upper:.2%}, and {how} reaches {lower:.2%}"
        return Answer("bound", None, None, None, "unknown", None, reason)
    if high >= 1:
        reason = f"the numerical error of the quadratic model's bound, {upper:.2%}, reaches 100 %"
        return Answer("bound", None, None, None, "unknown", None, reason)
    status = "the directional limit of the quadratic model and the kinematic window; the interval is numerical error"
    return Answer("bound", max(lower, upper), max(lower, low), high, "bound", None, status)


def _bound_errors(
    ggn: Estimate, directions: Directions, solve: Callable[[SpectralMeasure], float], at: float
) -> tuple[float, float]:
    r"""Return by how much less and more than :math:`k` may be kept at the directional limit, in sparsity.

    Steps err by :math:`\delta`, as the measures of the GGN that enclose the limit differ, and as the recurrences along
    the directions do. What the sub-sample keeps is known to that. Samples err by a factor :math:`1 + \rho` on top, the
    spread of the directions: from :math:`(k-\delta)/(1+\rho)` to :math:`(k+\delta)(1+\rho)`.
    """
    kept, times = 1 - at, 1 + directions.spread
    steps = directions.carried(ggn).certified(solve).step_error + directions.growth * directions.step_error
    return kept - max(0.0, kept - steps) / times, (kept + steps) * times - kept


def with_window(at: float, dimension: int) -> float:
    """Return a directional limit, taken into [0, 1], plus the kinematic window at 5 %, at most 1."""
    at = min(1.0, max(0.0, at))
    return min(1.0, at + concentration_width(at * dimension, dimension) / dimension)


def settled_text(answers: tuple[Answer, ...], tolerance: float) -> str:
    """Say in one sentence which rungs are settled, their intervals within the tolerance to both sides."""
    settled = [answer.rung for answer in answers if answer.settled(tolerance)]
    rest = [answer for answer in answers if not answer.settled(tolerance)]
    left = [
        f"{answer.rung} (unknown)"
        if answer.sparsity is None or answer.low is None or answer.high is None
        else f"{answer.rung} (+- {50 * (answer.high - answer.low):.1f} points)"
        for answer in rest
    ]
    parts = [f"settled: {', '.join(settled)}"] if settled else []
    return "; ".join([*parts, f"not settled: {', '.join(left)}"] if left else parts)
