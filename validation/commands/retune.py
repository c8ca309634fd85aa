"""``pruning-limits retune``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from estimators.errors import UserError
from pruning_limits.cli import PATH
from validation.commands.options import allowance_options, taken, task_options
from validation.launch import shared

if TYPE_CHECKING:
    from pruning_limits.group_profile import GroupProfile
    from pruning_limits.result import PruningLimit
    from pruning_limits.settings import Settings
    from validation.commands.task import Task

SUFFIXES = (".safetensors",)


@dataclass(frozen=True)
class _Wanted:
    """How far to prune, on which way, and what is written."""

    sparsity: float | None
    pattern: str
    out: Path
    force: bool
    limit_path: Path | None
    passes: int
    state_path: Path | None


@click.command()
@click.option("--sparsity", type=float, help="Wanted removed fraction in [0, 1); 2:4 and other N:M need none.")
@click.option(
    "--pattern",
    default="unstructured",
    show_default=True,
    help="Which weights go together: 2:4 or another N:M, blocks:16x1, channels or heads.",
)
@click.option("-o", "--out", type=PATH, required=True, help="Checkpoint to write, .safetensors.")
@click.option("--force", is_flag=True, help="Write over a file that exists.")
@click.option("--limit", "limit_path", type=PATH, help="Follow the stages of this limit of predict --retune --json.")
@click.option("--passes", type=int, default=2, show_default=True, help="Passes over the samples of a stage.")
@click.option("--state", "state_path", type=PATH, help="File that keeps the state after every stage, to continue.")
@task_options
@allowance_options
@shared
def retune(**options: Any) -> None:
    """Prune a trained network to a sparsity or a pattern in stages, re-tune it on few samples, and write its weights.

    Removed weights, single or in groups, are exactly zero in the file. `check` reads it.
    """
    from safetensors.torch import save

    from estimators.distributed import rank
    from estimators.files import refuse_unwritable, write_bytes
    from pruning_limits.dense_network import Subject
    from pruning_limits.metrics import metric_loss, metric_name
    from pruning_limits.pattern_evidence import group_notes
    from pruning_limits.pattern_names import UNSTRUCTURED, parsed
    from pruning_limits.result import PruningLimit
    from pruning_limits.retuned_copy import retuned_copy
    from pruning_limits.settings import Retuning, Settings
    from validation.commands.prediction import taken_task
    from validation.commands.task import note

    wanted = taken(_Wanted, options)
    sparsity, out, limit_path, pattern = wanted.sparsity, wanted.out, wanted.limit_path, parsed(wanted.pattern)
    if sparsity is None and not pattern.fixed:
        raise click.UsageError(f"missing --sparsity; {pattern.name} has many")
    if sparsity is not None and not 0 <= sparsity < 1:
        raise UserError(f"sparsity: expected a number in [0, 1) (the removed fraction), got {sparsity}")
    refuse_unwritable(out, SUFFIXES)
    if out.exists() and not wanted.force:
        raise UserError(f"out: {out} exists; name another file, or write over it with --force")
    if any(options[name] is not None for name in ("steps", "probes")):
        raise click.UsageError("--steps and --probes are for predict")
    limit = None if limit_path is None else PruningLimit.from_json(limit_path).for_pattern(pattern.name)
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
    if limit is not None:
        settings = replace(settings, seed=limit.settings.seed, parameters=limit.settings.parameters)
        settings = replace(settings, retune=limit.settings.retune or retuning, criterion=limit.settings.criterion)
    profile = None if pattern.name == UNSTRUCTURED else _grouped(task, pattern.name, settings)
    if profile is not None:
        for remark in group_notes(pattern.name, list(profile.groups.left.items()), profile.groups.ragged):
            note(remark)
    if profile is not None and pattern.fixed:
        way = [profile.most if sparsity is None else sparsity]
    else:
        assert sparsity is not None
        way = _way(limit, sparsity)
    values = None if metric is None else metric_loss(metric)
    subject = Subject(task.model, task.data.training, task.loss_fn, task.penalty, None, values, held_out)
    groups = None if profile is None else profile.groups
    pruned, answer = retuned_copy(subject, settings, way, checkpoint=wanted.state_path, groups=groups)
    click.echo(f"{answer.sparsity:.2%} removed{'' if groups is None else f' in {pattern.name}'}: {answer.status}")
    if rank() == 0:
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in pruned.state_dict().items()}
        write_bytes(out, save(state))
        click.echo(f"wrote {out}")


def _grouped(task: Task, name: str, settings: Settings) -> GroupProfile:
    """Return the weights of a task's network in the order in which a pattern of groups removes them."""
    from estimators.substitution import intact
    from estimators.user_code import plain_modes
    from pruning_limits.group_profile import GroupProfile
    from pruning_limits.patterns import groups_of

    with plain_modes(), intact(task.model):
        objective = task.objective([escape(name) for name in settings.parameters] or None)
        return GroupProfile(objective.chosen, groups_of(name, objective))


def _way(limit: PruningLimit | None, sparsity: float) -> list[float]:
    """Return the sparsities of the stages, those of a limit's re-tuned networks where there are some."""
    from pruning_limits.tuned_points import stages_to

    if limit is None:
        return stages_to((), sparsity, alone=0.0, start=0.0)
    tuning = limit.evidence.retuned
    return stages_to(() if tuning is None else tuning.run(0), sparsity, limit.lower, limit.evidence.already_removed)
