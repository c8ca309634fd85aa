"""Every module has a test module; studies stand apart; functions take few arguments; variables have telling names."""

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


# ------------------------------------------------------------------------------------------------ names of variables

# These say nothing of what they hold.
VAGUE = {"data2", "found", "it", "one", "res", "seen", "stuff", "thing", "tmp"}
FOLDERS = ("benchmarks", "docs", "estimators", "pruning_limits", "tests", "validation")
GENERATED = (ROOT / "docs" / "_build", ROOT / "docs" / "examples", ROOT / "docs" / "gallery" / "runs")
FILES = sorted(
    path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if not set(GENERATED) & set(path.parents)
)


def variables(text):
    """Every name that a program binds to a value, with its line: variables, parameters, attributes, aliases."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case (
                ast.Name(id=name, ctx=ast.Store())
                | ast.Attribute(attr=name, ctx=ast.Store())
                | ast.arg(arg=name)
                | ast.alias(asname=name)
                | ast.ExceptHandler(name=name)
                | ast.MatchAs(name=name)
                | ast.MatchStar(name=name)
                | ast.MatchMapping(rest=name)
            ):
                yield node.lineno, name


def test_variables_are_named_after_what_they_hold():
    vague = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in FILES
        for line, name in variables(path.read_text())
        if name in VAGUE
    ]
    assert not vague, "name these variables after what they hold: " + ", ".join(vague)


BINDINGS = """
import a as b
c = d
for e, (f, *g) in h: ...
[i for j in k if (l := j)]
lambda m=n: o
def p(q, /, r: s, *t, u=v, **w): ...
try: ...
except x as y: ...
with z as aa: ab.ac = ad
match ae:
    case [af, *ag] | {"ah": af, **ag}: ...
"""


def test_every_kind_of_variable_counts():
    bound = " ".join(sorted(name for _, name in variables(BINDINGS) if name))
    assert bound == "aa ac af af ag ag b c e f g j l m q r t u w y"
    assert [line for line, name in variables("one = 1\n\ntwo = 2") if name == "two"] == [3]
    assert len(FILES) > 500
