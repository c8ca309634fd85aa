"""Packages that import a public name at its first use, so that a part of a package starts without the rest."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """A package that finds its public names in its modules (PEP 562).

    A module of the same name as one of them, such as ``lanczos``, is not bound: the name stands for the function.
    """

    _homes: dict[str, str]

    def __getattr__(self, name: str) -> Any:
        if name not in self._homes:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(import_module(self._homes[name]), name)
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in self._homes and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._homes})


def import_later(package: str, names: Mapping[str, str]) -> None:
    """Let a package import public names when they are first asked for.

    Args:
        package: Name of the package, called from its ``__init__``.
        names: Public names, separated by spaces, by the module that defines them.

    Example:
        >>> import estimators
        >>> estimators.spectral_measure.__module__
        'estimators.spectrum'
    """
    module = sys.modules[package]
    module.__dict__["_homes"] = {name: home for home, words in names.items() for name in words.split()}
    module.__class__ = _Package
