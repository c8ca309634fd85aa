"""Every module of the two libraries has a test module; studies stand apart; functions take few arguments."""

import ast

import pytest
from helpers import ROOT

# A package's __init__ holds imports alone.
WITHOUT_TESTS = {"__init__"}
MODULES = sorted(path for package in ("estimators", "pruning_limits") for path in (ROOT / package).rglob("*.py"))


def homes(module):
    """Names that its test module may have: its own, and in a package within a package also that of the package."""
    *folders, name = module.relative_to(ROOT).with_suffix("").parts[1:]
    own = "_".join([*folders, name.strip("_")])
    return [ROOT / "tests" / f"test_{stem}.py" for stem in ([own, *folders] if folders else [own])]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_it_has_a_test_module(module):
    if module.stem in WITHOUT_TESTS:
        assert not [line for line in module.read_text().splitlines() if line.startswith(("def ", "class "))]
        return
    assert any(home.exists() for home in homes(module))


def test_there_are_modules():
    assert len(MODULES) > 60


# ------------------------------------------------------------------------------------------- studies stand apart

STUDIES = ("koopman", "limits", "lottery")
MOST_ARGUMENTS = 6
VALIDATION = sorted((ROOT / "validation").rglob("*.py"))


def imported(path):
    """Names of the modules that a file imports anywhere, and of what it imports from them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def studies_of(path):
    """Names of the studies that a file imports from."""
    names = [name.split(".") for name in imported(path)]
    return {parts[2] for parts in names if parts[:2] == ["validation", "studies"] and len(parts) > 2}


def test_every_study_is_known():
    folders = (ROOT / "validation" / "studies").iterdir()
    assert sorted(folder.name for folder in folders if (folder / "__init__.py").exists()) == list(STUDIES)


@pytest.mark.parametrize("path", VALIDATION, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_study_is_known_outside_of_its_folder(path):
    """The two side studies may build on the study of limits, and nothing else on any."""
    folders = path.relative_to(ROOT).parts[1:-1]
    own = folders[1] if folders[:1] == ("studies",) and len(folders) > 1 else None
    assert studies_of(path) <= (set() if own is None else {own, "limits"})


def test_the_side_studies_build_on_the_study_of_limits():
    """The test above would see what it looks for."""
    folders = {path.parent.name: set() for path in VALIDATION}
    for path in VALIDATION:
        folders[path.parent.name] |= studies_of(path)
    assert folders["koopman"] == {"koopman", "limits"}
    assert folders["lottery"] == {"lottery", "limits"}
    assert folders["limits"] == {"limits"}


def arguments(function):
    """Names of the arguments of a function, without the one that a method is bound to."""
    every = function.args
    names = [argument.arg for argument in (*every.posonlyargs, *every.args, *every.kwonlyargs)]
    names += [argument.arg for argument in (every.vararg, every.kwarg) if argument is not None]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


@pytest.mark.parametrize("path", VALIDATION, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_takes_many_arguments(path):
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    assert not [node.name for node in functions if len(arguments(node)) > MOST_ARGUMENTS]


def test_arguments_of_every_kind_count():
    (function,) = ast.parse("def f(self, a, /, b, *c, d, **e): ...").body
    assert arguments(function) == ["a", "b", "d", "c", "e"]
