"""The prediction behind ``predict`` and ``check``, from the options of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import click

from estimators.distributed import rank
from estimators.files import refuse_unwritable
from pruning_limits import PruningLimit, UserError, predict_limit
from pruning_limits.pattern_names import UNSTRUCTURED
from pruning_limits.report import SUFFIXES, write_report
from validation.commands.options import taken
from validation.commands.task import Task, TaskOptions, load_task


def taken_task(options: dict[str, Any]) -> Task:
    """Take the options that name a task out of all options, and load it."""
    return load_task(taken(TaskOptions, options))


@dataclass(frozen=True)
class PredictionOptions:
    """What the options of the numerics and ``allowance_options`` say of a prediction.

    Attributes:
        samples: Data sub-sample; None lets the engine choose.
        steps: Lanczos steps; None lets the engine choose.
        probes: Probe vectors; None lets the engine choose.
        seed: Seed of everything that is drawn.
        criterion: What must not get worse; None for the loss.
        metric: Metric by name or function.
        max_drop: Allowed fall of the metric.
        epsilon: Allowed rise of the criterion; None for the deviation of a batch.
        curvature: ``"hessian"`` or ``"ggn"``.
        tolerance: Wanted half-width, in sparsity.
        budget: Most epochs of training that it may cost; None for what is free.
        no_measure: One-shot pruning is not measured.
        pattern: Names of patterns, the one that is told first.
        retune: Staged re-tuning is measured too.
        forecast: Calibration of re-training; None for that of this package.
    """

    samples: int | None
    steps: int | None
    probes: int | None
    seed: int
    criterion: Literal["loss", "objective"] | None = None
    metric: str | None = None
    max_drop: float | None = None
    epsilon: float | None = None
    curvature: Any = "hessian"
    tolerance: float = 0.005
    budget: float | None = None
    no_measure: bool = False
    pattern: Sequence[str] = ()
    retune: bool = False
    forecast: Path | None = None


def predicted(task: Task, options: PredictionOptions) -> PruningLimit:
    """Predict the limit of a task."""
    metric = task.metric(options.metric)
    limit = predict_limit(
        task.model,
        task.data.training,
        task.loss_fn,
        metric=metric,
        max_drop=options.max_drop,
        held_out=None if metric is None else task.data.held_out,
        criterion=options.criterion or "loss",
        penalty=task.penalty,
        epsilon="batch-std" if options.epsilon is None else options.epsilon,
        curvature=options.curvature,
        samples=options.samples,
        steps=options.steps,
        probes=options.probes,
        tolerance=options.tolerance,
        measure=not options.no_measure,
        pattern=options.pattern or UNSTRUCTURED,
        retune=options.retune,
        seed=options.seed,
        budget=options.budget,
        forecast=options.forecast,
    )
    return with_origin(limit, task.name, task.data.name)


def with_origin(limit: PruningLimit, model: str, data: str) -> PruningLimit:
    """Name what a limit was predicted for, as on the command line."""
    evidence = limit.evidence
    return replace(limit, evidence=replace(evidence, origin=replace(evidence.origin, model=model, data=data)))


def refuse_unwritable_outputs(paths: Mapping[str, Path | None]) -> None:
    """Refuse files of a limit that cannot be written, before anything is computed.

    Args:
        paths: Files by kind: ``"json"``, ``"plot"``, ``"report"``.

    Raises:
        UserError: A folder cannot be written, or a name has no ending of its kind.
    """
    for kind, path in paths.items():
        if path is not None:
            refuse_unwritable(path, (".json",) if kind == "json" else SUFFIXES if kind == "report" else _figures())


def _figures() -> list[str]:
    try:
        from pruning_limits.plotting import figure_suffixes
    except ImportError:
        raise UserError("plot: needs the package matplotlib; install it with pip install matplotlib") from None
    return figure_suffixes()


def write_outputs(limit: PruningLimit, paths: Mapping[str, Path | None]) -> None:
    """Write a limit to files by kind, on the first rank, and tell their names."""
    writers: dict[str, Callable[[Path], object]] = {
        "json": limit.to_json,
        "plot": limit.plot,
        "report": lambda path: write_report(limit, path),
    }
    for kind, path in paths.items():
        if path is not None and rank() == 0:
            writers[kind](path)
            click.echo(f"wrote {path}")
