"""Where the removed weights point, measured by Lanczos recurrences from the gradients at pruned weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from estimators import Tridiagonal, UserError, gauss, gauss_radau
from estimators.measure import Rule
from pruning_limits.directions import Directions, Slope, slopes
from pruning_limits.estimates import Estimates
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.parts import Estimate
from pruning_limits.recurrences import Plan


def removed_directions(
    estimates: Estimates, ggn: Estimate, profile: MagnitudeProfile, gradient: Tensor | None
) -> Directions:
    """Measure where the removed weights point: knots from the isotropic root on, the last at the limit itself.

    Args:
        estimates: Estimates of the prediction, with its sub-samples and recurrences.
        ggn: Estimate of the GGN.
        profile: Magnitudes of the weights.
        gradient: Gradient of the objective at the weights ``[D]``; None takes the weights as stationary.

    Returns:
        Directions at two knots or more.

    Example:
        >>> from estimators import Objective
        >>> from pruning_limits.losses import all_losses
        >>> from pruning_limits.settings import Settings
        >>> from pruning_limits.subsamples import Subsamples
        >>> x = torch.randn(64, 4)
        >>> objective = Objective(torch.nn.Linear(4, 2), [(x, (x[:, 0] > 0).long())])
        >>> profile = MagnitudeProfile(objective.chosen)
        >>> estimates = Estimates(Subsamples(all_losses(objective), Settings()), profile.curve(), epsilon=0.02)
        >>> directions = removed_directions(estimates, estimates.estimate("ggn"), profile, objective.gradient())
        >>> len(directions.sparsities) >= 2
        True
    """
    low = max(estimates.root(ggn), (profile.zeros + 1) / profile.dimension)
    pruned, stopping = _Pruned(estimates, ggn, profile, gradient), estimates.stopping
    directions = pruned.measured(stopping.knots(low))
    while True:
        root = pruned.limit(directions)
        distances = [abs(pruned.place(root) - pruned.place(knot)) for knot in directions.sparsities]
        if stopping.enough_knots(distances):
            growth, spread = estimates.carried(ggn, directions.solver(estimates.curve, estimates.epsilon))
            return replace(directions, growth=growth, spread=spread)
        directions = pruned.measured([root], directions)


@dataclass(frozen=True)
class _Pruned:
    """The pruned weights at any sparsity, seen through the GGN."""

    estimates: Estimates
    ggn: Estimate
    profile: MagnitudeProfile
    gradient: Tensor | None

    def limit(self, directions: Directions) -> float:
        """Return the directional limit on the sub-sample."""
        solve = directions.solver(self.estimates.curve, self.estimates.epsilon)
        return replace(self.ggn, growth=1.0).limit(solve)

    def place(self, sparsity: float) -> float:
        """Return -log(1 - s), finite."""
        return -math.log(max(1 - sparsity, 1 / self.profile.dimension))

    def measured(self, knots: Sequence[float], known: Directions | None = None) -> Directions:
        """Add knots to known directions: recurrences run until Gauss and Gauss-Radau give the same limit."""
        subsamples, settings, stopping = self.estimates.subsamples, self.estimates.settings, self.estimates.stopping
        floor = subsamples.floor
        operator = subsamples.operator("ggn", self.ggn.samples, narrow=self.gradient is None and floor == 0)
        removed = torch.stack([self.profile.removed(knot) for knot in knots], dim=1)
        removed = operator.project(removed)  # what is lost has no curvature and no gradient
        at_knots = slopes(operator, removed, self.gradient)
        vectors = [slope.vector if slope.vector.any() else torch.ones_like(slope.vector) for slope in at_knots]

        def read(matrices: list[Tridiagonal], ended: bool) -> Directions | None:
            low, high = (
                self._joined(knots, at_knots, [rule(matrix) for matrix in matrices], known)
                for rule in (gauss, partial(gauss_radau, node=floor))
            )
            lower, upper = self._ends(low, high)
            gap = abs(upper - lower)
            wanted = min(stopping.directions * settings.tolerance, stopping.direction_share * (1 - upper))
            if not (ended or gap <= wanted):
                return None
            return replace(high, step_error=max(gap, known.step_error if known else 0.0))

        drawn = self.ggn.samples < self.estimates.losses.total
        most = settings.steps or stopping.most_steps(self.profile.dimension, "ggn", drawn)
        most = min(most, operator.shape[0])
        key, stage = f"directions-{operator.samples}-{knots}", f"directions, {operator.samples} samples"
        plan = Plan(key, stage, most, pace=lambda _: stopping.steps_at_once, known=[])
        return self.estimates.recurrences.advance(plan, operator, torch.stack(vectors, dim=1), read)

    def _joined(
        self, knots: Sequence[float], at_knots: Sequence[Slope], rules: Sequence[Rule], known: Directions | None
    ) -> Directions:
        """Return directions with the known ones; the rules are those of the normed gradients."""
        rows: list[tuple[float, Rule, float]] = []
        for knot, slope, (nodes, weights) in zip(knots, at_knots, rules, strict=True):
            rows.append((knot, (nodes, weights * float(slope.vector.double().square().sum())), slope.rise))
        if known is not None:
            rows += zip(known.sparsities, known.rules, known.rises, strict=True)
        rows.sort(key=lambda row: row[0])
        sparsities, measures, rises = zip(*rows, strict=True)
        squared = tuple(self.profile.removed_norm(knot) ** 2 for knot in sparsities)
        return Directions(sparsities, measures, rises, squared)

    def _ends(self, low: Directions, high: Directions) -> tuple[float, float]:
        """Return the bracket of the limit, from the isotropic one where Gauss sees no way to epsilon."""
        ends = []
        for directions in (low, high):
            try:
                ends.append(self.limit(directions))
            except UserError:
                ends.append(self.estimates.root(self.ggn))
        return ends[0], ends[1]
