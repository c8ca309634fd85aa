"""Convolutions whose second derivative computes only the requested parts, each with its own kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.nn import functional

Gradients = tuple[Tensor | None, Tensor | None]


def convolution(native: Callable[..., Tensor], dimensions: int) -> Callable[..., Tensor]:
    """Return a function like ``torch.nn.functional.conv1d``, ``conv2d`` or ``conv3d`` with a cheaper second derivative.

    PyTorch computes all three parts of the second derivative whichever are asked for, though a product with the GGN
    needs but one, and one of them as a convolution whose kernel is as large as the image.

    Args:
        native: PyTorch's own function, which keeps what this one does not take: single images without a batch, padding
            to an equal size that is not the same on both sides, numbers other than floating-point ones, and forward
            mode.
        dimensions: Number of dimensions of an image.

    Returns:
        The function, of the same values and the same derivatives.

    Example:
        >>> image, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
        >>> ours = convolution(torch.conv2d, 2)
        >>> torch.equal(ours(image, weight, padding=1), torch.conv2d(image, weight, padding=1))
        True
    """

    def convolved(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor:
        spread = _each(dilation, dimensions)
        around = _padding(padding, weight, spread)
        unsupported = around is None or input.dim() != dimensions + 2 or not input.is_floating_point()
        if unsupported or forward_ad._current_level >= 0:
            return native(input, weight, bias, stride, padding, dilation, groups)
        kind = autocast_type(input.device)
        if kind is not None and input.dtype != torch.float64:
            input, weight, bias = input.to(kind), weight.to(kind), None if bias is None else bias.to(kind)
        how = (_each(stride, dimensions), around, spread, False, (0,) * dimensions, groups)
        result: Tensor = _Convolution.apply(_node(input), _node(weight), bias, how)
        return result

    return convolved


def autocast_type(device: torch.device) -> torch.dtype | None:
    """Return the type that ``torch.autocast`` multiplies float32 tensors in, None where it is off."""
    nothing = torch.empty(0, 0, dtype=torch.float32, device=device)
    dtype = torch.mm(nothing, nothing).dtype
    return None if dtype == torch.float32 else dtype


def _each(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dimensions if len(values) == 1 else values


def _padding(padding: str | int | Sequence[int], weight: Tensor, dilation: Sequence[int]) -> tuple[int, ...] | None:
    """Return the zeros on each side of every dimension; None where the sides differ."""
    sizes = weight.shape[2:]
    if not isinstance(padding, str):
        return _each(padding, len(sizes))
    if padding == "valid":
        return (0,) * len(sizes)
    both = [spread * (size - 1) for spread, size in zip(dilation, sizes, strict=True)]
    return None if padding != "same" or any(total % 2 for total in both) else tuple(total // 2 for total in both)


def _gradients(slope: Tensor, input: Tensor, weight: Tensor, how: tuple[Any, ...], which: Sequence[bool]) -> Gradients:
    """Return the gradients with respect to the input and to the weight, those that are asked for."""
    turned = which[1] and len(slope) and _fewer_pixels_than_channels(slope, how)
    asked = which[0], which[1] and not turned, False
    gradients = (None, None, None)
    if any(asked):
        gradients = torch.ops.aten.convolution_backward(slope, input, weight, None, *how, asked)
    if turned:
        return gradients[0], torch.convolution(input.transpose(0, 1), slope.transpose(0, 1), None, *how).transpose(0, 1)
    return gradients[0], gradients[1]


def _zero(slope: Tensor) -> bool:
    """Tell whether a slope is zero, as where the GGN only builds the graph that its Jacobian is read from."""
    try:
        return not slope[:1].any() and not slope.any()
    except RuntimeError:  # of torch.vmap, inside which values are not known
        return False


def _fewer_pixels_than_channels(slope: Tensor, how: tuple[Any, ...]) -> bool:
    """Tell where the gradient of the weight is faster as a convolution of the inputs with the slopes."""
    stride, _, dilation, *_, groups = how
    return slope.shape[2:].numel() < slope.shape[1] and groups == 1 and {*stride, *dilation} == {1}


def _node(tensor: Tensor) -> Tensor:
    """Return the tensor with a node of its own in the graph, of which ``_asked`` can tell whether it will run."""
    return tensor.view_as(tensor)


def _asked(node: Any, count: int) -> list[bool]:
    """Tell which of a node's first derivatives the pass through the graph that is going on will use."""
    pairs = zip(node.needs_input_grad[:count], node.next_functions[:count], strict=True)
    return [needed and torch._C._will_engine_execute_node(before) for needed, (before, _) in pairs]


class _Convolution(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
        return torch.convolution(input, weight, bias, *how)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        input, weight, _, ctx.how = inputs
        ctx.save_for_backward(input, weight)

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        (slope,) = slopes
        by_input, by_weight = _asked(ctx, 2)
        gradients: Gradients = (None, None)
        if by_input or by_weight:
            gradients = _Backward.apply(_node(slope), *ctx.saved_tensors, ctx.how, (by_input, by_weight))
        return *gradients, slope.sum((0, *range(2, slope.dim()))) if ctx.needs_input_grad[2] else None, None


class _Backward(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(slope: Tensor, input: Tensor, weight: Tensor, how: tuple[Any, ...], which: Sequence[bool]) -> Gradients:
        if _zero(slope):
            return torch.zeros_like(input) if which[0] else None, torch.zeros_like(weight) if which[1] else None
        return _gradients(slope, input, weight, how, which)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        slope, input, weight, ctx.how, _ = inputs
        ctx.save_for_backward(slope, input, weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *along: Any) -> Any:
        (slope, input, weight), (by_input, by_weight) = ctx.saved_tensors, along
        asked, by_slope, inputs, weights = _asked(ctx, 3), None, None, None
        if asked[0] and by_input is not None:
            by_slope = torch.convolution(by_input, weight, None, *ctx.how)
        if asked[0] and by_weight is not None:
            part = torch.convolution(input, by_weight, None, *ctx.how)
            by_slope = part if by_slope is None else part.add_(by_slope)
        if asked[1] and by_weight is not None:
            inputs, _ = _gradients(slope, input, by_weight, ctx.how, (True, False))
        if asked[2] and by_input is not None:
            _, weights = _gradients(slope, by_input, weight, ctx.how, (False, True))
        return by_slope, inputs, weights, None, None


CONVOLUTIONS: dict[str, Callable[..., Tensor]] = {}
if hasattr(torch._C, "_will_engine_execute_node") and hasattr(forward_ad, "_current_level"):
    CONVOLUTIONS = {
        "conv1d": convolution(functional.conv1d, 1),
        "conv2d": convolution(functional.conv2d, 2),
        "conv3d": convolution(functional.conv3d, 3),
    }
