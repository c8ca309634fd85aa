"""Table ``koopman-equivalence``: Koopman, magnitude and shuffled-layer pruning, early and at convergence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pruning_limits.plotting import GREY, new_figure, save
from validation.masks import overlap, shuffled
from validation.pruners.magnitude import magnitude_masks
from validation.pruners.random_masks import mask_seed
from validation.studies.koopman.notes import (
    ALIKE,
    GAP,
    compression_axis,
    labels_of,
    largest,
    recording_notes,
    settings,
    when,
)
from validation.studies.koopman.recording import KoopmanSettings, Recorded, recording, refined, sparsity
from validation.studies.limits.actual import pruned
from validation.tables.claims import judged
from validation.tables.kinds import averaged, kinds_of
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import COLOURS, Column, Page, Row, network_row, write_table
from validation.training import Network, accuracy

NAME = "koopman-equivalence"
METHODS = {"kmp": ("KMP", "-", "o"), "gmp": ("GMP", "--", "s"), "lsp": ("LSP", ":", "^")}
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("label", "epoch"),
    Column("compression", "compression", "g"),
    Column("sparsity", "sparsity", ".2%"),
    Column("seeds", "seeds", "d"),
    *(Column(key, f"{said[0]}, pruned", ".2%") for key, said in METHODS.items()),
    *(Column(f"{key}_refined", f"{said[0]}, refined", ".2%") for key, said in METHODS.items()),
    Column("overlap", "overlap KMP, GMP", ".3f"),
    Column("overlap_spread", "deviation", ".3f"),
    Column("floor", "overlap of random masks", ".3f"),
)


def run(cell: Cell, bench: Bench) -> Row:
    """Prune one network at every recorded epoch by the three methods, and refine each for one epoch."""
    training = recording(cell.network, bench)
    points = [
        _measured(training.network, bench, point, compression)
        for point in training.points
        for compression in bench.suite.settings(KoopmanSettings).compressions
    ]
    return network_row(cell.network) | {"points": points}


def _measured(network: Network, bench: Bench, point: Recorded, compression: float) -> Row:
    removed = sparsity(compression)
    by_size = magnitude_masks(point.model, removed)
    masks = {"kmp": point.masks(compression), "gmp": by_size, "lsp": shuffled(by_size, mask_seed(network.seed))}
    row: Row = {"label": point.label, "compression": compression, "sparsity": removed, "floor": 1 - removed}
    row["overlap"] = overlap(masks["kmp"], by_size)
    refines = bench.suite.settings(KoopmanSettings).refines(point.label)
    for key, chosen in masks.items():
        row[key] = accuracy(pruned(point.model, chosen), bench.data)
        row[f"{key}_refined"] = accuracy(refined(network, bench, point, chosen), bench.data) if refines else None
    return row


def gap(row: Row, suffix: str = "") -> float:
    """Points of accuracy between KMP and GMP, ``"_refined"`` for after refining."""
    return 100 * abs(float(row[f"kmp{suffix}"]) - float(row[f"gmp{suffix}"]))


def beaten(rows: Sequence[Row]) -> list[float]:
    """Compressions above 1 at which both KMP and GMP are more accurate than LSP after refining."""
    return [
        row["compression"]
        for row in rows
        if row["compression"] > 1 and min(row["kmp_refined"], row["gmp_refined"]) > row["lsp_refined"]
    ]


def words(table: Sequence[Row]) -> list[str]:
    """Judge K1, K2 and K3 for every kind of network, from the rows of the table."""
    lines = []
    for which, own in kinds_of(table).items():
        at = {label: [row for row in own if row["label"] == label] for label in labels_of(own)}
        early = {label: rows for label, rows in at.items() if label != "converged"}
        refined_rows = {label: rows for label, rows in at.items() if rows[0]["kmp_refined"] is not None}
        lines.append(_equivalent(", ".join(which), at["converged"]))
        before = {label: rows for label, rows in refined_rows.items() if label in early}
        if before:
            lines.append(_shuffling(", ".join(which), before if len(before) > 1 else refined_rows))
        if early:
            lines.append(_static(", ".join(which), early))
    return lines


def _close(rows: Sequence[Row], said: str) -> list[tuple[str, bool]]:
    gaps = {"": largest(rows, gap)}
    if rows[0]["kmp_refined"] is not None:
        gaps["_refined"] = largest(rows, partial(gap, suffix="_refined"))
    names = {"": "before", "_refined": "after"}
    return [
        (f"{said} accuracies within {GAP:g} points {names[key]} refining: at most {value:.1f} apart", value <= GAP)
        for key, value in gaps.items()
    ]


def _equivalent(said: str, rows: Sequence[Row]) -> str:
    least = min(row["overlap"] for row in rows)
    alike = (f"masks overlap by {ALIKE:.0%} or more at every compression: least {least:.1%}", least >= ALIKE)
    claim = f"K1, {said}, KMP and GMP are the same at convergence"
    return judged(claim, [*_close(rows, "KMP and GMP"), alike])


def _shuffling(said: str, early: dict[str, list[Row]]) -> str:
    first, last = next(iter(early)), list(early)[-1]
    conditions = []
    for label in dict.fromkeys((first, last)):
        conditions += _close(early[label], f"{when(label)}, KMP and GMP")
    below = [row["compression"] for row in early[last] if 1 < row["compression"] < 16]
    wins = {label: beaten(rows) for label, rows in early.items()}
    conditions.append(
        (
            f"{when(last)}, both beat LSP at every compression below 16: at {_listed(wins[last])}",
            set(below) <= set(wins[last]),
        )
    )
    text = "; ".join(f"{when(label)} at {_listed(compressions)}" for label, compressions in wins.items())
    return (
        judged(f"K2, {said}, KMP and GMP are alike before convergence and come to beat LSP", conditions)
        + f" Both beat LSP after refining: {text}. The paper has two patterns for epoch {first}: none or hardly any "
        "compression (ResNet-20), and those above 8 (MnistNet)."
    )


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "none"


def _static(said: str, early: dict[str, list[Row]]) -> str:
    least = {label: min(row["overlap"] for row in rows) for label, rows in early.items()}
    labels = list(early)
    static = [label for label in labels if int(label) <= 10]
    lowest = min(labels, key=lambda label: least[label])
    overlaps = ", ".join(f"epoch {label} {value:.1%}" for label, value in least.items())
    conditions = [
        (
            f"as ResNet-20, {ALIKE:.0%} or more up to epoch 10 at every compression",
            all(least[label] >= ALIKE for label in static),
        ),
        (
            "as ResNet-20, least at the last of these epochs",
            len(labels) > 1 and lowest == labels[-1],
        ),
        ("as MnistNet, least at one of the first two", len(labels) > 2 and lowest in labels[:2]),
    ]
    claim = f"K3, {said}, overlap of KMP and GMP masks moves with training"
    return judged(claim, conditions) + f" Least overlap over compressions: {overlaps}."


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table, judge K1 to K3, and draw accuracy and overlap against compression."""
    table = averaged(rows, ("label", "compression"))
    notes = [
        f"Made by `{command}`.",
        *recording_notes(suite),
        "Test accuracy right after pruning and after one epoch of re-training at 0.2 of the peak rate. LSP shuffles "
        "the mask of GMP within every layer. Overlap is the share of kept weights in common." + _where(suite),
        *words(table),
    ]
    title = f"Koopman against global magnitude pruning, suite {suite.name}"
    write_table(folder, Page(NAME, title, notes, COLUMNS), table)
    _figure(table, folder / f"{NAME}.png")


def _where(suite: Suite) -> str:
    refined = suite.settings(KoopmanSettings).refined
    if refined is None:
        return ""
    return f" Refined at {', '.join(map(when, refined))} only." if refined else " No network was refined."


def _figure(table: Sequence[Row], path: Path) -> None:
    """Draw two panels per kind of network: accuracy after pruning, first epoch and converged, and overlap of masks."""
    groups, labels = kinds_of(table), labels_of(table)
    least = {which[0]: _least_overlap(own, labels[-1]) for which, own in groups.items()}
    said = ", ".join(f"{value:.0%} ({name})" for name, value in least.items())
    figure, axes = new_figure(len(groups), 2, size=(10.0, 3.2 * len(groups) + 0.5), squeeze=False)
    figure.suptitle(f"Least overlap of the masks, {when(labels[-1])}: {said}", fontsize=11)
    colours = dict(zip(labels, COLOURS, strict=False))
    for (left, right), (which, own) in zip(axes, groups.items(), strict=True):
        for label in labels:
            rows = [row for row in own if row["label"] == label]
            places = [row["compression"] for row in rows]
            right.plot(
                places, [row["overlap"] for row in rows], "o-", color=colours[label], markersize=3, label=when(label)
            )
            for key in METHODS if label in (labels[0], labels[-1]) else ():
                _curve(left, rows, key, colours[label])
        right.plot(places, [row["floor"] for row in rows], ":", color=GREY, label="random masks")
        left.set_title(f"{which[0]}: accuracy after pruning", loc="left", fontsize=9)
        right.set_title(f"{which[0]}: masks of KMP and GMP", loc="left", fontsize=9)
        left.set(ylabel="test accuracy, %", ylim=(0, 102))
        right.set(ylabel="overlap", ylim=(0, 1.03))
        for panel in (left, right):
            compression_axis(panel, places)
            panel.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    save(figure, path)


def _least_overlap(rows: Sequence[Row], label: str) -> float:
    return min(float(row["overlap"]) for row in rows if row["label"] == label)


def _curve(panel: Any, rows: Sequence[Row], key: str, colour: str) -> None:
    name, style, marker = METHODS[key]
    panel.errorbar(
        [row["compression"] for row in rows],
        [100 * row[key] for row in rows],
        [100 * (row[f"{key}_spread"] or 0) for row in rows],
        color=colour,
        linestyle=style,
        marker=marker,
        markersize=3,
        linewidth=1,
        capsize=2,
        label=f"{name}, {when(rows[0]['label'])}",
    )


TABLE = Table(NAME, settings, run, write, sections=(KoopmanSettings,))
