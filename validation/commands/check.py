"""``pruning-limits check``; with a limit from a file it starts without torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from estimators.errors import UserError
from estimators.files import refuse_unwritable, write_bytes
from pruning_limits.cli import PATH, tell
from pruning_limits.pattern_names import UNSTRUCTURED, parsed, pattern_names
from pruning_limits.result import PruningLimit
from validation.commands.options import allowance_options, taken, task_options
from validation.launch import alone

if TYPE_CHECKING:
    from torch import Tensor

    from estimators import Objective
    from pruning_limits.answers import Verdict
    from pruning_limits.gate import Comparison
    from pruning_limits.groups import Groups
    from pruning_limits.metrics import Metric
    from validation.commands.task import Task

HELD_OUT = ("held_out_function", "held_out_arguments")
ALLOWANCE = ("criterion", "metric", "max_drop", *HELD_OUT)


@click.command()
@click.option("--sparsity", type=float, help="Wanted removed fraction in [0, 1).")
@click.option("--pattern", help="Pattern of the limit to judge by; 2:4 and other N:M need no --sparsity.")
@click.option("--limit", "limit_path", type=PATH, help="A limit written by predict --json; default: predict it.")
@click.option("--dense", type=PATH, help="Checkpoint of the network before pruning.")
@click.option("--pruned", type=PATH, help="Checkpoint of the pruned network, to be compared with --dense.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@click.option("--junit", "junit_path", type=PATH, help="Write a JUnit report: infeasible fails, open is skipped.")
@click.option("--markdown", "markdown_path", type=PATH, help="Write a summary for pull requests, in Markdown.")
@task_options
@allowance_options
@alone
def check(**options: Any) -> None:
    """Judge a sparsity, or a pruned network by its dense parent: exit code 0 achievable, 3 open, 4 infeasible."""
    started = time.perf_counter()
    question, told = taken(_Question, options), taken(_Told, options)
    told.refuse_unwritable()
    if question.limit_path is not None:
        _refuse_second_allowance(options, of_pruned=question.pruned is not None)
    limit, answer = _answered(question, options)
    told.write(answer, limit, time.perf_counter() - started)
    tell(answer, told.as_json)


@dataclass(frozen=True)
class _Question:
    """What is judged, and by what."""

    sparsity: float | None
    pattern: str | None
    limit_path: Path | None
    dense: Path | None
    pruned: Path | None

    @property
    def of_pruned(self) -> bool:
        """Whether a checkpoint is named that belongs to a pruned network or its parent."""
        return self.dense is not None or self.pruned is not None


@dataclass(frozen=True)
class _Told:
    """Where the answer goes."""

    as_json: bool
    junit_path: Path | None
    markdown_path: Path | None

    def refuse_unwritable(self) -> None:
        """Refuse files that cannot be written, before anything is computed."""
        for path in (self.junit_path, self.markdown_path):
            if path is not None:
                refuse_unwritable(path)

    def write(self, answer: Verdict | Comparison, limit: PruningLimit, seconds: float) -> None:
        """Write the files that are asked for."""
        if self.junit_path is None and self.markdown_path is None:
            return
        from pruning_limits.gate_files import cases_of, junit, markdown

        if self.junit_path is not None:
            write_bytes(self.junit_path, junit(cases_of(answer), seconds).encode())
        if self.markdown_path is not None:
            write_bytes(self.markdown_path, markdown(answer, limit).encode())


def _answered(question: _Question, options: dict[str, Any]) -> tuple[PruningLimit, Verdict | Comparison]:
    """Judge a sparsity, or compare two networks."""
    sparsity, pattern, limit_path = question.sparsity, question.pattern, question.limit_path
    names = pattern_names(pattern or UNSTRUCTURED)
    if (sparsity is not None or parsed(names[0]).fixed) and not question.of_pruned:
        if sparsity is not None and not 0 <= sparsity < 1:
            raise UserError(f"sparsity: expected a number in [0, 1) (the removed fraction), got {sparsity}")
        if limit_path is None and options["model_name"] is None:
            raise click.UsageError("give --limit FILE, or --model, --checkpoint and --dataset or --data")
        if limit_path is None:
            limit = _predicted(options | {"pattern": names})
        else:
            limit = PruningLimit.from_json(limit_path)
            limit = limit if pattern is None else limit.for_pattern(pattern)
        return limit, limit.check(sparsity)
    if sparsity is None and question.dense is not None and question.pruned is not None:
        if options["checkpoint"] is not None:
            raise click.UsageError("--dense names the weights; leave out --checkpoint")
        return _comparison(limit_path, question.pruned, options | {"checkpoint": question.dense}, pattern)
    raise click.UsageError("give either --sparsity, or --dense and --pruned")


def _refuse_second_allowance(options: dict[str, Any], of_pruned: bool) -> None:
    """Refuse options that a limit from a file has answered; what a pruned network may lose can be asked anew."""
    if options["criterion"] is not None:
        raise click.UsageError("--criterion is for predict; --limit has its own")
    if not of_pruned and any(options[name] not in (None, {}) for name in ALLOWANCE):
        raise click.UsageError("--metric, --max-drop and --held-out are for predict; --limit has its own")


def _predicted(options: dict[str, Any]) -> PruningLimit:
    from validation.commands.prediction import PredictionOptions, predicted, taken_task
    from validation.commands.task import note

    task = taken_task(options)
    note(task.text())
    return predicted(task, PredictionOptions(**options))


def _comparison(
    limit_path: Path | None, pruned: Path, options: dict[str, Any], pattern: str | None
) -> tuple[PruningLimit, Comparison]:
    from pruning_limits.gate import compare
    from pruning_limits.metric_drop import MetricDrop
    from validation.commands.prediction import PredictionOptions, predicted, taken_task
    from validation.commands.task import note

    limit = None if limit_path is None else PruningLimit.from_json(limit_path)
    task = taken_task(options)
    asked = None if limit is None else _asked_metric(limit, task, options["metric"], options["max_drop"])
    note(task.text())
    if limit is None:
        wanted = () if pattern is None else (UNSTRUCTURED, *pattern_names(pattern))
        limit = predicted(task, PredictionOptions(**options, pattern=wanted))
        asked = _asked_metric(limit, task, options["metric"], limit.max_drop)
    limit = limit.for_pattern(UNSTRUCTURED)
    parameters = list(limit.settings.parameters)
    if limit.criterion == "loss":
        task = replace(task, penalty=None)
    before = task.objective(parameters)
    weights, value = {name: weight.clone() for name, weight in before.chosen.items()}, before.value()
    values = None if asked is None else asked.values(task, parameters)
    groups = _groups(limit, before, pattern)
    task, pruned_weights = _pruned(task, before, groups, pruned)
    after = task.objective(parameters)
    drop = None
    if asked is not None and values is not None:
        drop = MetricDrop.between(values, asked.values(task, parameters), asked.max_drop, asked.name)
    pruned_weights = pruned_weights or after.chosen
    return limit, compare(limit, weights, pruned_weights, value, after.value(), drop, groups, pattern)


def _groups(limit: PruningLimit, before: Objective, pattern: str | None) -> dict[str, Groups]:
    """Group the weights in the patterns of the limit, or in the one that is named."""
    from pruning_limits.patterns import groups_of

    known = [row.name for row in limit.evidence.patterns]
    names = known if pattern is None else list(pattern_names(pattern))
    if pattern is not None and names[0] not in known and names[0] != UNSTRUCTURED:
        raise UserError(f"pattern: the limit knows nothing of {pattern}; predict it with --pattern {pattern}")
    return {name: groups_of(name, before) for name in names if name != UNSTRUCTURED}


def _pruned(
    task: Task, before: Objective, groups: Mapping[str, Groups], pruned: Path
) -> tuple[Task, dict[str, Tensor] | None]:
    """Load the pruned network; where it is smaller by channels, also return its weights in the dense one's shapes."""
    from estimators.files import load_tensors
    from pruning_limits.smaller_checkpoints import smaller_checkpoint
    from pruning_limits.state_dicts import load_weights
    from validation.commands.task import note

    smaller = None
    if "channels" in groups:
        smaller = smaller_checkpoint(before, groups["channels"], load_tensors(pruned), pruned)
    if smaller is None:
        note(load_weights(task.model, pruned))
        return task, None
    note(f"checkpoint {pruned}: of a network without {sum(smaller.channels.values()):,} channels")
    return replace(task, model=smaller.model.eval()), smaller.weights


@dataclass(frozen=True)
class _AskedMetric:
    """What a pruned network may lose of which metric; a fall of None is not judged."""

    metric: Metric
    name: str
    max_drop: float | None

    def values(self, task: Task, parameters: list[str]) -> Tensor:
        """Return the metric of the network as it is now, per sample, in the order of the held-out data."""
        from estimators import Objective
        from pruning_limits.metrics import metric_errors, metric_loss

        held_out = task.data.held_out
        with metric_errors("loader" if held_out is None else "held_out"):
            loader = task.data.training if held_out is None else held_out
            return Objective(task.model, loader, metric_loss(self.metric), None, parameters).sample_losses()[0]


def _asked_metric(
    limit: PruningLimit, task: Task, reference: str | None, max_drop: float | None
) -> _AskedMetric | None:
    """Return which metric is to be measured: the one that is named, else that of the limit."""
    from pruning_limits.metrics import metric_name
    from pruning_limits.settings import checked

    own = limit.metric
    if reference is None and own not in (None, "accuracy"):
        raise UserError(f"metric: that of the limit is the function {own}; name it again with --metric path.py:{own}")
    metric = task.metric(reference or own) if (reference or own or max_drop is not None) else None
    if metric is None:
        if max_drop is not None:
            raise click.UsageError("--max-drop is a fall of the metric; name it with --metric")
        return None
    name = metric_name(metric)
    if max_drop is None and limit.max_drop is not None and name != own:
        raise UserError(f"max-drop: that of the limit is a fall of {own}; give --max-drop for {name}")
    if limit.settings.held_out and task.data.held_out is None:
        raise UserError("held-out: the limit measured its metric on held-out data; name them with --held-out")
    return _AskedMetric(metric, name, limit.max_drop if max_drop is None else checked("max_drop", max_drop))
