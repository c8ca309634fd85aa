"""Files are whole or absent, have the access of the umask, and hold tensors only."""

import os
import pickle
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from helpers import ROOT, random, same

from estimators import UserError
from estimators.files import load_tensors, path_of, refuse_unwritable, save_tensors, write_bytes


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_content_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / "new" / "file.bin"
    for content in (b"", b"first", b"second" * 100_000):
        write_bytes(path, content)
        assert path.read_bytes() == content
        assert names(path.parent) == ["file.bin"]


def test_access_is_that_of_the_umask(tmp_path):
    program = (
        "import os, pathlib; from estimators.files import write_bytes\n"
        "for umask in (0o022, 0o077, 0o002):\n"
        "    os.umask(umask)\n"
        "    write_bytes(pathlib.Path(str(umask)), b'x')\n"
        "    assert os.umask(umask) == umask"
    )
    command = [sys.executable, "-c", program]
    subprocess.run(command, check=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    for umask in (0o022, 0o077, 0o002):
        assert stat.S_IMODE((tmp_path / str(umask)).stat().st_mode) == 0o666 & ~umask


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    class Stubborn:
        def __reduce__(self):
            raise RuntimeError("cannot be pickled")

    with pytest.raises(RuntimeError, match="cannot be pickled"):
        save_tensors(path, {"x": torch.ones(3), "y": Stubborn()})
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "below", tmp_path / "folder", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=r"^cannot write .*; choose another place$"):
            write_bytes(path, b"x")
    assert names(tmp_path) == ["file", "folder"]


def test_a_link_leads_to_the_file_that_is_written(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    for name in ("link", "dangling"):
        (tmp_path / name).symlink_to(tmp_path / ("target" if name == "link" else "absent"))
        write_bytes(tmp_path / name, b"new")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_bytes() == b"new"
    assert (tmp_path / "target").read_bytes() == (tmp_path / "absent").read_bytes() == b"new"
    assert names(tmp_path) == ["absent", "dangling", "link", "target"]


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path):
    path, content = tmp_path / "pipe", []
    os.mkfifo(path)
    refuse_unwritable(path)
    reader = threading.Thread(target=lambda: content.append(path.read_bytes()))
    reader.start()
    write_bytes(path, b"through")
    reader.join()
    assert content == [b"through"]
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert names(tmp_path) == ["pipe"]


def test_streams_are_written_to_where_they_lead_to_a_file(tmp_path):
    program = (
        "import pathlib; from estimators.files import refuse_unwritable, write_bytes\n"
        "print('before', flush=True)\n"
        "refuse_unwritable(pathlib.Path('/dev/stdout'))\n"
        "write_bytes(pathlib.Path('/dev/stdout'), b'content\\n')\n"
        "print('after')"
    )
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "out").open("ab") as out:
        subprocess.run([sys.executable, "-c", program], check=True, stdout=out, env=environment)
    assert (tmp_path / "out").read_text() == "before\ncontent\nafter\n"


def test_what_is_no_path_is_refused_by_the_name_of_its_argument():
    for path in (3, None, b"x", "", "a\0b", ["x"]):
        with pytest.raises(UserError, match=r"^report: expected the path of a file, got "):
            path_of("report", path)


def test_the_home_folder_may_be_abbreviated(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert path_of("path", "~/limit.json") == Path("/home/someone/limit.json")


def test_names_that_are_too_long_are_refused_before(tmp_path):
    with pytest.raises(UserError, match=r"^cannot write .*: File name too long; choose another place$"):
        refuse_unwritable(tmp_path / ("x" * 300))


def test_threads_that_write_one_file_leave_one_content_whole(tmp_path):
    path, contents = tmp_path / "file", [bytes([k]) * 200_000 for k in range(8)]
    threads = [threading.Thread(target=write_bytes, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert names(tmp_path) == ["file"]


def test_tensors_come_back_bit_for_bit(tmp_path):
    state = {"a": random(3, 4), "b": {"c": torch.arange(3), "d": [1, 2.5, "text", None]}, "e": torch.ones(2).bfloat16()}
    save_tensors(tmp_path / "state.pt", state)
    assert same(load_tensors(tmp_path / "state.pt"), state)


def test_files_of_safetensors_and_of_older_versions(tmp_path):
    from safetensors.torch import save_file

    state = {"a": random(3, 4)}
    save_file(state, tmp_path / "state.safetensors")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("state.safetensors", "old.pt"):
        assert same(load_tensors(tmp_path / name), state)


class Foreign:
    """Something else than a tensor."""


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol_are_refused_without_a_warning(tmp_path, protocol):
    path = tmp_path / "file.pt"
    path.write_bytes(pickle.dumps(Foreign(), protocol))
    with pytest.raises(UserError, match=r"^checkpoint: .*file\.pt is not a file of plain weights"):
        load_tensors(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_archives_that_hold_more_than_tensors_are_refused(tmp_path, zipped):
    torch.save({"x": Foreign()}, tmp_path / "file.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"is not a file of plain weights and was not loaded; save model\.state_dict"):
        load_tensors(tmp_path / "file.pt")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["file.pt", "file.safetensors"])
def test_truncated_files_are_refused(tmp_path, name, share):
    from safetensors.torch import save_file

    path = tmp_path / name
    save_file({"x": random(40)}, path) if path.suffix == ".safetensors" else save_tensors(path, {"x": random(40)})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"^checkpoint: .* cannot be read \(.*\); save it again$"):
        load_tensors(path)


def test_what_is_missing_or_no_dictionary(tmp_path):
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    with pytest.raises(UserError, match="holds Tensor, expected a state dict"):
        load_tensors(tmp_path / "tensor.pt")
    with pytest.raises(UserError, match="does not exist"):
        load_tensors(tmp_path / "absent.pt")
    for path in (tmp_path, Path()):
        with pytest.raises(UserError, match="is a folder, expected a file"):
            load_tensors(path)
