"""Refuse reentrant activation checkpointing, which ``torch.autograd.grad`` cannot differentiate."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointFunction

from estimators.errors import UserError
from estimators.substitution.mode import forms_added

_set_grad_enabled = torch._C._set_grad_enabled
FRAMES = 8


def no_reentrant_checkpoints() -> AbstractContextManager[None]:
    """Return a context that refuses reentrant checkpoints where gradients are recorded; use it in a substitution.

    A reentrant checkpoint turns gradients off while it calls the model's layers, and that call is seen. Its node in
    the graph would tell less: there is none where its inputs need no gradient, and the weights' is lost.
    """
    return forms_added({_set_grad_enabled: _switched}) if torch.is_grad_enabled() else nullcontext()


def _switched(*args: Any, **kwargs: Any) -> Any:
    frame: FrameType | None = sys._getframe()
    for _ in range(FRAMES):
        frame = frame and frame.f_back
        if frame and frame.f_code is CheckpointFunction.forward.__code__:
            raise UserError(
                "model: activation checkpointing with use_reentrant=True cannot be differentiated twice; "
                "call torch.utils.checkpoint.checkpoint with use_reentrant=False"
            )
    return _set_grad_enabled(*args, **kwargs)
