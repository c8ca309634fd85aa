"""``pruning-limits predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from estimators.errors import UserError
from pruning_limits.cli import PATH
from pruning_limits.pattern_names import UNSTRUCTURED, pattern_names
from validation.commands.options import allowance_options, task_options
from validation.launch import shared


@click.command()
@task_options
@allowance_options
@click.option("--epsilon", type=float, help="Allowed rise of the criterion; default: deviation of a batch of 128.")
@click.option("--curvature", type=click.Choice(["hessian", "ggn"]), default="hessian", show_default=True)
@click.option("--tolerance", type=float, default=0.005, show_default=True, help="Wanted half-width, in sparsity.")
@click.option(
    "--budget",
    type=float,
    help="Epochs of training to spend; default: 1, or some ten seconds where an epoch is shorter.",
)
@click.option("--no-measure", is_flag=True, help="Do not measure what one-shot pruning achieves.")
@click.option(
    "--pattern",
    multiple=True,
    help="unstructured, 2:4 or another N:M, blocks:16x1, channels or heads; repeat it. The first gives the main limit.",
)
@click.option("--retune", is_flag=True, help="Also measure what staged re-tuning on few samples reaches.")
@click.option("--forecast", type=PATH, help="Calibration of re-training that validate --table forecast wrote, .json.")
@click.option("--target", type=float, help="Sparsity in [0, 1) to be judged in the last line.")
@click.option("--json", "json_path", type=PATH, help="Write the limit as JSON, .json.")
@click.option("--plot", "plot_path", type=PATH, help="Write the figure, .png, .pdf, .svg ...")
@click.option("--report", "report_path", type=PATH, help="Write the limit as one web page, .html.")
@shared
def predict(
    target: float | None, json_path: Path | None, plot_path: Path | None, report_path: Path | None, **options: Any
) -> None:
    """Predict the pruning limit of a trained network."""
    from validation.commands.prediction import (
        PredictionOptions,
        predicted,
        refuse_unwritable_outputs,
        taken_task,
        write_outputs,
    )

    for name in ("max_drop", "retune"):
        if options[name] not in (None, False) and options["no_measure"]:
            raise click.UsageError(f"--{name.replace('_', '-')} and --no-measure cannot be given together")
    if target is not None and not 0 <= target < 1:
        raise UserError(f"target: expected a number in [0, 1) (the removed fraction), got {target}")
    pattern_names(options["pattern"] or UNSTRUCTURED)
    paths = {"json": json_path, "plot": plot_path, "report": report_path}
    refuse_unwritable_outputs(paths)
    task = taken_task(options)
    click.echo(f"{task.text()}\n")
    limit = predicted(task, PredictionOptions(**options))
    click.echo(limit.summary(target))
    write_outputs(limit, paths)
