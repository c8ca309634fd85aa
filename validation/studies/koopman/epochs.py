"""Table ``koopman-epochs``: overlap of Koopman masks across epochs, beside the barrier of linear mode connectivity."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.optim.swa_utils import update_bn

from pruning_limits.plotting import BLUE, GREY, ORANGE, headline, new_figure, save
from validation.data import ImageData
from validation.masks import overlap
from validation.pruners.magnitude import magnitude_masks
from validation.studies.koopman.notes import recording_notes, settings, when
from validation.studies.koopman.recording import KoopmanSettings, branch, recording, sparsity
from validation.tables.claims import judged
from validation.tables.kinds import averaged, kinds_of
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import COLOURS, Column, Page, Row, between, network_row, write_table
from validation.training import accuracy

NAME = "koopman-epochs"
SHARES = tuple(float(share) for share in np.linspace(0, 1, 11))
OTHER_ORDER = 1_000
NORM_BATCHES, NORM_BATCH = 10, 500
FLAT, TIED = 2.0, 0.5
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("first", "epoch"),
    Column("second", "against epoch"),
    Column("compression", "compression", "g"),
    Column("seeds", "seeds", "d"),
    Column("overlap", "overlap of KMP masks", ".3f"),
    Column("overlap_spread", "deviation", ".3f"),
    Column("floor", "random masks", ".3f"),
)
BARRIERS = (
    Column("model", "model"),
    Column("penalty", "penalty"),
    Column("label", "epoch"),
    Column("barrier", "barrier, points", ".2f"),
    Column("barrier_spread", "deviation", ".2f"),
    Column("overlap", "overlap KMP, GMP", ".3f"),
)


def run(cell: Cell, bench: Bench) -> Row:
    """Compare one network's masks across epochs, and train a branch from every epoch on data in another order."""
    training = recording(cell.network, bench)
    compressions = [c for c in bench.suite.settings(KoopmanSettings).compressions if c > 1]
    points: list[Row] = []
    for compression in compressions:
        masks = {point.label: point.masks(compression) for point in training.points}
        floor = 1 / compression
        for first, second in combinations(masks, 2):
            row = {"first": first, "second": second, "compression": compression, "floor": floor}
            points.append(row | {"overlap": overlap(masks[first], masks[second])})
    barriers = []
    for point in training.points[:-1] if bench.suite.settings(KoopmanSettings).branches_off(cell.network.seed) else ():
        branched = branch(training, bench, point, cell.network.seed + OTHER_ORDER, bench.folder)
        alike = [overlap(point.masks(c), magnitude_masks(point.model, sparsity(c))) for c in compressions]
        barriers.append(
            {
                "label": point.label,
                "barrier": 100 * barrier(training.final, branched, bench.data),
                "overlap": float(np.mean(alike)) if alike else None,
            }
        )
    for state in bench.folder.glob("branch-*.pt"):
        state.unlink()
    return network_row(cell.network) | {"points": points, "barriers": barriers}


def barrier(first: nn.Module, second: nn.Module, data: ImageData) -> float:
    r"""Height of the test error between two networks, :math:`\max_a e(a) - \frac12 (e(0) + e(1))`.

    The averages of batch norm are measured anew at every point, ends included: between the ends activations vary less
    than the averages of both say, which alone would raise the error.

    Args:
        first: A trained network.
        second: Another of the same architecture.
        data: Data whose test part measures the error.

    Returns:
        The largest error along the straight line between all weights, less the mean of its ends, as a fraction.

    Source: Frankle et al., Linear mode connectivity and the lottery ticket hypothesis, ICML 2020; Jordan et al.,
    REPAIR: renormalizing permuted activations for interpolation repair, ICLR 2023, for batch norm.
    """
    model = copy.deepcopy(first)
    ends = (dict(first.state_dict()), dict(second.state_dict()))
    errors = []
    for share in SHARES:
        model.load_state_dict(
            {name: torch.lerp(a.float(), ends[1][name].float(), share) for name, a in ends[0].items()}
        )
        measure_norms(model, data)
        errors.append(1 - accuracy(model, data))
    return max(errors) - (errors[0] + errors[-1]) / 2


def measure_norms(model: nn.Module, data: ImageData) -> None:
    """Set the means and variances of batch norm layers to those over some training images, in mixed batches."""
    batches = islice(data.batches("train", NORM_BATCH).shuffled(0, 0), NORM_BATCHES)
    update_bn(batches, model, next(model.parameters()).device)


def words(table: Sequence[Row], barriers: Sequence[Row]) -> list[str]:
    """Judge K6 and K9 for every kind of network, from the means of the seeds."""
    lines = []
    heights = kinds_of(barriers)
    for which, own in kinds_of(table).items():
        lines.append(_falling(", ".join(which), own))
        if which in heights:
            lines.append(_connected(", ".join(which), heights[which]))
    return lines


def _falling(said: str, rows: Sequence[Row]) -> str:
    early = [row for row in rows if row["second"] != "converged"]
    falls, correlations = {}, {}
    for compression in dict.fromkeys(row["compression"] for row in rows):
        own = [row for row in early if row["compression"] == compression]
        from_first = [row["overlap"] for row in own if row["first"] == own[0]["first"]]
        falls[compression] = len(from_first) > 1 and bool(np.all(np.diff(from_first) < 0))
        distances = [int(row["second"]) - int(row["first"]) for row in own]
        correlations[compression] = _rank_correlation(distances, [row["overlap"] for row in own])
    failing = [f"{c:g}" for c, holds in falls.items() if not holds]
    weakest = max(correlations.values(), default=0.0)
    conditions = [
        (
            "overlap with the first epoch's mask falls from each recorded epoch to the next at every compression: "
            f"not at {', '.join(failing) or 'none'}",
            not failing,
        ),
        (
            "over all pairs before convergence, overlap falls with distance in epochs: largest rank correlation over "
            f"compressions {weakest:+.2f}",
            weakest < 0,
        ),
    ]
    return judged(f"K6, {said}, KMP masks of distant epochs overlap less", conditions)


def _rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's correlation; 0 where one side does not vary."""
    if len(first) < 2 or len(set(first)) == 1 or len(set(second)) == 1:
        return 0.0
    return float(spearmanr(first, second).statistic)


def _connected(said: str, rows: Sequence[Row]) -> str:
    heights = [row["barrier"] for row in rows]
    first = next((row["label"] for row in rows if row["barrier"] <= FLAT), None)
    together = _rank_correlation(heights, [row["overlap"] for row in rows])
    barriers = ", ".join(f"epoch {row['label']} {row['barrier']:.1f}" for row in rows)
    conditions = [
        (
            f"linear mode connectivity (barrier at most {FLAT:g} points) begins between the recorded epochs: "
            f"{'at none' if first is None else 'by epoch ' + first}, barriers in points {barriers}",
            first is not None and first != rows[0]["label"],
        ),
        (
            f"a barrier above {FLAT:g} points and the overlap of KMP and GMP move together (absolute rank correlation "
            f"{TIED:g} or more over epochs): highest barrier {max(heights):.1f}, correlation {together:+.2f}",
            max(heights) > FLAT and abs(together) >= TIED,
        ),
    ]
    return judged(f"K9, {said}, the change of the masks goes with linear mode connectivity (a speculation)", conditions)


def _barrier_note() -> str:
    return (
        "Barrier: from the weights and momentum at the end of an epoch, training goes on to the end of the recipe once "
        "in the run's own order of data and once in another; the largest test error on the straight line between both "
        f"ends, on {len(SHARES)} points, less the mean error of the ends. Batch norm takes the "
        f"means and variances of {NORM_BATCHES} batches of {NORM_BATCH} training images at every point. The overlap "
        "beside it is that of KMP and GMP, averaged over compressions above 1."
    )


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table, judge K6 and K9, and draw overlaps and barriers against the epoch."""
    table = averaged(rows, ("first", "second", "compression"))
    barriers = averaged(rows, ("label",), "barriers")
    lines = [" | ".join(column.heading for column in BARRIERS), "|".join("---" for _ in BARRIERS)]
    lines += [" | ".join(column.text(row) for column in BARRIERS) for row in barriers]
    notes = [
        f"Made by `{command}`.",
        *recording_notes(suite),
        *([_barrier_note()] if barriers else ["No branch was trained, so linear mode connectivity was not measured."]),
        *words(table, barriers),
        *(["\n".join(f"| {line} |" for line in lines)] if barriers else []),
    ]
    write_table(
        folder, Page(NAME, f"Koopman masks across epochs, suite {suite.name}", notes, COLUMNS), table, barriers=barriers
    )
    _figure(table, barriers, folder / f"{NAME}.png")


def finding(table: Sequence[Row], barriers: Sequence[Row]) -> str:
    """Say how much of the first recorded mask is in the last one, and how high the barriers are."""
    ends = []
    for own in kinds_of(table).values():
        first, last = own[0]["first"], list(dict.fromkeys(row["second"] for row in own))[-1]
        ends += [row for row in own if (row["first"], row["second"]) == (first, last)]
    times = between((row["overlap"] / row["floor"] for row in ends), ".1f")
    text = f"First and last recorded KMP masks overlap {times} times as much as random ones"
    if not barriers:
        return text
    return f"{text}; the highest barrier is {max(row['barrier'] for row in barriers):.1f} points of test error"


def _figure(table: Sequence[Row], barriers: Sequence[Row], path: Path) -> None:
    groups, heights = kinds_of(table), kinds_of(barriers)
    columns = 2 if heights else 1
    figure, axes = new_figure(len(groups), columns, size=(5.0 * columns, 3.6 * len(groups)), squeeze=False)
    headline(figure, finding(table, barriers))
    for line, (which, own) in zip(axes, groups.items(), strict=True):
        left = line[0]
        labels = list(dict.fromkeys(row["second"] for row in own))
        for number, compression in enumerate(dict.fromkeys(row["compression"] for row in own)):
            start = own[0]["first"]
            rows = [row for row in own if row["compression"] == compression and row["first"] == start]
            places = [labels.index(row["second"]) for row in rows]
            values, spreads = [row["overlap"] for row in rows], [row["overlap_spread"] or 0 for row in rows]
            colour = COLOURS[number % len(COLOURS)]
            left.errorbar(places, values, spreads, marker="o", markersize=3, capsize=2, color=colour, linewidth=1)
            left.axhline(rows[0]["floor"], color=colour, linestyle=":", linewidth=0.8)
            left.plot([], [], "o-", color=colour, markersize=3, label=f"{compression:g}")
        left.set_xticks(range(len(labels)), labels)
        left.set(xlabel="epoch", ylabel=f"overlap with the KMP mask of epoch {start}", ylim=(0, 1.3))
        left.set_title(f"{which[0]}, KMP masks across epochs (dotted: random masks)", loc="left", fontsize=9)
        left.legend(fontsize=8, title="compression", title_fontsize=8, ncols=6, loc="upper center")
        left.grid(alpha=0.25)
        if not heights:
            continue
        right, rows = line[1], heights[which]
        said, spreads = [when(row["label"]) for row in rows], [row["barrier_spread"] or 0 for row in rows]
        right.bar(said, [row["barrier"] for row in rows], 0.5, yerr=spreads, color=BLUE, ecolor=GREY, capsize=3)
        right.axhline(FLAT, color=BLUE, linestyle=":", linewidth=0.8)
        right.annotate("connected below", (0.02, FLAT), xycoords=("axes fraction", "data"), va="top", fontsize=7)
        right.set_ylim(0, max(1.15 * FLAT, right.get_ylim()[1]))
        right.set_ylabel("barrier, points of test error", color=BLUE)
        right.set_title(f"{which[0]}, barrier beside the overlap of KMP and GMP", loc="left", fontsize=9)
        beside = right.twinx()
        beside.plot(said, [row["overlap"] for row in rows], "o-", color=ORANGE)
        beside.set_ylim(0, 1.03)
        beside.set_ylabel("mean overlap of KMP and GMP masks", color=ORANGE)
    save(figure, path)


TABLE = Table(NAME, settings, run, write, sections=(KoopmanSettings,))
