"""Held-out batches: refused without a metric, ended where they have no end, and the same in every pass."""

import numpy as np
import pytest
import torch
from helpers import random, seeded, without_cost
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from estimators import Shard, UserError
from pruning_limits import predict_limit
from pruning_limits.held_out import held_out_batches

QUICK = {"measure": False, "samples": 64, "steps": 4, "probes": 1, "epsilon": 0.05, "progress": False}


def mlp():
    return seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))).float()


def table(seed=1, samples=60):
    return TensorDataset(random(samples, 4, seed=seed).float(), torch.arange(samples) % 3)


DATA = list(DataLoader(table(), 20))


def refusal(*arguments, **options):
    with pytest.raises(UserError) as error:
        predict_limit(mlp(), DATA, *arguments, progress=False, **options)
    return str(error.value)


MISSING = (
    "held_out: a metric is measured on it, and there is none; give metric=, such as 'accuracy', or leave held_out out"
)


def test_without_a_metric_it_is_refused():
    assert refusal(held_out=DATA) == MISSING
    assert held_out_batches(None, metric=False, most=3) is None


def test_re_tuning_refuses_it_too():
    limit = predict_limit(mlp(), DATA, **QUICK)
    with pytest.raises(UserError) as error:
        limit.retune(mlp(), DATA, 0.5, held_out=DATA)
    assert str(error.value) == MISSING


class Endless(IterableDataset):
    """Rows without end, or without a length."""

    def __init__(self, count=None):
        self.count = count

    def __iter__(self):
        x, y = table(2).tensors
        number = 0
        while self.count is None or number < self.count:
            yield x[number % 60], y[number % 60]
            number += 1


LOADERS = {"endless": lambda: DataLoader(Endless(), 20), "without a length": lambda: DataLoader(Endless(90), 20)}


@pytest.mark.parametrize("name", LOADERS)
def test_of_a_loader_without_a_length_the_first_batches_are_read(name):
    limit = predict_limit(mlp(), DATA, metric="accuracy", held_out=LOADERS[name](), max_batches=3, **QUICK)
    expected = predict_limit(mlp(), DATA, metric="accuracy", held_out=list(DataLoader(table(2), 20)), **QUICK)
    assert limit.evidence.dense.metric_samples == 60
    assert limit.dense_metric == expected.dense_metric


def test_a_loader_with_a_length_is_read_to_its_end():
    held_out = DataLoader(table(2), 20)
    assert held_out_batches(held_out, metric=True, most=1) is held_out
    shard = Shard(held_out)
    assert held_out_batches(shard, metric=True, most=1) is shard


def test_an_endless_loader_is_warned_of(caplog):
    """A batch of so many rows costs nothing: one row, expanded."""

    class Large(IterableDataset):
        def __iter__(self):
            for _ in range(3):
                yield torch.zeros(1, 4).expand(1 << 19, 4), torch.zeros(1, dtype=torch.long).expand(1 << 19)

    def stop(model, batch):
        return torch.zeros(len(batch[0]), device=batch[0].device)

    predict_limit(mlp(), DATA, metric=stop, held_out=DataLoader(Large(), None), **QUICK)
    messages = [record.getMessage() for record in caplog.records if "no end so far" in record.getMessage()]
    assert set(messages) == {"a loader: 1048576 samples and no end so far; give max_batches= if it has none"}


def random_metric(model, batch):
    return torch.rand(len(batch[0]))


def numpy_metric(model, batch):
    return torch.from_numpy(np.random.rand(len(batch[0])))  # noqa: NPY002


@pytest.mark.parametrize("size", [1, 20])
@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("metric", [random_metric, numpy_metric])
def test_a_metric_of_random_values_is_refused(metric, held_out, size):
    batches = list(DataLoader(table(2), size)) if held_out else None
    assert refusal(metric=metric, held_out=batches) == (
        "model or metric: two calls with the same batch give different values; turn off dropout and other random "
        "numbers inside them, or set their seed in every call"
    )


def confidence(model, batch):
    return model(batch[0]).softmax(1).gather(1, batch[1][:, None])[:, 0]


class Augmented:
    def __iter__(self):
        return iter([(x + 0.3 * torch.randn_like(x), y) for x, y in DATA])


def test_held_out_data_that_change_between_passes_are_refused():
    assert refusal(metric=confidence, held_out=Augmented()) == (
        "held_out: two passes give different values of the metric; turn off random augmentation and sampling with "
        "replacement so that every pass yields the same samples"
    )


@pytest.mark.parametrize("metric", [confidence, "accuracy"])
def test_another_order_in_every_pass_is_no_change(metric):
    shuffled = DataLoader(table(2), 20, shuffle=True)
    ordered = DataLoader(table(2), 20)
    limits = [predict_limit(mlp(), DATA, metric=metric, held_out=batches, **QUICK) for batches in (shuffled, ordered)]
    assert limits[0].dense_metric == pytest.approx(limits[1].dense_metric, rel=1e-6)
    assert without_cost(limits[0]).sparsity == limits[1].sparsity
