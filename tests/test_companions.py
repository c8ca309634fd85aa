"""A file of the user that bears the name of one of the packages is named, and nothing of it runs."""

import pytest
from helpers import python

from pruning_limits.companions import refuse_foreign

FOREIGN = "raise SystemExit('foreign code ran')\n"
FORMS = ["{}.py", "{}/__init__.py"]


@pytest.mark.parametrize("form", FORMS)
def test_a_foreign_estimators_beside_the_script_is_named(form, tmp_path):
    file = tmp_path / form.format("estimators")
    file.parent.mkdir(exist_ok=True)
    file.write_text(FOREIGN)
    script = tmp_path / "script.py"
    script.write_text("import pruning_limits\n")
    result = python(script, folder=tmp_path)
    last = result.stderr.splitlines()[-1]
    assert result.returncode == 1
    assert last.startswith("ImportError: pruning_limits needs its own package 'estimators' in ")
    assert last.endswith(f"but Python finds {file} first; rename or move that")
    assert result.stdout == ""


def test_a_foreign_module_that_was_imported_before_is_named(tmp_path):
    (tmp_path / "estimators.py").write_text("mean = sum\n")
    result = python("-c", "import estimators, pruning_limits", folder=tmp_path)
    assert f"but Python finds {tmp_path / 'estimators.py'} first" in result.stderr.splitlines()[-1]


def test_a_folder_without_modules_is_no_obstacle(tmp_path):
    (tmp_path / "estimators").mkdir()
    result = python("-c", "import pruning_limits", folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


def test_an_absent_package_is_named():
    with pytest.raises(ImportError, match="'packages_of_no_one' is not installed beside pruning_limits; install"):
        refuse_foreign("packages_of_no_one")


def test_own_packages_pass():
    refuse_foreign("estimators")
    refuse_foreign("validation")
