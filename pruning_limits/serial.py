"""Plain values for the JSON form of a limit, and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from estimators import SpectralMeasure, UserError
from pruning_limits.directions import Directions
from pruning_limits.magnitude import MagnitudeCurve
from pruning_limits.parts import Cost, Estimate, Layer, Sharpness
from pruning_limits.settings import Settings

MOST_BYTES = 64 << 20
Row = TypeVar("Row", Sharpness, Cost, Layer)


def to_plain(value: Any) -> Any:
    """Turn dataclasses, measures and arrays into what JSON can hold."""
    if isinstance(value, SpectralMeasure):
        rules = [{"nodes": nodes.tolist(), "weights": weights.tolist()} for nodes, weights in value.rules]
        return {"dimension": value.dimension, "exact": value.exact, "rules": rules}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: to_plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, dict):
        return {name: to_plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(one) for one in value]
    return value


def read_plain(path: Path) -> Any:
    """Read JSON without NaN, infinity and keys that occur twice, of at most ``MOST_BYTES``.

    Raises:
        UserError: The file cannot be read, is too large, or is not such JSON.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"limit: cannot read {path}: {error.strerror}") from None
    if len(content) > MOST_BYTES:
        raise UserError(f"limit: {path} has more than {MOST_BYTES >> 20} MiB and is no limit")
    try:
        return json.loads(content.decode(), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise UserError(f"limit: {path} is not valid JSON") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key occurs twice")
    return result


def fields_of(plain: dict[str, Any]) -> dict[str, Any]:
    """Build the fields of a limit from its plain form.

    Raises:
        ValueError: A value is out of range or two values contradict each other.
        KeyError: A value is missing.
        TypeError: A value has another type.
    """
    unknown = str(plain.get("unknown", ""))  # limits of an earlier version lack it
    resting = ("ggn", "directions", "retrained", "directional")
    if any((plain[name] is None) is not bool(unknown) for name in resting) or (unknown and plain["upper"] != 1):
        raise ValueError("unknown is told although the answers are there, or they lack although it is not told")
    shares = ("sparsity", "lower", "upper", *(("retrained", "directional") if not unknown else ()))
    numbers = {name: float(plain[name]) for name in shares}
    numbers["already_removed"] = float(plain.get("already_removed", 0.0))  # likewise
    for name, value in numbers.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}, expected 0 to 1")
    objective_error = float(plain.get("objective_error", 0.0))  # likewise
    if not 0 <= objective_error < float("inf"):
        raise ValueError(f"objective_error is {objective_error}, expected a number >= 0")
    low, high = (float(value) for value in plain["interval"])
    curve = MagnitudeCurve(*(_floats(plain["curve"][name]) for name in ("sparsity", "squared")))
    if len(curve.sparsity) != len(curve.squared) or len(curve.sparsity) < 2:
        raise ValueError("curve has knots of different number")
    if curve.squared[0] < 0 or (np.diff(curve.squared) < 0).any() or (np.diff(curve.sparsity) <= 0).any():
        raise ValueError("curve does not rise")
    epsilon, parameters = float(plain["epsilon"]), int(plain["parameters"])
    if not 0 < epsilon < float("inf"):
        raise ValueError(f"epsilon is {epsilon}, expected a positive number")
    hessian, ggn = _estimate(plain["hessian"]), None if unknown else _estimate(plain["ggn"])
    estimates = [hessian] if ggn is None else [hessian, ggn]
    measures = [one for estimate in estimates for one in (*estimate.measures, *(estimate.bracket or ()))]
    if not 0 < parameters < 2**63 or any(one.dimension != parameters for one in measures):
        raise ValueError("parameters and the dimensions of hessian and ggn differ")
    settings = Settings.from_plain(plain["settings"])
    return (
        dict.fromkeys(resting)
        | numbers
        | {
            "interval": (low, high),
            "achieved": None if plain["achieved"] is None else float(plain["achieved"]),
            "epsilon": epsilon,
            "objective": float(plain["objective"]),
            "objective_error": objective_error,
            "unknown": unknown,
            "parameters": parameters,
            "status": str(plain["status"]),
            "notes": tuple(str(note) for note in plain["notes"]),
            "sharpness": _row(Sharpness, plain["sharpness"]),
            "cost": _row(Cost, plain["cost"]),
            "settings": settings,
            "hessian": hessian,
            "ggn": ggn,
            "curve": curve,
            "directions": None if unknown else _directions(plain["directions"]),
            "rises": tuple((float(s), float(rise)) for s, rise in plain["rises"]),
            "layer_table": tuple(_row(Layer, row) for row in plain["layer_table"]),
        }
    )


def _directions(plain: dict[str, Any]) -> Directions:
    sparsities, rises, squared = (tuple(_floats(plain[name]).tolist()) for name in ("sparsities", "rises", "squared"))
    rules = tuple((_floats(nodes), _floats(weights)) for nodes, weights in plain["rules"])
    return Directions(sparsities, rules, rises, squared, float(plain["step_error"]))


def _floats(values: Any) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError("expected a list of finite numbers")
    return array


def _row(kind: type[Row], plain: dict[str, Any]) -> Row:
    convert = {"str": str, "int": int, "float": float}
    columns = [
        column
        for column in dataclasses.fields(kind)
        if column.default is dataclasses.MISSING or column.name in plain  # files of earlier versions lack those
    ]
    return kind(**{column.name: convert[str(column.type)](plain[column.name]) for column in columns})


def _estimate(plain: dict[str, Any]) -> Estimate:
    growth = float(plain["growth"])
    if not 0 < growth < float("inf"):
        raise ValueError(f"growth is {growth}, expected a positive number")
    return Estimate(
        measure=_measure(plain["measure"]),
        samples=int(plain["samples"]),
        steps=int(plain["steps"]),
        step_error=float(plain["step_error"]),
        sample_error=float(plain["sample_error"]),
        growth=growth,
        above=None if plain["above"] is None else _measure(plain["above"]),
        bracket=None if plain["bracket"] is None else _pair(*plain["bracket"]),
    )


def _pair(low: dict[str, Any], high: dict[str, Any]) -> tuple[SpectralMeasure, SpectralMeasure]:
    return _measure(low), _measure(high)


def _measure(plain: dict[str, Any]) -> SpectralMeasure:
    rules = tuple((_floats(rule["nodes"]), _floats(rule["weights"])) for rule in plain["rules"])
    return SpectralMeasure(rules, int(plain["dimension"]), bool(plain["exact"]))
