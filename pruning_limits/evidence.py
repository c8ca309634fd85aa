"""Computed quantities of a network, which do not depend on what may be lost, and the solver that answers from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pruning_limits.answers import (
    bound,
    directional,
    formula,
    one_shot,
    retrained,
    retuned,
    settled_text,
    with_window,
)
from pruning_limits.isotropic import isotropic_limit
from pruning_limits.parts import Cost, Dense, Estimate, Layer, LayerCurvature, Origin, Sharpness
from pruning_limits.pattern_answers import pattern_answers
from pruning_limits.pattern_names import UNSTRUCTURED

if TYPE_CHECKING:
    from pruning_limits.answers import Answer
    from pruning_limits.directions import Directions
    from pruning_limits.epsilon import Allowed
    from pruning_limits.forecast import Forecast
    from pruning_limits.magnitude import MagnitudeProfile
    from pruning_limits.magnitude_curve import MagnitudeCurve
    from pruning_limits.measured import Point
    from pruning_limits.model_points import ModelPoint
    from pruning_limits.pattern_evidence import PatternEvidence
    from pruning_limits.result import PruningLimit
    from pruning_limits.saving import Saving
    from pruning_limits.settings import Settings
    from pruning_limits.tuned_points import Tuning


MEASURED = ("pruning alone", "re-tuning")


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was computed about a network; nothing of it depends on what is allowed but how precise it is.

    Attributes:
        parameters: Number D of prunable weights.
        already_removed: Share of them that are zero or masked; every sparsity counts them as removed.
        dense: The network before pruning.
        curve: R(s)^2 of the weights.
        hessian: Estimate of the spectrum that the formula is solved with.
        ggn: That of the GGN, or None where it says nothing of this loss.
        directions: Where the removed weights point, as seen by the GGN, or None likewise.
        unknown: Why the GGN says nothing; empty where it does.
        points: Networks pruned in one shot, by rising sparsity; empty where nothing was measured.
        measured: Whether these points were measured under the present conditions, not scaled.
        model_points: The quadratic model along the removed weights, by rising sparsity.
        layers: Weights and curvature per layer, in the model's order.
        trace_error: Standard error of the sum of the layers' traces.
        remarks: What is to be said whatever is allowed.
        cost: What it took.
        origin: Of what, by what and when.
        patterns: What was computed about patterns of pruning, that of single weights among them; empty where no other
            was asked for.
        pattern: The one that ``curve``, ``already_removed``, ``directions``, ``points``, ``model_points``, ``savings``
            and ``retuned`` are of.
        savings: What is left of the network, by rising sparsity.
        retuned: Networks pruned in stages and re-tuned; None where nothing was re-tuned, or under scaled conditions.
        forecast: The calibration that tells where re-training ends; None where only the formula shall.
    """

    parameters: int
    already_removed: float
    dense: Dense
    curve: MagnitudeCurve
    hessian: Estimate
    ggn: Estimate | None
    directions: Directions | None
    unknown: str
    points: tuple[Point, ...]
    measured: bool
    model_points: tuple[ModelPoint, ...]
    layers: tuple[LayerCurvature, ...]
    trace_error: float
    remarks: tuple[str, ...]
    cost: Cost
    origin: Origin
    patterns: tuple[PatternEvidence, ...] = ()
    pattern: str = UNSTRUCTURED
    savings: tuple[Saving, ...] = ()
    retuned: Tuning | None = None
    forecast: Forecast | None = None

    @property
    def own(self) -> PatternEvidence | None:
        """What was computed about the present pattern where weights go in groups; None of single weights."""
        if self.pattern == UNSTRUCTURED:
            return None
        return next(row for row in self.patterns if row.name == self.pattern)

    @property
    def most(self) -> float:
        """Largest sparsity of the present pattern; 1 where it has one only, which the answers are compared with."""
        own = self.own
        return 1.0 if own is None or own.fixed else own.most

    def of(self, pattern: str) -> Evidence:
        """Return the evidence with another of its patterns as the present one."""
        if pattern == self.pattern:
            return self
        row = next(row for row in self.patterns if row.name == pattern)
        return replace(
            self,
            pattern=pattern,
            curve=row.curve,
            already_removed=row.already_removed,
            directions=row.directions,
            points=row.points,
            model_points=row.model_points,
            savings=row.savings,
            retuned=row.retuned,
        )

    def scaled(self, weight_scale: float, curvature_scale: float) -> Evidence:
        """Return the evidence of scaled weights and a scaled curvature; a gradient is taken to scale with both."""
        if weight_scale == curvature_scale == 1.0:
            return self
        factor = weight_scale**2 * curvature_scale
        return replace(
            self,
            curve=self.curve.scaled(weight_scale),
            hessian=self.hessian.scaled(curvature_scale),
            ggn=None if self.ggn is None else self.ggn.scaled(curvature_scale),
            directions=None if self.directions is None else self.directions.scaled(weight_scale, curvature_scale),
            points=tuple(point.scaled(factor) for point in self.points),
            measured=False,
            model_points=tuple(point.scaled(factor) for point in self.model_points),
            layers=tuple(
                replace(
                    layer,
                    norm=layer.norm * weight_scale,
                    trace=layer.trace * curvature_scale,
                    trace_error=layer.trace_error * curvature_scale,
                )
                for layer in self.layers
            ),
            trace_error=self.trace_error * curvature_scale,
            patterns=tuple(row.scaled(weight_scale, curvature_scale) for row in self.patterns),
            retuned=None,
        )

    def certified(self, epsilon: float, settings: Settings) -> Evidence:
        """Return the evidence with the step errors of the limits at an allowed rise."""

        def at(estimate: Estimate) -> Estimate:
            return estimate.certified(
                lambda measure: isotropic_limit(measure, self.curve, epsilon, settings.negative).sparsity
            )

        return replace(self, hessian=at(self.hessian), ggn=None if self.ggn is None else at(self.ggn))


def solve(
    evidence: Evidence, settings: Settings, allowed: Allowed, profile: MagnitudeProfile | None = None
) -> PruningLimit:
    """Turn what was computed into the answer for what is allowed: numbers and their texts.

    Args:
        evidence: What was computed.
        settings: What was asked for.
        allowed: The allowed rise of the criterion.
        profile: The weights by magnitude, for masks and the layers' shares; None where they are not at hand.

    Returns:
        The limit.
    """
    from pruning_limits.notes import notes_of
    from pruning_limits.result import PruningLimit

    evidence = evidence.certified(allowed.epsilon, settings)
    alone = one_shot(evidence, settings, allowed)
    paper = formula(evidence, settings, allowed)
    assert paper.sparsity is not None
    assert paper.low is not None
    assert paper.high is not None
    along = directional(evidence, allowed)
    lower = evidence.already_removed if alone.sparsity is None else alone.sparsity
    tuned = retuned(evidence, settings, allowed, alone)
    again = retrained(evidence, settings, allowed, (alone, *tuned))
    reached, how = max((answer.sparsity or 0.0, how) for answer, how in zip((alone, *tuned), MEASURED, strict=False))
    answers: tuple[Answer, ...] = (alone, *tuned, again, bound(evidence, allowed, along, reached, how), paper)
    if evidence.own is not None:
        answers = pattern_answers(evidence, settings, allowed, answers)
        alone = next(answer for answer in answers if answer.rung == "one-shot")
        lower = evidence.already_removed if alone.sparsity is None else alone.sparsity
    nodes, weights = evidence.hessian.measure.nodes, evidence.hessian.measure.weights
    masses = np.abs(nodes) * weights
    return PruningLimit(
        sparsity=paper.sparsity,
        interval=(paper.low, paper.high),
        lower=lower,
        achieved=alone.sparsity if evidence.measured else None,
        retrained=again.sparsity,
        directional=along,
        upper=1.0 if along is None else max(lower, with_window(along, evidence.parameters)),
        answers=answers,
        status=settled_text(answers, settings.tolerance),
        notes=notes_of(evidence, settings, allowed, answers),
        sharpness=Sharpness(
            trace=sum(layer.trace for layer in evidence.layers),
            top_eigenvalue=evidence.hessian.measure.largest,
            effective_dimension=evidence.parameters * (1 - paper.sparsity),
            negative_share=float(masses[nodes < 0].sum() / max(masses.sum(), 1e-300)),
            trace_error=evidence.trace_error,
        ),
        allowed=allowed,
        settings=settings,
        evidence=evidence,
        layer_table=() if profile is None else _layer_table(evidence, profile, paper.sparsity),
        profile=profile,
    )


def _layer_table(evidence: Evidence, profile: MagnitudeProfile, sparsity: float) -> tuple[Layer, ...]:
    most = sparsity if evidence.own is None else min(sparsity, evidence.own.most)
    removed = {name: 1 - int(mask.sum()) / mask.numel() for name, mask in profile.masks(most).items()}
    return tuple(
        Layer(row.name, row.weights, row.norm, row.trace, row.trace_error, sparsity=removed[row.name], macs=row.macs)
        for row in evidence.layers
    )
