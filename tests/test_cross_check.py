"""The cross-check with other libraries: agreement, failures, and what the command prints."""

import importlib.util
import sys

import pytest
import torch
from click.testing import CliRunner
from helpers import CASES, Attention, BatchNormNet, Idle, classification, same, seeded, snapshot

from estimators import L2, Hessian, Objective, UserError
from validation import cli
from validation.cross_check import cross_check

QUANTITIES = ["norm of a product", "eigenvalue 1", "eigenvalue 2", "eigenvalue 3", "trace, 32 probes"]


@pytest.fixture
def libraries():
    for name in ("pyhessian", "curvlinops"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


def spectrum(*arguments, code=0):
    fast = ("--model", "fc5-mini", "--dataset", "digits", "--samples", "32", "--steps", "3", "--probes", "1")
    result = CliRunner().invoke(cli.main, ["spectrum", *fast, *arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


# --------------------------------------------------------------------------------------------------- agreement


AGREE = [(CASES["ragged"].build, (4,), kind) for kind in ("hessian", "ggn")]
AGREE += [(BatchNormNet, (1, 4, 4), kind) for kind in ("hessian", "ggn")]
AGREE += [(Attention, (3, 4), "hessian")]  # curvlinops has no GGN of attention


@pytest.mark.parametrize(("build", "shape", "kind"), AGREE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_all_quantities_agree(libraries, dtype, build, shape, kind):
    model = seeded(build).to(dtype).train()
    model(torch.ones(1, *shape, dtype=dtype)).sum().backward()
    before, precision = snapshot(model), torch.get_default_dtype()
    batches = [(x.to(dtype), y) for x, y in classification(*shape)()]
    rows, notes = cross_check(Objective(model, batches), kind)
    peers = ["PyHessian", "curvlinops"] if kind == "hessian" else ["curvlinops"]
    quantities = [*QUANTITIES[:-1], f"trace, {min(32, Objective(model, batches).dimension - 1)} probes"]
    assert [(row.library.split()[0], row.quantity) for row in rows] == [
        (peer, name) for peer in peers for name in quantities
    ]
    # power iteration does not separate the eigenvalues of these small networks, some of nearly equal absolute value
    firm = [row for row in rows if not (row.library.startswith("PyHessian") and "eigenvalue" in row.quantity)]
    assert [row for row in firm if not row.agrees] == []
    assert max(row.difference for row in rows if "product" in row.quantity) < (
        1e-12 if dtype == torch.float64 else 1e-5
    )
    hint = "PyHessian: its power iteration does not separate eigenvalues of nearly equal absolute value"
    told = [] if all(row.agrees for row in rows) else [hint]
    assert notes == (told if kind == "hessian" else ["PyHessian: has no Gauss-Newton matrix"])
    assert same(before, snapshot(model))
    assert torch.get_default_dtype() == precision


def test_a_wrong_product_is_found(libraries, monkeypatch):
    original = Hessian._differentiate

    def scaled(self, forward):
        product = original(self, forward)
        return lambda vector, again: [1.1 * part for part in product(vector, again)]

    monkeypatch.setattr(Hessian, "_differentiate", scaled)
    case = CASES["ragged"]
    rows, _ = cross_check(Objective(case.model(), case.loader()))
    assert not any(row.agrees for row in rows if "product" in row.quantity or "eigenvalue" in row.quantity)


def test_a_library_that_fails_is_a_note(libraries):
    model, batches = seeded(Idle), classification(3, classes=2)()
    rows, notes = cross_check(Objective(model, batches))
    failing = ["PyHessian", "curvlinops"] if torch.__version__.startswith("2.3.") else ["PyHessian"]
    assert {row.library.split()[0] for row in rows} == {"PyHessian", "curvlinops"} - {*failing}
    assert all(row.agrees for row in rows)
    assert [note.partition(": ")[0] for note in notes] == failing
    assert not any("\n" in note for note in notes)


@pytest.mark.parametrize("options", [{"penalty": L2(0.1)}, {"loss_fn": lambda model, batch: model(batch[0]).mean()}])
def test_other_objectives(options):
    case = CASES["ragged"]
    with pytest.raises(UserError, match="objective: the cross-check needs the default cross-entropy and no penalty"):
        cross_check(Objective(case.model(), case.loader(), **options))


def test_too_few_weights():
    case = CASES["ragged"]
    with pytest.raises(UserError, match="parameters: the cross-check needs more than 3 weights, got 3"):
        cross_check(Objective(case.model(), case.loader(), parameters="2.bias"))


# ------------------------------------------------------------------------------------------------- command line


def test_command_prints_the_differences(libraries, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = spectrum("--cross-check").stdout.splitlines()
    start = lines.index("cross-check of the hessian of the mean loss, without penalty, on 32 samples")
    assert lines[start + 1].split() == ["library", "quantity", "ours", "theirs", "difference", "allowed"]
    table = lines[start + 2 :]
    assert len(table) == 10
    for line, quantity in zip(table, QUANTITIES * 2, strict=True):
        assert quantity in line
        assert not line.endswith("differs")
    assert (tmp_path / "spectrum.png").stat().st_size > 10_000


def test_command_with_a_library_missing(libraries, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "pyhessian", None)
    result = spectrum("--cross-check")
    assert "PyHessian" not in result.stdout
    assert "curvlinops" in result.stdout
    assert result.stderr.endswith("note: PyHessian is not installed: pip install pyhessian\n")
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    result = spectrum("--cross-check", code=1)
    assert result.stderr.splitlines()[-1] == (
        "Error: cross-check: nothing to compare with; PyHessian is not installed: pip install pyhessian; "
        "curvlinops is not installed: pip install curvlinops-for-pytorch"
    )
