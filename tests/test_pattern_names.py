import subprocess
import sys

import pytest

from estimators import UserError
from pruning_limits.pattern_names import Pattern, parsed, pattern_names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("unstructured", Pattern("unstructured", "unstructured")),
        ("2:4", Pattern("2:4", "n:m", (2, 4))),
        ("1:16", Pattern("1:16", "n:m", (1, 16))),
        ("blocks:16x1", Pattern("blocks:16x1", "blocks", (16, 1))),
        ("channels", Pattern("channels", "channels")),
        ("heads", Pattern("heads", "heads")),
    ],
)
def test_names(name, expected):
    assert parsed(name) == expected
    assert parsed(name).fixed is (expected.kind == "n:m")


@pytest.mark.parametrize(
    "name",
    ["", "2", "2:", "4:2", "2:2", "0:4", "02:4", "2:5000", "blocks", "blocks:0x1", "blocks:16", "rows", None, 24],
)
def test_other_names_are_refused_in_one_line(name):
    with pytest.raises(UserError, match=r"^pattern: expected ") as caught:
        parsed(name)
    assert "\n" not in str(caught.value)
    assert repr(name) in str(caught.value)


def test_several_names():
    assert pattern_names("2:4") == ("2:4",)
    assert pattern_names(["heads", "2:4", "heads"]) == ("heads", "2:4")
    for wrong in ([], (), None, 3, ["2:4", "x"]):
        with pytest.raises(UserError, match=r"^pattern: expected "):
            pattern_names(wrong)


def test_names_are_read_without_torch():
    code = (
        "import sys, pruning_limits.pattern_names, pruning_limits.pattern_evidence; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
