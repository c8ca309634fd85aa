import subprocess
import sys

import pytest

from estimators import UserError
from pruning_limits.saving import Saving, saving_at, sparsity_within

ROWS = (
    Saving(0.0, 100, 1000.0, 400, 400, 800),
    Saving(0.5, 60, 500.0, 420, 400, 420),
    Saving(0.75, 40, 100.0, 220, 400, 220),
)


def test_linear_between_rows():
    assert saving_at(ROWS, 0.25) == Saving(0.25, 80, 750.0, 410, 400, 610)
    assert saving_at(ROWS, 0.75) == ROWS[-1]
    unknown = [Saving(row.sparsity, row.parameters, None, row.bytes, 1, 1) for row in ROWS]
    assert saving_at(unknown, 0.25).macs is None


def test_a_budget_lies_between_two_rows():
    assert sparsity_within(ROWS, "macs", 0.6) == (0.0, 0.5)
    assert sparsity_within(ROWS, "macs", 0.1) == (0.5, 0.75)
    assert sparsity_within(ROWS, "parameters", 0.5) == (0.5, 0.75)
    assert sparsity_within(ROWS, "bytes", 0.99) == (0.5, 0.75)  # of the dense network's: compressed rows are larger


@pytest.mark.parametrize(
    ("quantity", "share", "text"),
    [
        ("macs", 0.05, r"^macs: the pattern leaves at least 0\.1000 .* got 0\.05; the nearest is macs=0\.1000$"),
        ("bytes", 0.5, r"^bytes: the pattern leaves at least 0\.5500 "),
        ("macs", 0.0, r"^macs: expected a number in \(0, 1\), the share that may remain, got 0\.0$"),
        ("macs", 1.0, r"^macs: expected a number in \(0, 1\)"),
    ],
)
def test_budgets_that_cannot_be_met_name_the_nearest(quantity, share, text):
    with pytest.raises(UserError, match=text):
        sparsity_within(ROWS, quantity, share)


def test_what_is_not_known_is_refused():
    with pytest.raises(UserError, match=r"^savings: nothing is known"):
        saving_at([], 0.5)
    with pytest.raises(UserError, match=r"^sparsity: expected 0 to 0\.7500, the most of the pattern, got 0\.8$"):
        saving_at(ROWS, 0.8)
    unknown = [Saving(0.0, 1, None, 1, 1, 1), Saving(1.0, 0, None, 1, 1, 1)]
    with pytest.raises(UserError, match=r"^macs: not known of every prunable layer"):
        sparsity_within(unknown, "macs", 0.5)


def test_it_is_read_without_torch():
    code = "import sys, pruning_limits.saving, pruning_limits.resource_budget; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
