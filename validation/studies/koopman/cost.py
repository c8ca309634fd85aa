"""Table ``koopman-cost``: time and memory of the decomposition at the paper's sizes, and against a full SVD."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pruning_limits.plotting import BLUE, GREY, ORANGE, headline, new_figure, save
from validation.studies.koopman.dmd_cost import measured, synthetic
from validation.studies.koopman.recording import KoopmanSettings
from validation.tables.claims import RULE, judged
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import Column, Page, Row, between, write_table

NAME = "koopman-cost"
GIGABYTE = 1e9
PAPER = {
    "mnistnet": {"parameters": 431_080, "snapshots": 470, "seconds": 210.0, "memory": 1.1},
    "resnet20": {"parameters": 268_346, "snapshots": 392, "seconds": 44.0, "memory": 1.1},
}
COLUMNS = (
    Column("size", "size of"),
    Column("parameters", "parameters", ",d"),
    Column("snapshots", "snapshots", "d"),
    Column("method", "method"),
    Column("seconds", "seconds", ".1f"),
    Column("peak", "peak resident, GB", ".2f"),
    Column("grown", "of it working memory, GB", ".2f"),
    Column("data", "snapshots in float32, GB", ".2f"),
    Column("paper_seconds", "paper, seconds", ".0f"),
    Column("paper_memory", "paper, GB", ".1f"),
)


def cells(suite: Suite) -> list[Cell]:
    """Return one cell per network of the paper, and two that compare both methods on fewer parameters."""
    koopman = suite.settings(KoopmanSettings)
    share, small = koopman.share, min(koopman.share, koopman.svd_share)
    runs = [(name, "snapshots", share) for name in PAPER]
    runs += [("mnistnet", method, small) for method in ("snapshots", "svd") if (method, small) != ("snapshots", share)]
    return [Cell(None, {"size": size, "method": method, "share": part}) for size, method, part in runs]


def run(cell: Cell, bench: Bench) -> Row:
    """Write synthetic snapshots of one size, decompose them in a process of its own, and remove them."""
    size, method, share = (cell.part[key] for key in ("size", "method", "share"))
    paper = PAPER[size]
    parameters, snapshots = max(1, round(share * paper["parameters"])), int(paper["snapshots"])
    file = bench.folder / "snapshots.npy"
    try:
        synthetic(file, parameters, snapshots)
        cost = measured(file, method)
    finally:
        file.unlink(missing_ok=True)
    return {
        "size": size,
        "parameters": parameters,
        "snapshots": snapshots,
        "method": "method of snapshots" if method == "snapshots" else "full SVD",
        "share": share,
        "seconds": cost["seconds"],
        "peak": cost["peak"] / GIGABYTE,
        "grown": None if cost["grown"] is None else cost["grown"] / GIGABYTE,
        "data": 4 * parameters * snapshots / GIGABYTE,
        "paper_seconds": paper["seconds"] if share == 1 else None,
        "paper_memory": paper["memory"] if share == 1 else None,
    }


def words(rows: Sequence[Row]) -> list[str]:
    """Judge K8 from the rows of the table."""
    conditions = []
    for row in rows:
        if row["paper_seconds"] is not None:
            text = f"{row['size']}, mode that stays in at most {row['paper_seconds']:.0f} s: {row['seconds']:.1f} s"
            conditions.append((text, row["seconds"] <= row["paper_seconds"]))
            text = f"{row['size']}, peak memory at most {row['paper_memory']:.1f} GB: {_memory(row)}"
            conditions.append((text, row["peak"] <= row["paper_memory"]))
    for by_snapshots, row in _compared(rows):
        text = f"{row['parameters']:,} parameters, the method of snapshots needs less time than a full SVD: "
        conditions.append(
            (f"{text}{by_snapshots['seconds']:.1f} s, {row['seconds']:.1f} s", by_snapshots["seconds"] < row["seconds"])
        )
        text = "and less memory: "
        conditions.append((f"{text}{_memory(by_snapshots)}, {_memory(row)}", by_snapshots["peak"] < row["peak"]))
    return [judged("K8, cost of the mode that stays", conditions)]


def _compared(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return the method of snapshots beside every full SVD of as many parameters."""
    return [
        (row, full)
        for full in rows
        for row in rows
        if full["method"] == "full SVD" and row["method"] != "full SVD" and row["parameters"] == full["parameters"]
    ]


def finding(rows: Sequence[Row]) -> str:
    """Say what share of the paper's time and memory is needed, and how much more a full SVD needs."""
    paper = [row for row in rows if row["paper_seconds"] is not None]
    parts = []
    if paper:
        time = between((row["seconds"] / row["paper_seconds"] for row in paper), ".0%")
        memory = between((row["peak"] / row["paper_memory"] for row in paper), ".0%")
        parts.append(f"the method of snapshots needs {time} of the paper's time and {memory} of its memory")
    pairs = _compared(rows)
    if pairs:
        time = between((full["seconds"] / row["seconds"] for row, full in pairs), ".1f")
        memory = between((full["peak"] / row["peak"] for row, full in pairs), ".1f")
        size = between((full["parameters"] for _, full in pairs), ",d")
        parts.append(f"with {size} parameters, a full SVD takes {time} times as long and {memory} times the memory")
    text = "; ".join(parts)
    return text[:1].upper() + text[1:]


def _memory(row: Row) -> str:
    grown = "" if row["grown"] is None else f" ({row['grown']:.2f} of it working memory)"
    return f"{row['peak']:.2f} GB{grown}"


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table, judge K8, and draw time and memory."""
    koopman = suite.settings(KoopmanSettings)
    notes = [
        f"Made by `{command}`.",
        "Synthetic snapshots (a fixed point, one decaying mode, noise) with as many recorded weights and biases, and "
        "as many snapshots, as the paper's networks have in one epoch, in a memory-mapped float32 file; the cost "
        "depends on the sizes only. Time and memory are those of a process of its own, from the file to the mode whose "
        "eigenvalue is nearest 1. Peak resident memory counts Python and its libraries, pages of the mapped file and "
        "working memory, which is what grows besides those pages. The paper measured on a 2014 laptop with a reduced "
        "SVD.",
        f"Fraction of the paper's parameters: {koopman.share:g}; for the comparison with a full SVD, which is slow, "
        f"{min(koopman.share, koopman.svd_share):g}. Both methods cost in proportion to the parameters.",
        RULE,
        *words(rows),
    ]
    write_table(folder, Page(NAME, f"Cost of the decomposition, suite {suite.name}", notes, COLUMNS), rows)
    figure, panels = new_figure(1, 2, size=(11.0, 0.9 + 0.6 * len(rows)), sharey=True)
    headline(figure, finding(rows))
    said = [f"{row['size']}, {row['parameters']:,}\n{row['method']}" for row in rows]
    places = range(len(rows))
    for panel, key, paper, label in (
        (panels[0], "seconds", "paper_seconds", "seconds"),
        (panels[1], "peak", "paper_memory", "peak memory, GB"),
    ):
        panel.barh(places, [row[key] for row in rows], 0.6, color=BLUE, label="here")
        marked = [number for number in places if rows[number][paper] is not None]
        panel.plot([rows[number][paper] for number in marked], marked, "D", color=ORANGE, label="paper")
        panel.set_yticks(places, said)
        panel.set_xlabel(label)
        panel.grid(alpha=0.25, axis="x")
    grown = [row["grown"] or 0 for row in rows]
    panels[1].barh(places, grown, 0.25, color=GREY, label="of it working memory")
    panels[0].invert_yaxis()
    figure.legend(*panels[1].get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=3)
    save(figure, folder / f"{NAME}.png")


def settings(suite: Suite) -> dict[str, Any]:
    """Return the suite's settings that a row depends on: none, the cells hold them."""
    return {}


TABLE = Table(NAME, settings, run, write, cells, sections=(KoopmanSettings,))
