"""The commands of ``pruning-limits`` that train, load or measure networks."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import torch
from torch import nn

from estimators import (
    GGN,
    L1,
    L2,
    Hessian,
    Objective,
    UserError,
    averaged_gauss,
    check_symmetric,
    measure_of,
    sphere_probes,
)
from estimators.distributed import rank, world
from estimators.files import load_tensors, write_bytes
from estimators.lanczos import Lanczos
from pruning_limits import PruningLimit, Verdict, predict_limit
from pruning_limits.cli import PATH, main, tell
from pruning_limits.gate import Case, Comparison, compare, junit, without_masks
from pruning_limits.settings import LARGEST_SEED
from validation.cross_check import SAMPLES, comparison_table, cross_check
from validation.data import DATA_DIR_VARIABLE, Batches, ImageData, load_data
from validation.executors import EXECUTORS
from validation.experiments.runner import run_table
from validation.experiments.table import tables
from validation.launch import alone, shared
from validation.models import MODELS, build_model
from validation.suite import known_suites, load_suite
from validation.training import Network, Recipe, accuracy, trained_network

__all__ = ["main"]

TASK = ("model_name", "checkpoint", "dataset", "data_dir", "l1", "l2", "device")


@dataclass(frozen=True)
class Task:
    """A model with its weights, its data, and the penalty that it was trained with."""

    model: nn.Module
    data: ImageData
    penalty: L1 | L2 | None

    def batches(self) -> Batches:
        """Return the training data, in batches small enough that every rank has one."""
        return self.data.batches("train", min(1000, -(-len(self.data.train_y) // world())))


def _task_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.option(
            "--model", "model_name", help=f"{', '.join(MODELS)}, a torchvision name, or package.module:factory"
        ),
        click.option("--checkpoint", type=PATH, help="Trained weights: a state dict (.pt, .pth) or .safetensors."),
        click.option("--dataset", help="digits, mnist, fashion-mnist, cifar10, cifar100, a folder, archive or .npz"),
        click.option("--data-dir", type=click.Path(path_type=Path), help=f"Where data lie (or {DATA_DIR_VARIABLE})."),
        click.option("--l1", type=float, default=0.0, help="L1 coefficient that the network was trained with."),
        click.option("--l2", type=float, default=0.0, help="L2 coefficient (weight decay) that it was trained with."),
        click.option("--samples", type=int, help="Data sub-sample for curvature products; default adaptive."),
        click.option("--steps", type=int, help="Lanczos steps; default adaptive."),
        click.option("--probes", type=int, help="Probe vectors; default by size."),
        click.option("--seed", type=click.IntRange(0, LARGEST_SEED - 1), default=0, show_default=True),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 ..."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _load_task(
    model_name: str | None,
    checkpoint: Path | None,
    dataset: str | None,
    data_dir: Path | None,
    l1: float,
    l2: float,
    device: str,
) -> Task:
    missing = [f"--{key}" for key, value in (("model", model_name), ("dataset", dataset)) if value is None]
    if model_name is None or dataset is None:
        raise click.UsageError(f"missing {' and '.join(missing)}")
    if l1 and l2:
        raise click.UsageError("--l1 and --l2 cannot both be given")
    data = load_data(dataset, data_dir)
    model = build_model(model_name, data.shape, data.classes)
    if checkpoint is None:
        if rank() == 0:
            click.echo("note: no --checkpoint, so the limit is that of untrained weights", err=True)
    else:
        load_weights(model, checkpoint)
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: cannot use {device!r}: {str(error).splitlines()[0]}") from None
    return Task(model.eval(), data, L1(l1) if l1 else L2(l2) if l2 else None)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a checkpoint into a model; keys and shapes must fit.

    Args:
        model: Any module; unchanged when the checkpoint does not fit.
        path: A state dict, possibly under the key ``state_dict`` or ``model``; the masks of ``torch.nn.utils.prune``
            are applied.

    Raises:
        UserError: The file is no plain state dict, or its keys or shapes differ; the message names them.
    """
    state = load_tensors(path)
    for key in ("state_dict", "model"):
        if isinstance(state.get(key), dict):
            state = state[key]
    state, own = without_masks(state), model.state_dict()
    wrong = [key for key in own if key in state and getattr(state[key], "shape", None) != own[key].shape]
    problems = [
        f"{what} {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
        for what, keys in (
            ("missing", [key for key in own if key not in state]),
            ("unexpected", [str(key) for key in state if key not in own]),
            ("of another shape", wrong),
        )
        if keys
    ]
    if problems:
        raise UserError(f"checkpoint: {path} does not fit the model: {'; '.join(problems)}")
    model.load_state_dict(state)


@main.command()
@_task_options
@click.option("--epsilon", type=float, help="Allowed rise of the objective; default: deviation of a batch of 128.")
@click.option("--curvature", type=click.Choice(["hessian", "ggn"]), default="hessian", show_default=True)
@click.option("--tolerance", type=float, default=0.005, show_default=True, help="Wanted half-width, in sparsity.")
@click.option("--no-measure", is_flag=True, help="Do not measure what one-shot pruning achieves.")
@click.option("--json", "json_path", type=PATH, help="Write the limit as JSON.")
@click.option("--plot", "plot_path", type=PATH, help="Write the figure.")
@shared
def predict(json_path: Path | None, plot_path: Path | None, **options: Any) -> None:
    """Predict the pruning limit of a trained network."""
    task = _taken(options)
    limit = _predicted(task, **options)
    click.echo(limit.summary())
    _written(limit, json_path, plot_path)


def _taken(options: dict[str, Any]) -> Task:
    """Take the options that name a task out of all options, and load it."""
    return _load_task(**{key: options.pop(key) for key in TASK})


def _predicted(
    task: Task,
    samples: int | None,
    steps: int | None,
    probes: int | None,
    seed: int,
    epsilon: float | None = None,
    curvature: Any = "hessian",
    tolerance: float = 0.005,
    no_measure: bool = False,
) -> PruningLimit:
    return predict_limit(
        task.model,
        task.batches(),
        penalty=task.penalty,
        epsilon="batch-std" if epsilon is None else epsilon,
        curvature=curvature,
        samples=samples,
        steps=steps,
        probes=probes,
        tolerance=tolerance,
        measure=not no_measure,
        seed=seed,
    )


def _written(limit: PruningLimit, json_path: Path | None, plot_path: Path | None) -> None:
    if rank() > 0:
        return
    if json_path is not None:
        limit.to_json(json_path)
        click.echo(f"wrote {json_path}")
    if plot_path is not None:
        limit.plot(plot_path)
        click.echo(f"wrote {plot_path}")


@main.command()
@_task_options
@click.option("--curvature", type=click.Choice(["hessian", "ggn"]), default="hessian", show_default=True)
@click.option("--plot", "plot_path", type=PATH, default=Path("spectrum.png"), show_default=True)
@click.option(
    "--cross-check",
    "compare",
    is_flag=True,
    help=f"Compare with PyHessian and curvlinops, on at most {SAMPLES} samples.",
)
@shared
def spectrum(
    curvature: Literal["hessian", "ggn"],
    samples: int | None,
    steps: int | None,
    probes: int | None,
    seed: int,
    plot_path: Path,
    compare: bool,
    **task_options: Any,
) -> None:
    """Estimate the spectrum of the curvature: density plot, top eigenvalues, trace."""
    from pruning_limits.plotting import save, spectrum_figure

    for name, count in (("samples", samples), ("steps", steps), ("probes", probes)):
        if count is not None and count < 1:
            raise UserError(f"{name}: expected at least 1, got {count}")
    if compare and world() > 1:
        raise UserError("cross-check: the other libraries know one process only; leave out torchrun")
    task = _load_task(**task_options)
    objective = Objective(task.model, task.batches(), penalty=task.penalty).subset(samples or 4096, seed)
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
    objective = Objective(task.model, task.data.batches("train", 1000)).subset(samples, seed)
    rows, notes = cross_check(objective, curvature, seed)
    if not rows:
        raise UserError(f"cross-check: nothing to compare with; {'; '.join(notes)}")
    click.echo(f"\ncross-check of the {curvature} of the mean loss, without penalty, on {objective.samples:,} samples")
    click.echo(comparison_table(rows))
    for note in notes:
        click.echo(f"note: {note}", err=True)


@main.command()
@click.option("--sparsity", type=float, help="Wanted removed fraction in [0, 1).")
@click.option("--limit", "limit_path", type=PATH, help="A limit written by predict --json; default: predict it.")
@click.option("--dense", type=PATH, help="Checkpoint of the network before pruning.")
@click.option("--pruned", type=PATH, help="Checkpoint of the pruned network, to be compared with --dense.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@click.option("--junit", "junit_path", type=PATH, help="Write a JUnit report: infeasible fails, open is skipped.")
@_task_options
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
    if sparsity is not None and dense is None and pruned is None:
        if not 0 <= sparsity < 1:
            raise UserError(f"sparsity: expected a number in [0, 1) (the removed fraction), got {sparsity}")
        if limit_path is None and options["model_name"] is None:
            raise click.UsageError("give --limit FILE, or --model, --checkpoint and --dataset")
        if limit_path is None:
            task = _taken(options)
            limit = _predicted(task, **options)
        else:
            limit = PruningLimit.from_json(limit_path)
        answer = limit.check(sparsity)
        cases: tuple[Case, ...] = (Case("sparsity", answer.status, answer.reason),)
    elif sparsity is None and dense is not None and pruned is not None:
        if options["checkpoint"] is not None:
            raise click.UsageError("--dense names the weights; leave out --checkpoint")
        answer = _comparison(limit_path, pruned, options | {"checkpoint": dense})
        cases = answer.cases
    else:
        raise click.UsageError("give either --sparsity, or --dense and --pruned")
    if junit_path is not None:
        write_bytes(junit_path, junit(cases, time.perf_counter() - started).encode())
    tell(answer, as_json)


def _comparison(limit_path: Path | None, pruned: Path, options: dict[str, Any]) -> Comparison:
    limit = None if limit_path is None else PruningLimit.from_json(limit_path)
    task = _taken(options)
    if limit is None:
        limit = _predicted(task, **options)

    def objective() -> Objective:
        return Objective(task.model, task.batches(), penalty=task.penalty, parameters=list(limit.settings.parameters))

    before = objective()
    weights, value = {name: weight.clone() for name, weight in before.chosen.items()}, before.value()
    load_weights(task.model, pruned)
    after = objective()
    return compare(limit, weights, after.chosen, value, after.value())


@main.command()
@click.option(
    "--suite", "suite_name", default="quick", show_default=True, help=f"{', '.join(known_suites())}, or a .toml file."
)
@click.option("--table", "names", multiple=True, type=click.Choice(list(tables())), help="Default: every table.")
@click.option("--data-dir", type=click.Path(path_type=Path), help=f"Where data lie (or {DATA_DIR_VARIABLE}).")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True)
@click.option("--only", default="", help="Only networks whose model-dataset-seed matches this pattern.")
@click.option("--resume/--fresh", default=True, show_default=True, help="Keep finished cells, or compute all anew.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Cells computed at the same time.")
@click.option("--executor", type=click.Choice(EXECUTORS), default="process", show_default=True, help="Where jobs run.")
@alone
def validate(
    suite_name: str,
    names: tuple[str, ...],
    data_dir: Path | None,
    out: Path,
    only: str,
    resume: bool,
    jobs: int,
    executor: str,
) -> None:
    """Train, prune and measure: tables of predicted against actual limits."""
    suite = load_suite(suite_name)
    command = shlex.join(["pruning-limits", *sys.argv[1:]])
    for table in names or tables():
        folder = run_table(table, suite, data_dir, out, only, resume, jobs, executor, command)
        click.echo((folder / f"{table}.md").read_text())
        click.echo(f"wrote {folder / table}.json, .csv, .md and .png")


@main.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("demo"), show_default=True)
@alone
def demo(out: Path) -> None:
    """Train a small network on embedded digits, predict its limit and measure it, in under two minutes."""
    torch.manual_seed(0)
    data = load_data("digits")
    network = Network("fc5-mini", "digits", Recipe(epochs=60, lr=0.05, l1=1e-3, warmup=1), 0)
    with _one_thread():
        model = trained_network(network, data, out, progress=True)
        click.echo(f"{network.model} on {data.name}: test accuracy {accuracy(model, data):.2%}\n")
        limit = predict_limit(model, data.batches("train"), penalty=network.recipe.penalty, probes=2, tolerance=0.02)
    click.echo(limit.summary() + "\n")
    for sparsity in (0.5, 0.8, 0.99):
        click.echo(f"{sparsity:.0%} sparsity: {limit.check(sparsity).status}")
    _written(limit, out / "limit.json", out / "limit.png")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute with one thread: small operations wait for the slowest, on a busy machine for long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    main()
