"""Generators of a thread's own in the place of those of the process, also where these are seeded or read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from estimators.substitution.mode import Forms, Substitution, substitutions
from estimators.substitution.switches import Switch


class OwnGenerators(Substitution):
    """Context in which this thread has generators of its own, which go on where it is entered again.

    Args:
        forms: What is called instead of each of torch's functions, by function.
        seed: Where the generators begin; None begins with the state of the process, which stays as it is.
    """

    def __init__(self, forms: Forms, seed: int | None = None) -> None:
        super().__init__(forms)
        self.seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}
        self.generator(torch.device("cpu"))

    def generator(self, device: torch.device) -> torch.Generator:
        """Return this thread's generator on a device."""
        if device not in self._generators:
            own = torch.Generator(device)
            if self.seed is not None:
                own.manual_seed(self.seed)
            elif device.type in ("cpu", "cuda"):
                own.set_state(process_generator(device).get_state())
            self._generators[device] = own
        return self._generators[device]

    def own(self, argument: Any) -> Any:
        """Return an argument of the caller's, or this thread's generator in the place of one of the process."""
        if isinstance(argument, torch.Generator) and argument.device.type in ("cpu", "cuda"):
            return self.generator(argument.device) if argument is process_generator(argument.device) else argument
        return argument


class ThreadGenerator:
    """A generator of the process, or in threads that have generators of their own the one on the same device.

    Args:
        process: The generator of the process.

    Example:
        >>> process = torch.Generator().manual_seed(1)
        >>> generator = ThreadGenerator(process)
        >>> with OwnGenerators({}, seed=2):
        ...     generator.initial_seed()
        2
        >>> generator.initial_seed()
        1
    """

    def __init__(self, process: torch.Generator) -> None:
        self._process = process

    def __getattr__(self, name: str) -> Any:
        return getattr(_of_thread(self._process), name)


class ThreadGenerators(tuple[torch.Generator, ...]):
    """The generators of the process by number of their device, each that of the thread which takes it out."""

    def __getitem__(self, number: Any) -> Any:
        return _of_thread(super().__getitem__(number))


def process_generator(device: torch.device) -> torch.Generator:
    """Return the generator of the process on a device, the CPU or one with CUDA."""
    if device.type == "cpu":
        return torch.default_generator
    torch.cuda.init()  # type: ignore[no-untyped-call]
    return tuple.__getitem__(torch.cuda.default_generators, device.index or 0)


def _of_thread(process: torch.Generator) -> torch.Generator:
    own = next((mode for mode in substitutions() if isinstance(mode, OwnGenerators)), None)
    return process if own is None else own.generator(process.device)


def _share() -> Callable[[], None]:
    """Let torch's functions that seed, read or write the generators of the process take those of their thread."""
    cpu: Any = torch.random
    cuda: Any = torch.cuda
    process, gpus = cpu.default_generator, cuda.default_generators
    own = ThreadGenerators(gpus)
    cpu.default_generator = ThreadGenerator(process)
    if gpus:
        cuda.default_generators = own

    def back() -> None:
        cpu.default_generator = process
        if cuda.default_generators is own:  # CUDA may have begun meanwhile
            cuda.default_generators = gpus

    return back


GENERATORS = Switch(_share)
