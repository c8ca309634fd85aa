"""Torch's operations in those of their forms that can be differentiated twice."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from estimators.convolution import convolution

REPLACED = ("hardsigmoid", "batch_norm", "conv1d", "conv2d", "conv3d")


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Let a model run with the kernels that have second derivatives, and give equal values with and without a graph.

    Attention takes its plain form, also in ``nn.TransformerEncoderLayer``; recurrent layers do without cuDNN, whose
    kernels cannot be differentiated in evaluation mode; what ``torch.compile`` compiled runs as it was written;
    ``hardsigmoid`` is put together from functions that torch differentiates twice; ``batch_norm`` with running
    statistics is the affine map that it is, whose second derivative costs a fraction of that of the general function;
    and convolutions compute of their second derivative what is asked for only.

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
        forms = (
            _hardsigmoid,
            _affine(functional.batch_norm),
            convolution(functional.conv1d, 1),
            convolution(functional.conv2d, 2),
            convolution(functional.conv3d, 3),
        )
        for name, form in zip(REPLACED, forms, strict=True):
            stack.callback(setattr, functional, name, getattr(functional, name))
            setattr(functional, name, form)
        yield


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return functional.relu6(input + 3) / 6


def _affine(native: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def normalised(
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if training or running_mean is None or running_var is None or running_var.dtype != input.dtype:
            return native(input, running_mean, running_var, weight, bias, training, momentum, eps)
        scale = torch.rsqrt(running_var + eps)
        if weight is not None:
            scale = scale * weight
        shift = -running_mean * scale
        if bias is not None:
            shift = shift + bias
        place = (-1, *[1] * (input.dim() - 2))
        return torch.addcmul(shift.view(place), input, scale.view(place))

    return normalised
