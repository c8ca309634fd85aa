"""``pruning-limits check``; with a limit from a file it starts without torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from estimators.errors import UserError
from estimators.files import refuse_unwritable, write_bytes
from pruning_limits.cli import PATH, tell
from pruning_limits.result import PruningLimit
from validation.commands.options import task_options
from validation.launch import alone

if TYPE_CHECKING:
    from pruning_limits.gate import Case, Comparison
    from pruning_limits.parts import Verdict


@click.command()
@click.option("--sparsity", type=float, help="Wanted removed fraction in [0, 1).")
@click.option("--limit", "limit_path", type=PATH, help="A limit written by predict --json; default: predict it.")
@click.option("--dense", type=PATH, help="Checkpoint of the network before pruning.")
@click.option("--pruned", type=PATH, help="Checkpoint of the pruned network, to be compared with --dense.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@click.option("--junit", "junit_path", type=PATH, help="Write a JUnit report: infeasible fails, open is skipped.")
@task_options
@alone
def check(
    sparsity: float | None,
    limit_path: Path | None,
    dense: Path | None,
    pruned: Path | None,
    as_json: bool,
    junit_path: Path | None,
    **options: Any,
) -> None:
    """Judge a sparsity, or a pruned network by its dense parent: exit code 0 achievable, 3 open, 4 infeasible."""
    started = time.perf_counter()
    answer: Verdict | Comparison
    if junit_path is not None:
        refuse_unwritable(junit_path)
    if sparsity is not None and dense is None and pruned is None:
        if not 0 <= sparsity < 1:
            raise UserError(f"sparsity: expected a number in [0, 1) (the removed fraction), got {sparsity}")
        if limit_path is None and options["model_name"] is None:
            raise click.UsageError("give --limit FILE, or --model, --checkpoint and --dataset or --data")
        limit = _predicted(options) if limit_path is None else PruningLimit.from_json(limit_path)
        answer = limit.check(sparsity)
    elif sparsity is None and dense is not None and pruned is not None:
        if options["checkpoint"] is not None:
            raise click.UsageError("--dense names the weights; leave out --checkpoint")
        answer = _comparison(limit_path, pruned, options | {"checkpoint": dense})
    else:
        raise click.UsageError("give either --sparsity, or --dense and --pruned")
    if junit_path is not None:
        _write_junit(junit_path, answer, time.perf_counter() - started)
    tell(answer, as_json)


def _predicted(options: dict[str, Any]) -> PruningLimit:
    from validation.commands.prediction import predicted, taken_task
    from validation.commands.task import note

    task = taken_task(options)
    note(task.text())
    return predicted(task, **options)


def _comparison(limit_path: Path | None, pruned: Path, options: dict[str, Any]) -> Comparison:
    from pruning_limits.gate import compare
    from pruning_limits.state_dicts import load_weights
    from validation.commands.prediction import predicted, taken_task
    from validation.commands.task import note

    limit = None if limit_path is None else PruningLimit.from_json(limit_path)
    task = taken_task(options)
    note(task.text())
    if limit is None:
        limit = predicted(task, **options)
    before = task.objective(list(limit.settings.parameters))
    weights, value = {name: weight.clone() for name, weight in before.chosen.items()}, before.value()
    note(load_weights(task.model, pruned))
    after = task.objective(list(limit.settings.parameters))
    return compare(limit, weights, after.chosen, value, after.value())


def _write_junit(path: Path, answer: Verdict | Comparison, seconds: float) -> None:
    from pruning_limits.gate import Case, Comparison, junit

    cases: tuple[Case, ...] = (Case("sparsity", answer.status, answer.reason),)
    if isinstance(answer, Comparison):
        cases = answer.cases
    write_bytes(path, junit(cases, seconds).encode())
