"""``pruning-limits demo``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import torch

from pruning_limits import PruningLimit, predict_limit
from pruning_limits.ladder import NAMES, metric_text
from validation.commands.prediction import refuse_unwritable_outputs, with_origin, write_outputs
from validation.data import load_data
from validation.launch import alone
from validation.training import Network, Recipe, accuracy, trained_network

NETWORK = Network("fc5-mini", "digits", Recipe(epochs=60, lr=0.05, l1=1e-3, warmup=1), 0)
MAX_DROP = 0.005
TARGET = 0.8


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("demo"), show_default=True)
@alone
def demo(out: Path) -> None:
    """Train a small network on embedded digits and answer how far it can be pruned, in under a minute."""
    paths = {"json": out / "limit.json", "plot": out / "limit.png", "report": out / "report.html"}
    refuse_unwritable_outputs(paths)
    torch.manual_seed(0)
    data = load_data(NETWORK.dataset)
    with _one_thread():
        model = trained_network(NETWORK, data, out, progress=True)
        limit = predict_limit(
            model,
            data.batches("train", 1000),
            metric="accuracy",
            max_drop=MAX_DROP,
            held_out=data.batches("test", 1000),
            penalty=NETWORK.recipe.penalty,
            retune=True,
        )
        reached = accuracy(limit.prune(model, TARGET), data)
        training, held_out = (data.batches(split, 1000) for split in ("train", "test"))
        _, tuned = limit.retune(model, training, TARGET, held_out=held_out)
    limit = with_origin(limit, NETWORK.model, NETWORK.dataset)
    measured = f"pruned to your target and measured: accuracy {metric_text(limit, reached)}"
    re_tuned = f"re-tuned there and measured: accuracy {metric_text(limit, tuned.metric)}"
    click.echo("\n".join([limit.summary(TARGET), measured, re_tuned, *_unsettled(limit), ""]))
    write_outputs(limit, paths)


def _unsettled(limit: PruningLimit) -> list[str]:
    """Say of every rung that is not settled what its interval is and what it depends on."""
    tolerance = limit.settings.tolerance
    rungs = [answer for answer in limit.answers if not answer.settled(tolerance)]
    lines = [f"  {NAMES[answer.rung]}: {answer.status}" for answer in rungs]
    return ["", f"not settled within {100 * tolerance:g} points, and why:", *lines] if lines else []


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute with one thread: small operations wait for the slowest, on a busy machine for long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
