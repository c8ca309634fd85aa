"""The rungs of one pattern: what pruning alone reaches, and its R next to the R that the formulas allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pruning_limits.answers import Answer, Verdict, bar_of, crossed, metric_at, retuned, tuned_to
from pruning_limits.measured import ERRORS, Point, crossing, level, monotone
from pruning_limits.pattern_names import UNSTRUCTURED

if TYPE_CHECKING:
    from pruning_limits.epsilon import Allowed
    from pruning_limits.evidence import Evidence
    from pruning_limits.result import PruningLimit
    from pruning_limits.settings import Settings
    from pruning_limits.tuned_points import TunedPoint

NO_BOUND = "for this pattern a bound would take products along the weights that it removes"
NOT_MEASURED = "not measured: name the pattern in predict_limit(pattern=...)"


def pattern_answers(
    evidence: Evidence, settings: Settings, allowed: Allowed, answers: tuple[Answer, ...]
) -> tuple[Answer, ...]:
    """Return the rungs of a pattern of groups.

    What pruning and re-tuning reach is measured, or unknown: the quadratic model is along single weights. The formulas
    take R of the pattern. Of one sparsity, as N:M, their answer is the sparsity that they allow at its R, and
    ``status`` tells the margin. There is no bound.

    Args:
        evidence: What was computed, the pattern the present one.
        settings: What was asked for.
        allowed: The allowed rise of the criterion.
        answers: The rungs as those of single weights.
    """
    own = evidence.own
    assert own is not None
    alone = next(_alone(evidence, settings, allowed, answer) for answer in answers if answer.rung == "one-shot")

    def of_pattern(answer: Answer) -> Answer:
        if answer.rung == "one-shot":
            return alone
        if answer.rung == "re-tuned":
            return _retuned(evidence, settings, allowed, alone) or answer
        if answer.rung == "bound" and evidence.unknown == "":
            return replace(answer, status=NO_BOUND)
        return _compared(answer, own.name, own.most) if own.fixed else answer

    return tuple(of_pattern(answer) for answer in answers)


def _compared(answer: Answer, name: str, takes: float) -> Answer:
    if answer.sparsity is None:
        return answer
    margin = 100 * (answer.sparsity - takes)
    text = f"{abs(margin):.1f} points {'to spare' if margin >= 0 else 'short'}"
    return replace(answer, status=f"{answer.status}; at the R of {name}, which removes {takes:.2%}: {text}")


def _alone(evidence: Evidence, settings: Settings, allowed: Allowed, answer: Answer) -> Answer:
    own = evidence.own
    assert own is not None
    if not evidence.points:
        if own.already_removed >= own.most:
            status = "the network has this pattern already"
            return Answer("one-shot", own.most, own.most, own.most, "measured", None, status)
        return Answer("one-shot", None, None, None, "unknown", None, NOT_MEASURED)
    if not evidence.measured:
        status = "not measured: scaled from what was measured, as the quadratic model scales"
        if not own.fixed:
            return replace(answer, status=status)
    elif not own.fixed:
        high = None if answer.high is None else min(answer.high, own.most)
        if answer.sparsity == own.most:
            return replace(answer, high=high, status=f"measured; the pattern removes no more than {own.most:.2%}")
        return replace(answer, high=high)
    else:
        status = f"{cost_text(evidence, settings, allowed)}, measured"
    point = evidence.points[-1]
    holds = bar_of(settings, allowed.epsilon).passes(bar_of(settings, allowed.epsilon).loss(point))
    reached = own.most if holds else own.already_removed
    basis = answer.basis
    return Answer("one-shot", reached, reached, reached, basis, metric_at(evidence, reached), status)


def _retuned(evidence: Evidence, settings: Settings, allowed: Allowed, alone: Answer) -> Answer | None:
    """Answer what re-tuning reaches in a pattern; None where it was not measured."""
    own = evidence.own
    assert own is not None
    if own.already_removed >= own.most:
        return replace(alone, rung="re-tuned")
    answer = next(iter(retuned(evidence, settings, allowed, alone)), None)
    if evidence.retuned is None or answer is None:
        return answer
    if not own.fixed:
        high = None if answer.high is None else max(answer.low or 0.0, min(answer.high, own.most))
        return replace(answer, high=high)
    point, reached = _worst(evidence, settings, allowed), alone.sparsity
    bar, metric = bar_of(settings, allowed.epsilon), alone.metric
    if bar.passes(bar.loss(point)):
        reached = own.most
        metric = None if evidence.dense.metric is None or point.drop is None else evidence.dense.metric - point.drop
    cost = cost_of(point, own.name, settings, allowed)
    seconds = f"{evidence.retuned.samples:,} training samples, {evidence.retuned.seconds:.0f} s"
    status = f"re-tuned, {cost}, measured; {seconds}"
    return Answer("re-tuned", reached, reached, reached, "measured", metric, status)


def _worst(evidence: Evidence, settings: Settings, allowed: Allowed) -> TunedPoint:
    """Return the re-tuned network of the run that loses most, of a pattern of one sparsity."""
    assert evidence.retuned is not None
    return max(evidence.retuned.points, key=bar_of(settings, allowed.epsilon).loss)


def cost_text(evidence: Evidence, settings: Settings, allowed: Allowed) -> str:
    """Say what a pattern of one sparsity costs, and how much may be lost."""
    return cost_of(evidence.points[-1], evidence.pattern, settings, allowed)


def cost_of(point: Point, name: str, settings: Settings, allowed: Allowed) -> str:
    """Say what a network that is pruned in a pattern has lost, and how much it may.

    Args:
        point: The network.
        name: The pattern.
        settings: What was asked for.
        allowed: The allowed rise of the criterion.
    """
    if settings.max_drop is not None and point.drop is not None:
        unit, scale = (" points", 100) if settings.metric == "accuracy" else ("", 1)
        amount = f"{scale * point.drop:.2g}{_noise(scale * ERRORS * (point.drop_error or 0.0))}{unit}"
        return f"{name} costs {amount} of {settings.metric}, {scale * settings.max_drop:.3g} may go"
    amount = f"{point.rise:.2g}{_noise(ERRORS * point.rise_error)}"
    return f"{name} raises the {settings.criterion} by {amount}, {allowed.epsilon:.3g} are allowed"


def _noise(error: float) -> str:
    return f" +- {error:.2g}" if error else ""


def equivalent(point: Point | None, points: Sequence[Point], settings: Settings, start: float = 0.0) -> float | None:
    """Return the sparsity at which networks of single weights have lost as much as one of a pattern.

    Args:
        point: The network of the pattern, or None.
        points: Networks of single weights by rising sparsity.
        settings: What was asked for; the metric decides where a fall of it is allowed.
        start: Sparsity of the dense network.

    Returns:
        Read off the isotonic fit of what was measured; None where the pattern lost nothing, or more than any network
        that was measured.
    """
    if point is None or not points:
        return None
    of_metric = settings.max_drop is not None
    lost = point.drop if of_metric else point.rise
    if lost is None or lost <= 0:
        return None
    if not of_metric:  # the rise in the place of the fall
        points = tuple(Point(point.sparsity, 0.0, drop=point.rise, drop_error=point.rise_error) for point in points)
    finite = [point.drop for point in points if point.drop is not None and point.drop < float("inf")]
    if not finite or lost >= monotone(finite)[-1]:
        return None
    return level(points, lost, start=start)


def pattern_verdict(limit: PruningLimit, sparsity: float) -> Verdict | None:
    """Judge a sparsity in a pattern of groups.

    Args:
        limit: The limit, of a pattern.
        sparsity: Wanted removed fraction.

    Returns:
        The verdict; None where the words for single weights serve.
    """
    evidence, own = limit.evidence, limit.evidence.own
    assert own is not None
    if evidence.dense.at_chance:
        return None
    if sparsity > own.most:
        reason = f"{own.name} removes at most {own.most:.2%} of the weights of this network"
        return Verdict("infeasible", reason, sparsity - own.most)
    alone = limit.answer("one-shot")
    if not own.fixed and alone.sparsity is not None:
        return None
    if alone.sparsity is None:
        return Verdict("open", f"what {own.name} costs was {NOT_MEASURED}", 0.0)
    if not evidence.points:
        return Verdict("achievable", f"the network is {own.name} already", own.most - sparsity)
    metric = metric_at(evidence, own.most)
    cost = cost_text(evidence, limit.settings, limit.allowed)
    how = "measured" if evidence.measured else "scaled from what was measured"
    text, margin = spare(limit)
    if limit.lower >= own.most:
        return Verdict("achievable", f"{cost} ({how}){text}", margin, metric)
    tuned = tuned_to(limit.answers, own.most)
    if tuned is not None and evidence.retuned is not None:
        again_cost = cost_of(_worst(evidence, limit.settings, limit.allowed), own.name, limit.settings, limit.allowed)
        text, margin = spare_re_tuned(limit)
        return Verdict("open", f"{cost} ({how}); re-tuning reaches it: {again_cost} (measured){text}", margin, metric)
    again = limit.answer("re-trained")
    more = "what training brings back is unknown"
    if again.sparsity is not None:
        points = 100 * (again.sparsity - own.most)
        side = "more" if points >= 0 else "fewer"
        more = f"training may bring it back: at its R the formula lets {abs(points):.1f} points {side} go"
    return Verdict("open", f"{cost} ({how}){text}; {more}", margin, metric)


def spare(limit: PruningLimit) -> tuple[str, float]:
    """Say how far a pattern of one sparsity is from what may be lost, in sparsity of single weights.

    Args:
        limit: The limit, of such a pattern.

    Returns:
        Words, empty where nothing compares, and the distance.
    """
    single, points = limit.evidence.of(UNSTRUCTURED), limit.evidence.points
    point = points[-1] if points else None
    same = equivalent(point, single.points, limit.settings, single.already_removed)
    return _apart(same, crossed(single, limit.settings, limit.epsilon).low, "")


def spare_re_tuned(limit: PruningLimit) -> tuple[str, float]:
    """Say the same of the re-tuned network of the pattern, against single weights that were re-tuned or else pruned.

    Args:
        limit: The limit, of a pattern of one sparsity that was re-tuned.

    Returns:
        Words, empty where nothing compares, and the distance.
    """
    evidence, settings = limit.evidence, limit.settings
    single, start = evidence.of(UNSTRUCTURED), evidence.of(UNSTRUCTURED).already_removed
    point, reached = _worst(evidence, settings, limit.allowed), crossed(single, settings, limit.epsilon).low
    if single.retuned is None:
        return _apart(equivalent(point, single.points, settings, start), reached, " that are pruned alone")
    points = single.retuned.run(single.retuned.runs[0])
    reached = max(reached, crossing(points, bar_of(settings, limit.epsilon), start).low)
    return _apart(equivalent(point, points, settings, start), reached, " that are re-tuned, too")


def _apart(same: float | None, reached: float, how: str) -> tuple[str, float]:
    if same is None:
        return "", 0.0
    points = 100 * (reached - same)
    side = f"{abs(points):.1f} points of sparsity {'to spare' if points >= 0 else 'too many'}"
    return f": as much as {same:.1%} of single weights{how}, {side}", abs(reached - same)
