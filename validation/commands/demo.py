"""``pruning-limits demo``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import torch

from pruning_limits import predict_limit
from validation.commands.prediction import refuse_unwritable_outputs, write_outputs
from validation.data import load_data
from validation.launch import alone
from validation.training import Network, Recipe, accuracy, trained_network


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("demo"), show_default=True)
@alone
def demo(out: Path) -> None:
    """Train a small network on embedded digits, predict its limit and measure it, in under two minutes."""
    paths = {"json": out / "limit.json", "plot": out / "limit.png"}
    refuse_unwritable_outputs(paths)
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
    write_outputs(limit, paths)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute with one thread: small operations wait for the slowest, on a busy machine for long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
