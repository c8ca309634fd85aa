"""Functions of the user, named on the command line and called with named arguments only."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from estimators.errors import UserError


def parsed_arguments(pairs: Iterable[str]) -> dict[str, Any]:
    """Parse ``key=value`` pairs; a value is a Python literal where it can be read as one, else text.

    Args:
        pairs: What was given, one entry for each use of the option.

    Returns:
        Values by name.

    Raises:
        UserError: An entry is no such pair, or a name occurs twice.

    Example:
        >>> parsed_arguments(["width=64", "shape=(1, 8, 8)", "activation=gelu"])
        {'width': 64, 'shape': (1, 8, 8), 'activation': 'gelu'}
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"expected key=value, got {pair!r}")
        if name in values:
            raise UserError(f"{name} is given twice")
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            values[name] = text
    return values


def resolve(option: str, reference: str) -> Callable[..., Any]:
    """Import the function that a reference names, with the current directory on the path as ``python -m`` has it.

    Args:
        option: Name of the option, for messages.
        reference: ``path.py:function`` or ``package.module:function``.

    Returns:
        The function, or a class.

    Raises:
        UserError: The reference is of another form, the module cannot be imported, or it has no such function.
    """
    place, colon, attribute = reference.rpartition(":")
    if not colon or not place or not attribute.isidentifier():
        raise UserError(f"{option}: expected path.py:function or package.module:function, got {reference!r}")
    _put_on_path(Path.cwd())
    try:
        module = _module_of(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except UserError as error:
        raise UserError(f"{option}: {error}") from None
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        raise UserError(f"{option}: cannot import {reference!r}: {_in_one_line(error)}") from error
    function = getattr(module, attribute, None)
    if function is None:
        defined = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        there = f"; it defines {', '.join(defined[:8])}" if defined else ""
        raise UserError(f"{option}: cannot import {reference!r}: {place} has no {attribute}{there}")
    if not callable(function) or isinstance(function, ModuleType):
        raise UserError(f"{option}: {reference!r} is of type {type(function).__name__}, expected a function")
    result: Callable[..., Any] = function
    return result


def call(
    option: str,
    reference: str,
    function: Callable[..., Any],
    given: Mapping[str, Any],
    offered: Mapping[str, Any] | None = None,
) -> Any:
    """Call a function of the user with named arguments.

    Args:
        option: Name of the option, for messages; its arguments are given by ``--OPTION-arg``.
        reference: Name of the function, for messages.
        function: The function.
        given: Arguments that the user gave.
        offered: Arguments that are passed only to parameters of exactly these names, where the user gave none.

    Returns:
        What the function returns.

    Raises:
        UserError: It takes no such arguments, needs others, or raises.
    """
    arguments = dict(given)
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError):  # written in C, so that its parameters are not known
        parameters = None
    if parameters is not None:
        named = {
            name: parameter
            for name, parameter in parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        }
        takes = f"it takes {', '.join(named)}" if named else "it takes none"
        unknown = [name for name in given if name not in named]
        if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            raise UserError(f"{option}: {reference!r} takes no argument {unknown[0]}; {takes}")
        arguments = {name: value for name, value in (offered or {}).items() if name in named} | arguments
        for name, parameter in parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if parameter.default is parameter.empty and name not in arguments:
                raise UserError(f"{option}: {reference!r} needs the argument {name}; give --{option}-arg {name}=VALUE")
    try:
        return function(**arguments)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise UserError(f"{option}: {reference!r} failed: {_in_one_line(error)}") from error


def _put_on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _module_of(path: Path) -> ModuleType:
    """Import a file once, under its own name where that is free, with its folder on the path."""
    path = path.resolve()
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    _put_on_path(path.parent)
    name = path.stem
    while name in sys.modules:
        if getattr(sys.modules[name], "__file__", None) == str(path):
            return sys.modules[name]
        name = f"_{name}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _in_one_line(error: BaseException) -> str:
    reason = str(error).strip().splitlines()
    return f"{type(error).__name__}: {reason[0]}" if reason else type(error).__name__
