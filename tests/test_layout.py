"""Every module of the two libraries has a test module of its name."""

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
