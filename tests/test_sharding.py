"""What tells a sharded model; ``test_distributed.py`` shards some over two ranks."""

from types import SimpleNamespace

import pytest
import torch
from helpers import mlp, seeded
from torch import nn

from estimators.sharding import fully_sharded, gathers, spread_once, whole

placements = pytest.importorskip("torch.distributed.tensor.placement_types", reason="torch before 2.5 has none")


class FSDPModule(nn.Module):
    """A name that anyone may take."""


class Spread(FSDPModule):
    """Stands for a module that ``fully_shard`` was applied to."""


def test_a_class_of_that_name_is_not_enough(monkeypatch):
    model = nn.Sequential(nn.Linear(2, 2), Spread())
    assert not fully_sharded(model)
    monkeypatch.setattr(FSDPModule, "__module__", "torch.distributed.fsdp._fully_shard._fully_shard")
    assert fully_sharded(model)
    assert not fully_sharded(model[0])


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ((), True),
        ((placements.Shard(0),), True),
        ((placements.Replicate(), placements.Shard(0)), True),
        ((placements.Shard(0), placements.Shard(1)), False),
        ((placements.Shard(0), placements.Partial()), False),
    ],
)
def test_tensors_that_are_split_twice_belong_to_tensor_parallelism(split, expected):
    assert spread_once(SimpleNamespace(placements=split)) == expected
    assert spread_once(torch.ones(2))


def test_only_hooks_of_fully_shard_gather():
    def hook(module, arguments):
        return None

    assert not gathers(hook)
    hook.__module__ = "torch.distributed.fsdp._fully_shard._fsdp_state"
    assert gathers(hook)


def test_a_parameter_that_is_whole_is_copied():
    weight = seeded(mlp)[0].weight
    copy = whole(weight)
    assert torch.equal(copy, weight)
    assert not copy.requires_grad
    assert copy.data_ptr() != weight.data_ptr()
