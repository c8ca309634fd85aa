"""Random numbers from generators of one thread, in place of the global generators of torch."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from estimators.substitution.generators import OwnGenerators, process_generator
from estimators.substitution.kernels import aliases
from estimators.substitution.switches import Switch

TAKING = (
    *(torch.bernoulli, torch.binomial, torch.multinomial, torch.normal, torch.poisson),
    *(torch.rand, torch.randint, torch.randn, torch.randperm, torch._sample_dirichlet, torch._standard_gamma),
    *(Tensor.bernoulli, Tensor.bernoulli_, Tensor.cauchy_, Tensor.exponential_, Tensor.geometric_, Tensor.log_normal_),
    *(Tensor.multinomial, Tensor.normal_, Tensor.random_, Tensor.uniform_),
    *(nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_),
)
LIKE: dict[Any, Callable[..., Any]] = {
    torch.rand_like: Tensor.uniform_,
    torch.randn_like: Tensor.normal_,
    torch.randint_like: Tensor.random_,
}
RECURRENT = ("gru", "lstm", "rnn_relu", "rnn_tanh")
OTHERS = {  # position and name of the argument without which the function draws nothing
    "alpha_dropout": (2, "train"),
    "alpha_dropout_": (2, "train"),
    "feature_alpha_dropout": (2, "train"),
    "feature_alpha_dropout_": (2, "train"),
    "native_dropout": (2, "train"),
    "rrelu": (3, "training"),
    "rrelu_": (3, "training"),
    "rrelu_with_noise": (4, "training"),
    "rrelu_with_noise_": (4, "training"),
    "scaled_dot_product_attention": (4, "dropout_p"),
    "_scaled_dot_product_attention_math": (4, "dropout_p"),
}
POOLS = (functional.fractional_max_pool2d, functional.fractional_max_pool3d)
SWAPPING = threading.RLock()


def default_device() -> torch.device:
    """Return the device on which this thread makes tensors."""
    try:
        return torch.get_default_device()
    except AttributeError:  # torch 2.3 and 2.4, where a default device was set and taken back
        return torch.device("cpu")


def python_states() -> tuple[Any, Any]:
    """Return the states of the generators of Python and of NumPy, of which a process has one each."""
    return random.getstate(), np.random.get_state()  # noqa: NPY002


def put_python_states(states: tuple[Any, Any]) -> None:
    """Put the states of the generators of Python and of NumPy in place."""
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002


def _remember_python_states() -> Callable[[], None]:
    states = python_states()
    return lambda: put_python_states(states)


PYTHON_STATES = Switch(_remember_python_states)


class PrivateDraws(OwnGenerators):
    """Context in which this thread draws from generators of its own, which go on where it is entered again.

    Functions that take a generator are given one, and dropout is written out; the few others draw from the state of the
    process, which is exchanged for the moment of that one call. A generator that the caller gives is used, if it is not
    one of the process.

    Args:
        seed: Where the generators begin; None begins with the state of the process, which stays as it is.

    Example:
        >>> before = torch.get_rng_state()
        >>> with PrivateDraws(0):
        ...     first = torch.rand(2)
        >>> with PrivateDraws(0):
        ...     print(torch.equal(first, torch.rand(2)))
        True
        >>> torch.equal(before, torch.get_rng_state())
        True
    """

    def __init__(self, seed: int | None = None) -> None:
        forms: dict[Any, Callable[..., Any]] = {native: self._given(native) for native in TAKING}
        forms |= {native: self._like(fill) for native, fill in LIKE.items()}
        forms |= {
            native: self._swapped(native, _argument(*place))
            for name, place in OTHERS.items()
            for native in aliases(name)
        }
        forms |= {native: self._swapped(native, _between_layers) for name in RECURRENT for native in aliases(name)}
        forms |= {native: self._swapped(native, lambda args, kwargs: True) for native in POOLS}
        for name, in_place in (("dropout", False), ("dropout_", True)):
            forms |= {native: self._dropout(native, in_place, False) for native in aliases(name)}
            forms |= {native: self._dropout(native, in_place, True) for native in aliases(f"feature_{name}")}
        super().__init__(forms, seed)

    def _drawn_from(self, device: torch.device) -> torch.Generator | None:
        """Return this thread's generator on a device; None where there are no numbers to draw."""
        return None if device.type == "meta" else self.generator(device)

    def _given(self, native: Callable[..., Any]) -> Callable[..., Any]:
        def drawn(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = tuple(map(self.own, args)), {name: self.own(argument) for name, argument in kwargs.items()}
            if kwargs.get("generator") is None and not any(isinstance(argument, torch.Generator) for argument in args):
                kwargs["generator"] = self._drawn_from(_device(args, kwargs))
            return native(*args, **kwargs)

        return drawn

    def _like(self, fill: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def drawn(
            input: Tensor,
            *limits: int,
            generator: torch.Generator | None = None,
            requires_grad: bool = False,
            **how: Any,
        ) -> Tensor:
            limits = (*limits, *[how.pop(end) for end in ("low", "high") if end in how])
            with torch.no_grad():
                empty = torch.empty_like(input, **how)
                fill(empty, *limits, generator=self.own(generator) or self._drawn_from(_device((empty,), {})))
            return empty.requires_grad_(requires_grad)

        return drawn

    def _dropout(self, native: Callable[..., Tensor], in_place: bool, whole: bool) -> Callable[..., Tensor]:
        def dropped(input: Tensor, p: float = 0.5, train: bool = False) -> Tensor:
            if not train or not 0 < p < 1 or not input.numel() or (whole and input.dim() < 2):
                return native(input, p, train)
            kept = input.new_empty(*input.shape[:2], *[1] * (input.dim() - 2)) if whole else torch.empty_like(input)
            kept = kept.detach().bernoulli_(1 - p, generator=self._drawn_from(_device((input,), {}))).div_(1 - p)
            return input.mul_(kept) if in_place else input * kept

        return dropped

    def _swapped(self, native: Callable[..., Any], draws: Callable[..., Any]) -> Callable[..., Any]:
        def drawn(*args: Any, **kwargs: Any) -> Any:
            if not draws(args, kwargs) or (device := _device(args, kwargs)).type == "meta":
                return native(*args, **kwargs)
            with self._in_place(device):
                return native(*args, **kwargs)

        return drawn

    @contextmanager
    def _in_place(self, device: torch.device) -> Iterator[None]:
        """Let the process draw what this thread would, for one call."""
        own, process = self.generator(device), process_generator(device)
        with SWAPPING:
            before = process.get_state()
            try:
                process.set_state(own.get_state())
                yield
                own.set_state(process.get_state())
            finally:
                process.set_state(before)


def _argument(position: int, name: str) -> Callable[..., Any]:
    return lambda args, kwargs: args[position] if len(args) > position else kwargs.get(name)


def _between_layers(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether a recurrent network draws: its dropout, the one real number among the arguments, precedes a flag."""
    places = [number for number, argument in enumerate(args) if isinstance(argument, float)]
    return not places or bool(args[places[0]] and args[places[0] + 1])


def _device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    """Return the device that a call draws on."""
    given = kwargs.get("device")
    tensors = [argument for argument in (*args, *kwargs.values()) if isinstance(argument, Tensor)]
    device = torch.device(given) if given is not None else tensors[0].device if tensors else default_device()
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device
