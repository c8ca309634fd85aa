"""Read suites from TOML files: networks, and the sections that the tables declare."""

from __future__ import annotations

import dataclasses
import re
import reprlib
import sys
import types
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from estimators.errors import UserError
from validation.tables.discovery import sections
from validation.tables.suite import Suite
from validation.training import Network, Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent.parent / "suites"
NETWORK: dict[str, Any] = {"model": str, "dataset": str, "seeds": tuple[int, ...], "recipe": dict}


def known_suites() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


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
    kinds = sections()
    _check_keys(top, plain, {"network", *kinds})
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
        network = twice[0]
        raise UserError(
            f"suite: {path} names {network.model} on {network.dataset} with seed {network.seed} twice, recipe and all"
        )
    settings = (_build(kind, top.inside(f"[{key}]"), plain[key]) for key, kind in kinds.items() if key in plain)
    return Suite(path.stem, tuple(networks), tuple(settings))


@dataclass(frozen=True)
class _Place:
    """A suite file from some line on, to say where a mistake is."""

    path: Path
    lines: tuple[str, ...]
    first: int = 0

    def inside(self, header: str, number: int = 0) -> _Place:
        """Return the place from one of the lines with this header on; the whole file if there is none."""
        starts = [n for n, line in enumerate(self.lines) if re.sub(r"#.*|\s", "", line) == header]
        return dataclasses.replace(self, first=starts[number] if number < len(starts) else 0)

    def error(self, key: str, problem: str) -> UserError:
        """Return the error for a mistake at a key."""
        name = rf"[\"']?{re.escape(key)}[\"']?\s*"
        pattern = re.compile(rf"^\s*\[+\s*(\w+\s*\.\s*)*{name}\]|^([^#]*[\s.{{,])?{name}=")
        line = next((n for n in range(self.first, len(self.lines)) if pattern.search(self.lines[n])), None)
        return UserError(f"suite: {self.path}{'' if line is None else f', line {line + 1}'}: {problem}")


def _build(kind: type[Any], place: _Place, values: Any) -> Any:
    fields = dataclasses.fields(kind)
    required = {
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    _check_keys(place, values, {field.name for field in fields}, required)
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
        return isinstance(value, list) and all(_fits(entry, get_args(hint)[0]) for entry in value)
    if get_origin(hint) is types.UnionType:
        return any(_fits(value, option) for option in get_args(hint))
    if hint in (int, float):
        number = isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
        return number and value >= 0
    return isinstance(value, hint)


def _said(hint: Any) -> str:
    if get_origin(hint) is tuple:
        return f"a list, each {_said(get_args(hint)[0])}"
    if get_origin(hint) is types.UnionType:
        return " or ".join(_said(option) for option in get_args(hint) if option is not type(None))
    names = {int: "a whole number >= 0", float: "a number >= 0", str: "a text", bool: "true or false", dict: "a table"}
    return names[hint]
