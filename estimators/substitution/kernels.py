"""Forms of torch's functions that can be differentiated twice, and the table of all substituted forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from estimators.substitution.convolution import CONVOLUTIONS, autocast_type


def aliases(name: str) -> list[Any]:
    """Return the functions of torch of that name that take the same arguments as the one of its C++ library."""
    places = (torch, torch._C._nn, torch.ops.aten)
    functions = [getattr(place, name) for place in places if hasattr(place, name)]
    return functions + [operator.default for operator in functions if hasattr(operator, "default")]


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """Compute ``torch.nn.functional.hardsigmoid``, whose second derivative PyTorch lacks."""
    if not input.is_floating_point():  # torch refuses it
        return functional.hardsigmoid(input, inplace)
    value = functional.relu6(input + 3) / 6
    return input.copy_(value) if inplace else value


def _hardsigmoid(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    return hardsigmoid(input) if out is None else torch._C._nn.hardsigmoid(input, out=out)


def _hardsigmoid_(input: Tensor) -> Tensor:
    return hardsigmoid(input, inplace=True)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Compute ``torch.nn.functional.batch_norm``, with running statistics as an affine map."""
    if training or running_mean is None or running_var is None or not _fit(input, running_var, eps):
        return functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    scale = torch.rsqrt(running_var + eps)
    if weight is not None:
        scale = scale * weight
    shift = -running_mean * scale
    if bias is not None:
        shift = shift + bias
    place = (-1, *[1] * (input.dim() - 2))
    return torch.addcmul(shift.view(place), input, scale.view(place))


def _fit(input: Tensor, variance: Tensor, eps: float) -> bool:
    same = variance.dtype == input.dtype and eps >= 0
    return same and input.dim() > 1 and variance.shape == input.shape[1:2]


def _batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    return batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """Compute ``torch.nn.functional.scaled_dot_product_attention`` in its plain form; the fused ones bend but once."""
    kind = autocast_type(query.device)
    if kind is not None and query.dtype != torch.float64:
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(kind)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        hidden = attn_mask.logical_not()
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(hidden, float("-inf"))
    with torch.autocast(query.device.type, enabled=False):
        mixed: Tensor = _plain_attention(query, key, value, attn_mask, dropout_p, is_causal, **options)[0]
    return mixed


def dense(native: Callable[..., Tensor], position: int) -> Callable[..., Tensor]:
    """Return an embedding whose gradients are dense, since sparse ones have no second derivative.

    Args:
        native: Torch's own function.
        position: Position of its argument ``sparse``.
    """

    def embedded(*args: Any, **kwargs: Any) -> Tensor:
        if len(args) > position:
            args = (*args[:position], False, *args[position + 1 :])
        elif "sparse" in kwargs:
            kwargs["sparse"] = False
        return native(*args, **kwargs)

    return embedded


def _written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute attention for versions of torch that do not offer its plain form."""
    if enable_gqa:
        key, value = (heads.repeat_interleave(query.shape[-3] // heads.shape[-3], -3) for heads in (key, value))
    if is_causal:
        later = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).triu(1)
        mask = torch.zeros_like(later, dtype=query.dtype).masked_fill_(later, float("-inf"))
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    shares = torch.softmax(scores if mask is None else scores + mask, -1)
    return functional.dropout(shares, dropout_p) @ value, shares


_plain_attention: Callable[..., Any] = getattr(torch, "_scaled_dot_product_attention_math", _written_out)

ATTENTION: dict[Any, Callable[..., Any]] = dict.fromkeys(aliases("scaled_dot_product_attention"), attention)
FORMS: dict[Any, Callable[..., Any]] = {
    functional.hardsigmoid: hardsigmoid,
    functional.batch_norm: batch_norm,
    functional.embedding: dense(functional.embedding, 6),
    functional.embedding_bag: dense(functional.embedding_bag, 7),
    **dict.fromkeys(aliases("hardsigmoid"), _hardsigmoid),
    **dict.fromkeys(aliases("hardsigmoid_"), _hardsigmoid_),
    **dict.fromkeys(aliases("batch_norm"), _batch_norm),
    **{native: dense(native, 4) for native in aliases("embedding")},
    **{native: dense(native, 5) for native in aliases("embedding_bag")},
    **{native: form for name, form in CONVOLUTIONS.items() for native in aliases(name)},
}
