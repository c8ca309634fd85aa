"""The mode that runs torch's functions in other forms, only in the thread that entered it."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

from estimators.substitution.kernels import ATTENTION, FORMS
from estimators.substitution.switches import without_compilers, without_cudnn

Forms = Mapping[Any, Callable[..., Any]]
COMPOSITE = ("torch.nn.functional", "torch.autograd")
QUESTIONS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


@contextmanager
def substituted_functions(model: nn.Module, twice: bool = True) -> Iterator[None]:
    """Let this thread run torch's functions in forms that have second derivatives, and let values not depend on graphs.

    Attention takes its plain form, also in ``nn.TransformerEncoderLayer``; ``hardsigmoid`` is put together from
    functions that torch differentiates twice; ``batch_norm`` with running statistics is the affine map that it is,
    whose second derivative costs a fraction of that of the general function; convolutions compute of their second
    derivative what is asked for only; embeddings have dense gradients. Recurrent layers on a GPU do without cuDNN,
    whose kernels cannot be differentiated in evaluation mode, and what ``torch.compile`` compiled runs as it was
    written.

    Args:
        model: The model that is called inside; it is not changed.
        twice: Whether what is computed inside will be differentiated twice. Otherwise attention runs on torch's fast
            kernels, which have first derivatives only.
    """
    with without_cudnn(model), without_compilers(model), forms_added(FORMS | ATTENTION if twice else FORMS):
        yield


@contextmanager
def forms_added(forms: Forms) -> Iterator[None]:
    """Add forms to those that this thread has already, for a while.

    Args:
        forms: What is called instead of each of torch's functions, by function.
    """
    shared = next((mode for mode in substitutions() if mode.shared), None)
    if shared is not None:
        before = shared.forms
        try:
            shared.forms = {**before, **forms}
            yield
        finally:
            shared.forms = before
        return
    count = len(substitutions())
    try:
        with Substitution(forms, shared=True):
            yield
    except KeyboardInterrupt as error:
        end_generators(error)
        raise
    finally:
        leave(count)


class Substitution(TorchFunctionMode):
    """Calls other functions instead of torch's.

    Torch takes a mode away while it handles a function, so that a form may call the function that it stands for. What
    torch wrote in Python calls others of torch's functions, or the model: such functions run with the mode on.

    Args:
        forms: What is called instead of each of torch's functions, by function.
        shared: Whether ``forms_added`` may add to the forms.
    """

    def __init__(self, forms: Forms, shared: bool = False) -> None:
        super().__init__()
        self.forms: dict[Any, Callable[..., Any]] = {**forms, substitutions: lambda: (self, *substitutions())}
        self.shared = shared

    def __exit__(self, kind: Any, error: Any, where: Any) -> None:
        """End the substitution; Ctrl-C may have come while torch had taken it away."""
        if kind is None or self in substitutions():
            super().__exit__(kind, error, where)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the form of a function, or the function itself where it has none."""
        form = self.forms.get(function)
        if form is None:
            if type(function) is FunctionType and (composite := _composite(function)):
                with self:
                    return composite(*args, **(kwargs or {}))
            form = function
        return form(*args, **kwargs) if kwargs else form(*args)


def substitutions() -> tuple[Substitution, ...]:
    """Return the substitutions that are on in this thread, the innermost first."""
    modes: tuple[Substitution, ...] = handle_torch_function(substitutions, ()) if has_torch_function_unary(None) else ()
    return modes


def leave(count: int) -> None:
    """End the substitutions that Ctrl-C kept from ending.

    Args:
        count: How many substitutions this thread keeps.
    """
    while len(modes := substitutions()) > count:
        modes[0].__exit__(None, None, None)


def end_generators(error: BaseException | None) -> None:
    """Let contexts that Ctrl-C kept from ending do so now instead of when its traceback is forgotten.

    Where it stops a context between its beginning and the block that it is for, only the frames of the traceback hold
    it: their variables are cleared, so that it ends. Torch itself takes a mode away in such a context.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _composite(function: FunctionType) -> Callable[..., Any] | None:
    """Return what computes the same with the mode on, None for functions that need none."""
    known = function.__module__ in COMPOSITE or function is Tensor.backward
    return _unasking(function) if known else None


@functools.cache
def _unasking(function: FunctionType) -> Callable[..., Any] | None:
    """Return a copy of one of torch's functions that does not ask for modes, which would call it without end."""
    names = [name for name in QUESTIONS if name in function.__code__.co_names and name in function.__globals__]
    if not names:  # it asks elsewhere, if at all
        return None
    changed = {**function.__globals__, **dict.fromkeys(names, _never)}
    copy = FunctionType(function.__code__, changed, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _never(*arguments: Any) -> bool:
    return False
