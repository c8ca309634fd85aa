"""Table ``meaning``: which prediction speaks of which truth, with and without L1, beside a dense control."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pruning_limits.plotting import BLUE, GREEN, GREY, ORANGE, new_figure, save, sparsity_axis
from pruning_limits.result import established
from validation.studies.limits.actual import RetrainSettings, retrained_limit, stored_trial
from validation.studies.limits.predicted import LimitSettings, limit_notes, predicted_limit
from validation.studies.limits.weight_scale import PenaltySettings
from validation.tables.suite import Suite
from validation.tables.table import Bench, Cell, Table
from validation.tables.writing import Column, Page, Row, network_row, with_means, write_table

NAME = "meaning"
PREDICTIONS = {
    "isotropic": "Hessian, isotropic",
    "retrained": "GGN, isotropic",
    "directional": "GGN, directional",
}
TRUTHS = {
    "one_shot": "one-shot",
    "again": "re-trained, F* + epsilon",
    "control": "re-trained, control + epsilon",
}
COLUMNS = (
    Column("model", "model"),
    Column("dataset", "data"),
    Column("penalty", "penalty"),
    Column("seed", "seed"),
    Column("parameters", "D", ",d"),
    Column("epsilon", "epsilon", ".4f"),
    *(Column(key, f"predicted: {name}", ".2%") for key, name in PREDICTIONS.items()),
    *(Column(key, f"actual: {name}", ".2%") for key, name in TRUTHS.items()),
    Column("fall", "dense control - F*, epsilons", "+.2f"),
    Column("above", "directional above all actual"),
    Column("status", "status"),
)


def cells(suite: Suite) -> list[Cell]:
    """Return two cells per network: trained with L1, and without a penalty."""
    result: dict[Cell, None] = {}
    kinds = dict.fromkeys((network.model, network.dataset) for network in suite.networks)
    for kind in kinds:
        own = [network for network in suite.networks if (network.model, network.dataset) == kind]
        for penalised in (True, False):
            for network in own:
                l1 = (network.recipe.l1 or suite.settings(PenaltySettings).l1) if penalised else 0.0
                result[Cell(replace(network, recipe=replace(network.recipe, l1=l1, l2=0.0)))] = None
    return list(result)


def run(cell: Cell, bench: Bench) -> Row:
    """Predict one network's limits, and measure what it bears at the level of itself and of the dense control."""
    network, retrain = cell.network, partial(stored_trial, cell.network, bench)
    limit, evaluations = predicted_limit(network, bench), bench.suite.settings(RetrainSettings).evaluations
    start = min(limit.lower, 1 - 1 / limit.parameters)
    again, trials = retrained_limit(retrain, limit.objective + limit.epsilon, start, evaluations)
    dense = retrain(0.0)
    level = dense["objective"] + limit.epsilon
    control, more = retrained_limit(retrain, level, 0.0, evaluations, known=[dense, *trials])
    truths = {"one_shot": limit.lower, "again": again, "control": control}
    return (
        network_row(network)
        | truths
        | {key: getattr(limit, "sparsity" if key == "isotropic" else key) for key in PREDICTIONS}
        | {
            "parameters": limit.parameters,
            "epsilon": limit.epsilon,
            "objective": limit.objective,
            "fall": (dense["objective"] - limit.objective) / limit.epsilon,
            "above": "yes" if established(limit.directional) >= max(truths.values()) else "no",
            "status": limit.answer("formula").status.partition(":")[0],
            "trials": [dense, *trials, *more],
        }
    )


def distance(row: Row, prediction: str, truth: str) -> float:
    r"""Distance :math:`|\ln\frac{1-s_1}{1-s_2}|` of a prediction to a truth; all removed counts as one weight kept.

    Example:
        >>> round(distance({"isotropic": 0.9, "again": 0.95, "parameters": 1000}, "isotropic", "again"), 4)
        0.6931
    """
    kept = [max(1 - row[key], 1 / row["parameters"]) for key in (prediction, truth)]
    return abs(math.log(kept[0] / kept[1]))


def nearest(rows: Sequence[Row], truth: str) -> tuple[str, float]:
    """Return the prediction with the least mean distance to a truth, and that distance."""
    means = {key: sum(distance(row, key, truth) for row in rows) / len(rows) for key in PREDICTIONS}
    key = min(means, key=lambda one: means[one])
    return key, means[key]


def write(rows: Sequence[Row], suite: Suite, folder: Path, command: str) -> None:
    """Write the table, say which prediction is nearest to which truth, and draw one against the other."""
    retrain = suite.settings(RetrainSettings)
    notes = [
        f"Made by `{command}`.",
        *limit_notes(suite),
        "Every network is trained twice with the same recipe: with L1 and without a penalty. Actual: one-shot global "
        "magnitude pruning with F <= F* + epsilon; the same after re-training the kept weights for "
        f"{retrain.epochs} epochs (SGD, cosine from {retrain.lr_factor} times the training rate) with the objective "
        "that trained the network; and re-trained against the dense control: the dense network is given the same "
        "further epochs, and the level is its objective plus epsilon. Every re-trained sparsity is interpolated after "
        f"{retrain.evaluations} further trials.",
        "Nearest is the prediction with the least mean distance |ln(kept predicted / kept actual)|; the factor is the "
        "exponential of that mean.",
        *_words(rows),
    ]
    table = with_means(rows, COLUMNS, ("model", "dataset", "penalty"))
    write_table(
        folder, Page(NAME, f"Which prediction speaks of which truth, suite {suite.name}", notes, COLUMNS), table
    )
    _figure(rows, folder / f"{NAME}.png")


def _words(rows: Sequence[Row]) -> list[str]:
    lines = []
    groups = {"with L1": [row for row in rows if row["penalty"] != "none"]}
    groups["without a penalty"] = [row for row in rows if row["penalty"] == "none"]
    for said, own in groups.items():
        if own:
            found = {truth: nearest(own, truth) for truth in TRUTHS}
            parts = [f"{TRUTHS[t]}: {PREDICTIONS[key]} (factor {math.exp(d):.2f})" for t, (key, d) in found.items()]
            expected = found["one_shot"][0] == "isotropic" and found["again"][0] == "retrained"
            lines.append(
                f"{len(own)} networks {said}, nearest prediction of each truth: {'; '.join(parts)}. That the Hessian "
                f"speaks of one-shot and the GGN of re-trained pruning is {'confirmed' if expected else 'refuted'} "
                f"here. The directional limit lies above everything achieved in "
                f"{sum(row['above'] == 'yes' for row in own)} of {len(own)} networks. Further training of the dense "
                f"network changes its objective by {sum(row['fall'] for row in own) / len(own):+.2f} epsilons on "
                "average."
            )
    return lines


def _figure(rows: Sequence[Row], path: Path) -> None:
    figure, panels = new_figure(1, len(TRUTHS), size=(13.0, 4.6), sharex=True, sharey=True)
    kept = [1 - row[key] for row in rows for key in (*PREDICTIONS, *TRUTHS) if row[key] < 1]
    least = 0.7 * min(kept, default=1.0)
    for panel, (truth, said) in zip(panels, TRUTHS.items(), strict=True):
        panel.plot([1, least], [1, least], color=GREY, linewidth=1, label="predicted = actual")
        for (key, name), colour in zip(PREDICTIONS.items(), (ORANGE, GREEN, BLUE), strict=True):
            for own, marker, how in (
                ([row for row in rows if row["penalty"] != "none"], "o", "with L1"),
                ([row for row in rows if row["penalty"] == "none"], "x", "without"),
            ):
                across, up = ([max(1 - row[one], least) for row in own] for one in (truth, key))
                panel.plot(across, up, marker, color=colour, markersize=6, label=f"{name}, {how}")
        sparsity_axis(panel.xaxis, least)
        sparsity_axis(panel.yaxis, least)
        panel.tick_params(axis="x", labelrotation=45, labelsize=8)
        panel.grid(alpha=0.25)
        panel.set(xlabel="actual limit (sparsity)")
        panel.set_title(said, loc="left", fontsize=10)
    panels[0].set_ylabel("predicted limit (sparsity)")
    panels[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, path)


def settings(suite: Suite) -> dict[str, Any]:
    """Return the suite's settings that a row depends on."""
    return suite.plain(LimitSettings, RetrainSettings)


TABLE = Table(
    NAME,
    settings,
    run,
    write,
    cells,
    sections=(LimitSettings, RetrainSettings, PenaltySettings),
    prepare=predicted_limit,
)
