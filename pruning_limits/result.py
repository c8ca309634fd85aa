"""The predicted limit of a network and what can be asked of it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from estimators import SpectralMeasure, UserError
from estimators.files import write_bytes
from pruning_limits.bounds import Negative, isotropic_limit
from pruning_limits.kinematics import transition_width
from pruning_limits.magnitude import MagnitudeCurve, MagnitudeProfile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "pruning-limit/1"


@dataclass(frozen=True)
class Verdict:
    """Answer to the question whether a sparsity can be reached.

    Attributes:
        status: ``"achievable"`` at or below the lower bound, ``"infeasible"`` above the upper bound and its numerical
            error, ``"open"`` in between.
        reason: One sentence with the numbers.
        margin: Distance in sparsity to the nearest bound that would change the status.
    """

    status: Literal["achievable", "open", "infeasible"]
    reason: str
    margin: float


@dataclass(frozen=True)
class Layer:
    """One row of the per-layer table.

    Attributes:
        name: Parameter name.
        weights: Number of weights.
        sparsity: Share of them removed by global magnitude pruning at the limit.
        norm: Euclidean norm of the weights.
        trace: Trace of the layer's block of the curvature.
        trace_error: Standard error of the trace.
    """

    name: str
    weights: int
    sparsity: float
    norm: float
    trace: float
    trace_error: float


@dataclass(frozen=True)
class Sharpness:
    """Summary of the curvature's spectrum.

    Attributes:
        trace: Trace of the curvature.
        top_eigenvalue: Largest Ritz value, a lower bound of the largest eigenvalue.
        effective_dimension: :math:`D (1 - s)` at the limit, the number of directions that hold the objective.
        negative_share: Share of the spectrum's absolute mass that lies below zero.
    """

    trace: float
    top_eigenvalue: float
    effective_dimension: float
    negative_share: float


@dataclass(frozen=True)
class Cost:
    """What a prediction took.

    Attributes:
        products: Curvature-vector products.
        samples: Samples seen by them, counted once per product.
        forward_samples: Samples seen by plain forward passes.
        seconds: Wall time.
        peak_memory: Largest memory of the process in bytes, the caller's share included.
    """

    products: int
    samples: int
    forward_samples: int
    seconds: float
    peak_memory: int


@dataclass(frozen=True)
class Estimate:
    """One spectrum and the error of the limit read off it.

    Attributes:
        measure: Spectral measure of the curvature.
        samples: Data samples behind it.
        steps: Lanczos steps.
        step_error: Half-width from the number of steps, in sparsity.
        sample_error: Half-width from the data sub-sample, in sparsity; zero for all data.
    """

    measure: SpectralMeasure
    samples: int
    steps: int
    step_error: float
    sample_error: float

    def half_width(self, standard_error: float) -> float:
        """Sum of two standard errors over probes, the step error and the sample error."""
        return 2 * standard_error + self.step_error + self.sample_error


@dataclass(frozen=True)
class PruningLimit:
    """How far a network can be pruned, with error, bounds and the data for further questions.

    All values named sparsity or bound are removed fractions in [0, 1].

    Attributes:
        sparsity: The isotropic limit with the chosen curvature, the prediction for one-shot magnitude pruning.
        lower: Achievable: measured, or from the quadratic model when nothing was measured.
        upper: ``retrained`` plus the kinematic window, at most 1.
        retrained: The isotropic limit with the GGN, the prediction for re-training the kept weights.
        interval: Numerical error of ``sparsity`` from probes, steps and data sub-sample.
        achieved: Measured one-shot sparsity at the same epsilon, or None.
        epsilon: Allowed rise of the objective.
        objective: The objective at the unpruned weights.
        parameters: Number D of prunable weights.
        status: ``"converged"`` or ``"unresolved: why and what to do"``.
        sharpness: Summary of the spectrum.
        cost: What the prediction took.
        settings: The arguments behind the prediction.
    """

    sparsity: float
    lower: float
    upper: float
    retrained: float
    interval: tuple[float, float]
    achieved: float | None
    epsilon: float
    objective: float
    parameters: int
    status: str
    sharpness: Sharpness
    cost: Cost
    settings: dict[str, Any]
    hessian: Estimate
    ggn: Estimate
    curve: MagnitudeCurve
    rises: tuple[tuple[float, float], ...] = ()
    layer_table: tuple[Layer, ...] = ()
    profile: MagnitudeProfile | None = field(default=None, repr=False, compare=False)

    @property
    def headroom(self) -> float | None:
        """Upper bound minus achieved: what further pruning effort can still win; None without a measurement."""
        return None if self.achieved is None else self.upper - self.achieved

    def layers(self) -> list[Layer]:
        """Return the per-layer table in the model's order."""
        return list(self.layer_table)

    def mask(self, sparsity: float) -> dict[str, Tensor]:
        """Return global magnitude masks by parameter name, True where kept, with the exact count.

        Args:
            sparsity: Removed fraction in [0, 1].

        Raises:
            UserError: The limit was loaded from a file, which holds no weights.
        """
        if self.profile is None:
            raise UserError("mask: this limit was loaded from a file without weights; use MagnitudeProfile(weights)")
        return self.profile.masks(sparsity)

    def what_if(
        self, epsilon: float | None = None, weight_scale: float = 1.0, curvature_scale: float = 1.0
    ) -> PruningLimit:
        """Answer for another epsilon, scaled weights or scaled curvature without another product.

        Args:
            epsilon: Allowed rise of the objective; default the present one.
            weight_scale: Factor on all weights, > 0, the curvature held fixed.
            curvature_scale: Factor on the curvature, > 0, the weights held fixed.

        Returns:
            The limit under the changed conditions. ``achieved`` is read off the rises measured before when only
            epsilon changes and is None otherwise; ``lower`` is then the quadratic scaling of those rises.
        """
        for name, value in (("weight_scale", weight_scale), ("curvature_scale", curvature_scale)):
            if not 0 < value < float("inf"):
                raise UserError(f"{name}: expected a positive number, got {value}")
        allowed = self.epsilon if epsilon is None else epsilon
        curve = self.curve.scaled(weight_scale)
        hessian, ggn = (
            dataclasses.replace(one, measure=one.measure.scaled(curvature_scale)) for one in (self.hessian, self.ggn)
        )
        negative: Negative = self.settings["negative"]
        root = isotropic_limit(hessian.measure, curve, allowed, negative)
        retrained = isotropic_limit(ggn.measure, curve, allowed, "clip")
        half = hessian.half_width(root.standard_error)
        factor = weight_scale**2 * curvature_scale
        passing = [s for s, rise in self.rises if rise * factor <= allowed]
        same = factor == 1.0 and epsilon is None
        lower = self.lower if same else max(passing, default=0.0)
        sharpness = Sharpness(
            self.sharpness.trace * curvature_scale,
            self.sharpness.top_eigenvalue * curvature_scale,
            self.parameters * (1 - root.sparsity),
            self.sharpness.negative_share,
        )
        return dataclasses.replace(
            self,
            sparsity=root.sparsity,
            lower=lower,
            upper=upper_bound(retrained.sparsity, lower, self.parameters),
            retrained=retrained.sparsity,
            interval=(max(0.0, root.sparsity - half), min(1.0, root.sparsity + half)),
            achieved=lower if factor == 1.0 and self.achieved is not None else None,
            epsilon=allowed,
            sharpness=sharpness,
            hessian=hessian,
            ggn=ggn,
            curve=curve,
            rises=tuple((s, rise * factor) for s, rise in self.rises),
            layer_table=() if factor != 1.0 or epsilon is not None else self.layer_table,
            profile=self.profile if weight_scale == 1.0 else None,
        )

    def check(self, sparsity: float) -> Verdict:
        """Judge whether a sparsity can be reached.

        Args:
            sparsity: Wanted removed fraction in [0, 1).

        Raises:
            UserError: The sparsity is out of range.
        """
        if not 0 <= sparsity < 1:
            raise UserError(f"sparsity: expected a number in [0, 1) (the removed fraction), got {sparsity}")
        ceiling = min(1.0, self.upper + self.ggn.step_error + self.ggn.sample_error)
        how = "measured" if self.achieved is not None else "by the quadratic model"
        if sparsity <= self.lower:
            reason = f"{sparsity:.2%} is at most {self.lower:.2%}, which one-shot pruning reaches ({how})"
            return Verdict("achievable", reason, self.lower - sparsity)
        if sparsity > ceiling:
            reason = f"{sparsity:.2%} is above the upper bound {self.upper:.2%} (with numerical error {ceiling:.2%})"
            return Verdict("infeasible", reason, sparsity - ceiling)
        reason = f"{sparsity:.2%} lies between {self.lower:.2%} (one-shot, {how}) and the upper bound {ceiling:.2%}"
        return Verdict("open", reason, min(sparsity - self.lower, ceiling - sparsity))

    def summary(self) -> str:
        """Return the answer as a short table."""
        low, high = self.interval
        rows = [
            ("prunable weights", f"{self.parameters:,}"),
            ("objective, allowed rise", f"{self.objective:.4f}, {self.epsilon:.4f}"),
            ("predicted one-shot limit", f"{self.sparsity:.2%}  (numerical interval {low:.2%} to {high:.2%})"),
            ("predicted with re-training", f"{self.retrained:.2%}"),
            ("measured one-shot", "not measured" if self.achieved is None else f"{self.achieved:.2%}"),
            ("bounds on the limit", f"{self.lower:.2%} to {self.upper:.2%}"),
            ("headroom over one-shot", "-" if self.headroom is None else f"{100 * self.headroom:.2f} points"),
            ("effective dimension", f"{self.sharpness.effective_dimension:,.0f}"),
            ("trace, top eigenvalue", f"{self.sharpness.trace:.4g}, {self.sharpness.top_eigenvalue:.4g}"),
            ("status", self.status),
            ("cost", f"{self.cost.products} products, {self.cost.seconds:.1f} s"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the crossing of prediction and network and the measured objective beneath.

        Args:
            path: File to write, with the suffix of any format Matplotlib knows; None only returns the figure.
        """
        from pruning_limits.plotting import limit_figure, save

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
        return {"format": FORMAT} | {name: _to_plain(getattr(self, name)) for name in names}

    @classmethod
    def from_json(cls, path: str | Path) -> PruningLimit:
        """Load a limit written by ``to_json``.

        Raises:
            UserError: The file is missing, is not JSON, or is not a limit of this version.
        """
        try:
            plain = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"limit: cannot read {path}: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise UserError(f"limit: {path} is not valid JSON") from None
        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            raise UserError(f"limit: {path} is not a pruning limit of format {FORMAT}; predict it again")
        try:
            return cls._from_plain(plain)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            detail = str(error) or type(error).__name__
            raise UserError(f"limit: {path} is damaged ({detail.splitlines()[0]}); predict it again") from None

    @classmethod
    def _from_plain(cls, plain: dict[str, Any]) -> PruningLimit:
        numbers = {name: float(plain[name]) for name in ("sparsity", "lower", "upper", "retrained")}
        for name, value in numbers.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, expected 0 to 1")
        low, high = (float(value) for value in plain["interval"])
        curve = MagnitudeCurve(*(_floats(plain["curve"][name]) for name in ("sparsity", "squared")))
        if len(curve.sparsity) != len(curve.squared) or len(curve.sparsity) < 2:
            raise ValueError("curve has knots of different number")
        return cls(
            sparsity=numbers["sparsity"],
            lower=numbers["lower"],
            upper=numbers["upper"],
            retrained=numbers["retrained"],
            interval=(low, high),
            achieved=None if plain["achieved"] is None else float(plain["achieved"]),
            epsilon=float(plain["epsilon"]),
            objective=float(plain["objective"]),
            parameters=int(plain["parameters"]),
            status=str(plain["status"]),
            sharpness=Sharpness(**{k: float(v) for k, v in plain["sharpness"].items()}),
            cost=Cost(**plain["cost"]),
            settings=dict(plain["settings"]),
            hessian=_estimate(plain["hessian"]),
            ggn=_estimate(plain["ggn"]),
            curve=curve,
            rises=tuple((float(s), float(rise)) for s, rise in plain["rises"]),
            layer_table=tuple(Layer(**row) for row in plain["layer_table"]),
        )


def upper_bound(retrained: float, lower: float, dimension: int) -> float:
    """Re-trained limit plus the kinematic window, never below what has been achieved."""
    return min(1.0, max(lower, retrained + transition_width(dimension) / dimension))


def _to_plain(value: Any) -> Any:
    if isinstance(value, SpectralMeasure):
        rules = [{"nodes": nodes.tolist(), "weights": weights.tolist()} for nodes, weights in value.rules]
        return {"dimension": value.dimension, "exact": value.exact, "rules": rules}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: _to_plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [_to_plain(one) for one in value]
    return value


def _floats(values: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError("expected a list of finite numbers")
    return array


def _estimate(plain: dict[str, Any]) -> Estimate:
    rules = tuple((_floats(rule["nodes"]), _floats(rule["weights"])) for rule in plain["measure"]["rules"])
    measure = SpectralMeasure(rules, int(plain["measure"]["dimension"]), bool(plain["measure"]["exact"]))
    return Estimate(
        measure, int(plain["samples"]), int(plain["steps"]), float(plain["step_error"]), float(plain["sample_error"])
    )
