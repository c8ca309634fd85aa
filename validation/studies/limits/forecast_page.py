"""The page and the figure of the skill of forecasts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pruning_limits.forecast import Rule
from pruning_limits.plotting import headline, new_figure, save, sparsity_axis
from validation.studies.limits.calibration import Case, fitted, left_out, usable, within
from validation.studies.limits.forecast_skill import (
    ASIDE,
    FALLING,
    RULES,
    Coverage,
    aside,
    by_family,
    shared,
    told_with,
)
from validation.tables.writing import COLOURS, Column, Page, Row, write_table

SKILL = "forecast-skill"
MARKERS = "os^Dv<>Phx"
COLUMNS = (
    Column("predictor", "features of the rule"),
    Column("kind", "kind"),
    Column("rms", "rms error as a factor", ".3f"),
    Column("interval", "90 % of draws of networks"),
    Column("within", "90 % of cases within a factor", ".2f"),
    Column("slopes", "slopes"),
)
LADDER, LEVEL = "forecast-ladder", "held-out accuracy -1 points"
LADDER_COLUMNS = (
    Column("family", "family"),
    Column("model", "model"),
    Column("dataset", "data"),
    Column("recipe", "recipe"),
    Column("parameters", "weights", ",d"),
    Column("one_shot", "one-shot, measured", ".1%"),
    Column("retuned", "re-tuned, measured", ".1%"),
    Column("sparsity", "forecast", ".1%"),
    Column("low", "from", ".1%"),
    Column("high", "to", ".1%"),
    Column("true", "true: whole recipe", ".1%"),
    Column("within", "within"),
    Column("bound", "no hope beyond", ".1%"),
    Column("formula", "the paper's formula", ".1%"),
)
FIGURE_NAMES = {
    "epsilon": "epsilon alone",
    "hessian": "the Hessian's formula",
    "one-shot": "one-shot pruning",
    "re-tuned": "re-tuning",
}
SHOWN = (("epsilon",), ("hessian",), ("one-shot",), RULES[0])


@dataclass(frozen=True)
class Skill:
    """What the page tells.

    Attributes:
        cases: Networks at levels.
        rows: Skill of every predictor, families left out.
        rules: The rules of the calibration.
        coverage: How their intervals fare, families left out of fit and residuals.
    """

    cases: Sequence[Case]
    rows: Sequence[Row]
    rules: Sequence[Rule]
    coverage: Sequence[Coverage]


def write_skill(folder: Path, command: str, skill: Skill) -> None:
    """Write table and figure.

    Args:
        folder: Where to.
        command: The command to note.
        skill: What to tell.
    """
    rows = [
        row
        | {
            "kind": "baseline" if row["baseline"] else "curvature",
            "interval": f"{row['rms_low']:.3f} to {row['rms_high']:.3f}",
            "slopes": ", ".join(f"{slope:.2f}" for slope in row["fit"]),
        }
        for row in sorted(skill.rows, key=lambda row: row["rms"])
    ]
    notes = [f"Made by `{command}`.", *_notes(skill)]
    extra = {
        "rules": [asdict(rule) | asdict(coverage) for rule, coverage in zip(skill.rules, skill.coverage, strict=True)],
        "families": list(by_family(skill.cases, RULES[0])),
        "aside": {", ".join(features): aside(skill.cases, features) for features in RULES},
    }
    write_table(folder, Page(SKILL, "Skill of forecasts of what re-training reaches", notes, COLUMNS), rows, **extra)
    _figure(shared(skill.cases), folder / f"{SKILL}.png")


def write_ladder(folder: Path, command: str, lines: Sequence[Row]) -> None:
    """Write the ladder of every network beside the truth.

    Args:
        folder: Where to.
        command: The command to note.
        lines: What ``ladder_rows`` returned.
    """
    within = sum(line["within"] == "yes" for line in lines)
    notes = [
        f"Made by `{command}`.",
        f"Allowed: one point of held-out accuracy. The forecast is by rules that have not seen any network of the "
        f"family; {within} of {len(lines)} ends lie within its interval. A dash: no bound is established.",
    ]
    write_table(folder, Page(LADDER, "What the ladder says, and what is true", notes, LADDER_COLUMNS), lines)


def _notes(skill: Skill) -> list[str]:
    first = skill.rows[0]
    lines = [
        f"{first['networks']} networks, {first['cases']} cases that all predictors know. A rule is linear on "
        "logarithms of kept fractions, with slopes of one sign, every network with the same weight. Errors are those "
        "of families that were left out of the fit: the truth over what was told, as a factor of the kept fraction.",
        _curvature(skill),
    ]
    for rule, coverage in zip(skill.rules, skill.coverage, strict=True):
        terms = ", ".join(f"{name} {slope:.2f}" for name, slope in zip(rule.features, rule.slopes, strict=True))
        lines.append(
            f"Rule of {', '.join(rule.features)}: slopes {terms}; the interval is {math.exp(rule.low):.2f} to "
            f"{math.exp(rule.high):.2f} times what is told. On families that neither fit nor residuals have seen "
            f"{coverage.share:.1%} of the cases end within (nominal 90 %), and the interval's factor to either side is "
            f"{coverage.factor:.2f} (median)."
        )
        apart = aside(skill.cases, rule.features)
        if apart is not None:
            lines[-1] += (
                f" On {' and '.join(ASIDE)} networks, by the other families alone: rms {apart['rms']:.2f}, 90 % within "
                f"{apart['within']:.2f}, mean {apart['bias']:.2f} times what is told, {apart['coverage']:.1%} within "
                "the interval."
            )
    families = "; ".join(
        f"{row['family']} {row['rms']:.2f} (mean {row['bias']:.2f}, {row['networks']} networks)"
        for row in by_family(skill.cases, RULES[0])
    )
    return [*lines, f"By family that was left out, rule of {', '.join(RULES[0])}: {families}."]


def _curvature(skill: Skill) -> str:
    pairs = (
        ("one-shot alone", "one-shot, Hessian"),
        ("re-tuned alone, 2,048 samples", "re-tuned, Hessian"),
        ("re-tuned, one-shot", "one-shot, re-tuned, Hessian"),
    )
    parts = []
    for without, beside in pairs:
        before, after = (told_with(skill.rows, name)["rms"] for name in (without, beside))
        parts.append(f"{without}: {before:.3f}, with the Hessian {after:.3f}")
    return f"What curvature adds, as rms: {'; '.join(parts)}."


def _figure(cases: Sequence[Case], path: Path) -> None:
    figure, panels = new_figure(2, 2, size=(9.0, 8.4), sharex=True, sharey=True)
    least = 0.7 * min(case.kept for case in cases)
    families = list(dict.fromkeys(case.family for case in cases))
    for panel, features in zip(panels.flat, SHOWN, strict=True):
        known = usable(cases, features)
        residuals = left_out(known, lambda part, features=features: fitted(part, features, FALLING))  # type: ignore[misc]
        panel.plot([1, least], [1, least], color="#666666", linewidth=1)
        for factor in (1 / 1.5, 1.5):
            panel.plot([1, least], [factor, least * factor], color="#999999", linewidth=0.8, linestyle=":")
        panel.plot([], [], color="#999999", linewidth=0.8, linestyle=":", label="a factor 1.5")
        for colour, marker, family in zip(COLOURS * 2, MARKERS, families, strict=False):
            own = [(c, r) for c, r in zip(known, residuals, strict=True) if c.family == family]
            told = [min(1.0, max(least, case.kept * math.exp(-residual))) for case, residual in own]
            panel.plot([case.kept for case, _ in own], told, marker, color=colour, markersize=3.5, label=family)
        sparsity_axis(panel.xaxis, least)
        sparsity_axis(panel.yaxis, least)
        name = " and ".join(FIGURE_NAMES.get(feature, feature) for feature in features)
        panel.set_title(f"{name}: 90 % within a factor {within(residuals):.2f}", loc="left", fontsize=9)
        panel.grid(alpha=0.25)
    for panel in panels[-1]:
        panel.set_xlabel("true (sparsity after the whole recipe)")
    for panel in panels[:, 0]:
        panel.set_ylabel("told, family left out")
    panels[0, 0].legend(fontsize=7)
    headline(figure, "Where re-training ends: what was told, its family left out, and what is true")
    save(figure, path)
