"""``pruning-limits retune``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from estimators.errors import UserError
from pruning_limits.cli import PATH
from validation.commands.options import allowance_options, taken, task_options
from validation.launch import shared

SUFFIXES = (".safetensors",)


@dataclass(frozen=True)
class _Wanted:
    """How far to prune, on which way, and what is written."""

    sparsity: float
    out: Path
    force: bool
    limit_path: Path | None
    passes: int
    state_path: Path | None


@click.command()
@click.option("--sparsity", type=float, required=True, help="Wanted removed fraction in [0, 1).")
@click.option("-o", "--out", type=PATH, required=True, help="Checkpoint to write, .safetensors.")
@click.option("--force", is_flag=True, help="Write over a file that exists.")
@click.option("--limit", "limit_path", type=PATH, help="A limit written by predict --retune --json, to go its way.")
@click.option("--passes", type=int, default=2, show_default=True, help="Passes over the samples of a stage.")
@click.option("--state", "state_path", type=PATH, help="File that keeps the state after every stage, to continue.")
@task_options
@allowance_options
@shared
def retune(**options: Any) -> None:
    """Prune a trained network to a sparsity in stages, re-tune it on few samples, and write its weights."""
    from safetensors.torch import save

    from estimators.distributed import rank
    from estimators.files import refuse_unwritable, write_bytes
    from pruning_limits.dense_network import Subject
    from pruning_limits.metrics import metric_loss, metric_name
    from pruning_limits.pattern_names import UNSTRUCTURED
    from pruning_limits.result import PruningLimit
    from pruning_limits.retuned_copy import retuned_copy
    from pruning_limits.settings import Retuning, Settings
    from pruning_limits.tuned_points import stages_to
    from validation.commands.prediction import taken_task

    wanted = taken(_Wanted, options)
    sparsity, out, limit_path = wanted.sparsity, wanted.out, wanted.limit_path
    if not 0 <= sparsity < 1:
        raise UserError(f"sparsity: expected a number in [0, 1) (the removed fraction), got {sparsity}")
    refuse_unwritable(out, SUFFIXES)
    if out.exists() and not wanted.force:
        raise UserError(f"out: {out} exists; name another file, or write over it with --force")
    if any(options[name] is not None for name in ("steps", "probes")):
        raise click.UsageError("--steps and --probes are for predict")
    limit = None if limit_path is None else PruningLimit.from_json(limit_path).for_pattern(UNSTRUCTURED)
    retuning = Retuning(samples=options["samples"] or Retuning().samples, passes=wanted.passes)
    task = taken_task(options)
    click.echo(f"{task.text()}\n")
    metric = task.metric(options["metric"])
    held_out = None if metric is None else task.data.held_out
    settings = Settings(
        criterion=options["criterion"] or "loss",
        metric=None if metric is None else metric_name(metric),
        max_drop=options["max_drop"],
        held_out=held_out is not None,
        seed=options["seed"],
        retune=retuning,
    )
    if limit is None:
        way = stages_to((), sparsity, alone=0.0, start=0.0)
    else:
        tuning, known = limit.evidence.retuned, limit.settings.retune
        settings = replace(settings, seed=limit.settings.seed, parameters=limit.settings.parameters)
        settings = replace(settings, retune=known or retuning, criterion=limit.settings.criterion)
        points = () if tuning is None else tuning.run(0)
        way = stages_to(points, sparsity, limit.lower, limit.evidence.already_removed)
    values = None if metric is None else metric_loss(metric)
    subject = Subject(task.model, task.data.training, task.loss_fn, task.penalty, None, values, held_out)
    pruned, answer = retuned_copy(subject, settings, way, checkpoint=wanted.state_path)
    click.echo(f"{answer.sparsity:.2%} removed: {answer.status}")
    if rank() == 0:
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in pruned.state_dict().items()}
        write_bytes(out, save(state))
        click.echo(f"wrote {out}")
