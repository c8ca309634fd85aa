"""Table ``lottery-sizes``: parameters and multiply-accumulates of well-known networks beside published reductions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pruning_limits.plotting import BLUE, GREEN, ORANGE, headline, new_figure, save
from validation.macs import layer_macs, total_macs
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import Column, Page, Row, between, write_table

NAME = "lottery-sizes"
SIZE_TOLERANCE, RATIO_TOLERANCE = 0.07, 0.05


@dataclass(frozen=True)
class Published:
    """A line of the published table.

    Attributes:
        model: Name in ``torchvision.models``.
        before: Parameters before pruning, in millions.
        after: Parameters after pruning, in millions.
        reduction: Published factor of parameters.
        macs_reduction: Published factor of multiply-accumulates.
        options: Arguments of the torchvision definition.
    """

    model: str
    before: float
    after: float
    reduction: float
    macs_reduction: float
    options: tuple[tuple[str, bool], ...] = ()


PUBLISHED = (
    Published("alexnet", 61, 6.7, 9, 3),
    Published("vgg16", 138, 10.3, 12, 5, (("init_weights", False),)),
    Published("googlenet", 7, 2.0, 3.5, 5, (("init_weights", False), ("aux_logits", False))),
    Published("resnet50", 26, 7.47, 3.4, 6.3),
    Published("squeezenet1_0", 1, 0.38, 3.2, 3.5),
)
COLUMNS = (
    Column("model", "model"),
    Column("parameters", "parameters", ",d"),
    Column("before", "published, millions", "g"),
    Column("size", "size agrees"),
    Column("after", "published after pruning, millions", "g"),
    Column("reduction", "published factor", "g"),
    Column("stated_factor", "published before / after", ".2f"),
    Column("counted_factor", "counted before / published after", ".2f"),
    Column("arithmetic", "factor agrees"),
    Column("macs", "MACs, millions", ",.0f"),
    Column("convolution_macs", "of them in convolutions", ".1%"),
    Column("convolution_weights", "weights in convolutions", ".1%"),
    Column("macs_reduction", "published factor of MACs", "g"),
)


def cells(suite: Suite) -> list[Cell]:
    """Return one cell per published network; no suite's networks are asked for."""
    return [Cell(None, {"model": published.model}) for published in PUBLISHED]


def run(cell: Cell, bench: Bench) -> Row:
    """Count one torchvision network for an image of 224 x 224, without weights in memory."""
    import torchvision

    published = next(entry for entry in PUBLISHED if entry.model == cell.part["model"])
    with torch.device("meta"):
        model: nn.Module = getattr(torchvision.models, published.model)(**dict(published.options))
    layers = layer_macs(model, (3, 224, 224))
    kinds = dict(model.named_modules())
    macs, _ = total_macs(layers)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    convolutions = [layer for layer in layers if isinstance(kinds[layer.name], nn.Conv2d)]
    return {
        "model": published.model,
        "parameters": parameters,
        "macs": macs / 1e6,
        "convolution_macs": sum(layer.macs for layer in convolutions) / macs,
        "convolution_weights": sum(layer.weights for layer in convolutions) / sum(layer.weights for layer in layers),
    }


def compared(row: Row, published: Published) -> Row:
    """Hold a counted row against the published line.

    Args:
        row: Row with ``parameters``.
        published: The line of the same network.

    Returns:
        The row with the published numbers, the recomputed factors, and whether they agree.
    """
    millions = row["parameters"] / 1e6
    stated, counted = published.before / published.after, millions / published.after
    rounded = abs(millions - published.before) <= max(0.5, SIZE_TOLERANCE * published.before)
    near = min(abs(factor / published.reduction - 1) for factor in (stated, counted))
    return row | {
        "before": published.before,
        "after": published.after,
        "reduction": published.reduction,
        "macs_reduction": published.macs_reduction,
        "stated_factor": stated,
        "counted_factor": counted,
        "size": "yes" if rounded else "no",
        "arithmetic": "yes" if near <= RATIO_TOLERANCE else "no",
    }


def verdict(table: Sequence[Row]) -> str:
    """Say in words whether sizes and factors of the published table hold."""
    sizes = [row["model"] for row in table if row["size"] == "no"]
    factors = [row["model"] for row in table if row["arithmetic"] == "no"]
    word = "reproduced" if not sizes and not factors else "not reproduced" if len(sizes) > 1 else "partly reproduced"
    off = ", ".join(
        f"{row['model']} {row['stated_factor']:.1f} instead of {row['reduction']:g}"
        for row in table
        if row["arithmetic"] == "no"
    )
    return (
        f"S1: {word}; the number of parameters agrees in {len(table) - len(sizes)} of {len(table)} networks"
        f"{' (not ' + ', '.join(sizes) + ')' if sizes else ''}, the factor with its own arithmetic in "
        f"{len(table) - len(factors)}{' (not ' + off + ')' if off else ''}. The accuracy after pruning and the "
        "reduction of multiply-accumulates are quoted, not measured."
    )


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table and draw where weights and multiply-accumulates lie."""
    lines = {published.model: published for published in PUBLISHED}
    table = [compared(row, lines[row["model"]]) for row in rows]
    notes = [
        f"Made by `{command}`.",
        "Counted from the definitions of torchvision (GoogleNet without auxiliary classifiers, SqueezeNet 1.0) for one "
        "image of 224 x 224: a multiply-accumulate (MAC) per weight and use in convolution and linear layers. "
        "Published: Han et al., Learning both weights and connections, NeurIPS 2015, and the table that quotes it.",
        f"A size agrees when it is the published one after rounding to a million or within {SIZE_TOLERANCE:.0%}; a "
        f"factor agrees when published or counted parameters over those after pruning are within {RATIO_TOLERANCE:.0%} "
        "of it. Verdict: reproduced where all agree, not where more than one size is off, partly otherwise.",
        verdict(table),
    ]
    write_table(folder, Page(NAME, "Sizes of networks that pruning is measured on", notes, COLUMNS), table)
    _draw(table, folder / f"{NAME}.png")


def finding(table: Sequence[Row]) -> str:
    """Say how many published factors follow from sizes, and how much of weights and MACs is in convolutions."""
    agree = sum(row["arithmetic"] == "yes" for row in table)
    weights, macs = (between((row[f"convolution_{key}"] for row in table), ".0%") for key in ("weights", "macs"))
    return (
        f"The published factor follows from published or counted sizes in {agree} of {len(table)} networks; "
        f"convolutions have {weights} of the weights and {macs} of the MACs"
    )


def _draw(table: Sequence[Row], path: Path) -> None:
    figure, (left, right) = new_figure(1, 2, size=(12.0, 4.6))
    headline(figure, finding(table))
    places = np.arange(len(table))
    for number, (key, label, colour) in enumerate(
        (
            ("reduction", "published", ORANGE),
            ("stated_factor", "published before / after", BLUE),
            ("counted_factor", "counted before / published after", GREEN),
        )
    ):
        left.bar(places + 0.27 * (number - 1), [row[key] for row in table], 0.25, color=colour, label=label)
    left.set_ylabel("factor by which parameters shrink")
    for number, (key, label, colour) in enumerate(
        (("convolution_weights", "of the weights", BLUE), ("convolution_macs", "of the MACs", ORANGE))
    ):
        right.bar(places + 0.38 * (number - 0.5), [100 * row[key] for row in table], 0.36, color=colour, label=label)
    right.set(ylabel="in convolutions, %", ylim=(0, 125), yticks=range(0, 101, 20))
    for axes in (left, right):
        axes.set_xticks(places, [row["model"] for row in table])
        axes.grid(axis="y", alpha=0.25)
        axes.legend(fontsize=8, loc="upper right")
    left.set_title("Does the published factor follow from its own numbers?", loc="left", fontsize=10)
    right.set_title("Where weights and multiply-accumulates lie", loc="left", fontsize=10)
    save(figure, path)


def settings(suite: Suite) -> dict[str, Any]:
    """Return nothing: a count depends on the definition only."""
    return {}


TABLE = Table(NAME, settings, run, write, cells)
