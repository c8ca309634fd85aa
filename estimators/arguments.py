"""Refuse unsuitable models, loaders and loss functions before anything is computed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import Dataset, IterableDataset

from estimators.errors import UserError
from estimators.sharding import fully_sharded, spread_once

SHARDED = (
    "gather the weights with torch.distributed.checkpoint.state_dict.get_model_state_dict "
    "(full_state_dict=True) and load them into a plain module on every rank, or shard it by fully_shard alone"
)


def plain_model(model: nn.Module) -> nn.Module:
    """Return a model, or that inside of ``DistributedDataParallel``, whose names do not begin with ``module.``.

    One that ``torch.distributed.fsdp.fully_shard`` was applied to is returned as it is.

    Args:
        model: The model as the user gave it.

    Raises:
        UserError: The model cannot be taken, see ``refuse_model``.
    """
    plain: nn.Module = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    refuse_model(plain)
    return plain


def refuse_model(model: nn.Module) -> None:
    """Refuse models that are scripted, wrapped for several devices, sharded, quantised, or hold no numbers yet.

    Args:
        model: The model as the user gave it.

    Raises:
        UserError: What the model is and what to do instead.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    sharded = fully_sharded(model)
    for path, module in model.named_modules():
        where, kind = f"layer '{path}'" if path else "the model", type(module)
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(
                f"model: {where} is scripted or traced, so that its weights cannot be substituted; give the Python "
                "module that it was made from"
            )
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            there = f"model.{path}" if path else "model"
            raise UserError(f"model: expected a plain module, got {kind.__name__}; give {there}.module")
        if kind.__module__.startswith("torch.distributed.fsdp") and not fully_sharded(module):
            raise UserError(f"model: {where} is sharded by {kind.__name__}; {SHARDED}")
        if ".quantized" in kind.__module__ and kind.__module__.startswith("torch."):
            raise UserError(
                f"model: {where} is quantised ({kind.__module__}.{kind.__name__}), so that its weights have no "
                "derivatives; give the floating point network that it was made from"
            )
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            if is_lazy(tensor):
                raise UserError(
                    f"model: {where} ({kind.__name__}) is not initialised; pass one batch through the model first"
                )
            if tensor.layout != torch.strided:
                raise UserError(
                    f"model: {name!r} of {where} ({kind.__name__}) is stored as {tensor.layout}; convert it with "
                    "to_dense()"
                )
            if hasattr(tensor, "full_tensor") and not (sharded and spread_once(tensor)):
                raise UserError(
                    f"model: {name!r} of {where} is a {type(tensor).__name__}, sharded over ranks; {SHARDED}"
                )


def refuse_loader(loader: Any) -> None:
    """Refuse what yields single samples, or nothing, in the place of a loader of batches.

    Args:
        loader: What the user gave.

    Raises:
        UserError: What it is and what to do instead.
    """
    expected = "loader: expected an iterable of batches"
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise UserError(
            f"{expected}, got {type(loader).__name__}, which yields single samples: wrap it in a DataLoader, "
            "torch.utils.data.DataLoader(dataset, batch_size=128)"
        )
    if isinstance(loader, tuple) and loader and all(isinstance(part, Tensor) for part in loader):
        raise UserError(f"{expected}, got a tuple of tensors, which is one batch: give a list of batches, [(x, y)]")
    if isinstance(loader, Tensor | str | bytes | Mapping):
        raise UserError(f"{expected}, got {type(loader).__name__}: give a DataLoader or a list of batches, [(x, y)]")
    readable = hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")
    if isinstance(loader, type) or not readable:
        raise UserError(f"{expected}, got {type(loader).__name__}: give a DataLoader or a list of batches, [(x, y)]")


def refuse_loss(loss_fn: Any) -> None:
    """Refuse loss functions that cannot be called with a model and a batch.

    Args:
        loss_fn: What the user gave, or None.

    Raises:
        UserError: What it is and how a loss function looks.
    """
    if loss_fn is not None:
        refuse_function("loss_fn", loss_fn, "give lambda model, batch: criterion(model(batch[0]), batch[1])")


def refuse_function(argument: str, function: Any, remedy: str) -> None:
    """Refuse what cannot be called with a model and a batch.

    Args:
        argument: Name of the argument, for messages.
        function: What the user gave.
        remedy: What to give instead.

    Raises:
        UserError: What it is and what to do instead.
    """
    expected = f"{argument}: expected a function of model and batch"
    innermost = function.func if isinstance(function, functools.partial) else function
    name = getattr(innermost, "__name__", type(innermost).__name__)
    if isinstance(innermost, nn.modules.loss._Loss) or getattr(nn.functional, name, None) is innermost:
        raise UserError(f"{expected}, got {name}; {remedy}")
    if isinstance(function, type) or not callable(function):
        raise UserError(f"{expected}, got {name}; {remedy}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # a function without a signature, such as one written in C
        return
    try:
        signature.bind(None, None)
    except TypeError:
        raise UserError(f"{expected}, got {name}{signature}; {remedy}") from None
