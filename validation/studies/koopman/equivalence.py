"""Table ``koopman-equivalence``: Koopman, magnitude and shuffled-layer pruning, early and at convergence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pruning_limits.plotting import GREY, headline, new_figure, save
from validation.masks import overlap, shuffled
from validation.pruners.magnitude import magnitude_masks
from validation.pruners.random_masks import mask_seed
from validation.studies.koopman.notes import (
    ALIKE,
    GAP,
    claimed,
    compression_axis,
    judged_at,
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
STATIC, MOVING = 10, 5  # last epochs of the phases in which masks agree (ResNet-20) and do not yet agree (MnistNet)
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
    koopman = bench.suite.settings(KoopmanSettings)
    refines = koopman.refines(point.label)
    measures = refines or koopman.measures(point.label)
    for key, chosen in masks.items():
        row[key] = accuracy(pruned(point.model, chosen), bench.data) if measures else None
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
        if len(early) > 1:
            lines.append(_static(which, early))
    return lines


def _close(rows: Sequence[Row], said: str) -> list[tuple[str, bool]]:
    conditions = []
    for suffix, name in {"": "before", "_refined": "after"}.items():
        if rows[0][f"kmp{suffix}"] is not None:
            apart = largest(rows, partial(gap, suffix=suffix))
            text = f"{said} accuracies within {GAP:g} points {name} refining: at most {apart:.1f} apart"
            conditions.append((text, apart <= GAP))
    return conditions


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


def _static(which: tuple[str, ...], rows: dict[str, list[Row]]) -> str:
    """Judge K3 by the pattern that the paper has for the network, by both where it has none."""
    label = claimed(list(rows))
    early = {epoch: own for epoch, own in rows.items() if int(epoch) <= int(label)}
    least = {epoch: min(row["overlap"] for row in own) for epoch, own in early.items()}
    patterns = {"resnet20": _as_resnet(early, least, label), "mnistnet": _as_mnistnet(least, label)}
    conditions = patterns.get(which[0]) or [condition for pattern in patterns.values() for condition in pattern]
    overlaps = ", ".join(f"epoch {epoch} {value:.1%}" for epoch, value in least.items())
    claim = f"K3, {', '.join(which)}, overlap of KMP and GMP masks moves with training"
    return judged_at(label, claim, conditions) + f" Least overlap over compressions: {overlaps}."


def _as_resnet(early: dict[str, list[Row]], least: dict[str, float], label: str) -> list[tuple[str, bool]]:
    static = _up_to(STATIC, least)
    conditions = [
        (
            f"as ResNet-20, {ALIKE:.0%} or more up to epoch {static[-1]} at every compression",
            all(least[epoch] >= ALIKE for epoch in static),
        )
    ]
    if label in static:
        return conditions
    conditions.append((f"as ResNet-20, least at epoch {label}", min(least, key=lambda epoch: least[epoch]) == label))
    spread = {epoch: largest(own, lambda row: float(row.get("overlap_spread") or 0)) for epoch, own in early.items()}
    if any(spread.values()):
        text = f"as ResNet-20, seeds differ most at epoch {label}: by a deviation of {100 * spread[label]:.1f} points, "
        before = max(spread[epoch] for epoch in static)
        conditions.append((f"{text}before by up to {100 * before:.1f}", spread[label] > before))
    return conditions


def _as_mnistnet(least: dict[str, float], label: str) -> list[tuple[str, bool]]:
    first = _up_to(MOVING, least)
    lowest = min(least, key=lambda epoch: least[epoch])
    conditions = [
        (f"as MnistNet, least at epoch {' or '.join(first)}", len(least) > len(first) and lowest in first),
    ]
    if label not in first:
        below = all(least[epoch] < least[label] for epoch in first)
        conditions.append((f"as MnistNet, less at epoch {' and '.join(first)} than at {label}", below))
    return conditions


def _up_to(last: int, least: dict[str, float]) -> list[str]:
    """Recorded epochs up to one, at least the first."""
    return [epoch for epoch in least if int(epoch) <= last] or list(least)[:1]


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


def measured_settings(suite: Suite) -> dict[str, Any]:
    """Return the suite's settings that a row depends on; where accuracy is measured only if not everywhere."""
    measured, shared = suite.settings(KoopmanSettings).measured, settings(suite)
    return shared if measured is None else shared | {"measured": measured}


def _where(suite: Suite) -> str:
    koopman = suite.settings(KoopmanSettings)
    text = "" if koopman.measured is None else f" Accuracy at {', '.join(map(when, koopman.measured))} only."
    if koopman.refined is None:
        return text
    if not koopman.refined:
        return f"{text} No network was refined."
    return f"{text} Refined at {', '.join(map(when, koopman.refined))} only."


def finding(table: Sequence[Row]) -> str:
    """Say how much the masks of KMP and GMP overlap at the least, from the first recorded epoch on."""
    parts = []
    for which, own in kinds_of(table).items():
        labels = labels_of(own)
        said = []
        for label in dict.fromkeys((labels[0], claimed(labels), labels[-1])):
            least = min(float(row["overlap"]) for row in own if row["label"] == label)
            said.append(f"{least:.0%} {label if label == 'converged' else 'at ' + when(label)}")
        parts.append(f"{which[0]} {', '.join(said)}")
    return f"Least overlap of the masks of KMP and GMP: {'; '.join(parts)}"


def _figure(table: Sequence[Row], path: Path) -> None:
    """Draw two panels per kind: accuracy after pruning, at the first and last epoch that has it, and overlaps."""
    groups, labels = kinds_of(table), labels_of(table)
    figure, axes = new_figure(len(groups), 2, size=(10.0, 3.2 * len(groups) + 0.5), squeeze=False)
    headline(figure, finding(table))
    colours = dict(zip(labels, COLOURS, strict=False))
    for (left, right), (which, own) in zip(axes, groups.items(), strict=True):
        known = labels_of([row for row in own if row["kmp"] is not None])
        ends = known[:1] + known[-1:]
        for label in labels:
            rows = [row for row in own if row["label"] == label]
            places = [row["compression"] for row in rows]
            right.plot(
                places, [row["overlap"] for row in rows], "o-", color=colours[label], markersize=3, label=when(label)
            )
            for key in METHODS if label in ends else ():
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


TABLE = Table(NAME, measured_settings, run, write, sections=(KoopmanSettings,))
