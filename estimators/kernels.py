"""Torch's operations in those of their forms that can be differentiated twice."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel


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
        stack.callback(setattr, functional, "hardsigmoid", functional.hardsigmoid)
        functional.hardsigmoid = _hardsigmoid
        yield


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return functional.relu6(input + 3) / 6
