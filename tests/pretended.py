"""A pretended device: tensors that say that they lie on an accelerator, and refuse to meet those of the CPU.

Values are those of the CPU, so a computation on the pretended device gives the same bits as one there. What a GPU would
refuse is refused: operations on tensors of both devices, and NumPy's view of a tensor that is not on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from helpers import OLD_TORCH
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

KIND = "lazy"
DEVICE = torch.device(KIND, 0)
BETWEEN_DEVICES = {torch.ops.aten._to_copy.default}
INDEXING = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
}


class Pretended(Tensor):
    """A tensor of the pretended device, around one of the CPU."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> Pretended:
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"Pretended({self.inner!r})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *rest: Any) -> Pretended:
        return Pretended(inner["inner"])

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, dtype=self.dtype).to(DEVICE)

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(call, args, kwargs or {})


def dispatched(call: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU and put its results where they belong."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, Pretended) for tensor in tensors)
    asked = kwargs.get("device")
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu") if torch.device(asked).type == KIND else asked}
        there = torch.device(asked).type == KIND
    elif call is torch.ops.aten.copy_.default:
        there = isinstance(args[0], Pretended)
    elif call not in BETWEEN_DEVICES and there:
        met = [args[0]] if call in INDEXING else tensors  # indices may lie on the CPU
        strange = [tensor for tensor in met if tensor.dim() and not isinstance(tensor, Pretended)]
        if strange:
            raise RuntimeError(f"{call}: expected all tensors on {DEVICE}, got one of {strange[0].shape} on the CPU")
    inner_args, inner_kwargs = tree_map_only(Pretended, lambda tensor: tensor.inner, (args, kwargs))
    result = call(*inner_args, **inner_kwargs)
    if not there:
        return result
    wrapped = tree_map(lambda leaf: Pretended(leaf) if isinstance(leaf, Tensor) else leaf, result)
    if torch.is_inference_mode_enabled():  # there are no versions to keep there
        return args[0] if call._schema.is_mutable else wrapped
    return return_and_correct_aliasing(call, args, kwargs, wrapped)


class Pretending(TorchDispatchMode):
    """What makes tensors of the pretended device where they are asked for."""

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(call, args, kwargs or {})


@contextmanager
def pretending() -> Iterator[torch.device]:
    """Have a pretended device within the block; its kind stays known afterwards, and nothing else changes."""
    if OLD_TORCH:
        pytest.skip("this torch moves no module to a pretended device")
    made = torch.tensor

    def tensor(values: Any, *, device: Any = None, **options: Any) -> Tensor:
        """Make a tensor as a copy of one of the CPU: torch itself would look for the kind of device below all modes."""
        return made(values, **options) if device is None else made(values, **options).to(device)

    with Pretending(), mock.patch.object(torch, "tensor", tensor):
        yield DEVICE
