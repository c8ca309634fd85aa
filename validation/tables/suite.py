"""Suites: which networks are trained and with which settings their limits are predicted and measured."""

from __future__ import annotations

import dataclasses
import re
import reprlib
import sys
import types
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from estimators.errors import UserError
from pruning_limits.pattern_names import parsed
from validation.training import Network, Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent.parent / "suites"


@dataclass(frozen=True)
class LimitSettings:
    """Arguments of ``predict_limit``, the same for every row of a suite.

    Args:
        samples: Data sub-sample for curvature products; None lets the engine choose.
        steps: Lanczos steps; None lets the engine choose.
        probes: Probe vectors; None lets the engine choose.
        tolerance: Wanted half-width of the limit.
    """

    samples: int | None = None
    steps: int | None = None
    probes: int | None = None
    tolerance: float = 0.005


@dataclass(frozen=True)
class RetrainSettings:
    """How definition (c) re-trains the kept weights.

    Args:
        epochs: Epochs of re-training, cosine from ``lr_factor`` times the recipe's rate.
        lr_factor: Factor on the recipe's learning rate.
        evaluations: Number of sparsities tried.
    """

    epochs: int = 5
    lr_factor: float = 0.2
    evaluations: int = 3

    def __post_init__(self) -> None:
        if self.evaluations < 1:
            raise UserError(f"retrain: evaluations must be at least 1, got {self.evaluations}")


@dataclass(frozen=True)
class PenaltySettings:
    """Penalties that are compared side by side with no penalty; a network's own replaces the value here.

    Args:
        l1: Coefficient of the L1 penalty.
        l2: Coefficient of the L2 penalty.
    """

    l1: float = 5e-5
    l2: float = 5e-4


@dataclass(frozen=True)
class RowNormSettings:
    """How the row norms of a large Hessian are estimated.

    Args:
        samples: Data sub-sample.
        probes: Cauchy projections.
    """

    samples: int = 1024
    probes: int = 16


@dataclass(frozen=True)
class SlqSettings:
    """Settings of the spectral estimate that are varied one at a time, each from the suite's own.

    Args:
        samples: Data sub-samples.
        steps: Lanczos steps.
        probes: Numbers of probe vectors.
    """

    samples: tuple[int, ...] = ()
    steps: tuple[int, ...] = (8, 16, 32, 64)
    probes: tuple[int, ...] = (1, 2, 4)


@dataclass(frozen=True)
class IterativeSettings:
    """How the limit is followed along iterative pruning.

    Args:
        sparsity: Where pruning ends.
        epochs: Epochs of every training.
        samples: Data sub-sample of every prediction; None lets the engine choose.
        steps: Lanczos steps of every prediction; None lets the engine choose.
        probes: Probe vectors of every prediction; None lets the engine choose.
    """

    sparsity: float = 0.9
    epochs: int = 20
    samples: int | None = None
    steps: int | None = 32
    probes: int | None = 1


@dataclass(frozen=True)
class EarlySettings:
    """When the limit is predicted on the way through training.

    Args:
        epochs: Epochs after which to predict, besides the last; a shorter recipe takes the same fractions.
        samples: Data sub-sample of every prediction; None lets the engine choose.
        steps: Lanczos steps of every prediction; None lets the engine choose.
        probes: Probe vectors of every prediction; None lets the engine choose.
    """

    epochs: tuple[int, ...] = (1, 5, 10, 20)
    samples: int | None = None
    steps: int | None = 32
    probes: int | None = 1

    def __post_init__(self) -> None:
        if min(self.epochs, default=1) < 1:
            raise UserError(f"early: epochs must be at least 1, got {min(self.epochs)}")


@dataclass(frozen=True)
class KoopmanSettings:
    """How the dynamics of training are recorded and what is pruned by them.

    Args:
        epochs: Epochs of training that are recorded, besides one further epoch of the trained network; a shorter
            recipe takes the same fractions.
        compressions: Compressions c, each at least 1; the sparsity is 1 - 1/c.
        batch_size: Samples per training step of these tables, the learning rate scaled in proportion; a small data set
            needs small batches for many snapshots. None keeps the recipe's.
        refined: Recorded epochs whose pruned networks are refined, as texts, ``"converged"`` among them; None for all.
        branches: Seeds of the networks whose training branches off at every recorded epoch to measure linear mode
            connectivity; None for all.
        share: Fraction in (0, 1] of the paper's numbers of parameters that ``koopman-cost`` decomposes.
        svd_share: The same fraction for the full singular value decomposition, which is slow.
    """

    epochs: tuple[int, ...] = (1, 5, 10, 20)
    compressions: tuple[float, ...] = (1, 2, 4, 8, 16, 32, 64)
    batch_size: int | None = None
    refined: tuple[str, ...] | None = None
    branches: tuple[int, ...] | None = None
    share: float = 1.0
    svd_share: float = 0.125

    def refines(self, label: str) -> bool:
        """Whether pruned networks of a recorded epoch are refined."""
        return self.refined is None or label in self.refined

    def branches_off(self, seed: int) -> bool:
        """Whether training of the networks of a seed branches off."""
        return self.branches is None or seed in self.branches

    def __post_init__(self) -> None:
        if min(self.epochs, default=1) < 1:
            raise UserError(f"koopman: epochs must be at least 1, got {min(self.epochs)}")
        if min(self.compressions, default=0) < 1:
            raise UserError(f"koopman: compressions must be one or more numbers >= 1, got {self.compressions}")
        if self.batch_size == 0:
            raise UserError("koopman: batch_size must be at least 1, got 0")
        if not 0 < min(self.share, self.svd_share) <= max(self.share, self.svd_share) <= 1:
            raise UserError(f"koopman: share and svd_share must be in (0, 1], got {self.share} and {self.svd_share}")


@dataclass(frozen=True)
class CompareSettings:
    """Which pruners are compared where, and with how much training.

    Args:
        pruners: Names of pruners.
        sparsities: Sparsities at which each is run.
        epochs: Training after the dense network's own, the same for all: the whole budget is the recipe's plus these.
        tolerance: Accuracy that a pruned network may lose and still count as good, as a fraction.
        magnitude: Pruners that stand for pruning by magnitude in ``lottery-compute``; iterative ones train the whole
            budget anew at every sparsity.
    """

    pruners: tuple[str, ...] = ("lomp", "gmp", "imp", "rare-gems", "smart-ratio", "kmp", "random-layerwise")
    sparsities: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.98)
    epochs: int = 5
    tolerance: float = 0.005
    magnitude: tuple[str, ...] = ("gmp", "imp", "imp-no-rewind")


@dataclass(frozen=True)
class PatternSettings:
    """Which patterns of pruning are compared, and how far.

    Args:
        names: Names of patterns; one that fits no layer of a network is left out there.
        epsilon: Allowed rise of the mean training loss.
        evaluations: Number of sparsities that are trained beyond what pruning reaches alone.
    """

    names: tuple[str, ...] = ("unstructured", "2:4", "4:8", "1:4", "blocks:4x4", "blocks:16x1", "channels", "heads")
    epsilon: float = 0.02
    evaluations: int = 4

    def __post_init__(self) -> None:
        for name in self.names:
            parsed(name)


@dataclass(frozen=True)
class SplitSettings:
    """Which budgets are split over the layers.

    Args:
        shares: Removed shares of all weights, or of all multiply-accumulates.
    """

    shares: tuple[float, ...] = (0.5, 0.8)

    def __post_init__(self) -> None:
        if not all(0 < share < 1 for share in self.shares):
            raise UserError(f"splits: shares must be in (0, 1), got {self.shares}")


@dataclass(frozen=True)
class Suite:
    """A named set of networks and the settings that all of them share.

    Attributes:
        name: Name of the suite.
        networks: Networks, one per model, data set and seed.
        limit: Settings of the prediction.
        retrain: Settings of re-training.
        penalties: Settings of the table ``weight-scale``.
        row_norms: Settings of the table ``row-norms``.
        slq: Settings of the table ``slq-settings``.
        iterative: Settings of the table ``iterative-and-l2``.
        early: Settings of the table ``early``; its samples, steps and probes also serve ``koopman-limit``.
        koopman: Settings of the tables ``koopman-*``.
        compare: Settings of the tables that compare pruners.
        patterns: Settings of the table ``patterns``.
        splits: Settings of the table ``splits``.
    """

    name: str
    networks: tuple[Network, ...]
    limit: LimitSettings = field(default_factory=LimitSettings)
    retrain: RetrainSettings = field(default_factory=RetrainSettings)
    penalties: PenaltySettings = field(default_factory=PenaltySettings)
    row_norms: RowNormSettings = field(default_factory=RowNormSettings)
    slq: SlqSettings = field(default_factory=SlqSettings)
    iterative: IterativeSettings = field(default_factory=IterativeSettings)
    early: EarlySettings = field(default_factory=EarlySettings)
    koopman: KoopmanSettings = field(default_factory=KoopmanSettings)
    compare: CompareSettings = field(default_factory=CompareSettings)
    patterns: PatternSettings = field(default_factory=PatternSettings)
    splits: SplitSettings = field(default_factory=SplitSettings)


def known_suites() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(one.stem for one in FOLDER.glob("*.toml"))


NETWORK: dict[str, Any] = {"model": str, "dataset": str, "seeds": tuple[int, ...], "recipe": dict}
SECTIONS: dict[str, type[Any]] = {
    "limit": LimitSettings,
    "retrain": RetrainSettings,
    "penalties": PenaltySettings,
    "row_norms": RowNormSettings,
    "slq": SlqSettings,
    "iterative": IterativeSettings,
    "early": EarlySettings,
    "koopman": KoopmanSettings,
    "compare": CompareSettings,
    "patterns": PatternSettings,
    "splits": SplitSettings,
}


def load_suite(name: str) -> Suite:
    """Load a suite by name or from a TOML file.

    Args:
        name: ``quick``, ``cpu`` or a path that ends in ``.toml``.

    Returns:
        The suite.

    Raises:
        UserError: The suite is unknown, is not TOML, names a network twice, lacks a key, or holds an unknown key or a
            value of another type; the message names the key and its line.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        raise UserError(
            f"suite: {name!r} is unknown; expected one of {', '.join(known_suites())}, or a path to a .toml file"
        )
    try:
        text = path.read_bytes().decode()
        plain = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"suite: {path} is not valid TOML: {error}") from None
    top = _Place(path, tuple(text.splitlines()))
    _check_keys(top, plain, {"network", *SECTIONS})
    entries = plain.get("network", [])
    if not isinstance(entries, list):
        raise top.error("network", "network: expected one or more tables, each under [[network]]")
    networks = []
    for number, entry in enumerate(entries):
        place = top.inside("[[network]]", number)
        _check_keys(place, entry, set(NETWORK), {"model", "dataset", "recipe"})
        _check_types(place, entry, NETWORK)
        recipe = _build(Recipe, place, entry["recipe"])
        networks += [Network(entry["model"], entry["dataset"], recipe, seed) for seed in entry.get("seeds", [0])]
    if not networks:
        raise UserError(f"suite: {path} names no [[network]]")
    twice = [network for network, count in Counter(networks).items() if count > 1]
    if twice:
        one = twice[0]
        raise UserError(f"suite: {path} names {one.model} on {one.dataset} with seed {one.seed} twice, recipe and all")
    sections = {key: _build(kind, top.inside(f"[{key}]"), plain.get(key, {})) for key, kind in SECTIONS.items()}
    return Suite(path.stem, tuple(networks), **sections)


@dataclass(frozen=True)
class _Place:
    """A suite file from some line on, to say where a mistake is."""

    path: Path
    lines: tuple[str, ...]
    first: int = 0

    def inside(self, header: str, number: int = 0) -> _Place:
        """Return the place from one of the lines with this header on; the whole file if there is none."""
        found = [n for n, line in enumerate(self.lines) if re.sub(r"#.*|\s", "", line) == header]
        return dataclasses.replace(self, first=found[number] if number < len(found) else 0)

    def error(self, key: str, problem: str) -> UserError:
        """Return the error for a mistake at a key."""
        name = rf"[\"']?{re.escape(key)}[\"']?\s*"
        pattern = re.compile(rf"^\s*\[+\s*(\w+\s*\.\s*)*{name}\]|^([^#]*[\s.{{,])?{name}=")
        line = next((n for n in range(self.first, len(self.lines)) if pattern.search(self.lines[n])), None)
        return UserError(f"suite: {self.path}{'' if line is None else f', line {line + 1}'}: {problem}")


def _build(kind: type[Any], place: _Place, values: Any) -> Any:
    fields = dataclasses.fields(kind)
    required = {
        one.name for one in fields if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    }
    _check_keys(place, values, {one.name for one in fields}, required)
    _check_types(place, values, get_type_hints(kind))
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _check_keys(place: _Place, values: Any, known: set[str], required: set[str] | None = None) -> None:
    if not isinstance(values, dict):
        raise UserError(
            f"suite: {place.path}: expected a table with {', '.join(sorted(known))}, got {reprlib.repr(values)}"
        )
    for key in values:
        if key not in known:
            raise place.error(key, f"unknown key {key!r}; expected {', '.join(sorted(known))}")
    missing = (required or set()) - set(values)
    if missing:
        raise UserError(f"suite: {place.path}: missing {', '.join(sorted(missing))}")


def _check_types(place: _Place, values: dict[str, Any], hints: dict[str, Any]) -> None:
    for key, value in values.items():
        if not _fits(value, hints[key]):
            raise place.error(key, f"{key}: expected {_said(hints[key])}, got {reprlib.repr(value)}")


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is tuple:
        return isinstance(value, list) and all(_fits(one, get_args(hint)[0]) for one in value)
    if get_origin(hint) is types.UnionType:
        return any(_fits(value, one) for one in get_args(hint))
    if hint in (int, float):
        number = isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
        return number and value >= 0
    return isinstance(value, hint)


def _said(hint: Any) -> str:
    if get_origin(hint) is tuple:
        return f"a list, each {_said(get_args(hint)[0])}"
    if get_origin(hint) is types.UnionType:
        return " or ".join(_said(one) for one in get_args(hint) if one is not type(None))
    names = {int: "a whole number >= 0", float: "a number >= 0", str: "a text", bool: "true or false", dict: "a table"}
    return names[hint]
