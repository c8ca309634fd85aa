"""``python -m pruning_limits`` is the command, and says so where another package stands in its way."""

import pytest
from helpers import python


def test_the_module_is_the_command(tmp_path):
    result = python("-m", "pruning_limits", "check", "--help", folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "check" in result.stdout.splitlines()[0]


@pytest.mark.parametrize("form", ["validation.py", "validation/__init__.py"])
def test_a_foreign_validation_is_named_in_one_line(form, tmp_path):
    file = tmp_path / form
    file.parent.mkdir(exist_ok=True)
    file.write_text("raise SystemExit('foreign code ran')\n")
    result = python("-m", "pruning_limits", "--help", folder=tmp_path)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("Error: pruning_limits needs its own package 'validation' in ")
    assert f"but Python finds {file} first; rename or move that" in result.stderr
