"""``make gpu`` and its benchmark, on a machine without a GPU: everything but the name of the device."""

import argparse
import importlib
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, python

CPU = torch.device("cpu")
SCRIPT = ROOT / "benchmarks" / "gpu.py"
NOTHING = "no CUDA device here: nothing was run\n"


@pytest.fixture(scope="module")
def gpu():
    sys.path.insert(0, str(SCRIPT.parent))
    yield importlib.import_module("gpu")
    sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(scope="module")
def rows(gpu):
    """All rows of both tables, of tiny networks on the CPU."""
    with gpu.equal_terms():
        return {
            table: [row for network in gpu.NETWORKS[table] for row in gpu.PARTS[table](network, CPU, True)]
            for table in gpu.PARTS
        }


def arguments(folder, seconds=None, device="cpu"):
    return argparse.Namespace(out=folder, device=device, smoke=True, seconds=seconds)


def test_every_row_that_is_announced_is_there(gpu, rows):
    for table, networks in gpu.NETWORKS.items():
        expected = [key for network in networks for key in gpu.keys(table, network)]
        assert [tuple(row[key] for key in gpu.KEYS[table]) for row in rows[table]] == expected
    assert len(rows["products"]) == 3 * 7
    assert len(rows["predictions"]) == 2 * 3


def test_the_libraries_compute_the_same_product(rows):
    """Up to float32 rounding of sums of some hundred terms, which is of the order of 1e-6."""
    for row in rows["products"]:
        assert row["apart"] < 2e-5, row
        assert row["seconds"] > 0
        assert row["gib"] is None
        assert "status" not in row
    assert max(row["apart"] for row in rows["products"]) > 0  # other sums in another order


def test_predictions_in_every_arithmetic(rows):
    for row in rows["predictions"]:
        assert 0 < row["sparsity"] < 1
        assert row["products"] > 0
        assert row["seconds"] > 0
        for key in ("hessian_error", "ggn_error"):
            if row["arithmetic"] == "bfloat16":
                assert 1e-3 < row[key] < 0.3
            else:
                assert row[key] < 2e-5
        assert row.get("status") == ("this device has no TF32" if row["arithmetic"] == "TF32" else None)


def test_tables(gpu, rows, tmp_path):
    made_on = gpu.machine(CPU)
    gpu.write_products(arguments(tmp_path), rows["products"], made_on)
    gpu.write_predictions(arguments(tmp_path), rows["predictions"], made_on)
    for table in gpu.PARTS:
        written = json.loads((tmp_path / f"{table}.json").read_text())
        assert written["rows"] == rows[table]
        assert written["environment"]["name"] == "CPU"
        page = (tmp_path / f"{table}.md").read_text()
        assert "--device cpu --smoke`: **tiny networks" in page
        assert "**Not on a GPU**" in page
        assert page.count("\n| ") == len(rows[table]) + 1


def test_the_machine_of_a_page_made_on_a_gpu(gpu):
    made_on = {"device": "cuda", "name": "NVIDIA H100", "gib": 79.6, "driver": "570.1", "cuda": "12.8", "cudnn": 91002}
    note = gpu.machine_note(made_on | {"torch": "2.9.0", "date": "2026-01-01"})
    assert note == "NVIDIA H100 with 79.6 GiB, driver 570.1, CUDA 12.8, cuDNN 91002, torch 2.9.0, 2026-01-01."


def test_a_part_in_a_process_of_its_own(gpu, rows, tmp_path):
    """It gives the rows that it gives here, but for the times."""

    def steady(row):
        return {key: value for key, value in row.items() if key != "seconds"}

    made = gpu.rows_of("predictions", "fc5", arguments(tmp_path))
    for row, expected in zip(made, rows["predictions"][:3], strict=True):
        assert steady(row).keys() == steady(expected).keys()
        assert row["sparsity"] == pytest.approx(expected["sparsity"], abs=1e-3)


def test_a_part_that_takes_too_long_or_fails_is_told(gpu, tmp_path, monkeypatch):
    slow = gpu.rows_of("products", "resnet50", arguments(tmp_path, seconds=0.05))
    assert [row["status"] for row in slow] == ["not finished within 0.05 s"] * 7
    assert [tuple(row[key] for key in gpu.KEYS["products"]) for row in slow] == gpu.keys("products", "resnet50")
    gpu.write_products(arguments(tmp_path), slow, gpu.machine(CPU))
    assert (tmp_path / "products.md").read_text().count("| not finished within 0.05 s |") == 7

    program = tmp_path / "part.py"
    program.write_text(
        "import sys\n"
        'print(\'{"network": "fc5", "arithmetic": "float32", "seconds": 1.5}\', flush=True)\n'
        'print(\'{"network": "fc5", "arith\', end=\'\', flush=True)\n'
        "sys.exit('no kernel image is available')\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(program))
    first, *others = gpu.rows_of("predictions", "fc5", arguments(tmp_path))
    assert (first["seconds"], first.get("status")) == (1.5, None)
    assert [row["status"] for row in others] == ["failed: no kernel image is available"] * 2


def test_one_library_out_of_memory(gpu):
    def full():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    assert gpu.first_product(CPU, full) == (None, None)
    with pytest.raises(RuntimeError, match="illegal"):
        gpu.first_product(CPU, lambda: (_ for _ in ()).throw(RuntimeError("illegal memory access")))


def test_tf32_is_put_back(gpu):
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for allowed in (True, False):
        with gpu.tf32(allowed):
            assert [switch.allow_tf32 for switch in switches] == [allowed] * 2
    assert [switch.allow_tf32 for switch in switches] == before


def test_a_teacher_uses_all_classes_about_equally(gpu):
    data = gpu.taught_images(2000, 8)
    counts = torch.bincount(torch.cat([data.train_y, data.test_y]), minlength=gpu.CLASSES)
    assert counts.min() > 2000 / gpu.CLASSES / 3
    assert (len(data.train_y), len(data.test_y)) == (1750, 250)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_says_so_and_ends_well(tmp_path):
    result = python(SCRIPT, "--out", tmp_path / "gpu")
    assert (result.returncode, result.stdout, result.stderr) == (0, NOTHING, "")
    assert not (tmp_path / "gpu").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("available", ["False", "True", "broken"])
def test_make_gpu(available, tmp_path):
    """With an environment in which Python only writes down what it is called with."""
    interpreter, calls = tmp_path / "bin" / "python", tmp_path / "calls"
    interpreter.parent.mkdir()
    answer = "exit 3" if available == "broken" else f"echo {available}"
    interpreter.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nif [ "$1" = -c ]; then {answer}; fi\n')
    interpreter.chmod(interpreter.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "installed").touch()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    result = subprocess.run(
        ["make", "--no-print-directory", "gpu", f"VENV={tmp_path}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    called = Path(calls).read_text().splitlines()[1:]
    if available == "True":
        assert (result.returncode, result.stdout) == (0, "")
        assert called == ["-m pytest -m cuda", "benchmarks/gpu.py --out docs/results/gpu"]
    else:
        assert called == []
        assert result.stdout == (NOTHING if available == "False" else "")
        assert (result.returncode == 0) == (available == "False")
