from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from estimators import UserError
from validation.tables.executors import run_all


def note(folder: Path, item: int) -> None:
    (folder / str(item)).write_text(str(item))


def die_once(folder: Path, item: int) -> None:
    if item == 2 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    note(folder, item)


def release(item: int) -> list[int]:
    return [10 * item + digit for digit in (1, 2)] if item < 10 else []


def note_in_order(folder: Path, item: int) -> None:
    """Fail where an item comes before the one that releases it."""
    if item >= 10 and not (folder / str(item // 10)).exists():
        raise UserError(f"item: {item} is too early")
    die_once(folder, item)


def die_always(item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(item: int) -> None:
    raise UserError(f"item: {item} is refused")


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_item_is_called(tmp_path: Path, jobs: int) -> None:
    run_all(partial(note, tmp_path), range(4), jobs, "process", "test")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3"]


@pytest.mark.usefixtures("forked_workers")
def test_the_call_of_a_dead_worker_is_repeated(tmp_path: Path) -> None:
    run_all(partial(die_once, tmp_path), range(4), 2, "process", "test")
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1", "2", "3", "died"}


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("jobs", [1, 2])
def test_items_that_wait_for_another_come_after_it(tmp_path: Path, jobs: int) -> None:
    (tmp_path / "died").touch() if jobs == 1 else None
    run_all(partial(note_in_order, tmp_path), [1, 2, 3], jobs, "process", "test", release)
    wanted = {str(item) for item in (1, 2, 3, 11, 12, 21, 22, 31, 32)}
    assert {path.name for path in tmp_path.iterdir()} == wanted | {"died"}


@pytest.mark.usefixtures("forked_workers")
def test_workers_that_always_die_are_given_up() -> None:
    with pytest.raises(UserError, match="jobs: worker processes died 3 times"):
        run_all(die_always, [0], 2, "process", "test")


@pytest.mark.usefixtures("forked_workers")
def test_an_error_in_a_worker_comes_back_as_it_was() -> None:
    with pytest.raises(UserError, match="item: 0 is refused"):
        run_all(refuse, [0], 2, "process", "test")


def test_an_unknown_executor_is_refused() -> None:
    with pytest.raises(UserError, match="executor: expected one of process, ray, got 'slurm'"):
        run_all(refuse, [0], 2, "slurm", "test")


@pytest.mark.filterwarnings("default")
def test_ray_with_two_workers_repeats_the_call_of_a_dead_worker(tmp_path: Path) -> None:
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        run_all(partial(note_in_order, tmp_path), [1, 2], 2, "ray", "test", release)
        assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "11", "12", "21", "22", "died"}
        with pytest.raises(UserError, match="item: 0 is refused"):
            run_all(refuse, [0], 2, "ray", "test")
    finally:
        ray.shutdown()


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'pruning-limits\[ray\]'"):
        run_all(refuse, [0], 2, "ray", "test")
