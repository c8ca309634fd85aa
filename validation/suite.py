"""Suites: which networks are trained and with which settings their limits are predicted and measured."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from estimators.errors import UserError
from validation.training import Network, Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "suites"


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
class CompareSettings:
    """Which pruners are compared where, and with how much training.

    Args:
        pruners: Names of pruners.
        sparsities: Sparsities at which each is run.
        epochs: Training after the dense network's own, the same for all: the whole budget is the recipe's plus these.
        tolerance: Accuracy that a pruned network may lose and still count as good, as a fraction.
    """

    pruners: tuple[str, ...] = ("lomp", "gmp", "imp", "rare-gems", "smart-ratio", "kmp", "random-layerwise")
    sparsities: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.98)
    epochs: int = 5
    tolerance: float = 0.005


@dataclass(frozen=True)
class Suite:
    """A named set of networks and the settings that all of them share.

    Attributes:
        name: Name of the suite.
        networks: Networks, one per model, data set and seed.
        limit: Settings of the prediction.
        retrain: Settings of re-training.
        row_norms: Settings of the table ``row-norms``.
        slq: Settings of the table ``slq-settings``.
        compare: Settings of the tables that compare pruners.
    """

    name: str
    networks: tuple[Network, ...]
    limit: LimitSettings = field(default_factory=LimitSettings)
    retrain: RetrainSettings = field(default_factory=RetrainSettings)
    row_norms: RowNormSettings = field(default_factory=RowNormSettings)
    slq: SlqSettings = field(default_factory=SlqSettings)
    compare: CompareSettings = field(default_factory=CompareSettings)


def known_suites() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(one.stem for one in FOLDER.glob("*.toml"))


SECTIONS: dict[str, type[Any]] = {
    "limit": LimitSettings,
    "retrain": RetrainSettings,
    "row_norms": RowNormSettings,
    "slq": SlqSettings,
    "compare": CompareSettings,
}


def load_suite(name: str) -> Suite:
    """Load a suite by name or from a TOML file.

    Args:
        name: ``quick``, ``cpu`` or a path that ends in ``.toml``.

    Returns:
        The suite.

    Raises:
        UserError: The suite is unknown, is not TOML, or holds an unknown or missing key; the message names it.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        raise UserError(
            f"suite: {name!r} is unknown; expected one of {', '.join(known_suites())}, or a path to a .toml file"
        )
    text = path.read_text(encoding="utf-8")
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"suite: {path} is not valid TOML: {error}") from None
    _check_keys(path, text, plain, {"network", *SECTIONS})
    networks = []
    for entry in plain.get("network", []):
        _check_keys(path, text, entry, {"model", "dataset", "seeds", "recipe"}, {"model", "dataset", "recipe"})
        recipe = _build(Recipe, path, text, entry["recipe"])
        networks += [Network(entry["model"], entry["dataset"], recipe, seed) for seed in entry.get("seeds", [0])]
    if not networks:
        raise UserError(f"suite: {path} names no [[network]]")
    sections = {key: _build(kind, path, text, plain.get(key, {})) for key, kind in SECTIONS.items()}
    return Suite(path.stem, tuple(networks), **sections)


def _build(kind: type[Any], path: Path, text: str, values: dict[str, Any]) -> Any:
    fields = dataclasses.fields(kind)
    required = {
        one.name for one in fields if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    }
    _check_keys(path, text, values, {one.name for one in fields}, required)
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _check_keys(path: Path, text: str, values: Any, known: set[str], required: set[str] | None = None) -> None:
    if not isinstance(values, dict):
        raise UserError(f"suite: {path}: expected a table with {', '.join(sorted(known))}, got {values!r}")
    for key in values:
        if key not in known:
            lines = text.splitlines()
            line = next((n for n, one in enumerate(lines, 1) if one.split("=")[0].strip(" []") == key), 0)
            raise UserError(f"suite: {path}, line {line}: unknown key {key!r}; expected {', '.join(sorted(known))}")
    missing = (required or set()) - set(values)
    if missing:
        raise UserError(f"suite: {path}: missing {', '.join(sorted(missing))}")
