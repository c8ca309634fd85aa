"""Table ``lottery-neurons``: do magnitudes separate neurons of the class from neurons of the background?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pruning_limits.plotting import BLUE, GREEN, GREY, ORANGE, headline, new_figure, plain_ticks, save
from validation.studies.lottery.exponents import PowerLaw, fit_power
from validation.studies.lottery.feature_mixture import Mixture, train
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import Column, Page, Row, write_table

NAME = "lottery-neurons"
MIXTURE = Mixture()
SAMPLES = (100, 200, 400, 800, 1600, 3200)
TRIALS = 6
CLAIMED = -0.5
TOLERANCE = 0.15
COLUMNS = (
    Column("samples", "N", "d"),
    Column("neurons", "neurons", "d"),
    Column("good", "good at the start", "d"),
    Column("retained", "good stays good at every step", ".1%"),
    Column("turned", "bad turns good", ".1%"),
    Column("good_norm", "norm, good", ".3f"),
    Column("bad_norm", "norm, bad at the start", ".3f"),
    Column("staying_norm", "norm, bad throughout", ".3f"),
    Column("moved", "moved: bad throughout / good", ".4f"),
    Column("moved_all", "moved: bad at the start / good", ".4f"),
    Column("separated", "told apart by norm at the end", ".1%"),
    Column("accuracy", "training accuracy", ".1%"),
)


def cells(suite: Suite) -> list[Cell]:
    """Return one cell per number of samples; no suite's networks are asked for."""
    return [Cell(None, {"samples": n, "trials": TRIALS, "seed": seed}) for seed, n in enumerate(SAMPLES)]


def run(cell: Cell, bench: Bench) -> Row:
    """Train networks on fresh mixtures and compare the neurons that are good and bad at the start."""
    rng = np.random.default_rng(cell.part["seed"])
    trainings = [train(MIXTURE, cell.part["samples"], rng) for _ in range(cell.part["trials"])]
    good = np.concatenate([training.good for training in trainings], axis=1)
    norm = np.concatenate([np.linalg.norm(training.weights, axis=1) for training in trainings])
    moved = np.concatenate([np.linalg.norm(training.weights - training.start, axis=1) for training in trainings])
    first, last = good[0], good[-1]
    staying = ~first & ~last
    return cell.part | {
        "neurons": len(norm),
        "good": int(first.sum()),
        "retained": float(good[:, first].all(0).mean()),
        "turned": float(last[~first].mean()),
        "good_norm": float(norm[first].mean()),
        "bad_norm": float(norm[~first].mean()),
        "staying_norm": float(norm[staying].mean()),
        "moved": float(moved[staying].mean() / moved[first].mean()),
        "moved_all": float(moved[~first].mean() / moved[first].mean()),
        "separated": float(((norm > norm[first].mean() / 2) == last).mean()),
        "accuracy": float(np.mean([training.accuracy for training in trainings])),
        "norms": norm.round(4).tolist(),
        "kinds": np.where(first, "good", np.where(last, "turned", "bad")).tolist(),
    }


def judged(law: PowerLaw) -> str:
    """Judge how the ratio of bad to good falls with N: reproduced, partly or not, as the table's note says."""
    if law.high >= 0:
        return "not"
    return "reproduced" if abs(law.exponent - CLAIMED) <= TOLERANCE else "partly"


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Say in words what the rows make of the claims S10 and S11.

    Args:
        rows: Rows of the table.

    Returns:
        One sentence per claim and reading.
    """
    said = {"reproduced": "reproduced", "partly": "partly reproduced", "not": "not reproduced"}
    lines = []
    for key, who in (("moved", "bad throughout"), ("moved_all", "bad at the start")):
        law = fit_power([row["samples"] for row in rows], [row[key] for row in rows])
        lines.append(
            f"S10, norm gap with the neurons that are {who}: {said[judged(law)]}; 1 - gap goes as N to the power "
            f"{law.exponent:.2f} ({law.low:.2f} to {law.high:.2f}), claimed {CLAIMED}; it is {rows[0][key]:.3f} at "
            f"N = {rows[0]['samples']} and {rows[-1][key]:.3f} at N = {rows[-1]['samples']}."
        )
    most = rows[-1]
    humped = "reproduced" if most["separated"] >= 0.95 else "partly" if most["separated"] >= 0.8 else "not"
    lines.append(
        f"S10, two-humped histogram: {said[humped]}; at N = {most['samples']} the norm alone tells "
        f"{most['separated']:.1%} of the neurons that are good at the end from the rest."
    )
    least = min(row["retained"] for row in rows)
    stays = "reproduced" if least == 1 else "partly" if least >= 0.9 else "not"
    lines.append(
        f"S11, good stays good: {said[stays]}; at least {least:.1%} of the good neurons stay good at each of "
        f"{MIXTURE.steps} steps, at every N. The converse does not follow: {most['turned']:.1%} of the bad ones turn "
        f"good at N = {most['samples']}."
    )
    return lines


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table, the verdicts, and the histogram of norms beside their gap."""
    notes = [
        f"Made by `{command}`.",
        f"No data set: a sample holds the relevant feature of its class and {MIXTURE.irrelevant} irrelevant ones, "
        f"orthonormal, in {MIXTURE.inputs} dimensions with noise {MIXTURE.noise} per coordinate. {MIXTURE.neurons} "
        "ReLU neurons with fixed signs see the strongest feature each; hinge loss, gradient descent on all samples, "
        f"{TRIALS} networks per N. A neuron is good while the feature nearest in angle is the relevant one of its "
        "sign.",
        "1 - gap is the mean distance that bad neurons move from their initial weights over that of good ones; the "
        "norm at the start is the same for both and would hide the power. Good and bad are told apart by norm at half "
        "the mean norm of good ones.",
        f"Verdict of the gap: reproduced where the exponent is within {TOLERANCE} of {CLAIMED}; partly where it falls "
        "with another one; not otherwise. Histogram: reproduced from 95 % told apart on, partly from 80 %. S11: "
        "reproduced where all stay, partly from 90 %.",
        *verdicts(rows),
    ]
    write_table(folder, Page(NAME, "Good and bad neurons", notes, COLUMNS), rows)
    _draw(rows, folder / f"{NAME}.png")


def finding(rows: Sequence[Row]) -> str:
    """Say how well the norm alone tells neurons apart, and how their gap falls with the number of samples."""
    last = rows[-1]
    law = fit_power([row["samples"] for row in rows], [row["moved"] for row in rows])
    return (
        f"At N = {last['samples']} the norm alone tells apart {last['separated']:.1%} of the neurons; 1 - gap of those "
        f"that are bad throughout goes as N to the power {law.exponent:.2f}, claimed {CLAIMED}"
    )


def _draw(rows: Sequence[Row], path: Path) -> None:
    figure, (left, right) = new_figure(1, 2, size=(12.0, 4.8))
    headline(figure, finding(rows))
    last = rows[-1]
    norms, kinds = np.array(last["norms"]), np.array(last["kinds"])
    named = {
        "bad": (ORANGE, "bad throughout"),
        "turned": (GREY, "bad, turns good"),
        "good": (BLUE, "good at the start"),
    }
    left.hist(
        [norms[kinds == kind] for kind in named],
        bins=30,
        stacked=True,
        color=[colour for colour, _ in named.values()],
        label=[label for _, label in named.values()],
    )
    left.set(xlabel="norm of a neuron's weights after training", ylabel="neurons")
    left.set_title(f"Norms at N = {last['samples']}", loc="left", fontsize=10)
    samples = np.array([row["samples"] for row in rows])
    for key, colour, marker, label in (
        ("moved", ORANGE, "o", "bad throughout"),
        ("moved_all", GREEN, "s", "all that are bad at the start"),
    ):
        values = [row[key] for row in rows]
        law = fit_power(samples, values)
        right.loglog(samples, values, marker, color=colour, label=label)
        right.loglog(samples, law.curve(samples), color=colour, label=f"fitted exponent {law.exponent:.2f}")
    claimed = rows[0]["moved"] * (samples / samples[0]) ** CLAIMED
    right.loglog(samples, claimed, "--", color=GREY, label=f"claimed exponent {CLAIMED}")
    right.set(xlabel="samples N", ylabel="1 - gap: how far bad neurons move,\nin units of good ones")
    plain_ticks(right)
    right.set_title("The gap of norms against the number of samples", loc="left", fontsize=10)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    save(figure, path)


def settings(suite: Suite) -> dict[str, Any]:
    """Return the sizes that a row depends on besides its cell."""
    return asdict(MIXTURE)


TABLE = Table(NAME, settings, run, write, cells)
