"""Torch's operations in those of their forms that can be differentiated twice."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Let a model run with the kernels that have second derivatives, and give equal values with and without a graph.

    Attention takes its plain form, also in ``nn.TransformerEncoderLayer``; recurrent layers do without cuDNN, whose
    kernels cannot be differentiated in evaluation mode; what ``torch.compile`` compiled runs as it was written; and
    ``hardsigmoid`` is put together from functions that torch differentiates twice.

    Args:
        model: The model that is called inside; it is not changed.
    """
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        fast = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.callback(setattr, torch.backends.cudnn, "enabled", torch.backends.cudnn.enabled)
            torch.backends.cudnn.enabled = False
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_Substitutes())
        yield


class _Substitutes(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is functional.hardsigmoid:
            return functional.relu6(args[0] + 3) / 6
        return function(*args, **(kwargs or {}))
