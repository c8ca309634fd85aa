"""The arguments of a prediction: a frozen record that checks itself against constraints declared once as data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

from estimators.errors import UserError
from pruning_limits.pattern_names import UNSTRUCTURED, pattern_names

LARGEST_SEED = 1 << 62
CROSS_ENTROPY, OWN_LOSS = "cross-entropy", "the user's own"


@dataclass(frozen=True)
class Constraint:
    """What values an argument may have.

    Attributes:
        expected: The values, in words for a message.
        accepts: Tells whether a value is one of them.
        bad: Some values that are not, for tests of everything that takes the argument.
    """

    expected: str
    accepts: Callable[[Any], bool]
    bad: tuple[Any, ...]


def choice(*values: str) -> Constraint:
    """One of some words."""
    return Constraint(f"one of {', '.join(values)}", lambda value: value in values, ("nothing", "", None, 1))


def count(expected: str = "at least 1 or None") -> Constraint:
    """A whole number from 1 on, or None."""
    return Constraint(expected, lambda value: value is None or (_whole(value) and value >= 1), (0, -1, 1.5, "2"))


def whole(expected: str) -> Constraint:
    """A whole number from 1 on."""
    return Constraint(expected, lambda value: _whole(value) and value >= 1, (0, -1, 1.5, "2", None))


def number_of(value: Any) -> float | None:
    """Return a number, also one of NumPy or in a tensor without dimensions; None of anything else.

    Args:
        value: What the user gave.

    Example:
        >>> number_of(0.5), number_of("0.5"), number_of(True)
        (0.5, None, None)
    """
    if not isinstance(value, Real) and getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def number(name: str, value: Any, expected: str, accepts: Callable[[float], bool]) -> float:
    """Return the number that an argument is.

    Args:
        name: The argument.
        value: What the user gave.
        expected: The numbers it may be, in words for a message.
        accepts: Tells whether a number is one of them.

    Raises:
        UserError: It is another one, or no number.

    Example:
        >>> number("share", "half", "a number in [0, 1]", lambda share: 0 <= share <= 1)
        Traceback (most recent call last):
        estimators.errors.UserError: share: expected a number in [0, 1], got 'half'
    """
    own = number_of(value)
    if own is None or not accepts(own):
        raise UserError(f"{name}: expected {expected}, got {value!r}")
    return own


def numbers(name: str, values: Any, expected: str, accepts: Callable[[float], bool]) -> tuple[float, ...]:
    """Return the numbers that an argument holds, at least one.

    Args:
        name: The argument.
        values: What the user gave, an iterable of numbers.
        expected: The numbers it may hold, in words for a message.
        accepts: Tells whether a number is one of them.

    Raises:
        UserError: It holds none, others, or is no iterable.

    Example:
        >>> numbers("shares", [0.25, 0.5], "numbers in (0, 1)", lambda share: 0 < share < 1)
        (0.25, 0.5)
    """
    try:
        own = [number_of(value) for value in values]
    except TypeError:
        own = []
    if not own or not all(value is not None and accepts(value) for value in own):
        raise UserError(f"{name}: expected {expected}, got {values!r}")
    return tuple(value for value in own if value is not None)


def positive(expected: str, *words: str | None) -> Constraint:
    """A positive number, or one of some words, or None where it is among them."""

    def accepts(value: Any) -> bool:
        if value is None or isinstance(value, str):
            return value in words
        own = number_of(value)
        return own is not None and 0 < own < math.inf

    return Constraint(expected, accepts, (0, -1.0, math.nan, math.inf, "much"))


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


CONSTRAINTS: Mapping[str, Constraint] = {
    "criterion": choice("loss", "objective"),
    "epsilon": positive("'batch-std' or a positive number", "batch-std"),
    "max_drop": positive("a positive number (allowed fall of the mean metric) or None", None),
    "curvature": choice("hessian", "ggn"),
    "negative": choice("abs", "clip"),
    "precision": choice("full", "bfloat16"),
    "samples": count(),
    "probes": count(),
    "steps": count(),
    "max_batches": count(),
    "tolerance": positive("a positive number (in sparsity)"),
    "budget": positive("a positive number (epochs of training) or None", None),
    "seed": Constraint(
        "a whole number of less than 63 bits",
        lambda value: _whole(value) and abs(value) < LARGEST_SEED,
        (1 << 62, -(1 << 62), 0.5, "1"),
    ),
}


RETUNING: Mapping[str, Constraint] = {
    **dict.fromkeys(("samples", "passes", "seeds"), whole("a whole number, at least 1")),
    "epochs": positive("a positive number (of epochs of training) or None", None),
}


def checked(name: str, value: Any) -> Any:
    """Return a value of an argument.

    Args:
        name: The argument, a key of ``CONSTRAINTS``.
        value: Its value.

    Raises:
        UserError: It is not what the argument may be.

    Example:
        >>> checked("samples", 0)
        Traceback (most recent call last):
        estimators.errors.UserError: samples: expected at least 1 or None, got 0
    """
    if not CONSTRAINTS[name].accepts(value):
        raise UserError(f"{name}: expected {CONSTRAINTS[name].expected}, got {value!r}")
    return value


@dataclass(frozen=True)
class Retuning:
    """How much staged re-tuning may cost; its step rule is the same for every network, see ``descent``.

    Attributes:
        samples: Training samples of a stage, drawn afresh for each stage. Where the data have fewer, a stage takes all
            but a fifth of them. A quarter as many further samples decide when to stop.
        passes: Passes over the samples of a stage; proportionally more where the data have fewer samples.
        seeds: Number of runs, each with its own samples; two or more runs give an interval from their spread.
        epochs: Cost that all stages together may have, in epochs of training; None means half of the prediction's
            budget. Each run does at least one stage, and goes on while the rest of its share pays for another stage.

    Raises:
        UserError: A value is of the wrong type or out of range.

    Example:
        >>> Retuning(samples=512).passes
        2
    """

    samples: int = 2048
    passes: int = 2
    seeds: int = 1
    epochs: float | None = None

    def __post_init__(self) -> None:
        for name, constraint in RETUNING.items():
            if not constraint.accepts(getattr(self, name)):
                raise UserError(f"{name}: expected {constraint.expected}, got {getattr(self, name)!r}")

    @property
    def usual(self) -> bool:
        """Whether samples and passes are the default ones."""
        return (self.samples, self.passes) == (Retuning.samples, Retuning.passes)

    def __str__(self) -> str:
        runs = "" if self.seeds == 1 else f", {self.seeds} runs"
        most = "half of the budget" if self.epochs is None else f"{self.epochs:g} epochs"
        return f"{self.samples:,} samples a stage, {self.passes} passes{runs}, at most {most}"


@dataclass(frozen=True)
class Settings:
    """The arguments behind a prediction; see ``predict_limit`` for their meaning.

    Attributes:
        criterion: ``"loss"`` or ``"objective"``.
        epsilon: ``"batch-std"`` or the allowed rise of the criterion.
        metric: Name of the metric, or None.
        max_drop: Allowed fall of the mean metric, or None.
        held_out: Whether the metric was measured on held-out data.
        penalty: The penalty in words, or None.
        measure: Whether one-shot pruning is measured.
        curvature: ``"hessian"`` or ``"ggn"``.
        negative: ``"abs"`` or ``"clip"``.
        parameters: Names of the prunable parameters.
        samples: Size of the sub-sample, or None.
        tolerance: Wanted half-width, in sparsity.
        probes: Number of random vectors, or None.
        steps: Number of Lanczos steps, or None.
        seed: Seed of probes and sub-sample.
        precision: ``"full"`` or ``"bfloat16"``.
        max_batches: Number of batches that are read, or None.
        pattern: Names of the patterns of pruning, the one whose limit is returned first; see ``pattern_names``.
        retune: How much staged re-tuning may take, or None where it is left out.
        budget: Epochs of training that the prediction may cost, or None.
        loss: ``"cross-entropy"``, the default, or ``"the user's own"``.

    Raises:
        UserError: A value is not what the argument may be.
    """

    criterion: Literal["loss", "objective"] = "loss"
    epsilon: float | Literal["batch-std"] = "batch-std"
    metric: str | None = None
    max_drop: float | None = None
    held_out: bool = False
    penalty: str | None = None
    measure: bool = True
    curvature: Literal["hessian", "ggn"] = "hessian"
    negative: Literal["abs", "clip"] = "abs"
    parameters: tuple[str, ...] = ()
    samples: int | None = None
    tolerance: float = 0.005
    probes: int | None = None
    steps: int | None = None
    seed: int = 0
    precision: Literal["full", "bfloat16"] = "full"
    max_batches: int | None = None
    pattern: tuple[str, ...] = (UNSTRUCTURED,)
    retune: Retuning | None = None
    budget: float | None = None
    loss: str = CROSS_ENTROPY

    def __post_init__(self) -> None:
        for name in CONSTRAINTS:
            value = checked(name, getattr(self, name))
            own = number_of(value)
            if own is not None:  # of NumPy, say
                object.__setattr__(self, name, int(value) if isinstance(value, Integral) else own)
        object.__setattr__(self, "pattern", pattern_names(self.pattern))
        texts = (self.penalty, self.metric, self.loss, *self.parameters)
        if not all(text is None or isinstance(text, str) for text in texts):
            raise UserError(f"settings: expected names as text, got {texts}")
        for name in ("held_out", "measure"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name}: expected True or False, got {getattr(self, name)!r}")
        if not isinstance(self.retune, Retuning | None):
            raise UserError(f"retune: expected True, False or Retuning(...), got {self.retune!r}")
        if self.retune is not None and not self.measure:
            raise UserError("retune: re-tuned networks are measured; leave out measure=False")
        if self.max_drop is not None and self.metric is None:
            raise UserError("max_drop: is a fall of the metric; name it with metric=, for instance metric='accuracy'")
        if self.max_drop is not None and self.epsilon != "batch-std":
            raise UserError(f"max_drop: epsilon follows from it; leave out epsilon={self.epsilon}")
        if self.max_drop is not None and not self.measure:
            raise UserError("max_drop: the fall of the metric has to be measured; leave out measure=False")

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Settings:
        """Return the settings that ``dataclasses.asdict`` made plain, read from a file.

        Raises:
            ValueError: A name is missing or unknown, or a value is out of range.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        wrong = sorted(set(plain) ^ names)
        if wrong:
            raise ValueError(f"settings: {wrong[0]!r} is not what predict_limit writes, or missing")
        lists = {name: plain[name] for name in ("parameters", "pattern")}
        for name, values in lists.items():
            if not isinstance(values, list | tuple):
                raise ValueError(f"settings: {name} is no list of names")
        retune = None if plain["retune"] is None else Retuning(**plain["retune"])
        return cls(**{**plain, **{name: tuple(values) for name, values in lists.items()}, "retune": retune})
