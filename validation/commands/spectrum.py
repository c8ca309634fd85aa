"""``pruning-limits spectrum``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import click
import torch

from estimators import GGN, Hessian, UserError, averaged_gauss, check_symmetric, measure_of, sphere_probes
from estimators.distributed import rank, world
from estimators.lanczos import Lanczos
from pruning_limits.cli import PATH
from validation.commands.options import task_options
from validation.commands.prediction import refuse_unwritable_outputs, taken_task
from validation.commands.task import Task
from validation.cross_check import SAMPLES, comparison_table, cross_check
from validation.launch import shared


@click.command()
@task_options
@click.option("--curvature", type=click.Choice(["hessian", "ggn"]), default="hessian", show_default=True)
@click.option("--plot", "plot_path", type=PATH, default=Path("spectrum.png"), show_default=True)
@click.option(
    "--cross-check",
    "compare",
    is_flag=True,
    help=f"Compare with PyHessian and curvlinops, on at most {SAMPLES} samples.",
)
@shared
def spectrum(curvature: Literal["hessian", "ggn"], plot_path: Path, compare: bool, **options: Any) -> None:
    """Estimate the spectrum of the curvature: density plot, top eigenvalues, trace."""
    from pruning_limits.plotting import save, spectrum_figure

    samples, steps, probes, seed = (options.pop(name) for name in ("samples", "steps", "probes", "seed"))
    for name, count in (("samples", samples), ("steps", steps), ("probes", probes)):
        if count is not None and count < 1:
            raise UserError(f"{name}: expected at least 1, got {count}")
    if compare and world() > 1:
        raise UserError("cross-check: the other libraries know one process only; leave out torchrun")
    refuse_unwritable_outputs({"plot": plot_path})
    task = taken_task(options)
    click.echo(task.text())
    objective = task.objective().subset(samples or 4096, seed)
    operator = (Hessian if curvature == "hessian" else GGN)(objective)
    check_symmetric(operator, seed)
    run = Lanczos(operator, sphere_probes(operator, probes or 2, seed))
    run.advance(min(steps or 64, objective.dimension))
    matrices = run.tridiagonals()
    measure = measure_of(matrices, objective.dimension, averaged_gauss)
    mean, error = measure.integrate(lambda x: x)
    values, residuals = matrices[0].ritz()
    rounding = torch.finfo(operator.dtype).eps * float(abs(values).max())
    ritz = [f"{value:.5g} +- {residual + rounding:.1g}" for value, residual in zip(values, residuals, strict=True)]
    d = objective.dimension
    click.echo(
        f"{curvature} of {d:,} weights on {objective.samples:,} samples, {run.steps} steps, {len(matrices)} probes"
    )
    click.echo(f"trace           {d * mean:.6g} +- {d * error:.2g} (standard error)")
    click.echo(f"top Ritz values {', '.join(ritz[::-1][:5])} (an eigenvalue lies within)")
    click.echo(f"smallest        {measure.nodes.min():.5g}")
    if rank() == 0:
        save(spectrum_figure(measure, f"{curvature}, {d:,} weights"), plot_path)
        click.echo(f"wrote {plot_path}")
    if compare:
        _report_cross_check(task, curvature, min(samples or SAMPLES, SAMPLES), seed)


def _report_cross_check(task: Task, curvature: Literal["hessian", "ggn"], samples: int, seed: int) -> None:
    objective = replace(task, penalty=None).objective().subset(samples, seed)
    rows, notes = cross_check(objective, curvature, seed)
    if not rows:
        raise UserError(f"cross-check: nothing to compare with; {'; '.join(notes)}")
    click.echo(f"\ncross-check of the {curvature} of the mean loss, without penalty, on {objective.samples:,} samples")
    click.echo(comparison_table(rows))
    for note in notes:
        click.echo(f"note: {note}", err=True)
