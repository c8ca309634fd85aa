"""Table ``lottery-theory``: exponents of the theory of winning tickets, fitted on sparse teachers and students."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np

from pruning_limits.plotting import BLUE, GREY, ORANGE, headline, new_figure, plain_ticks, save
from validation.studies.lottery import measures
from validation.studies.lottery.exponents import PowerLaw, fit_decline, fit_power
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import Column, Page, Row, write_table

NAME = "lottery-theory"
KEPT = (5, 10, 20, 40)
MORE_KEPT = (30, 60)
SAMPLES = (500, 1000, 2000, 4000)
FACTORS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
FIXED = 2000
SPARSITIES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.85, 0.9, 0.93, 0.96)
TEACHER = 10
TRIALS = {"landscape": 6, "recovery": 12, "speed": 12, "objective": 20, "noisy": 4, "pruned": 4}
TOLERANCE, WIDEST = 0.1, 0.5
AXES = {"r/N": "kept weights per sample, r/N", "r": "kept weights per neuron, r", "1/N": "1/N"}
COLUMNS = (
    Column("claim", "claim"),
    Column("quantity", "quantity"),
    Column("against", "against"),
    Column("claimed", "claimed exponent", ".1f"),
    Column("exponent", "fitted exponent", ".2f"),
    Column("low", "95 % from", ".2f"),
    Column("high", "to", ".2f"),
    Column("r_squared", "R²", ".3f"),
    Column("points", "points", "d"),
    Column("verdict", "verdict"),
    Column("numbers", "in numbers"),
)


@dataclass(frozen=True)
class Claim:
    """A power law that the theory claims.

    Attributes:
        claim: Number of the claim.
        measure: Which cells speak of it.
        key: Their measured quantity.
        quantity: Its name.
        against: What it depends on: ``"r/N"``, ``"r"`` or ``"1/N"``.
        exponent: The claimed exponent.
        decline: Whether ``limit - b x^p`` is claimed instead of ``b x^p``.
        limit: The known value at x = 0 of a decline; None fits it.
    """

    claim: str
    measure: str
    key: str
    quantity: str
    against: str
    exponent: float
    decline: bool = False
    limit: float | None = None


CLAIMS = (
    Claim("S4", "landscape", "radius_ratio", "radius of the convex region / its expectation", "r/N", 0.5, True),
    Claim("S4", "landscape", "turned_ratio", "the same along random rays, at most 1", "r/N", 0.5, True),
    Claim("S5", "landscape", "least_ratio", "smallest eigenvalue at W* / its expectation", "r/N", 0.5, True, 1.0),
    Claim("S6", "recovery", "needed", "samples at which half of the trials recover", "r", 1.0),
    Claim("S7", "speed", "iterations", "iterations to a relative error of 1e-6", "r", 0.5),
    Claim("S7", "speed", "speed_ratio", "speed of descent / its expectation", "r", 0.5, True, 1.0),
    Claim("S8", "objective", "gradient_gap", "gradient, distance from its expectation", "r/N", 0.5),
    Claim("S8", "objective", "objective_gap", "objective at one point, distance from its expectation", "r/N", 0.5),
    Claim("S8", "objective", "objective_gap", "objective at one point, distance from its expectation", "1/N", 0.5),
    Claim("S9", "noisy", "distance", "distance to the truth, noisy labels", "r/N", 0.5),
    Claim("S9", "noisy", "root_error", "root of the mean squared test error, noisy labels", "r/N", 0.5),
)


def cells(suite: Suite) -> list[Cell]:
    """Return one cell per measurement, sparsity of the teacher and number of samples; no networks are asked for."""
    pairs: dict[str, list[dict[str, Any]]] = {
        name: [{"kept": r, "samples": n} for r, n in product(KEPT, SAMPLES)]
        for name in ("landscape", "objective", "noisy")
    }
    pairs["recovery"] = [
        {"kept": r, "samples": round(factor * measures.NEURONS * r)} for r, factor in product(KEPT, FACTORS)
    ]
    pairs["speed"] = [{"kept": r, "samples": FIXED} for r in (*KEPT, *MORE_KEPT)]
    pairs["pruned"] = [{"kept": TEACHER, "samples": FIXED, "sparsity": s, "seed": 0} for s in SPARSITIES]
    parts = [{"measure": name, "trials": TRIALS[name], **part} for name, own in pairs.items() for part in own]
    return [Cell(None, {"seed": seed} | part) for seed, part in enumerate(parts)]


def run(cell: Cell, bench: Bench) -> Row:
    """Draw teachers and inputs of one size and measure what one claim speaks of."""
    rng = np.random.default_rng(cell.part["seed"])
    return cell.part | measures.MEASURES[cell.part["measure"]](cell.part, rng)


def needed(rows: Sequence[Row]) -> list[Row]:
    """Number of samples at which half of the trials recover, interpolated, one row per sparsity of the teacher.

    Args:
        rows: Rows with ``kept``, ``samples`` and ``recovered``.

    Returns:
        Rows with ``kept`` and ``needed``; none where the share does not cross one half.

    Example:
        >>> needed([{"kept": 5, "samples": n, "recovered": share} for n, share in ((20, 0.0), (40, 1.0))])
        [{'kept': 5, 'needed': 30.0}]
    """
    thresholds = []
    for kept in dict.fromkeys(row["kept"] for row in rows):
        own = sorted((row["samples"], row["recovered"]) for row in rows if row["kept"] == kept)
        for (before, low), (after, high) in pairwise(own):
            if low < 0.5 <= high:
                point = before + (0.5 - low) / (high - low) * (after - before)
                thresholds.append({"kept": kept, "needed": float(point)})
                break
    return thresholds


def points(claim: Claim, rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Return what a claim's quantity is plotted against, and the quantity."""
    own = [row for row in rows if row["measure"] == claim.measure]
    if claim.key == "needed":
        own = needed(own)
    across = [row["kept"] ** ("r" in claim.against) / (row["samples"] if "N" in claim.against else 1) for row in own]
    return across, [row[claim.key] for row in own]


def fitted(claim: Claim, rows: Sequence[Row]) -> PowerLaw:
    """Fit a claim's power law to the rows that speak of it."""
    across, up = points(claim, rows)
    return fit_decline(across, up, claim.limit) if claim.decline else fit_power(across, up)


def verdict(claimed: float, law: PowerLaw) -> str:
    """Judge a fitted exponent.

    Args:
        claimed: The claimed exponent, positive.
        law: The fit.

    Returns:
        ``"not"``: the trend has not the claimed sign beyond doubt; ``"reproduced"``: it has, and the claimed exponent
        is within ``TOLERANCE`` of the fitted one or within an interval no wider than ``WIDEST``; ``"partly"``: it has
        another exponent, or one that is not known well enough.
    """
    trend = law.low > 0 and law.scale > 0
    if not trend:
        return "not"
    known = law.high - law.low <= WIDEST
    agrees = abs(law.exponent - claimed) <= TOLERANCE or (known and law.low <= claimed <= law.high)
    return "reproduced" if agrees else "partly"


def pruning_row(rows: Sequence[Row]) -> Row | None:
    """Judge the iterations against the pruning rate: do they fall, until good weights go?"""
    own = [row for row in rows if row["measure"] == "pruned"]
    solved = [row for row in own if row["reached"] == 1]
    if not solved or solved[0]["sparsity"]:
        return None
    first, best = solved[0], min(solved, key=lambda row: row["iterations"])
    lost = next((row for row in own if row["good_kept"] < 0.99), None)
    failing = next((row for row in own if row["reached"] < 1), None)
    faster = best["iterations"] < 0.9 * first["iterations"]
    safe = failing is None or (lost is not None and failing["sparsity"] >= lost["sparsity"])
    numbers = (
        f"{first['iterations']:.0f} iterations unpruned, {best['iterations']:.0f} at {best['sparsity']:.0%} removed; "
        + (f"good weights go from {lost['sparsity']:.0%} on" if lost else "no good weight goes")
        + (f", not all trials arrive from {failing['sparsity']:.0%} on" if failing else ", all trials arrive")
    )
    return {
        "claim": "S12",
        "quantity": "iterations to a relative error of 1e-3 after pruning",
        "against": "pruning rate",
        "points": len(own),
        "verdict": ("reproduced" if safe else "partly") if faster else "not",
        "numbers": numbers,
    }


def verdicts(rows: Sequence[Row]) -> list[Row]:
    """Return one row per claim with the fitted exponent, its interval and the verdict."""
    table: list[Row] = []
    for claim in CLAIMS:
        across, up = points(claim, rows)
        law = fitted(claim, rows)
        ends = [up[int(np.argmin(across))], up[int(np.argmax(across))]]
        table.append(
            {
                "claim": claim.claim,
                "quantity": claim.quantity,
                "against": claim.against,
                "claimed": claim.exponent,
                "exponent": law.exponent,
                "low": law.low,
                "high": law.high,
                "r_squared": law.r_squared,
                "points": len(across),
                "verdict": verdict(claim.exponent, law),
                "numbers": f"{ends[0]:.3g} at {claim.against} = {min(across):.3g}, {ends[1]:.3g} at {max(across):.3g}",
            }
        )
    last = pruning_row(rows)
    return [*table, last] if last else table


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the verdicts and draw every claim's measurements with the fitted and the claimed power."""
    table = verdicts(rows)
    counts = _counts(table)
    notes = [
        f"Made by `{command}`.",
        f"No data set: teacher and student are (1/K) sum_j max(w_j x, 0) with K = {measures.NEURONS} neurons and "
        f"{measures.INPUTS} Gaussian inputs; a teacher's neuron keeps r weights, the student knows which. Descent "
        f"starts at a relative distance of {measures.START} from the truth and takes a fixed step of K²/2. "
        f"N = {FIXED} where only r varies.",
        "Verdict: not reproduced where the 95 % interval of the exponent reaches zero or the trend has the other sign; "
        f"reproduced where the claimed exponent is within {TOLERANCE} of the fitted one, or within an interval no "
        f"wider than {WIDEST}; partly where the trend has the claimed sign otherwise. S4, S5 and "
        "the speed of S7 claim y = a - b x^p and p is fitted; constants are not tested. S12 claims no exponent: "
        "reproduced where pruning saves a tenth of the iterations or more and all trials arrive while at least 99 % "
        "of the teacher's weights are kept.",
        "The ratios of S4, S5 and S7 divide by the value in expectation of the same teacher, because supports that "
        f"overlap change the landscape with r alone. The second derivative of a ReLU is a normal density of width "
        f"{measures.WIDTH}; the first rays of S4 turn and shrink every neuron alike, the second ones only turn. Labels "
        f"of S9 carry noise {measures.NOISE}.",
        f"In words: {counts['reproduced']} of {len(table)} rows reproduced, {counts['partly']} partly, "
        f"{counts['not']} not.",
        *(f"{row['claim']}, {row['quantity']}: {_sentence(row)}" for row in table),
    ]
    write_table(
        folder, Page(NAME, "Why pruned networks train better: exponents", notes, COLUMNS), table, cells=list(rows)
    )
    _draw(rows, table, folder / f"{NAME}.png")


def _counts(table: Sequence[Row]) -> dict[str, int]:
    return {word: sum(row["verdict"] == word for row in table) for word in ("reproduced", "partly", "not")}


def finding(table: Sequence[Row]) -> str:
    """Say how many of the claims are reproduced."""
    counts = _counts(table)
    return (
        f"Of {len(table)} claims on a student that knows the r weights kept by its teacher and has N Gaussian samples, "
        f"{counts['reproduced']} are reproduced, {counts['partly']} partly, {counts['not']} not"
    )


def _sentence(row: Row) -> str:
    said = {"reproduced": "reproduced", "partly": "partly reproduced", "not": "not reproduced"}[row["verdict"]]
    if "exponent" not in row:
        return f"{said}; {row['numbers']}."
    return (
        f"{said}; exponent {row['exponent']:.2f} ({row['low']:.2f} to {row['high']:.2f}) in {row['against']}, claimed "
        f"{row['claimed']:.1f}; {row['numbers']}."
    )


def _draw(rows: Sequence[Row], table: Sequence[Row], path: Path) -> None:
    figure, grid = new_figure(3, 4, size=(16.0, 11.0))
    for axes, claim, row in zip(grid.flat, CLAIMS, table, strict=False):
        across, up = points(claim, rows)
        axes.plot(across, up, "o", color=BLUE, label="measured")
        law, line = fitted(claim, rows), np.geomspace(min(across), max(across), 100)
        axes.plot(line, law.curve(line), color=BLUE, label=f"fitted exponent {law.exponent:.2f}")
        axes.plot(line, _claimed(claim, across, up, line), "--", color=ORANGE, label=f"claimed {claim.exponent:.1f}")
        axes.set_xscale("log")
        if not claim.decline:
            axes.set_yscale("log")
        axes.set_xlabel(AXES[claim.against])
        plain_ticks(axes)
        _dress(axes, f"{claim.claim}: {row['verdict']}\n{claim.quantity}")
    word = table[-1]["verdict"] if table[-1]["claim"] == "S12" else "no verdict"
    _draw_pruned([row for row in rows if row["measure"] == "pruned"], grid.flat[len(CLAIMS)], word)
    for axes in grid.flat[len(CLAIMS) + 1 :]:
        axes.set_visible(False)
    headline(figure, finding(table))
    save(figure, path)


def _draw_pruned(rows: Sequence[Row], axes: Any, word: str) -> None:
    """Draw the iterations after pruning against the pruning rate."""
    for own, style, label in (
        ([row for row in rows if row["reached"] == 1], "o-", "mean, all trials arrive"),
        ([row for row in rows if 0 < row["reached"] < 1], "s", "mean, some trials arrive"),
    ):
        if own:
            axes.plot(
                [row["sparsity"] for row in own], [row["iterations"] for row in own], style, color=BLUE, label=label
            )
    never = [row["sparsity"] for row in rows if row["reached"] == 0]
    if never:
        axes.plot(never, [measures.STEPS["pruned"]] * len(never), "x", color=ORANGE, label="no trial arrives")
    axes.axvline(1 - TEACHER / measures.INPUTS, color=GREY, linestyle=":", label="sparsity of the teacher")
    axes.set(xlabel="sparsity (removed fraction)", xlim=(-0.03, 1.0), ylim=(0, None))
    _dress(axes, f"S12: {word}\niterations to a relative error of 1e-3")


def _claimed(claim: Claim, across: Sequence[float], up: Sequence[float], line: Any) -> Any:
    """Return the curve of the claimed exponent with constants fitted to the measurements."""
    power = np.array(across) ** claim.exponent
    if not claim.decline:
        return np.exp(np.mean(np.log(up) - np.log(power))) * line**claim.exponent
    if claim.limit is not None:
        return claim.limit - power @ (claim.limit - np.array(up)) / (power @ power) * line**claim.exponent
    return np.polyval(np.polyfit(power, up, 1), line**claim.exponent)


def _dress(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=9)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def settings(suite: Suite) -> dict[str, Any]:
    """Return the constants that a row depends on besides its cell."""
    names = ("NEURONS", "INPUTS", "WIDTH", "START", "NOISE", "RECOVERED", "SOLVED", "CLOSE", "STEPS")
    return {name.lower(): getattr(measures, name) for name in names}


TABLE = Table(NAME, settings, run, write, cells)
