"""The predicted limit of a network and what can be asked of it."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from scipy.optimize import brentq
from torch import Tensor

from estimators import SpectralMeasure, UserError
from estimators.files import write_bytes
from pruning_limits.bounds import Negative, isotropic_limit
from pruning_limits.directions import Directions
from pruning_limits.inverse import epsilon_for
from pruning_limits.kinematics import concentration_width
from pruning_limits.magnitude import MagnitudeCurve, MagnitudeProfile
from pruning_limits.parts import Cost, Estimate, Layer, Sharpness, Verdict
from pruning_limits.serial import fields_of, read_plain, to_plain
from pruning_limits.settings import Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Answer = TypeVar("Answer")
FORMAT = "pruning-limit/3"
LEAST_LOGARITHM, LARGEST_SCALE = -700.0, 1e50


@dataclass(frozen=True, eq=False, repr=False)
class PruningLimit:
    """How far a network can be pruned, with error, bounds and the data for further questions.

    All values named sparsity or bound are removed fractions in [0, 1].

    Attributes:
        sparsity: The isotropic limit with the chosen curvature, the prediction for one-shot magnitude pruning.
        lower: Achievable: measured, or from the quadratic model when nothing was measured.
        upper: ``directional`` plus the kinematic window, at most 1 and at least ``lower``; 1 where none is established.
        retrained: The isotropic limit with the GGN, the prediction for re-training the kept weights, or None.
        directional: The directional limit with the GGN, beyond which re-tuning kept weights in the basin fails, or
            None.
        interval: Numerical error of ``sparsity`` from probes, steps and data sub-sample.
        achieved: Measured one-shot sparsity at the same epsilon, or None.
        epsilon: Allowed rise of the objective.
        objective: The objective at the unpruned weights.
        parameters: Number D of prunable weights.
        status: ``"converged"`` or ``"unresolved: why and what to do"``.
        notes: Where the local quadratic model contradicts a measurement or itself, and which weights are not counted;
            empty where there is nothing to say.
        sharpness: Summary of the spectrum.
        cost: What the prediction took.
        settings: The arguments behind the prediction.
        already_removed: Share of the prunable weights that are zero or masked; every sparsity counts them as removed.
        objective_error: Standard error of ``objective`` where nothing was measured and it is that of a draw; else zero.
        unknown: Why the GGN says nothing of this loss, so that ``retrained``, ``directional``, ``ggn`` and
            ``directions`` are None and no upper bound is established; empty where they are known.
    """

    sparsity: float
    lower: float
    upper: float
    retrained: float | None
    directional: float | None
    interval: tuple[float, float]
    achieved: float | None
    epsilon: float
    objective: float
    parameters: int
    status: str
    notes: tuple[str, ...]
    sharpness: Sharpness
    cost: Cost
    settings: Settings
    hessian: Estimate
    ggn: Estimate | None
    curve: MagnitudeCurve
    directions: Directions | None
    rises: tuple[tuple[float, float], ...] = ()
    already_removed: float = 0.0
    objective_error: float = 0.0
    unknown: str = ""
    layer_table: tuple[Layer, ...] = ()
    profile: MagnitudeProfile | None = field(default=None)

    def __eq__(self, other: object) -> bool:
        """Compare everything but the weights, as in the JSON form."""
        return self._plain == other._plain if isinstance(other, PruningLimit) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    @property
    def headroom(self) -> float | None:
        """Upper bound minus achieved, what further pruning effort can still win; None without the one or the other."""
        return None if self.achieved is None or self.unknown else self.upper - self.achieved

    def layers(self) -> list[Layer]:
        """Return the per-layer table in the model's order."""
        return list(self.layer_table)

    def mask(self, sparsity: float) -> dict[str, Tensor]:
        """Return global magnitude masks by parameter name, True where kept, with the exact count.

        Args:
            sparsity: Removed fraction in [0, 1].

        Raises:
            UserError: The limit was loaded from a file or its weights were scaled, so that it holds none.
        """
        if self.profile is None:
            raise UserError(
                "mask: this limit holds no weights (it was loaded or scaled); use MagnitudeProfile(weights)"
            )
        return self.profile.masks(sparsity)

    @np.errstate(over="ignore")  # curves, measures and directions refuse what overflows
    def what_if(
        self, epsilon: float | None = None, weight_scale: float = 1.0, curvature_scale: float = 1.0
    ) -> PruningLimit:
        """Answer for another epsilon, scaled weights or scaled curvature without another product.

        Args:
            epsilon: Allowed rise of the objective; default the present one.
            weight_scale: Factor on all weights, 1e-50 to 1e50, the curvature held fixed.
            curvature_scale: Factor on the curvature, 1e-50 to 1e50, the weights held fixed.

        Returns:
            The limit under the changed conditions. ``achieved`` is read off the rises measured before when only
            epsilon changes and is None otherwise; ``lower`` is then the quadratic scaling of those rises.
        """
        for name, value in (("weight_scale", weight_scale), ("curvature_scale", curvature_scale)):
            if not 1 / LARGEST_SCALE <= value <= LARGEST_SCALE:
                raise UserError(f"{name}: expected a number from {1 / LARGEST_SCALE} to {LARGEST_SCALE}, got {value}")
        allowed = self.epsilon if epsilon is None else epsilon
        curve = self.curve.scaled(weight_scale)
        negative: Negative = self.settings.negative

        def solve(measure: SpectralMeasure) -> float:
            return isotropic_limit(measure, curve, allowed, negative).sparsity

        def scaled(estimate: Estimate) -> Estimate:
            return estimate.scaled(curvature_scale).certified(solve)

        hessian = scaled(self.hessian)
        error = isotropic_limit(hessian.measure, curve, allowed, negative).standard_error
        sparsity = isotropic(hessian, curve, allowed, negative)
        ggn = directions = retrained = directional = None
        if self.ggn is not None and self.directions is not None:
            ggn, directions = scaled(self.ggn), self.directions.scaled(weight_scale, curvature_scale)
            retrained, directional = retuned(ggn, directions, curve, allowed)
        half = hessian.half_width(error)
        factor = weight_scale**2 * curvature_scale
        passing = [s for s, rise in self.rises if rise * factor <= allowed]
        same = factor == 1.0 and epsilon is None
        lower = self.lower if same else max(passing, default=0.0)
        sharpness = Sharpness(
            self.sharpness.trace * curvature_scale,
            self.sharpness.top_eigenvalue * curvature_scale,
            self.parameters * (1 - sparsity),
            self.sharpness.negative_share,
            self.sharpness.trace_error * curvature_scale,
        )
        return dataclasses.replace(
            self,
            sparsity=sparsity,
            lower=lower,
            upper=upper_bound(directional, lower, self.parameters),
            retrained=retrained,
            directional=directional,
            interval=(max(0.0, sparsity - half), min(1.0, sparsity + half)),
            achieved=lower if factor == 1.0 and self.achieved is not None else None,
            epsilon=allowed,
            sharpness=sharpness,
            hessian=hessian,
            ggn=ggn,
            curve=curve,
            directions=directions,
            rises=tuple((s, rise * factor) for s, rise in self.rises),
            layer_table=() if factor != 1.0 or epsilon is not None else self.layer_table,
            profile=self.profile if weight_scale == 1.0 else None,
        )

    def epsilon_for(self, sparsity: float) -> float:
        """Return the allowed rise that would make a sparsity the isotropic limit; see ``inverse.epsilon_for``."""
        target, negative = self.hessian.on_samples(sparsity), self.settings.negative
        ends, refusals = [], []
        for measure in self.hessian.measures:
            try:
                ends.append(math.log(epsilon_for(measure, self.curve, target, negative)))
            except UserError as error:
                refusals.append(error)

        def excess(logarithm: float) -> float:
            return isotropic(self.hessian, self.curve, math.exp(logarithm), negative) - sparsity

        if not ends:
            raise refusals[0]
        if len(self.hessian.measures) == 1:
            return math.exp(ends[0])
        low = LEAST_LOGARITHM if refusals else min(ends) - 1e-9
        if refusals and excess(low) > 0:
            raise refusals[0]
        return math.exp(brentq(excess, low, max(ends) + 1e-9, xtol=1e-14, rtol=1e-14))

    def weight_scale_for(self, sparsity: float) -> float:
        """Return the factor on all weights that would make a sparsity the isotropic limit, the curvature held fixed."""
        return math.sqrt(self.epsilon / self.epsilon_for(sparsity))

    def curvature_scale_for(self, sparsity: float) -> float:
        """Return the factor on the curvature that would make a sparsity the isotropic limit, the weights held fixed."""
        return self.epsilon / self.epsilon_for(sparsity)

    def check(self, sparsity: float) -> Verdict:
        """Judge whether a sparsity can be reached.

        Args:
            sparsity: Wanted removed fraction in [0, 1).

        Raises:
            UserError: The sparsity is out of range.
        """
        if not 0 <= sparsity < 1:
            raise UserError(f"sparsity: expected a number in [0, 1) (the removed fraction), got {sparsity}")
        how = "measured" if self.achieved is not None else "by the quadratic model"
        if sparsity <= self.lower:
            reason = f"{sparsity:.2%} is at most {self.lower:.2%}, which one-shot pruning reaches ({how})"
            return Verdict("achievable", reason, self.lower - sparsity)
        if self.ggn is None or self.directions is None:
            reason = (
                f"{sparsity:.2%} is above {self.lower:.2%} (one-shot, {how}), and no upper bound is established: "
                f"{self.unknown}"
            )
            return Verdict("open", reason, sparsity - self.lower)
        numerical = self.ggn.step_error + self.ggn.sample_error + self.directions.step_error
        ceiling = min(1.0, self.upper + numerical)
        bound = f"the upper bound {self.upper:.2%} (with numerical error {ceiling:.2%})"
        if sparsity > ceiling:
            reason = f"{sparsity:.2%} is above {bound}"
            return Verdict("infeasible", reason, sparsity - ceiling)
        reason = f"{sparsity:.2%} lies between {self.lower:.2%} (one-shot, {how}) and {bound}"
        return Verdict("open", reason, min(sparsity - self.lower, ceiling - sparsity))

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"PruningLimit(sparsity={self.sparsity:.4f}, interval=({low:.4f}, {high:.4f}), lower={self.lower:.4f}, "
            f"upper={'unknown' if self.unknown else f'{self.upper:.4f}'}, parameters={self.parameters}, "
            f"status={self.status!r})"
        )

    def summary(self) -> str:
        """Return the answer as a short table."""
        rows = self._rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def _repr_html_(self) -> str:
        """Return the answer as a table for notebooks, in the colours of the page."""
        cell = 'style="text-align: left; color: inherit; background: transparent"'
        rows = "".join(
            f'<tr style="background: transparent"><th scope="row" {cell}>{escape(name)}</th>'
            f"<td {cell}>{escape(value)}</td></tr>"
            for name, value in self._rows()
        )
        return f"<table><tbody>{rows}</tbody></table>"

    def _rows(self) -> list[tuple[str, str]]:
        low, high = self.interval
        missing = "unknown" if self.unknown and self.achieved is not None else "-"
        return [
            ("prunable weights", f"{self.parameters:,}"),
            *([("already removed", f"{self.already_removed:.2%}")] if self.already_removed else []),
            ("objective, allowed rise", f"{self.objective:.4f}, {self.epsilon:.4f}"),
            ("predicted one-shot limit", f"{self.sparsity:.2%}  (numerical interval {low:.2%} to {high:.2%})"),
            ("predicted with re-training", "unknown" if self.retrained is None else f"{self.retrained:.2%}"),
            ("measured one-shot", "not measured" if self.achieved is None else f"{self.achieved:.2%}"),
            ("bounds on the limit", f"{self.lower:.2%} to {'unknown' if self.unknown else f'{self.upper:.2%}'}"),
            *(("note", note) for note in self.notes),
            ("headroom over one-shot", missing if self.headroom is None else f"{100 * self.headroom:.2f} points"),
            ("effective dimension", f"{self.sharpness.effective_dimension:,.0f}"),
            ("trace, top eigenvalue", f"{self._trace()}, {self.sharpness.top_eigenvalue:.4g}"),
            ("status", self.status),
            ("cost", f"{self.cost.products} products, {self.cost.seconds:.1f} s"),
        ]

    def _trace(self) -> str:
        """Return the trace with its standard error, as far as one is known."""
        error = f" +- {self.sharpness.trace_error:.2g}" if self.sharpness.trace_error else ""
        return f"{self.sharpness.trace:.4g}{error}"

    def to_pandas(self) -> DataFrame:
        """Return the per-layer table as a data frame, one row per layer, its columns the attributes of ``Layer``.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UserError("to_pandas: needs the package pandas; install it with pip install pandas") from None
        columns = [one.name for one in dataclasses.fields(Layer)]
        return pandas.DataFrame([dataclasses.asdict(layer) for layer in self.layer_table], columns=columns)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the crossing of prediction and network and the measured objective beneath.

        The panels alone, on axes of your own, are ``plotting.plot_crossing`` and ``plotting.plot_objective``.

        Args:
            path: File to write, with the suffix of any format Matplotlib knows; None only returns the figure.

        Raises:
            UserError: The file cannot be written, or Matplotlib is not installed.
        """
        try:
            from pruning_limits.plotting import limit_figure, save
        except ImportError:
            raise UserError("plot: needs the package matplotlib; install it with pip install matplotlib") from None
        figure = limit_figure(self)
        if path is not None:
            save(figure, path)
        return figure

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the limit as JSON, without weights, and write it to a file if one is named."""
        text = json.dumps(self._plain, indent=1) + "\n"
        if path is not None:
            write_bytes(Path(path), text.encode())
        return text

    @cached_property
    def _plain(self) -> dict[str, Any]:
        names = [one.name for one in dataclasses.fields(self) if one.name != "profile"]
        return {"format": FORMAT} | {name: to_plain(getattr(self, name)) for name in names}

    @classmethod
    def from_json(cls, path: str | Path) -> PruningLimit:
        """Load a limit written by ``to_json``.

        Raises:
            UserError: The file is missing, is not JSON, or is not a limit of this version.
        """
        plain = read_plain(Path(path))
        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            raise UserError(f"limit: {path} is not a pruning limit of format {FORMAT}; predict it again")
        try:
            return cls(**fields_of(plain))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            detail = str(error) or type(error).__name__
            raise UserError(f"limit: {path} is damaged ({detail.splitlines()[0][:200]}); predict it again") from None


def isotropic(estimate: Estimate, curve: MagnitudeCurve, epsilon: float, negative: Negative) -> float:
    """Isotropic limit of an estimate, see ``Estimate.limit`` and ``isotropic_limit``."""
    return estimate.limit(lambda measure: isotropic_limit(measure, curve, epsilon, negative).sparsity)


def established(answer: Answer | None) -> Answer:
    """Return an answer that rests on the GGN.

    Raises:
        UserError: It is unknown.
    """
    if answer is None:
        raise UserError("limit: what rests on the GGN is unknown, as its notes say; expected a limit where it is known")
    return answer


def retuned(ggn: Estimate, directions: Directions, curve: MagnitudeCurve, epsilon: float) -> tuple[float, float]:
    """Limits when the kept weights change, by the GGN: the isotropic one and the directional one."""
    directional = ggn.limit(lambda measure: directions.limit(measure, curve, epsilon).sparsity)
    return isotropic(ggn, curve, epsilon, "clip"), directional


def upper_bound(directional: float | None, lower: float, dimension: int) -> float:
    """Directional limit plus the kinematic window at 5 %, never below what has been achieved; 1 without that limit."""
    if directional is None:
        return 1.0
    window = concentration_width(directional * dimension, dimension) / dimension
    return min(1.0, max(lower, directional + window))
