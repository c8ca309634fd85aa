"""Limits that tables share: predicted once per network with the section ``[limit]`` of a suite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from estimators import UserError
from pruning_limits import PruningLimit, predict_limit
from validation.tables.storage import run_folder
from validation.tables.suite import Suite
from validation.tables.table import Bench
from validation.tables.writing import recipes
from validation.training import Network


@dataclass(frozen=True)
class LimitSettings:
    """Arguments of ``predict_limit``, the same for every row of a suite.

    Args:
        samples: Data sub-sample for curvature products; None lets the engine choose.
        steps: Lanczos steps; None lets the engine choose.
        probes: Probe vectors; None lets the engine choose.
        tolerance: Wanted half-width of the limit.
    """

    section: ClassVar[str] = "limit"

    samples: int | None = None
    steps: int | None = None
    probes: int | None = None
    tolerance: float = 0.005


@dataclass(frozen=True)
class BriefSettings:
    """Arguments of ``predict_limit`` in tables that predict many times on the way of one network.

    Args:
        samples: Data sub-sample of every prediction; None lets the engine choose.
        steps: Lanczos steps of every prediction; None lets the engine choose.
        probes: Probe vectors of every prediction; None lets the engine choose.
    """

    samples: int | None = None
    steps: int | None = 32
    probes: int | None = 1


def predicted_limit(network: Network, bench: Bench) -> PruningLimit:
    """Return a network's limit by the paper's protocol with the suite's settings, predicted once for all tables.

    Args:
        network: A network, trained where it is not yet.
        bench: Its data and the suite's settings.

    Raises:
        UserError: The stored limit is damaged or of another version of this package.
    """
    settings = bench.suite.plain(LimitSettings)
    folder = run_folder(bench.out, "limit", {"network": network.settings(), **settings})
    protocol = {"criterion": "objective", "penalty": network.recipe.penalty, **settings["limit"]}
    return _stored(folder, network, bench, protocol)


def user_limit(network: Network, bench: Bench, drop: float | None = None) -> PruningLimit:
    """Return what ``predict_limit`` tells a user of a network, by its defaults, predicted once for all tables.

    Args:
        network: A network, trained where it is not yet.
        bench: Its data.
        drop: Allowed fall of the accuracy on held-out data; None allows a rise of the loss, the default.

    Raises:
        UserError: The stored limit is damaged or of another version of this package.
    """
    folder = run_folder(bench.out, "user-limit", {"network": network.settings(), "drop": drop})
    if drop is None:
        return _stored(folder, network, bench, {})
    held_out = bench.data.batches("test", 1000)
    return _stored(folder, network, bench, {"metric": "accuracy", "max_drop": drop, "held_out": held_out})


def _stored(folder: Path, network: Network, bench: Bench, options: dict[str, Any]) -> PruningLimit:
    """Predict a network's limit with some arguments, or read it."""
    if not (folder / "limit.json").exists():
        limit = predict_limit(
            bench.model(network),
            bench.data.batches("train", 1000),
            seed=network.seed,
            progress=None if bench.progress else False,
            checkpoint=folder / "spectra.pt",
            **options,
        )
        limit.to_json(folder / "limit.json")
        (folder / "spectra.pt").unlink(missing_ok=True)
    try:
        return PruningLimit.from_json(folder / "limit.json")
    except UserError as error:
        raise UserError(f"{error}; results are not mixed: delete {folder}, or start afresh with --out") from None


def brief_limit(
    model: nn.Module, network: Network, bench: Bench, settings: BriefSettings, measure: bool = True
) -> PruningLimit:
    """Predict the limit of a network on the way of its training or pruning.

    Args:
        model: The network as it is now.
        network: What it belongs to.
        bench: Its data.
        settings: Samples, steps and probes.
        measure: Whether one-shot pruning is measured too.
    """
    return predict_limit(
        model,
        bench.data.batches("train", 1000),
        penalty=network.recipe.penalty,
        criterion="objective",
        samples=settings.samples,
        steps=settings.steps,
        probes=settings.probes,
        measure=measure,
        seed=network.seed,
        progress=None if bench.progress else False,
    )


def brief_words(settings: BriefSettings) -> str:
    """Say with which samples, steps and probes limits were predicted."""
    samples, steps, probes = _chosen(settings)
    return f"samples {samples}, steps {steps}, probes {probes}"


def _chosen(settings: LimitSettings | BriefSettings) -> list[str]:
    values = (settings.samples, settings.steps, settings.probes)
    return ["chosen by the engine" if value is None else str(value) for value in values]


def limit_notes(suite: Suite) -> list[str]:
    """Return the paragraphs that say how a suite's limits were predicted and its networks trained."""
    limit = suite.settings(LimitSettings)
    samples, steps, probes = _chosen(limit)
    return [
        "Sparsity is the removed fraction of convolution and linear weights; kept = 1 - sparsity. Epsilon is the "
        "standard deviation of the mean loss of 128 training samples, the same rule for every row. The objective "
        "includes the penalty and runs over all training samples without augmentation.",
        f"Prediction: isotropic limit; samples {samples}, Lanczos steps {steps}, probes {probes}. The numerical "
        "interval adds the errors from probes, steps and sub-sample.",
        recipes(suite),
    ]
