"""Table ``koopman-limit``: the limit of the trained network from the fixed point that one early epoch predicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pruning_limits import MagnitudeProfile, PruningLimit
from pruning_limits.isotropic import carried_limit
from pruning_limits.plotting import BLUE, GREEN, GREY, ORANGE, headline, new_figure, save, sparsity_axis
from pruning_limits.result import established
from validation.masks import prunable
from validation.pruners.koopman import sizes
from validation.studies.koopman.notes import recording_notes
from validation.studies.koopman.notes import settings as recorded_settings
from validation.studies.koopman.recording import KoopmanSettings, Recorded, recording
from validation.studies.limits.early import EarlySettings
from validation.studies.limits.predicted import brief_limit, brief_words
from validation.tables.claims import judged
from validation.tables.kinds import averaged, kinds_of
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import Column, Page, Row, between, network_row, write_table
from validation.training import accuracy

NAME = "koopman-limit"
CLOSE = 1.0
KINDS = {"one_shot": "one-shot", "retrained": "re-trained"}
SOURCES = {"raw": "raw weights", "fixed": "fixed point", "known": "final weights"}
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("label", "epoch"),
    Column("seeds", "seeds", "d"),
    Column("accuracy", "test accuracy", ".2%"),
    Column("epsilon", "epsilon", ".4f"),
    *(
        Column(f"{source}_{key}", f"{said}, {name}", ".2%")
        for key, said in KINDS.items()
        for source, name in SOURCES.items()
    ),
    Column("final_one_shot", "one-shot, end of training", ".2%"),
    Column("final_retrained", "re-trained, end of training", ".2%"),
    Column("measured", "measured one-shot, end of training", ".2%"),
    Column("raw_off", "raw - end, points", "+.2f"),
    Column("fixed_off", "fixed - end, points", "+.2f"),
    Column("raw_off_same", "raw - end, final epsilon", "+.2f"),
    Column("fixed_off_same", "fixed - end, final epsilon", "+.2f"),
)


def run(cell: Cell, bench: Bench) -> Row:
    """Predict one network's limit at every recorded epoch from its weights and from its fixed point."""
    training = recording(cell.network, bench)
    ends = {"final": training.final} | {point.label: point.model for point in training.points if not point.converged}
    limits = {}
    for label, model in ends.items():
        file = bench.folder / f"limit-{label}.json"
        if not file.exists():
            early = bench.suite.settings(EarlySettings)
            brief_limit(model, cell.network, bench, early, measure=label == "final").to_json(file)
        limits[label] = PruningLimit.from_json(file)
    final, known = limits["final"], MagnitudeProfile(prunable(training.final))
    points = [
        _point(point, limits[point.label], final, known) | {"accuracy": accuracy(point.model, bench.data)}
        for point in training.points
        if not point.converged
    ]
    return network_row(cell.network) | {"points": points}


def _point(point: Recorded, limit: PruningLimit, final: PruningLimit, known: MagnitudeProfile) -> Row:
    curves = {
        "raw": limit.evidence.curve,
        "fixed": MagnitudeProfile(sizes(point.fixed, point.model)).curve(),
        "known": known.curve(),
    }
    row: Row = {"label": point.label, "epsilon": limit.epsilon}
    for source, curve in curves.items():
        for suffix, epsilon in (("", limit.epsilon), ("_same", final.epsilon)):
            one_shot = carried_limit(limit.evidence.hessian, curve, epsilon, limit.settings.negative)
            row[f"{source}_one_shot{suffix}"] = one_shot
            row[f"{source}_retrained{suffix}"] = carried_limit(established(limit.evidence.ggn), curve, epsilon, "clip")
            row[f"{source}_off{suffix}"] = 100 * (one_shot - final.sparsity)
            row[f"{source}_size{suffix}"] = abs(row[f"{source}_off{suffix}"])
    return row | {"final_one_shot": final.sparsity, "final_retrained": final.retrained, "measured": final.lower}


def words(table: Sequence[Row]) -> list[str]:
    """Say for every kind of network whether the fixed point predicts the final limit better than the weights do."""
    return [_bridge(", ".join(which), own) for which, own in kinds_of(table).items()]


def _bridge(said: str, rows: Sequence[Row]) -> str:
    nearer = {
        suffix: [row["label"] for row in rows if row[f"fixed_size{suffix}"] < row[f"raw_size{suffix}"]]
        for suffix in ("", "_same")
    }
    labels = [row["label"] for row in rows]
    conditions = [
        (
            f"the limit from the fixed point is nearer to that of the end than the limit from the raw weights at every "
            f"epoch, {name}: at {', '.join(nearer[suffix]) or 'none'} of {', '.join(labels)}",
            len(nearer[suffix]) == len(labels),
        )
        for suffix, name in (("", "epsilon of the epoch"), ("_same", "epsilon of the end"))
    ]
    last = rows[-1]
    conditions.append(
        (
            f"at epoch {last['label']} it is within {CLOSE:g} point of the end with the epsilon of the end: off by "
            f"{last['fixed_size_same']:.2f} on average, raw weights by {last['raw_size_same']:.2f}",
            last["fixed_size_same"] <= CLOSE,
        )
    )
    known = ", ".join(f"epoch {row['label']} {row['known_size_same']:.2f}" for row in rows)
    claim = f"The bridge, {said}, one epoch of training predicts the final limit through its fixed point"
    return (
        judged(claim, conditions)
        + f" With the final weights in place of the fixed point, the epoch's curvature and the epsilon of the end, the "
        f"limit is off by {known} points: so much is due to the curvature, which no fixed point gives."
    )


def finding(table: Sequence[Row]) -> str:
    """Say how far the one-shot limit from the fixed point is off, and how often the raw weights are farther."""
    nearer = [sum(row[f"fixed_size{suffix}"] < row[f"raw_size{suffix}"] for row in table) for suffix in ("", "_same")]
    return (
        f"The one-shot limit from the fixed point is {between((row['fixed_size'] for row in table), '.1f')} points off "
        f"that of the end; the raw weights are farther off at {nearer[0]} of {len(table)} epochs, with the final "
        f"epsilon at {nearer[1]}"
    )


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table, judge the bridge, and draw the limits against the epoch."""
    table, said = averaged(rows, ("label",)), brief_words(suite.settings(EarlySettings))
    notes = [
        f"Made by `{command}`.",
        *recording_notes(suite),
        f"Isotropic limits with the Hessian (one-shot) and the GGN (re-trained) of the epoch's weights; {said}. The "
        "squared norm R(s) of what pruning removes is that of the raw weights of the epoch, of the moduli of the mode "
        "that stays (the fixed point), or, as the best any fixed point could do, of the final weights. Epsilon is that "
        "of the epoch, or where said that of the end. Off is the mean difference to the limit of the end.",
        *words(table),
    ]
    write_table(folder, Page(NAME, f"Limit from one epoch's fixed point, suite {suite.name}", notes, COLUMNS), table)
    _figure(table, folder / f"{NAME}.png")


def _figure(table: Sequence[Row], path: Path) -> None:
    groups = kinds_of(table)
    figure, axes = new_figure(len(groups), 2, size=(10.5, 3.5 * len(groups)), squeeze=False)
    headline(figure, finding(table))
    for line, (which, own) in zip(axes, groups.items(), strict=True):
        for panel, (key, name) in zip(line, KINDS.items(), strict=True):
            _curves(panel, own, key)
            panel.set_title(f"{which[0]}, penalty {which[2]}, {name}", loc="left", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=3)
    save(figure, path)


def _curves(panel: Any, rows: Sequence[Row], key: str) -> None:
    places = range(len(rows))
    colours = {"raw": BLUE, "fixed": ORANGE, "known": GREEN}
    for source, colour in colours.items():
        for suffix, style, said in (("", "o-", "epoch's epsilon"), ("_same", "s:", "final epsilon")):
            values = [1 - row[f"{source}_{key}{suffix}"] for row in rows]
            panel.plot(places, values, style, color=colour, markersize=3, label=f"{SOURCES[source]}, {said}")
    end = 1 - rows[0][f"final_{key}"]
    panel.axhline(end, color=GREY, linestyle="--", linewidth=1, label="end of training")
    kept = [1 - row[f"{source}_{key}{suffix}"] for row in rows for source in colours for suffix in ("", "_same")]
    sparsity_axis(panel.yaxis, 0.7 * min([end, *(value for value in kept if value > 0)]))
    panel.set_xticks(places, [row["label"] for row in rows])
    panel.set(xlabel="epoch", ylabel="limit (sparsity)")
    panel.grid(alpha=0.25)


def settings(suite: Suite) -> dict[str, Any]:
    """Return the suite's settings that a row depends on."""
    return {**recorded_settings(suite), **suite.plain(EarlySettings)}


TABLE = Table(NAME, settings, run, write, sections=(KoopmanSettings, EarlySettings))
