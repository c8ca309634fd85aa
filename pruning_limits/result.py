"""The predicted limit of a network, and methods that answer further questions."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np

from estimators import UserError
from estimators.files import path_of, write_bytes
from pruning_limits.answers import Answer, Rung, Verdict
from pruning_limits.epsilon import Allowed, from_max_drop
from pruning_limits.evidence import Evidence, solve
from pruning_limits.ladder import details, html, judged, ladder
from pruning_limits.parts import Cost, Layer, Sharpness
from pruning_limits.pattern_names import UNSTRUCTURED, parsed
from pruning_limits.saving import BudgetAnswer, Saving, saving_at
from pruning_limits.serial import fields_of, read_plain, to_plain
from pruning_limits.settings import Retuning, Settings, checked, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from torch import Tensor, nn

    from estimators import Penalty
    from estimators.objective import LossFunction
    from pruning_limits.exports import LayerRatios
    from pruning_limits.magnitude import MagnitudeProfile
    from pruning_limits.metrics import Metric
    from pruning_limits.progress import Progress
    from pruning_limits.sensitivity import LayerSensitivity
    from pruning_limits.shrinking import Timing

Value = TypeVar("Value")
FORMAT = "pruning-limit/7"
LAYER_SPARSITIES, LAYER_SAMPLES = (0.5, 0.7, 0.9), 2048
LEAST_LOGARITHM, LEAST_SCALE, LARGEST_SCALE = -700.0, 1e-50, 1e50
BELOW_ONE = "a number in [0, 1) (the removed fraction)"


@dataclass(frozen=True, eq=False, repr=False)
class PruningLimit:
    """How far a network can be pruned: one answer per rung, and the evidence for further questions.

    Every sparsity and every bound is a removed fraction in [0, 1].

    Attributes:
        sparsity: The isotropic limit with the chosen curvature, the paper's formula (rung ``"formula"``).
        interval: Interval of ``sparsity`` for the numerical error from probes, Lanczos steps and the data sub-sample.
        lower: Sparsity that one-shot pruning reaches: the first sustained crossing of the measured rises, or of those
            of the quadratic model where nothing was measured.
        achieved: ``lower`` where it was measured, else None.
        retrained: Centre of the forecast of what re-training reaches, or None. Where there is no forecast, as in
            patterns of groups and with the criterion ``"objective"``, it is the limit by the formula with the GGN.
        directional: The directional limit with the GGN, or None; beyond it, re-tuning of the kept weights in the basin
            fails.
        upper: ``directional`` plus the kinematic window, at most 1 and at least ``lower``; 1 where no bound is known.
            The answer of the rung ``"bound"`` says whether the bound is established.
        answers: The rungs in order, see ``Answer``.
        status: One sentence: which rungs are settled within the tolerance.
        notes: Contradictions between numbers, and names of weights that are not counted; empty where there are none.
        sharpness: Summary of the spectrum.
        allowed: The allowed rise of the criterion, its interval and its origin.
        settings: The arguments behind the prediction.
        evidence: Computed quantities, which do not depend on what is allowed.
        layer_table: The per-layer table; empty in a limit without weights.
        profile: The weights by magnitude; None in a limit from a file and in a limit of scaled weights.
    """

    sparsity: float
    interval: tuple[float, float]
    lower: float
    achieved: float | None
    retrained: float | None
    directional: float | None
    upper: float
    answers: tuple[Answer, ...]
    status: str
    notes: tuple[str, ...]
    sharpness: Sharpness
    allowed: Allowed
    settings: Settings
    evidence: Evidence
    layer_table: tuple[Layer, ...] = ()
    profile: MagnitudeProfile | None = field(default=None)

    def __eq__(self, other: object) -> bool:
        """Compare everything but the weights, as in the JSON form."""
        return self._plain == other._plain if isinstance(other, PruningLimit) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    @property
    def epsilon(self) -> float:
        """Allowed rise of the criterion."""
        return self.allowed.epsilon

    @property
    def criterion(self) -> str:
        """The quantity that may rise by at most epsilon: ``"loss"`` or ``"objective"``."""
        return self.settings.criterion

    @property
    def metric(self) -> str | None:
        """Name of the metric, or None."""
        return self.settings.metric

    @property
    def max_drop(self) -> float | None:
        """Allowed fall of the mean metric, or None."""
        return self.settings.max_drop

    @property
    def dense_metric(self) -> float | None:
        """Mean metric of the network before pruning, or None."""
        return self.evidence.dense.metric

    @property
    def objective(self) -> float:
        """The criterion at the unpruned weights."""
        return self.evidence.dense.objective

    @property
    def parameters(self) -> int:
        """Number D of prunable weights."""
        return self.evidence.parameters

    @property
    def cost(self) -> Cost:
        """Cost of the prediction."""
        return self.evidence.cost

    @property
    def headroom(self) -> float | None:
        """Bound minus ``achieved``, the most that further effort can gain; None where either is unknown."""
        bound = self.answer("bound").sparsity
        return None if self.achieved is None or bound is None else bound - self.achieved

    def answer(self, rung: Rung) -> Answer:
        """Return the answer of one rung.

        Args:
            rung: ``"one-shot"``, ``"re-tuned"``, ``"re-trained"``, ``"bound"`` or ``"formula"``.

        Raises:
            UserError: The limit has no such rung.
        """
        for answer in self.answers:
            if answer.rung == rung:
                return answer
        raise UserError(f"rung: expected one of {', '.join(answer.rung for answer in self.answers)}, got {rung!r}")

    @overload
    def layers(self, measured: Literal[False] = False) -> list[Layer]: ...

    @overload
    def layers(
        self, measured: Literal[True], sparsities: Sequence[float] = ..., samples: int | None = ...
    ) -> list[LayerSensitivity]: ...

    def layers(
        self,
        measured: bool = False,
        sparsities: Sequence[float] = LAYER_SPARSITIES,
        samples: int | None = LAYER_SAMPLES,
    ) -> list[Layer] | list[LayerSensitivity]:
        """Return the per-layer table in the model's order, or measured sensitivities, the most sensitive layer first.

        Args:
            measured: Prune every layer alone, in the pattern of the limit, and measure the change of criterion and
                metric, see ``sensitivity.layer_sensitivities``. A page that ``report`` writes afterwards shows the
                result.
            sparsities: Removed shares of a layer in (0, 1].
            samples: Size of the random draw of data for the measurement; None takes all data.

        Raises:
            UserError: The network and its data are not at hand, as for a limit from a file, or a pattern of channels or
                heads is to be measured.
        """
        if not measured:
            return list(self.layer_table)
        from pruning_limits.layer_report import measured_layers

        return measured_layers(self, sparsities, samples)

    def mask(self, sparsity: float | None = None) -> dict[str, Tensor]:
        """Return global magnitude masks by parameter name, True where kept, with the exact count.

        In a pattern of groups the masks remove at least the given fraction: the smallest such count that the pattern
        allows.

        Args:
            sparsity: Removed fraction in [0, 1]. None takes the only sparsity of a pattern such as N:M.

        Raises:
            UserError: The limit holds no weights, because it was loaded from a file or its weights were scaled.
        """
        if self.profile is None:
            raise UserError(
                "mask: this limit holds no weights (it was loaded or scaled); use MagnitudeProfile(weights)"
            )
        return self.profile.masks(self._only(sparsity))

    def prune(self, model: nn.Module, sparsity: float | None = None) -> nn.Module:
        """Return a copy of a model with the exact number of smallest prunable weights set to zero.

        Args:
            model: The network that the limit was predicted for, or a network with the same layers.
            sparsity: Removed fraction in [0, 1]. None takes the only sparsity of a pattern such as N:M.

        Raises:
            UserError: The model lacks a prunable parameter, or has another number of prunable weights.
        """
        from pruning_limits.masking import pruned_copy
        from pruning_limits.pattern_profiles import profile_for

        return pruned_copy(
            model,
            self.settings.parameters,
            self.parameters,
            self._only(sparsity),
            lambda weights: profile_for(self, model, weights),
        )

    @property
    def pattern(self) -> str:
        """The pattern of pruning that the limit holds for; ``"unstructured"`` means single weights."""
        return self.evidence.pattern

    def for_pattern(self, pattern: str) -> PruningLimit:
        """Return the limit of another pattern of pruning, without another product.

        Args:
            pattern: ``"unstructured"``, ``"2:4"`` or another N:M, ``"blocks:16x1"`` or another size, ``"channels"`` or
                ``"heads"``.

        Returns:
            The limit. If ``predict_limit`` was not asked for the pattern, nothing was measured in it, and what pruning
            alone reaches is unknown. If this limit comes from a file, the result has no per-layer table.

        Raises:
            UserError: The pattern is unknown or fits no layer; or ``predict_limit`` was not asked for it, and the
                pattern is one of channels or heads, or the limit holds no weights.
        """
        name = parsed(pattern).name
        if name == self.pattern:
            return self
        if self.profile is None and any(row.name == name for row in self.evidence.patterns):
            return solve(self.evidence.of(name), self.settings, self.allowed)
        from pruning_limits.pattern_profiles import other_pattern

        evidence, profile = other_pattern(self.evidence, self.profile, name)
        return solve(evidence, self.settings, self.allowed, profile)

    def retune(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        sparsity: float | None = None,
        loss_fn: LossFunction | None = None,
        metric: Metric | None = None,
        held_out: Iterable[Any] | None = None,
        penalty: Penalty | None = None,
        retuning: Retuning | None = None,
        progress: Progress = None,
        checkpoint: str | Path | None = None,
    ) -> tuple[nn.Module, Answer]:
        """Return a copy of a model that is pruned to a sparsity in stages and re-tuned on few samples, and its answer.

        The copy is pruned in the pattern of the limit, see ``for_pattern``. All parameters that are not frozen are
        re-tuned. Frozen parameters are pruned but not trained. For a sparsity that ``predict_limit(retune=True)``
        measured, the stages and the final weights are the same as there. Ctrl-C returns the best network so far.

        Args:
            model: The network that the limit was predicted for; it is left as it is.
            loader: Batches of its training data, as for ``predict_limit``.
            sparsity: Removed fraction in [0, 1), at least the fraction that is already removed. None takes the only
                sparsity of a pattern such as N:M, which refuses any other.
            loss_fn: The loss that the limit was predicted with; default cross-entropy on ``(x, y)``.
            metric: The metric; default the accuracy if the limit was predicted with it, else none.
            held_out: Batches on which only the metric is measured; None takes the training data.
            penalty: The penalty, which the criterion ``"objective"`` needs.
            retuning: Samples, passes and epochs of the re-tuning; default those of the limit, or ``Retuning()``.
            progress: See ``predict_limit``.
            checkpoint: File that keeps the state after every stage; a run that was killed continues from it.

        Returns:
            The copy, with removed weights exactly zero, and the answer of the rung ``"re-tuned"`` with its metric.

        Raises:
            UserError: Bad input, told in one line.

        Example:
            >>> import torch
            >>> from pruning_limits import predict_limit
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
            >>> data = [(torch.randn(64, 4), torch.arange(64) % 2)]
            >>> limit = predict_limit(model, data, progress=False)
            >>> pruned, answer = limit.retune(model, data, 0.5)
            >>> sum(int((layer.weight == 0).sum()) for layer in (pruned[0], pruned[2]))
            24
        """
        from estimators.arguments import plain_model
        from pruning_limits.dense_network import Subject
        from pruning_limits.held_out import held_out_batches
        from pruning_limits.masking import weights_of
        from pruning_limits.metrics import metric_loss, metric_name
        from pruning_limits.pattern_profiles import groups_for
        from pruning_limits.retuned_copy import retuned_copy
        from pruning_limits.tuned_points import stages_to

        sparsity = number("sparsity", self._only(sparsity), BELOW_ONE, lambda own: 0 <= own < 1)
        weights = weights_of(plain_model(model), self.settings.parameters, self.parameters)
        groups = groups_for(self, plain_model(model), weights)
        if metric is None and self.metric == "accuracy":
            metric = "accuracy"
        held_out = held_out_batches(held_out, metric is not None, self.settings.max_batches)
        tuning = self.evidence.retuned
        settings = dataclasses.replace(
            self.settings,
            retune=retuning or self.settings.retune or Retuning(),
            metric=None if metric is None else metric_name(metric),
            max_drop=None if metric is None else self.max_drop,
            held_out=held_out is not None,
            measure=True,
        )
        points = () if tuning is None or settings.retune != self.settings.retune else tuning.run(0)
        values = None if metric is None else metric_loss(metric)
        subject = Subject(model, loader, loss_fn, penalty, None, values, held_out)
        fixed = groups is not None and groups.pattern.fixed
        way = [sparsity] if fixed else stages_to(points, sparsity, self.lower, self.evidence.already_removed)
        return retuned_copy(subject, settings, way, progress, checkpoint, groups)

    @np.errstate(over="ignore")  # curves, measures and directions refuse what overflows
    def what_if(
        self,
        epsilon: float | None = None,
        weight_scale: float = 1.0,
        curvature_scale: float = 1.0,
        max_drop: float | None = None,
    ) -> PruningLimit:
        """Answer for another allowed loss, scaled weights or scaled curvature without another product.

        Args:
            epsilon: Allowed rise of the criterion, which then decides in place of the metric; default the present rise.
            weight_scale: Factor on all weights, 1e-50 to 1e50, the curvature held fixed.
            curvature_scale: Factor on the curvature, 1e-50 to 1e50, the weights held fixed.
            max_drop: Allowed fall of the mean metric, > 0. The metric then decides, and epsilon follows from its fall,
                see ``epsilon.from_max_drop``. The metric of the limit must have been measured.

        Returns:
            The limit under the changed conditions, with new numbers and texts. What pruning alone reaches is
            interpolated between the measured networks, so its interval is wider than before if the allowed loss
            changes. Under scaled weights or curvature nothing is measured; the rises then scale as in the quadratic
            model, and the forecast uses them and leaves out what was re-tuned.

        Raises:
            UserError: A value is out of range, both epsilon and max_drop are given, or the metric fell by less than
                max_drop in every measured network.
        """
        scales = f"a number from {LEAST_SCALE:g} to {LARGEST_SCALE:g}"
        weight_scale, curvature_scale = (
            number(name, value, scales, lambda own: LEAST_SCALE <= own <= LARGEST_SCALE)
            for name, value in (("weight_scale", weight_scale), ("curvature_scale", curvature_scale))
        )
        settings, allowed = self.settings, self.allowed
        if epsilon is not None:
            if max_drop is not None:
                raise UserError("max_drop: epsilon follows from it; give the one or the other")
            allowed = Allowed.exactly(checked("epsilon", epsilon))
            settings = dataclasses.replace(settings, epsilon=epsilon, max_drop=None)
        elif max_drop is not None:
            settings = dataclasses.replace(settings, epsilon="batch-std", max_drop=max_drop)
            allowed = self._allowed_at(max_drop)
        if weight_scale != 1 or curvature_scale != 1:
            settings = dataclasses.replace(settings, max_drop=None)
        evidence = self.evidence.scaled(weight_scale, curvature_scale)
        answer = solve(evidence, settings, allowed, self.profile if weight_scale == 1.0 else None)
        if answer.profile is None and answer.sparsity == self.sparsity and evidence is self.evidence:
            return dataclasses.replace(answer, layer_table=self.layer_table)
        return answer

    def _allowed_at(self, max_drop: float) -> Allowed:
        """Return the rise that goes with a fall of the metric; where there is none, that of a batch if it is known."""
        single = self.evidence.of(UNSTRUCTURED)
        if not self.evidence.measured:
            raise UserError("max_drop: nothing was measured under these conditions; ask the limit that was predicted")
        allowed = from_max_drop(single.points, max_drop, single.already_removed)
        if allowed is None and self.allowed.origin != "batch-std":
            raise UserError(f"max_drop: no network that was measured has lost {max_drop:g} of the metric; ask for less")
        return allowed or self.allowed

    def epsilon_for(self, sparsity: float) -> float:
        """Return the allowed rise that would make a sparsity the isotropic limit; see ``inverse.epsilon_for``."""
        from scipy.optimize import brentq

        from pruning_limits.inverse import epsilon_for
        from pruning_limits.isotropic import carried_limit

        sparsity = number("sparsity", sparsity, "a number in (0, 1) (the removed fraction)", lambda own: 0 < own < 1)
        target, negative = self.evidence.hessian.on_samples(sparsity), self.settings.negative
        ends, refusals = [], []
        for measure in self.evidence.hessian.measures:
            try:
                ends.append(math.log(epsilon_for(measure, self.evidence.curve, target, negative)))
            except UserError as error:
                refusals.append(error)

        def excess(logarithm: float) -> float:
            return carried_limit(self.evidence.hessian, self.evidence.curve, math.exp(logarithm), negative) - sparsity

        if not ends:
            raise refusals[0]
        if len(self.evidence.hessian.measures) == 1:
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

    def saving(self, sparsity: float) -> Saving:
        """Return the remaining parameters, multiply-accumulates and bytes of the network at a sparsity of the pattern.

        Args:
            sparsity: Removed fraction of the prunable weights.

        Returns:
            The saving, interpolated linearly between stored sparsities.

        Raises:
            UserError: The pattern cannot remove so much.
        """
        return saving_at(self.evidence.savings, sparsity)

    def for_budget(
        self,
        macs: float | None = None,
        bytes: float | None = None,
        parameters: float | None = None,
        latency: float | None = None,
        timings: Sequence[Timing] = (),
    ) -> BudgetAnswer:
        """Return the least sparsity of the pattern that meets a budget, what then remains, and the verdict on it.

        Args:
            macs: Share of the dense network's multiply-accumulates that may remain, in (0, 1).
            bytes: Share of the dense network's size, in the format of the pattern.
            parameters: Share of the dense network's parameters.
            latency: Share of the dense network's measured time; needs ``timings``.
            timings: The result of the method ``latency``.

        Raises:
            UserError: Not exactly one budget is given, or the pattern cannot meet it; the message names the nearest
                budget that it can meet.
        """
        from pruning_limits.resource_budget import budget_of

        shares = {"macs": macs, "bytes": bytes, "parameters": parameters, "latency": latency}
        return budget_of(self, shares, timings)

    def shrink(
        self, model: nn.Module, loader: Iterable[Any], sparsity: float, loss_fn: LossFunction | None = None
    ) -> nn.Module:
        """Return a copy of a network without the removed channels, physically smaller; see ``shrinking.shrunk``."""
        from pruning_limits.shrinking import shrunk

        return shrunk(self, model, loader, sparsity, loss_fn)

    def latency(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        sparsities: Sequence[float] = (0.25, 0.5, 0.75),
        loss_fn: LossFunction | None = None,
    ) -> tuple[Timing, ...]:
        """Time the dense network and physically smaller ones on a batch, on this machine; see ``shrinking.timings``."""
        from pruning_limits.shrinking import timings

        return timings(self, model, loader, sparsities, loss_fn)

    def ratios(self, sparsity: float) -> LayerRatios:
        """Return the removed share of every layer, in formats of other tools; see ``exports.LayerRatios``."""
        from pruning_limits.exports import ratios_of

        return ratios_of(self, sparsity)

    def check(self, sparsity: float | None = None) -> Verdict:
        """Judge whether a sparsity can be reached.

        Args:
            sparsity: Wanted removed fraction in [0, 1). None takes the only sparsity of a pattern such as N:M.

        Raises:
            UserError: The sparsity is out of range, or it is None and the pattern allows more than one.
        """
        sparsity = number("sparsity", self._only(sparsity), BELOW_ONE, lambda own: 0 <= own < 1)
        return judged(self, sparsity)

    def _only(self, sparsity: float | None) -> float:
        """Return a sparsity; None is that of a pattern that has one only."""
        own = self.evidence.own
        if sparsity is not None:
            return sparsity
        if own is None or not own.fixed:
            raise UserError(f"sparsity: expected a number in [0, 1); {self.pattern} has many sparsities")
        return own.most

    def __repr__(self) -> str:
        rungs = ", ".join(
            f"{answer.rung} {'unknown' if answer.sparsity is None else f'{answer.sparsity:.4f}'}"
            for answer in self.answers
        )
        return f"PruningLimit({rungs}; parameters={self.parameters}, status={self.status!r})"

    def summary(self, target: float | None = None) -> str:
        """Return the answer as a short table, rung by rung.

        Args:
            target: Sparsity in [0, 1) that the last line judges; None omits that line.
        """
        return ladder(self, target)

    def details(self) -> str:
        """Return the details as text: statuses of all rungs, the spectrum, settings, data and cost."""
        return details(self)

    def _repr_html_(self) -> str:
        """Return the answer as a table for notebooks, in the colours of the page."""
        return html(self)

    def to_pandas(self) -> DataFrame:
        """Return the per-layer table as a data frame, one row per layer, its columns the attributes of ``Layer``.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UserError("to_pandas: needs the package pandas; install it with pip install pandas") from None
        columns = [column.name for column in dataclasses.fields(Layer)]
        return pandas.DataFrame([dataclasses.asdict(layer) for layer in self.layer_table], columns=columns)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the measured loss with the rungs, and below the two curves whose crossing is the limit by the formula.

        ``plotting.plot_rungs`` and ``plotting.plot_crossing`` draw the single panels on your own axes.

        Args:
            path: File to write, with a suffix that Matplotlib knows; None writes no file.

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

    def report(self, path: str | Path) -> None:
        """Write the answer as one web page with sliders, see ``report.write_report``.

        Args:
            path: File to write, ending in ``.html`` or ``.htm``.

        Raises:
            UserError: The file has another suffix or cannot be written.
        """
        from pruning_limits.report import write_report

        write_report(self, path)

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the limit as JSON, without weights, and write it to a file if a path is given."""
        text = json.dumps(self._plain, indent=1) + "\n"
        if path is not None:
            write_bytes(path_of("path", path), text.encode())
        return text

    @cached_property
    def _plain(self) -> dict[str, Any]:
        names = [attribute.name for attribute in dataclasses.fields(self) if attribute.name != "profile"]
        return {"format": FORMAT} | {name: to_plain(getattr(self, name)) for name in names}

    @classmethod
    def from_json(cls, path: str | Path) -> PruningLimit:
        """Load a limit written by ``to_json``.

        Raises:
            UserError: The file is missing, is not JSON, or is not a limit of this version.
        """
        plain = read_plain(path_of("path", path))
        stated = plain.get("format") if isinstance(plain, dict) else None
        if _is_format(stated) and stated != FORMAT:
            raise UserError(f"limit: {path} has format {stated} of another version, not {FORMAT}; predict it again")
        if stated != FORMAT:
            raise UserError(f"limit: {path} is not a pruning limit of format {FORMAT}; predict it again")
        try:
            return cls(**fields_of(plain))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            detail = str(error) or type(error).__name__
            raise UserError(f"limit: {path} is damaged ({detail.splitlines()[0][:200]}); predict it again") from None


def _is_format(stated: object) -> bool:
    """Tell whether a value is the format of some version."""
    return isinstance(stated, str) and re.fullmatch(r"pruning-limit/\d{1,3}", stated) is not None


def established(value: Value | None) -> Value:
    """Return a number that rests on the GGN.

    Raises:
        UserError: It is unknown.
    """
    if value is None:
        raise UserError("limit: what rests on the GGN is unknown, as its notes say; expected a limit where it is known")
    return value
