"""Table ``early``: limits predicted from checkpoints during training, against the limit at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from estimators import UserError
from pruning_limits import PruningLimit
from pruning_limits.plotting import BLUE, GREEN, ORANGE, headline, new_figure, save, sparsity_axis
from validation.studies.limits.predicted import BriefSettings, brief_limit, brief_words, limit_notes
from validation.tables.kinds import kind, kinds_of
from validation.tables.storage import read_json, write_json
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import Column, Page, Row, between, mean_and_spread, network_row, write_table
from validation.training import Course, accuracy, fresh_network, train

NAME = "early"
CLOSE = 0.01
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("epoch", "epoch"),
    Column("seeds", "seeds"),
    Column("accuracy", "test accuracy", ".2%"),
    Column("epsilon", "epsilon", ".4f"),
    Column("isotropic", "predicted one-shot", ".2%"),
    Column("isotropic_spread", "deviation", ".2%"),
    Column("retrained", "predicted re-trained", ".2%"),
    Column("lower", "measured one-shot", ".2%"),
    Column("isotropic_final", "predicted one-shot, final epsilon", ".2%"),
    Column("retrained_final", "predicted re-trained, final epsilon", ".2%"),
    Column("lower_final", "measured one-shot, final epsilon", ".2%"),
    Column("difference", "predicted one-shot - final, points", ".2f"),
    Column("difference_final", "the same, final epsilon", ".2f"),
)


@dataclass(frozen=True)
class EarlySettings(BriefSettings):
    """When the limit is predicted on the way through training.

    Args:
        epochs: Epochs after which to predict, besides the last; a shorter recipe takes the same fractions.
        samples: See ``BriefSettings``; ``steps`` and ``probes`` likewise.
    """

    section: ClassVar[str] = "early"

    epochs: tuple[int, ...] = (1, 5, 10, 20)

    def __post_init__(self) -> None:
        if min(self.epochs, default=1) < 1:
            raise UserError(f"early: epochs must be at least 1, got {min(self.epochs)}")


def checkpoints(wanted: Sequence[int], epochs: int) -> list[int]:
    """Return the epochs after which the limit is predicted; the last is always one of them.

    Args:
        wanted: Epochs of a recipe that is at least as long as the largest; a shorter one takes the same fractions.
        epochs: Length of the recipe.

    Returns:
        Epochs ascending, each at least 1.

    Example:
        >>> checkpoints((1, 5, 10, 20), 40), checkpoints((1, 5, 10, 20), 10)
        ([1, 5, 10, 20, 40], [1, 2, 5, 10])
    """
    shrink = min(1.0, epochs / max(wanted, default=epochs))
    return sorted({*(max(1, round(epoch * shrink)) for epoch in wanted), epochs})


def run(cell: Cell, bench: Bench) -> Row:
    """Train one network once more and predict its limit at every checkpoint of this one run."""
    network, folder, settings = cell.network, bench.folder, bench.suite.settings(EarlySettings)
    model = fresh_network(network, bench.data)
    epochs = checkpoints(settings.epochs, network.recipe.epochs)
    per_epoch = len(bench.data.batches("train", network.recipe.batch_size))
    for epoch in epochs:
        if not (folder / f"limit-{epoch}.json").exists():
            train(
                model,
                bench.data,
                network.recipe,
                network.seed,
                course=Course(
                    last=epoch * per_epoch,
                    state=folder / "state.pt",
                    progress=f"{network.model} seed {network.seed}" if bench.progress else None,
                ),
            )
            write_json(folder / f"accuracy-{epoch}.json", accuracy(model, bench.data))
            brief_limit(model, network, bench, settings).to_json(folder / f"limit-{epoch}.json")
    limits = [PruningLimit.from_json(folder / f"limit-{epoch}.json") for epoch in epochs]
    points = [
        _point(epoch, read_json(folder / f"accuracy-{epoch}.json"), limit, limits[-1])
        for epoch, limit in zip(epochs, limits, strict=True)
    ]
    (folder / "state.pt").unlink(missing_ok=True)
    return network_row(network) | {"points": points}


def _point(epoch: int, correct: float, limit: PruningLimit, final: PruningLimit) -> Row:
    same = limit.what_if(epsilon=final.epsilon)
    return {
        "epoch": epoch,
        "accuracy": correct,
        "epsilon": limit.epsilon,
        "isotropic": limit.sparsity,
        "retrained": limit.retrained,
        "lower": limit.lower,
        "isotropic_final": same.sparsity,
        "retrained_final": same.retrained,
        "lower_final": same.lower,
        "difference": 100 * (limit.sparsity - final.sparsity),
        "difference_final": 100 * (same.sparsity - final.sparsity),
    }


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table and draw the limits against the epoch."""
    table: list[Row] = []
    groups = dict.fromkeys((kind(row), tuple(point["epoch"] for point in row["points"])) for row in rows)
    for group in groups:
        own = [row for row in rows if (kind(row), tuple(point["epoch"] for point in row["points"])) == group]
        for number in range(len(group[1])):
            points = [row["points"][number] for row in own]
            means = {key: mean_and_spread(points, key)[0] for key in points[0]}
            first = {key: own[0][key] for key in ("model", "dataset", "penalty")}
            spread = mean_and_spread(points, "isotropic")[1]
            table.append(first | means | {"epoch": group[1][number], "seeds": len(own), "isotropic_spread": spread})
    said = brief_words(suite.settings(EarlySettings))
    notes = [
        f"Made by `{command}`.",
        *limit_notes(suite)[:1],
        f"Limits: {said}, at checkpoints of one training run per network. Epsilon is that of the checkpoint, "
        "or that of the trained network where the heading says so. Measured one-shot at the final epsilon is read off "
        "the sparsities measured at the checkpoint's own, so it is a lower bound.",
        *_words(table),
    ]
    write_table(folder, Page(NAME, f"Limit early in training, suite {suite.name}", notes, COLUMNS), table)
    kinds = kinds_of(table)
    figure, axes = new_figure(len(kinds), 1, size=(7.0, 3.2 * len(kinds)), squeeze=False)
    headline(figure, finding(table))
    for panel, (which, own) in zip(axes[:, 0], kinds.items(), strict=True):
        limits = [row[key] for row in own for key in ("isotropic", "retrained", "retrained_final", "lower")]
        least = max(0.7 * min((1 - value for value in limits if value < 1), default=1.0), 1e-4)
        for key, colour, label in (
            ("isotropic", ORANGE, "predicted one-shot"),
            ("retrained", GREEN, "predicted re-trained"),
            ("lower", BLUE, "measured one-shot"),
        ):
            for suffix, line, said in (("", ".-", "own epsilon"), ("_final", ".:", "final epsilon")):
                panel.plot(
                    [row["epoch"] for row in own],
                    [max(1 - row[key + suffix], least) for row in own],
                    line,
                    color=colour,
                    label=f"{label}, {said}",
                )
        sparsity_axis(panel.yaxis, least)
        panel.set(xlabel="epoch", ylabel="limit (sparsity)")
        panel.set_title(", ".join(which), loc="left", fontsize=10)
        panel.grid(alpha=0.25)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=2)
    save(figure, folder / f"{NAME}.png")


def finding(table: Sequence[Row]) -> str:
    """Say how far the predicted one-shot limit of the first checkpoint is from that of the end."""
    first = [own[0] for own in kinds_of(table).values()]
    own, same = (between((abs(row[key]) for row in first), ".1f") for key in ("difference", "difference_final"))
    return (
        f"At epoch {between((row['epoch'] for row in first), 'd')} the mean predicted one-shot limit is {own} points "
        f"from that of the end, with the final epsilon {same}"
    )


def _words(table: Sequence[Row]) -> list[str]:
    lines = []
    for which, own in kinds_of(table).items():
        since = own[-1]["epoch"]
        for row in reversed(own):
            if abs(row["difference"]) > 100 * CLOSE:
                break
            since = row["epoch"]
        lines.append(
            f"{', '.join(which)}: of {own[-1]['epoch']} epochs, the predicted one-shot limit stays within "
            f"{100 * CLOSE:.0f} point of the final {own[-1]['isotropic']:.2%} from epoch {since} on; at epoch "
            f"{own[0]['epoch']} it is off by {own[0]['difference']:+.2f} points, with the final epsilon by "
            f"{own[0]['difference_final']:+.2f}."
        )
    return lines


def settings(suite: Suite) -> dict[str, Any]:
    """Return the suite's settings that a row depends on."""
    return suite.plain(EarlySettings)


TABLE = Table(NAME, settings, run, write, sections=(EarlySettings,))
