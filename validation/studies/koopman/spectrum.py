"""Table ``koopman-spectrum``: eigenvalues, reconstruction, the fixed point, and Koopman against gradient pruning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pruning_limits.plotting import GREY, headline, new_figure, save
from validation.masks import overlap, select
from validation.pruners.gradient import gradients
from validation.pruners.koopman import sizes
from validation.studies.koopman.notes import (
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
from validation.studies.koopman.recording import (
    KoopmanSettings,
    Recorded,
    Recording,
    problem_at,
    recording,
    refined,
    sparsity,
)
from validation.tables.claims import judged
from validation.tables.kinds import averaged, kinds_of
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import COLOURS, Column, Page, Row, between, network_row, write_table
from validation.training import accuracy

NAME = "koopman-spectrum"
STILL, GONE, EXACT, ABOVE_CHANCE = 1e-3, 0.5, 0.01, 2.0
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("label", "epoch"),
    Column("seeds", "seeds", "d"),
    Column("steps", "steps", ".0f"),
    Column("rank", "rank", ".1f"),
    Column("nearest", "abs(lambda 1 - 1)", ".1e"),
    Column("modulus", "largest modulus", ".3f"),
    Column("rate", "lambda 2", ".3f"),
    Column("share", "norm of mode 2 / mode 1", ".3f"),
    Column("error", "reconstruction error", ".1e"),
    Column("motion", "motion in the epoch", ".4f"),
    Column("fixed_error", "fixed point - last weights", ".4f"),
    Column("fixed_distance", "fixed point - final weights", ".4f"),
    Column("distance", "last weights - final weights", ".4f"),
)
PRUNED = (
    Column("model", "model"),
    Column("penalty", "penalty"),
    Column("label", "epoch"),
    Column("compression", "compression", "g"),
    Column("overlap", "overlap KGP, JGP", ".3f"),
    Column("floor", "random masks", ".3f"),
    Column("kgp_refined", "KGP, refined", ".2%"),
    Column("jgp_refined", "JGP, refined", ".2%"),
)


def run(cell: Cell, bench: Bench) -> Row:
    """Describe the spectrum at every recorded epoch of one network, and prune by its decaying mode."""
    training = recording(cell.network, bench)
    early = [point.label for point in training.points if not point.converged]
    pruned = []
    for point in training.points:
        refine = point.label in early[-1:] and bench.suite.settings(KoopmanSettings).refines(point.label)
        pruned += _pruned(training, bench, point, refine)
    return network_row(cell.network) | {
        "points": [_described(training, point) for point in training.points],
        "pruned": pruned,
        "spectra": [
            {
                "label": point.label,
                "real": point.eigenvalues.real.tolist(),
                "imaginary": point.eigenvalues.imag.tolist(),
                "norms": point.norms.tolist(),
            }
            for point in training.points
        ],
    }


def _described(training: Recording, point: Recorded) -> Row:
    final = training.final_weights.double()
    last, fixed, unit = point.weights.double(), point.fixed.real.double(), float(final.norm())
    first = point.norms[0]
    decaying = None if point.decaying is None else float(torch.linalg.vector_norm(point.decaying))
    return {
        "label": point.label,
        "steps": point.steps,
        "rank": len(point.eigenvalues),
        "nearest": float(np.abs(point.eigenvalues - 1).min()),
        "modulus": float(np.abs(point.eigenvalues).max()),
        "rate": point.rate,
        "share": None if decaying is None else decaying / float(first),
        "error": point.error,
        "motion": point.motion / unit,
        "fixed_error": float((fixed - last).norm()) / unit,
        "fixed_distance": float((fixed - final).norm()) / unit,
        "distance": float((last - final).norm()) / unit,
    }


def _pruned(training: Recording, bench: Bench, point: Recorded, refine: bool) -> list[Row]:
    """Compare the decaying mode with the gradient of one batch at every compression."""
    slopes = {name: slope.abs() for name, slope in gradients(problem_at(training.network, bench, point)).items()}
    rows: list[Row] = []
    for compression in bench.suite.settings(KoopmanSettings).compressions:
        removed = sparsity(compression)
        row: Row = {"label": point.label, "compression": compression, "floor": 1 - removed}
        masks = {"jgp": select(slopes, removed)}
        if point.decaying is not None:
            masks["kgp"] = select(sizes(point.decaying, point.model), removed)
        row["overlap"] = overlap(masks["kgp"], masks["jgp"]) if "kgp" in masks else None
        for key in ("kgp", "jgp"):
            refining = refine and key in masks
            row[f"{key}_refined"] = (
                accuracy(refined(training.network, bench, point, masks[key]), bench.data) if refining else None
            )
        rows.append(row)
    return rows


def words(table: Sequence[Row], pruned: Sequence[Row]) -> list[str]:
    """Judge K4, K5 and K7 for every kind of network, from the means of the seeds."""
    lines = []
    compared = kinds_of(pruned)
    for which, own in kinds_of(table).items():
        said, label = ", ".join(which), claimed(labels_of(own))
        lines += [_spectrum(said, own, label), _gradient(said, compared[which], label), _fixed_point(said, own)]
    return lines


def _spectrum(said: str, rows: Sequence[Row], label: str) -> str:
    row = next(row for row in rows if row["label"] == label)
    rate = "none" if row["rate"] is None else format(row["rate"], ".3f")
    conditions = [
        (f"{when(label)}, abs(lambda 1 - 1) below {STILL:g}: {row['nearest']:.1e}", row["nearest"] < STILL),
        (
            f"{when(label)}, the largest other real positive mode has lambda below {GONE:g}: {rate}",
            (row["rate"] or 1.0) < GONE,
        ),
    ]
    modulus = largest(rows, lambda row: float(row["modulus"]))
    claim = f"K4, {said}, one eigenvalue at 1 and a second mode that dies at once (1.000 and 0.075 in the paper)"
    text = f" Converged, abs(lambda 1 - 1): {rows[-1]['nearest']:.1e}. Largest modulus at any epoch: {modulus:.3f}."
    return judged_at(label, claim, conditions) + text


def _gradient(said: str, pruned: Sequence[Row], label: str) -> str:
    claim = f"K5, {said}, KGP and JGP prune nearly alike"
    rows = [row for row in pruned if row["label"] == label and row["overlap"] is not None]
    if not rows:
        return judged_at(label, claim, [(f"{when(label)} has a second real positive eigenvalue: none", False)])
    far = [row for row in rows if row["compression"] >= 4]
    least = min((row["overlap"] / row["floor"] for row in far), default=1.0)
    conditions = [
        (
            f"{when(label)}, overlap at least {ABOVE_CHANCE:g} times that of random masks at every compression "
            f"from 4 on: least {least:.2f} times",
            least >= ABOVE_CHANCE,
        )
    ]
    refined_rows = [row for row in rows if row["kgp_refined"] is not None]
    if refined_rows:
        gap = largest(refined_rows, lambda row: 100 * abs(float(row["kgp_refined"]) - float(row["jgp_refined"])))
        conditions.append(
            (f"accuracies within {GAP:g} points after refining: at most {gap:.1f} apart", bool(gap <= GAP))
        )
    return judged_at(label, claim, conditions)


def _fixed_point(said: str, rows: Sequence[Row]) -> str:
    last, error = rows[-1], largest(rows, lambda row: float(row["error"]))
    conditions = [
        (
            f"converged, the fixed point is within twice the motion of the epoch of the last weights: "
            f"{last['fixed_error']:.4f} against {2 * last['motion']:.4f}",
            last["fixed_error"] < 2 * last["motion"],
        ),
        (f"snapshots are reconstructed within {EXACT:.0%} at every epoch: at most {error:.1e}", error <= EXACT),
    ]
    nearer = [row["label"] for row in rows[:-1] if row["fixed_distance"] < row["distance"]]
    return (
        judged(f"K7, {said}, modes reconstruct the epoch and give its fixed point", conditions)
        + f" The fixed point is nearer to the final weights than the epoch's last weights at epochs "
        f"{', '.join(nearer) or 'none'} of {', '.join(row['label'] for row in rows[:-1]) or 'none'}."
    )


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table, judge K4, K5 and K7, and draw the eigenvalues and the overlap of KGP and JGP."""
    table = averaged(rows, ("label",))
    pruned = averaged(rows, ("label", "compression"), "pruned")
    spectra = [network_of(row) | spectrum for row in rows for spectrum in row["spectra"]]
    lines = [" | ".join(column.heading for column in PRUNED), "|".join("---" for _ in PRUNED)]
    lines += [" | ".join(column.text(row) for column in PRUNED) for row in pruned]
    notes = [
        f"Made by `{command}`.",
        *recording_notes(suite),
        "Lambda 1 is the eigenvalue nearest 1 and its scaled mode the fixed point; lambda 2 belongs to the largest "
        "other mode with a real positive eigenvalue, by which KGP ranks. JGP ranks by the gradient of one batch. "
        "Reconstruction error is the largest over the snapshots of an epoch, relative to the snapshot; motion and "
        "distances are relative to the norm of the weights at the end of the recipe (final). Refined is one more epoch "
        "at 0.2 of the peak rate, done at the last epoch before convergence.",
        *words(table, pruned),
        "\n".join(f"| {line} |" for line in lines),
    ]
    title = f"Spectrum of the training dynamics, suite {suite.name}"
    write_table(folder, Page(NAME, title, notes, COLUMNS), table, pruned=pruned, spectra=spectra)
    _figure(rows, pruned, folder / f"{NAME}.png")


def network_of(row: Row) -> Row:
    """Return the entries of a row that name its network."""
    return {key: row[key] for key in ("model", "dataset", "penalty", "seed")}


def finding(rows: Sequence[Row], pruned: Sequence[Row]) -> str:
    """Say how near to 1 and how large eigenvalues are, and how much the masks of KGP and JGP overlap."""
    spectra = [np.array(entry["real"]) + 1j * np.array(entry["imaginary"]) for row in rows for entry in row["spectra"]]
    nearest = max(float(np.abs(values - 1).min()) for values in spectra)
    modulus = max(float(np.abs(values).max()) for values in spectra)
    text = f"The eigenvalue nearest 1 is off by at most {nearest:.2g}, the largest modulus is {modulus:.2f}"
    masks = [row for row in pruned if row["overlap"] is not None and row["compression"] > 1]
    if not masks:
        return text
    times = between((row["overlap"] / row["floor"] for row in masks), ".1f")
    return f"{text}; masks of KGP and JGP overlap {times} times as much as random ones"


def _figure(rows: Sequence[Row], pruned: Sequence[Row], path: Path) -> None:
    groups, compared, labels = kinds_of(rows), kinds_of(pruned), labels_of(pruned)
    columns = len(labels) + 1
    figure, axes = new_figure(len(groups), columns, size=(3.1 * columns, 3.2 * len(groups)), squeeze=False)
    headline(figure, finding(rows, pruned))
    circle = np.exp(1j * np.linspace(0, 2 * np.pi, 200))
    for line, (which, own) in zip(axes, groups.items(), strict=True):
        for panel, label in zip(line, labels, strict=False):
            panel.plot(circle.real, circle.imag, color=GREY, linewidth=0.8)
            for number, row in enumerate(own):
                (spectrum,) = (entry for entry in row["spectra"] if entry["label"] == label)
                _eigenvalues(panel, spectrum, COLOURS[number % len(COLOURS)], f"seed {row['seed']}")
            panel.set(aspect="equal", xlabel="real part", ylabel="imaginary part")
            panel.set_title(f"{which[0]}, {when(label)}", loc="left", fontsize=9)
            panel.grid(alpha=0.25)
        _overlaps(line[-1], compared[which], labels)
        line[-1].set_title(f"{which[0]}, masks of KGP and JGP", loc="left", fontsize=9)
    seeds = max((line[0].get_legend_handles_labels() for line in axes), key=lambda pair: len(pair[1]))
    figure.legend(*seeds, fontsize=11, loc="outside lower center", ncols=6)
    save(figure, path)


def _eigenvalues(panel: Any, spectrum: Row, colour: str, said: str) -> None:
    """Draw eigenvalues as dots whose area grows with the norm of their mode."""
    norms = np.array(spectrum["norms"])
    areas = 6 + 60 * np.sqrt(norms / norms.max())
    panel.scatter(spectrum["real"], spectrum["imaginary"], areas, colour, alpha=0.55, linewidths=0, label=said)


def _overlaps(panel: Any, rows: Sequence[Row], labels: Sequence[str]) -> None:
    for number, label in enumerate(labels):
        own = [row for row in rows if row["label"] == label]
        places = [row["compression"] for row in own]
        values = [np.nan if row["overlap"] is None else row["overlap"] for row in own]
        panel.plot(places, values, "o-", color=COLOURS[number % len(COLOURS)], markersize=3, label=when(label))
    panel.plot(places, [row["floor"] for row in own], ":", color=GREY, label="random masks")
    panel.set(ylabel="overlap", ylim=(0, 1.03))
    compression_axis(panel, places)
    panel.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))


TABLE = Table(NAME, settings, run, write, sections=(KoopmanSettings,))
