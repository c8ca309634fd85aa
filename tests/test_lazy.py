"""Packages whose names are imported when they are asked for."""

import importlib
import sys
from types import ModuleType

import pytest

import estimators
import pruning_limits


@pytest.mark.parametrize("package", [estimators, pruning_limits])
def test_public_names_are_those_of_their_modules(package):
    for name in package.__all__:
        value = getattr(package, name)
        assert not isinstance(value, ModuleType)
        assert value.__module__.partition(".")[0] in ("estimators", "pruning_limits")
        assert name in dir(package)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_a_function_hides_the_module_of_its_name():
    importlib.import_module("estimators.lanczos")
    importlib.import_module("estimators.eigenpairs")
    assert estimators.lanczos is sys.modules["estimators.lanczos"].lanczos
    assert estimators.eigenpairs is sys.modules["estimators.eigenpairs"].eigenpairs
