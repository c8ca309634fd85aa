"""Predicted and measured sparsities of one network, by the paper's protocol and by the user's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any, ClassVar

from estimators import Objective, UserError
from pruning_limits import MagnitudeProfile, PruningLimit
from pruning_limits.answers import Answer, Rung, ggn_formula
from validation.masks import prunable
from validation.studies.limits.actual import RetrainSettings, retrained_limit, stored_trial
from validation.studies.limits.forecast_curves import Curve, Level, Measured, bracket, crossing, last_place
from validation.studies.limits.forecast_truths import Truths
from validation.studies.limits.predicted import LimitSettings, predicted_limit, user_limit
from validation.studies.limits.truths import refined_crossing
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell
from validation.tables.writing import Row, network_row, recipe_text
from validation.training import Network

OBJECTIVE, LOSS, ACCURACY = "objective", "loss", "accuracy"
ALONE, SHORT, WHOLE = "one-shot", "short re-training", "whole recipe"
HALVINGS = 10  # at most, of the bracket between neighbours of the grid, in which one-shot pruning crosses a level
RESOLUTION = 1e-4  # in sparsity, of a truth; a weight where that is more


@dataclass(frozen=True)
class TruthSettings:
    """What a user allows to be lost, and how much training the truths may take.

    Args:
        drop: Allowed fall of the accuracy on held-out data, > 0.
        runs: Trainings with the whole recipe at every sparsity, each with an order of the data of its own.
        epochs: Longest recipe; longer ones are cut to it, schedule included. 0 leaves all as they are.
    """

    section: ClassVar[str] = "truths"

    drop: float = 0.01
    runs: int = 2
    epochs: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.drop < 1:
            raise UserError(f"truths: drop must lie in (0, 1), got {self.drop}")
        if self.runs < 1:
            raise UserError(f"truths: runs must be at least 1, got {self.runs}")
        if self.epochs < 0:
            raise UserError(f"truths: epochs must be at least 0, got {self.epochs}")


SECTIONS = (LimitSettings, RetrainSettings, TruthSettings)


@dataclass(frozen=True)
class Question:
    """A prediction that is held against a truth.

    Attributes:
        protocol: Whose, ``"paper"`` or ``"user"``.
        by: What the prediction must not lose: objective, loss or accuracy.
        rung: The answer of the limit that predicts.
        truth: How the network is pruned.
        level: What it must not lose.
    """

    protocol: str
    by: str
    rung: Rung
    truth: str
    level: str


USER: tuple[tuple[Rung, str], ...] = (("one-shot", ALONE), ("formula", ALONE), ("re-trained", WHOLE), ("bound", WHOLE))
QUESTIONS = (
    Question("paper", OBJECTIVE, "formula", ALONE, OBJECTIVE),
    Question("paper", OBJECTIVE, "formula", ALONE, ACCURACY),
    Question("paper", OBJECTIVE, "re-trained", SHORT, OBJECTIVE),
    *(Question("user", level, rung, truth, level) for level in (LOSS, ACCURACY) for rung, truth in USER),
)


def shortened(suite: Suite) -> Suite:
    """Return the suite with recipes that are no longer than its settings allow."""
    most = suite.settings(TruthSettings).epochs
    if not most:
        return suite
    networks = [replace(n, recipe=replace(n.recipe, epochs=min(most, n.recipe.epochs))) for n in suite.networks]
    return replace(suite, networks=tuple(networks))


def settings(suite: Suite) -> dict[str, Any]:
    """Return the suite's settings that a row depends on; recipes are the cell's."""
    plain = suite.plain(*SECTIONS)
    del plain[TruthSettings.section]["epochs"]
    return plain


@dataclass(frozen=True)
class Alone:
    """A network, what is predicted of it, and what pruning without any training reaches.

    Attributes:
        limits: Predicted limits by what must not be lost: objective, loss or accuracy.
        levels: How much of each may be lost.
        truths: The trained network.
        ends: Sparsities by truth and level, see ``one_shot``.
        curve: Points by falling kept fraction.
    """

    limits: dict[str, PruningLimit]
    levels: Sequence[Level]
    truths: Truths
    ends: dict[tuple[str, str], float | None]
    curve: list[Row]

    @classmethod
    def of(cls, network: Network, bench: Bench) -> Alone:
        """Predict a network's limits by both protocols, and prune it by magnitude.

        Args:
            network: A network, trained where it is not yet.
            bench: Its data and the suite's settings.
        """
        model, drop = bench.model(network), bench.suite.settings(TruthSettings).drop
        limits = {OBJECTIVE: predicted_limit(network, bench), LOSS: user_limit(network, bench)}
        limits[ACCURACY] = user_limit(network, bench, drop)
        levels = [
            Level(OBJECTIVE, OBJECTIVE, limits[OBJECTIVE].epsilon),
            Level(LOSS, "rise", limits[LOSS].epsilon),
            Level(ACCURACY, "held_out_drop", drop),
        ]
        truths = Truths(network, model, bench.data, levels[1:], Measured.of(model, bench.data), bench.folder)
        return cls(limits, levels, truths, *one_shot(truths, levels))

    def row(self) -> Row:
        """Return what is said of the network."""
        network = self.truths.network
        return network_row(network) | {
            "recipe": recipe_text(network.recipe),
            "parameters": self.truths.dimension,
            "dense": asdict(self.truths.dense),
            "epsilon": {name: limit.epsilon for name, limit in self.limits.items()},
        }


def run(cell: Cell, bench: Bench) -> Row:
    """Predict one network's limits by both protocols, and measure what it bears.

    Args:
        cell: The network.
        bench: Its data and the suite's settings.

    Returns:
        What is said of the network, ``cases`` with a prediction and a truth each, and the curves behind them.
    """
    network, alone = cell.network, Alone.of(cell.network, bench)
    limits, levels, truths = alone.limits, alone.levels, alone.truths
    runs = bench.suite.settings(TruthSettings).runs
    again = {f"again-{number}": truths.again(number) for number in range(runs)}
    ends = alone.ends | {
        (WHOLE, level.name): _middle([crossing(points, level) for points in again.values()]) for level in levels[1:]
    }
    objective = Objective(truths.model, bench.data.batches("train", 1000), penalty=network.recipe.penalty).value()
    start = min(ends[ALONE, OBJECTIVE] or 0.0, 1 - 1 / truths.dimension)
    evaluations = bench.suite.settings(RetrainSettings).evaluations
    retrain, most = partial(stored_trial, network, bench), objective + levels[0].allowed
    ends[SHORT, OBJECTIVE], trials = retrained_limit(retrain, most, start, evaluations)
    return alone.row() | {
        "dense": asdict(truths.dense) | {"objective": objective},
        "cases": [case(question, limits[question.by], ends) for question in QUESTIONS],
        "predictions": {name: _predictions(limits[name], limits[LOSS]) for name in (OBJECTIVE, LOSS)},
        "curves": {"alone": alone.curve, **again},
        "trials": trials,
    }


def one_shot(truths: Truths, levels: Sequence[Level]) -> tuple[dict[tuple[str, str], float | None], list[Row]]:
    """Measure on all data where pruning alone loses more than each level allows, and the curve on the way.

    Args:
        truths: The trained network.
        levels: What may be lost; ``"objective"`` is the loss plus the penalty of the network's recipe.

    Returns:
        Sparsities by truth and level, None where no pruned network loses so much; points by falling kept fraction.
    """
    penalty, profile = truths.network.recipe.penalty, MagnitudeProfile(prunable(truths.model))

    @cache  # without a penalty the objective is the loss, and both levels ask for the same networks
    def measure(sparsity: float) -> Row:
        point = truths.at(sparsity)
        saved = 0.0 if penalty is None else float(penalty.value([profile.removed(sparsity)]))
        return point | {OBJECTIVE: point["rise"] - saved}

    file, last = truths.folder / "one-shot.json", last_place(truths.dimension)
    points = Curve(lambda place: measure(truths.sparsity(place)), levels, last, file).downwards(1, 1)
    ends: dict[tuple[str, str], float | None] = {}
    for level in levels:
        near = bracket(points, level)
        ends[ALONE, level.name] = None
        if near is not None:
            known = {1 - point["kept"]: float(point[level.key]) for point in near}
            rise, width = partial(_value, measure, level.key), max(known) - min(known)
            halvings = min(HALVINGS, math.ceil(math.log2(max(1.0, width / RESOLUTION))))
            ends[ALONE, level.name] = refined_crossing(rise, known, level.allowed, truths.dimension, halvings)
    return ends, points


def _value(measure: Callable[[float], Row], key: str, sparsity: float) -> float:
    return float(measure(sparsity)[key])


def _middle(kept: Sequence[float | None]) -> float | None:
    """Return the sparsity at the geometric mean of kept fractions; None where one is unknown."""
    known = [value for value in kept if value is not None]
    return 1 - math.prod(known) ** (1 / len(known)) if len(known) == len(kept) else None


def case(question: Question, limit: PruningLimit, ends: dict[tuple[str, str], float | None]) -> Row:
    """Hold what answers a question against what is true.

    Args:
        question: What is asked.
        limit: The limit that predicts.
        ends: True sparsities by truth and level.
    """
    answer, actual = limit.answer(question.rung), ends[question.truth, question.level]
    return asdict(question) | {
        "basis": answer.basis,
        "predicted": answer.sparsity,
        "low": answer.low,
        "high": answer.high,
        "actual": actual,
        "holds": holds(answer, actual, max(RESOLUTION, 1 / limit.parameters)),
    }


def holds(answer: Answer, actual: float | None, resolution: float) -> bool | None:
    """Tell whether an interval contains a truth, and in the case of a bound, whether the truth stays below it.

    Args:
        answer: What is predicted.
        actual: The true sparsity.
        resolution: How exactly it is known.

    Returns:
        None where the one or the other is unknown.

    Example:
        >>> holds(Answer("re-trained", 0.9, 0.8, 0.95, "forecast", None, ""), 0.97, 0.001)
        False
    """
    if answer.low is None or answer.high is None or actual is None:
        return None
    return (answer.rung == "bound" or answer.low - resolution <= actual) and actual <= answer.high + resolution


def _predictions(limit: PruningLimit, user: PruningLimit) -> Row:
    """Return all that a protocol's limit predicts, as sparsities; the forecast speaks of the loss only."""
    return {
        "hessian": limit.sparsity,
        "ggn": ggn_formula(limit.evidence, limit.allowed).sparsity,
        "directional": limit.directional,
        "forecast": user.answer("re-trained").sparsity,
        "alone": limit.answer("one-shot").sparsity,
    }
