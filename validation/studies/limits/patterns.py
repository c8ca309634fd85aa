"""Table ``patterns``: the sparsity that 2:4, blocks, channels and heads allow, and its prediction by one spectrum."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from estimators import Objective, UserError
from pruning_limits import MagnitudeProfile, PruningLimit, Retuning, predict_limit
from pruning_limits.answers import ggn_formula
from pruning_limits.group_profile import GroupProfile
from pruning_limits.pattern_names import UNSTRUCTURED, parsed
from pruning_limits.patterns import groups_of
from pruning_limits.plotting import headline, new_figure, save, sparsity_axis
from validation.studies.limits.actual import Trial, retrained_limit
from validation.studies.limits.predicted import LimitSettings
from validation.tables.storage import run_folder
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import COLOURS, Column, Page, Row, network_row, recipes, with_means, write_table
from validation.training import Network, accuracy, apply_masks, train

NAME = "patterns"
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("pattern", "pattern"),
    Column("seed", "seed"),
    Column("most", "removes at most", ".1%"),
    Column("one_shot", "actual: one-shot", ".1%"),
    Column("isotropic", "predicted: Hessian", ".1%"),
    Column("retuned", "actual: re-tuned", ".1%"),
    Column("again", "actual: whole recipe", ".1%"),
    Column("retrained", "predicted: GGN", ".1%"),
    Column("one_shot_rise", "rise at its sparsity: one-shot", ".3g"),
    Column("retuned_rise", "re-tuned", "+.3g"),
    Column("again_rise", "whole recipe", "+.3g"),
    Column("again_drop", "points of accuracy lost", "+.2f"),
)
KEYS = ("model", "dataset", "penalty", "pattern")
# What was measured, what is said of it by which curvature, and its name.
KINDS = (
    ("one_shot", "isotropic", "one-shot", "Hessian"),
    ("retuned", "retrained", "re-tuned", "GGN"),
    ("again", "retrained", "whole recipe", "GGN"),
)


@dataclass(frozen=True)
class PatternSettings:
    """Which patterns of pruning are compared, and how far.

    Args:
        names: Names of patterns; one that fits no layer of a network is left out there.
        epsilon: Allowed rise of the mean training loss.
        evaluations: Number of sparsities that are trained beyond what pruning reaches alone.
        retuned_epochs: Most that re-tuning may cost in all patterns of a network together, in epochs of training; each
            pattern has one stage at least.
    """

    section: ClassVar[str] = "patterns"

    names: tuple[str, ...] = ("unstructured", "2:4", "4:8", "1:4", "blocks:4x4", "blocks:16x1", "channels", "heads")
    epsilon: float = 0.02
    evaluations: int = 4
    retuned_epochs: float = 40.0

    def __post_init__(self) -> None:
        for name in self.names:
            parsed(name)


def cells(suite: Suite) -> list[Cell]:
    """Return a cell for every network and pattern."""
    kinds = dict.fromkeys((network.model, network.dataset, network.recipe) for network in suite.networks)
    return [
        Cell(network, {"pattern": pattern})
        for kind in kinds
        for pattern in suite.settings(PatternSettings).names
        for network in suite.networks
        if (network.model, network.dataset, network.recipe) == kind
    ]


def run(cell: Cell, bench: Bench) -> Row:
    """Predict one network's limit in one pattern, and measure what it bears alone and after its whole recipe."""
    network, pattern, settings = cell.network, cell.part["pattern"], bench.suite.settings(PatternSettings)
    row = network_row(network) | {"pattern": pattern, "epsilon": settings.epsilon}
    limit = _limit(network, bench)
    if limit is None or pattern not in {own.name for own in limit.evidence.patterns}:
        return row | {"reason": "no layer fits"}
    own = limit.for_pattern(pattern)
    trials = _Trials(network, bench, pattern)
    row |= {"dense_loss": trials.dense, "dense_accuracy": trials.accuracy}
    row |= {"most": trials.most, "isotropic": own.sparsity, "one_shot": own.achieved}
    row |= {"retrained": ggn_formula(own.evidence, own.allowed).sparsity, "retuned": own.answer("re-tuned").sparsity}
    if parsed(pattern).fixed:
        trial = trials.at(trials.most)
        holds = trial["rise"] <= settings.epsilon
        rise = own.evidence.points[-1].rise if own.evidence.points else 0.0
        return row | {
            "again": trials.most if holds else 0.0,
            "one_shot_rise": rise,
            "retuned_rise": max(point.rise for point in own.evidence.retuned.points) if own.evidence.retuned else None,
            "again_rise": trial["rise"],
            "again_drop": trial["drop"],
            "trials": [trial],
        }
    again, made = trials.limit(own.lower, settings.epsilon, settings.evaluations)
    return row | {"again": again, "trials": made}


def _limit(network: Network, bench: Bench) -> PruningLimit | None:
    """Return the limit of a network in every pattern that fits it, predicted once for all of them."""
    model, suite = bench.model(network), bench.suite
    names = [UNSTRUCTURED]
    limits, patterns = suite.plain(LimitSettings), suite.settings(PatternSettings)
    for name in patterns.names:
        if name != UNSTRUCTURED:
            try:
                groups_of(name, Objective(model, bench.data.batches("train", 1000)))
            except UserError:
                continue
            names.append(name)
    wanted = {"network": network.settings(), **limits, "epsilon": patterns.epsilon}
    wanted |= {"patterns": names, "retuned_epochs": patterns.retuned_epochs}
    file = run_folder(bench.out, "pattern-limit", wanted) / "limit.json"
    if not file.exists():
        predict_limit(
            model,
            bench.data.batches("train", 1000),
            epsilon=patterns.epsilon,
            pattern=names,
            retune=Retuning(epochs=patterns.retuned_epochs),
            seed=network.seed,
            progress=None if bench.progress else False,
            **limits["limit"],
        ).to_json(file)
    return PruningLimit.from_json(file)


class _Trials:
    """Networks that are pruned in a pattern and trained with their whole recipe once more."""

    def __init__(self, network: Network, bench: Bench, pattern: str) -> None:
        self.network, self.bench = network, bench
        self.model = bench.model(network)
        self.objective = Objective(self.model, bench.data.batches("train", 1000))
        weights = self.objective.chosen
        self.profile = MagnitudeProfile(weights)
        if pattern != UNSTRUCTURED:
            self.profile = GroupProfile(weights, groups_of(pattern, self.objective))
        self.dense = self.objective.value()
        self.accuracy = accuracy(self.model, bench.data)
        self._made = dict[int, Trial]()

    @property
    def most(self) -> float:
        """Largest sparsity of the pattern."""
        return self.profile.most if isinstance(self.profile, GroupProfile) else 1 - 1 / self.profile.dimension

    def at(self, sparsity: float) -> Trial:
        """Prune to a sparsity, train, and measure the mean training loss and the fall of the accuracy."""
        wanted = min(sparsity, self.most)
        count = self.profile.count(wanted)
        if count not in self._made:
            self._made[count] = self._trained(wanted)
        return self._made[count]

    def _trained(self, wanted: float) -> Trial:
        model: nn.Module = copy.deepcopy(self.model)
        masks = self.profile.masks(wanted) | self.profile.companions(wanted)
        apply_masks(model, masks)
        train(model, self.bench.data, self.network.recipe, self.network.seed + 1000, masks=masks)
        loss = Objective(model.eval(), self.bench.data.batches("train", 1000)).value()
        drop = 100 * (self.accuracy - accuracy(model, self.bench.data))
        removed = self.profile.count(wanted) / self.profile.dimension
        return {"sparsity": removed, "objective": loss, "rise": loss - self.dense, "drop": drop}

    def limit(self, start: float, allowed: float, evaluations: int) -> tuple[float, list[Trial]]:
        """Return how far training reaches, see ``actual.retrained_limit``, and every trial."""
        reached, trials = retrained_limit(self.at, self.dense + allowed, min(start, self.most), evaluations)
        return min(reached, self.most), trials


def factor(rows: Sequence[Row], predicted: str, actual: str) -> tuple[float, float] | None:
    """Mean ratio of kept fractions, predicted over actual, and its spread as a factor; None without rows.

    Patterns of one sparsity are left out, and rows in which all that the pattern may remove can go.

    Example:
        >>> factor([{"a": 0.8, "b": 0.9, "pattern": "channels"}] * 2, "a", "b")
        (2.0, 1.0)
    """
    logarithms = [
        math.log((1 - row[predicted]) / (1 - row[actual]))
        for row in rows
        if not parsed(row["pattern"]).fixed and None not in (row.get(predicted), row.get(actual))
        if row[predicted] < 1 and row[actual] < row.get("most", 1)
    ]
    if not logarithms:
        return None
    spread = float(np.std(logarithms, ddof=1)) if len(logarithms) > 1 else 0.0
    return round(math.exp(float(np.mean(logarithms))), 12), math.exp(spread)


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table, say for which patterns the equation is worth anything, and draw predicted against actual."""
    patterns = suite.settings(PatternSettings)
    dense = _dense_words(rows)
    notes = [
        f"Made by `{command}`.",
        "Sparsity is the removed fraction of convolution and linear weights. Allowed is a rise of the mean training "
        f"loss by {patterns.epsilon:g}. Predicted: the isotropic equation with R of the pattern, by the absolute "
        "Hessian and by the GGN; one spectrum serves all patterns of a network. Actual: one-shot pruning, groups by "
        "root mean square; re-tuned in stages, for at most "
        f"{patterns.retuned_epochs:g} epochs of a network in all patterns; and after the whole training recipe once "
        f"more on the fixed mask, interpolated after {patterns.evaluations} sparsities. "
        "N:M has one sparsity: what is predicted there is the sparsity that "
        "its R allows, to be compared with what it removes; actual is that sparsity where it holds, else 0.",
        recipes(suite),
        *([f"Dense networks, training loss and held-out accuracy: {dense}."] if dense else []),
        *_words(rows),
    ]
    write_table(
        folder, Page(NAME, f"Patterns of pruning, suite {suite.name}", notes, COLUMNS), with_means(rows, COLUMNS, KEYS)
    )
    _figure(rows, folder / f"{NAME}.png")


def _words(rows: Sequence[Row]) -> list[str]:
    lines = []
    for pattern in dict.fromkeys(row["pattern"] for row in rows):
        own = [row for row in rows if row["pattern"] == pattern and row.get("most") is not None]
        if not own:
            lines.append(f"{pattern}: fits no layer of these networks.")
        elif parsed(pattern).fixed:
            lines.append(f"{pattern}: {_fixed_words(own)}.")
        else:
            lines.append(f"{pattern}: {'; '.join(filter(None, (_kept_words(own, kind) for kind in KINDS)))}.")
    return lines


def _dense_words(rows: Sequence[Row]) -> str:
    parts = {
        (row["model"], row["dataset"], row["seed"]): f"{row['dense_loss']:.3g}, {row['dense_accuracy']:.1%}"
        for row in rows
        if row.get("dense_loss") is not None
    }
    return "; ".join(f"{model} on {data}, seed {seed}: {text}" for (model, data, seed), text in parts.items())


def _kept_words(rows: Sequence[Row], kind: tuple[str, str, str, str]) -> str:
    """Compare what networks keep with what was predicted, and count those in which all of the pattern can go."""
    truth, predicted, name, curvature = kind
    known = [row for row in rows if None not in (row.get(truth), row.get(predicted))]
    whole = [row for row in known if row[truth] >= row["most"]]
    ratio, parts = factor(known, predicted, truth), []
    if ratio is not None:
        parts.append(f"kept predicted / actual {ratio[0]:.2f}, spread x{ratio[1]:.2f}, n={len(known) - len(whole)}")
    if whole:
        same = sum(row[predicted] >= row["most"] for row in whole)
        parts.append(f"all that may go can go in {len(whole)}, as the {curvature}'s equation says of {same}")
    return f"{name}: {', '.join(parts)}" if parts else ""


def _fixed_words(rows: Sequence[Row]) -> str:
    parts = []
    for truth, predicted, name, curvature in KINDS:
        known = [row for row in rows if None not in (row.get(truth), row.get(predicted))]
        if not known:
            continue
        holds = [row[truth] >= row["most"] for row in known]
        said = [row[predicted] >= row["most"] for row in known]
        same = sum(a == b for a, b in zip(holds, said, strict=True))
        text = f"{name}: holds in {sum(holds)} of {len(known)} networks"
        parts.append(f"{text}, the {curvature}'s equation says so of {sum(said)} and is right in {same}")
    return "; ".join(parts)


def _figure(rows: Sequence[Row], path: Path) -> None:
    measured = [row for row in rows if row.get("most") is not None and not parsed(row["pattern"]).fixed]
    kinds = [kind for kind in KINDS if any(None not in (row.get(kind[0]), row.get(kind[1])) for row in measured)]
    kinds = kinds or list(KINDS[:1])  # empty axes where all patterns have one sparsity
    figure, axes = new_figure(1, len(kinds), size=(0.4 + 4.6 * len(kinds), 4.6), sharex=True, sharey=True)
    headline(figure, _finding(measured))
    panels = np.atleast_1d(axes)
    kept = [1 - row[key] for row in measured for pair in kinds for key in pair[:2] if row.get(key)]
    least = 0.7 * min([value for value in kept if value > 0], default=1.0)
    patterns = list(dict.fromkeys(row["pattern"] for row in measured))
    for panel, (truth, predicted, name, curvature) in zip(panels, kinds, strict=True):
        panel.plot([1, least], [1, least], color="#666666", linewidth=1, label="predicted = actual")
        for colour, pattern in zip(COLOURS * 2, patterns, strict=False):
            own = [
                row for row in measured if row["pattern"] == pattern and None not in (row.get(truth), row[predicted])
            ]
            across, up = ([max(1 - row[key], least) for row in own] for key in (truth, predicted))
            panel.plot(across, up, "o", color=colour, markersize=5, label=pattern)
        sparsity_axis(panel.xaxis, least)
        sparsity_axis(panel.yaxis, least)
        panel.set(xlabel="actual (sparsity)")
        panel.set_title(f"{name}, {curvature}", loc="left", fontsize=10)
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("predicted (sparsity)")
    panels[0].legend(fontsize=8)
    save(figure, path)


def _finding(rows: Sequence[Row]) -> str:
    """Say how much is kept by the equation over what is really kept, of all patterns with many sparsities."""
    parts = []
    for truth, predicted, name, _ in KINDS:
        ratio = factor([row for row in rows if None not in (row.get(truth), row.get(predicted))], predicted, truth)
        if ratio is not None:
            parts.append(f"{ratio[0]:.2f} times ({name})")
    if not parts:
        return "Every pattern has one sparsity only"
    return f"What the equation keeps of what is needed: {', '.join(parts)}"


def settings(suite: Suite) -> dict[str, Any]:
    """Return the suite's settings that a row depends on."""
    return suite.plain(LimitSettings, PatternSettings)


TABLE = Table(NAME, settings, run, write, cells, sections=(LimitSettings, PatternSettings))
