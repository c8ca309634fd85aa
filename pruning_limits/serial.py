"""Convert a limit to plain values for JSON, and back."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from estimators import SpectralMeasure, UserError
from pruning_limits.answers import Answer, Basis, Rung
from pruning_limits.directions import Directions
from pruning_limits.epsilon import Allowed
from pruning_limits.evidence import Evidence
from pruning_limits.forecast import Forecast
from pruning_limits.magnitude_curve import MagnitudeCurve
from pruning_limits.measured import Point
from pruning_limits.model_points import ModelPoint
from pruning_limits.parts import Cost, Dense, Estimate, Layer, LayerCurvature, Origin, Sharpness
from pruning_limits.pattern_evidence import PatternEvidence
from pruning_limits.pattern_names import UNSTRUCTURED, pattern_names
from pruning_limits.saving import Saving
from pruning_limits.settings import Settings
from pruning_limits.tuned_points import TunedPoint, Tuning

MOST_BYTES = 64 << 20
INFINITE = math.inf
INFINITE_NAMES = ({"rise"}, {"rise", "drop", "drop_error"})  # without a metric, with one
ENDS = ("sparsity", "low", "high")
RUNGS, BASES, ORIGINS = get_args(Rung), get_args(Basis), ("batch-std", "number", "max-drop")
Row = TypeVar("Row", Sharpness, Cost, Layer, LayerCurvature, Dense, Origin, Point, TunedPoint, ModelPoint, Saving)


def to_plain(value: Any) -> Any:
    """Turn dataclasses, measures and arrays into what JSON can hold; an infinite number becomes None."""
    if isinstance(value, SpectralMeasure):
        rules = [{"nodes": nodes.tolist(), "weights": weights.tolist()} for nodes, weights in value.rules]
        return {"dimension": value.dimension, "exact": value.exact, "rules": rules}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {column.name: to_plain(getattr(value, column.name)) for column in dataclasses.fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, float) and math.isinf(value):
        return None
    if isinstance(value, dict):
        return {name: to_plain(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(entry) for entry in value]
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
    evidence, settings = _evidence(plain["evidence"]), Settings.from_plain(plain["settings"])
    unknown = evidence.ggn is None
    answers = _answers(plain["answers"])
    again = next((answer.basis for answer in answers if answer.rung == "re-trained"), None)
    resting = ("retrained", "directional")
    absent = {"retrained": unknown and again != "forecast", "directional": evidence.directions is None}
    if any((plain[name] is None) is not absent[name] for name in resting) or (unknown and plain["upper"] != 1):
        raise ValueError("what rests on the GGN is there although it is unknown, or lacks although it is known")
    low, high = (_number(value) for value in plain["interval"])
    return {
        **{name: _share(name, plain[name]) for name in ("sparsity", "lower", "upper")},
        **{name: _share_or_none(name, plain[name]) for name in ("achieved", *resting)},
        "interval": (low, high),
        "answers": answers,
        "status": str(plain["status"]),
        "notes": tuple(str(note) for note in plain["notes"]),
        "sharpness": _row(Sharpness, plain["sharpness"]),
        "allowed": _allowed(plain["allowed"]),
        "settings": settings,
        "evidence": evidence,
        "layer_table": tuple(_row(Layer, row) for row in plain["layer_table"]),
    }


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, got {value}")
    return number


def _share(name: str, value: Any) -> float:
    share = _number(value)
    if not 0 <= share <= 1:
        raise ValueError(f"{name} is {value}, expected 0 to 1")
    return share


def _share_or_none(name: str, value: Any) -> float | None:
    return None if value is None else _share(name, value)


def _word(value: Any, words: Sequence[str]) -> Any:
    if not isinstance(value, str) or value not in words:
        raise ValueError(f"expected one of {', '.join(words)}, got {value!r}")
    return value


def _allowed(plain: dict[str, Any]) -> Allowed:
    epsilon, low, high = (_number(plain[name]) for name in ("epsilon", "low", "high"))
    if not (epsilon > 0 and 0 <= low <= epsilon <= high):
        raise ValueError(f"epsilon is {epsilon} in {low} to {high}, expected a positive number within")
    return Allowed(epsilon, low, high, _word(plain["origin"], ORIGINS))


def _answers(rows: list[dict[str, Any]]) -> tuple[Answer, ...]:
    answers = []
    for row in rows:
        sparsity, low, high = (_share_or_none(name, row[name]) for name in ENDS)
        rung, basis = _word(row["rung"], RUNGS), _word(row["basis"], BASES)
        missing = {end is None for end in (sparsity, low, high)}
        if missing != {basis == "unknown"}:
            raise ValueError(f"{rung}: an unknown answer has a number, or a known one has none")
        metric = None if row["metric"] is None else _number(row["metric"])
        answers.append(Answer(rung, sparsity, low, high, basis, metric, str(row["status"])))
    if not {"one-shot", "bound", "formula"} <= {answer.rung for answer in answers}:
        raise ValueError("a rung is missing")
    return tuple(answers)


def _evidence(plain: dict[str, Any]) -> Evidence:
    unknown = str(plain["unknown"])
    patterns, pattern = _patterns(plain["patterns"], bool(unknown)), plain["pattern"]
    _word(pattern, [UNSTRUCTURED, *(row.name for row in patterns)])
    undirected = bool(unknown) or pattern != UNSTRUCTURED
    if (plain["ggn"] is None) is not bool(unknown) or (plain["directions"] is None) is not undirected:
        raise ValueError("unknown is told although the GGN is there, or it lacks although that is not told")
    curve = _curve(plain["curve"])
    parameters = int(plain["parameters"])
    hessian, ggn = _estimate(plain["hessian"]), None if unknown else _estimate(plain["ggn"])
    estimates = [hessian] if ggn is None else [hessian, ggn]
    measures = [measure for part in estimates for measure in (*part.measures, *(part.bracket or ()))]
    if not 0 < parameters < 2**63 or any(measure.dimension != parameters for measure in measures):
        raise ValueError("parameters and the dimensions of hessian and ggn differ")
    dense, measured = _row(Dense, plain["dense"]), plain["measured"]
    if not isinstance(measured, bool):
        raise ValueError(f"measured is {measured!r}, expected true or false")
    of_metric = dense.metric is not None and measured
    points = _points(plain["points"], of_metric)
    rows = zip(patterns, plain["patterns"], strict=True)
    infinite = INFINITE_NAMES[of_metric]
    patterns = tuple(
        replace(own, points=_points(row["points"], of_metric), retuned=_tuning(row["retuned"], infinite))
        for own, row in rows
    )
    return Evidence(
        parameters=parameters,
        already_removed=_share("already_removed", plain["already_removed"]),
        dense=dense,
        curve=curve,
        hessian=hessian,
        ggn=ggn,
        directions=None if undirected else _directions(plain["directions"]),
        unknown=unknown,
        points=points,
        measured=measured,
        model_points=tuple(_row(ModelPoint, row) for row in plain["model_points"]),
        layers=tuple(_row(LayerCurvature, row) for row in plain["layers"]),
        trace_error=_number(plain["trace_error"]),
        remarks=tuple(str(remark) for remark in plain["remarks"]),
        cost=_row(Cost, plain["cost"]),
        origin=_row(Origin, plain["origin"]),
        patterns=patterns,
        pattern=pattern,
        savings=_savings(plain["savings"]),
        retuned=_tuning(plain["retuned"], infinite),
        forecast=None if plain["forecast"] is None else Forecast.from_plain(plain["forecast"]),
    )


def _patterns(rows: list[dict[str, Any]], unknown: bool) -> tuple[PatternEvidence, ...]:
    """Build what is known of patterns, without their points; single weights are among them where there are any."""
    names = [pattern_names(row["name"])[0] for row in rows]
    if len(set(names)) < len(names) or (names and UNSTRUCTURED not in names):
        raise ValueError("patterns occur twice, or lack that of single weights")
    return tuple(
        PatternEvidence(
            name=name,
            curve=_curve(row["curve"]),
            most=_share("most", row["most"]),
            already_removed=_share("already_removed", row["already_removed"]),
            points=(),
            groups=int(row["groups"]),
            left=tuple((str(layer), str(reason)) for layer, reason in row["left"]),
            ragged=int(row["ragged"]),
            directions=None if unknown or name != UNSTRUCTURED else _directions(row["directions"]),
            model_points=tuple(_row(ModelPoint, point) for point in row["model_points"]),
            savings=_savings(row["savings"]),
        )
        for name, row in zip(names, rows, strict=True)
    )


def _savings(rows: list[dict[str, Any]]) -> tuple[Saving, ...]:
    savings = tuple(_row(Saving, row) for row in rows)
    if list(savings) != sorted(savings, key=_by_sparsity):
        raise ValueError("savings are not sorted by sparsity")
    return savings


def _curve(plain: dict[str, Any]) -> MagnitudeCurve:
    curve = MagnitudeCurve(*(_floats(plain[name]) for name in ("sparsity", "squared")))
    if len(curve.sparsity) != len(curve.squared) or len(curve.sparsity) < 2:
        raise ValueError("curve has knots of different number")
    if curve.squared[0] < 0 or (np.diff(curve.squared) < 0).any() or (np.diff(curve.sparsity) <= 0).any():
        raise ValueError("curve does not rise")
    return curve


def _points(rows: list[dict[str, Any]], of_metric: bool) -> tuple[Point, ...]:
    infinite = INFINITE_NAMES[of_metric]
    points = tuple(_row(Point, row | {name: INFINITE for name in infinite if row[name] is None}) for row in rows)
    if any(not 0 <= point.sparsity <= 1 for point in points) or list(points) != sorted(points, key=_by_sparsity):
        raise ValueError("points are not sorted by sparsity, or beyond 0 to 1")
    return points


def _by_sparsity(row: Point | Saving) -> float:
    return row.sparsity


def _tuning(plain: dict[str, Any] | None, infinite: set[str]) -> Tuning | None:
    """Return what re-tuning reached, where it was asked for."""
    if plain is None:
        return None
    points = tuple(
        _row(TunedPoint, row | {name: INFINITE for name in infinite if row[name] is None}) for row in plain["points"]
    )
    if any(not 0 <= share <= 1 for point in points for share in (point.sparsity, point.start)):
        raise ValueError("re-tuned networks are beyond 0 to 1")
    if list(points) != sorted(points, key=lambda point: (point.seed, point.sparsity)):
        raise ValueError("re-tuned networks are not sorted by run and sparsity")
    return Tuning(points, int(plain["samples"]), _number(plain["passed"]), _number(plain["seconds"]))


def _directions(plain: dict[str, Any]) -> Directions:
    sparsities, rises, squared = (tuple(_floats(plain[name]).tolist()) for name in ("sparsities", "rises", "squared"))
    rules = tuple((_floats(nodes), _floats(weights)) for nodes, weights in plain["rules"])
    errors = (float(plain[name]) for name in ("step_error", "growth", "spread"))
    return Directions(sparsities, rules, rises, squared, *errors)


def _floats(values: Any) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError("expected a list of finite numbers")
    return array


def _row(kind: type[Row], plain: dict[str, Any]) -> Row:
    """Build a record of numbers and texts; what may be None says so in its type."""
    columns = {column.name: str(column.type) for column in dataclasses.fields(kind)}
    if set(plain) != set(columns):
        raise ValueError(f"{kind.__name__} has other entries than expected")
    return kind(**{name: _cell(plain[name], text) for name, text in columns.items()})


def _cell(value: Any, kind: str) -> Any:
    if value is None and kind.endswith("| None"):
        return None
    convert: dict[str, Callable[[Any], Any]] = {"str": str, "int": int, "float": float}
    return convert[kind.removesuffix(" | None")](value)


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
        certain=_share("certain", plain["certain"]),
    )


def _pair(low: dict[str, Any], high: dict[str, Any]) -> tuple[SpectralMeasure, SpectralMeasure]:
    return _measure(low), _measure(high)


def _measure(plain: dict[str, Any]) -> SpectralMeasure:
    rules = tuple((_floats(rule["nodes"]), _floats(rule["weights"])) for rule in plain["rules"])
    return SpectralMeasure(rules, int(plain["dimension"]), bool(plain["exact"]))
