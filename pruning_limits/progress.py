"""Progress of long computations: bars with the remaining time, on a terminal and in a notebook, or a callback."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

from estimators.distributed import rank
from estimators.errors import UserError

Progress = bool | Callable[[str, int, int], None] | None


def refuse_progress(progress: Any) -> None:
    """Refuse what cannot show progress.

    Args:
        progress: What the user gave.

    Raises:
        UserError: It is neither None, True or False nor a function of a stage and two counts.

    Example:
        >>> refuse_progress("bar")
        Traceback (most recent call last):
        estimators.errors.UserError: progress: expected None, True, False or a function (stage, done, total), got 'bar'
    """
    takes = progress is None or isinstance(progress, bool)
    if callable(progress) and not isinstance(progress, type):
        try:
            inspect.signature(progress).bind("stage", 0, 1)
            takes = True
        except ValueError:  # a function without a signature, such as one written in C
            takes = True
        except TypeError:
            takes = False
    if not takes:
        raise UserError(f"progress: expected None, True, False or a function (stage, done, total), got {progress!r}")


@contextmanager
def told(progress: Progress, stage: str, total: int, unit: str = "step") -> Iterator[Callable[[int], None]]:
    """Tell the progress of a stage.

    Args:
        progress: None shows a bar on a terminal and in a notebook, True always, False never; or a callback
            ``(stage, done, total)``. Of several ranks the first one shows bars, and all call a callback.
        stage: Name of the stage.
        total: Number of steps, as far as it is known; a callback never hears of more steps done than there are.
        unit: What is counted.

    Yields:
        A function that takes the number of steps that are done.

    Example:
        >>> heard = []
        >>> with told(lambda *arguments: heard.append(arguments), "passes", 2) as tell:
        ...     tell(1)
        >>> heard
        [('passes', 1, 2)]
    """
    refuse_progress(progress)
    if callable(progress):
        yield lambda done: progress(stage, done, max(done, total))
        return
    unasked = False if _in_notebook() else None  # None hides the bar where there is no terminal
    disable = rank() > 0 or {None: unasked, True: False, False: True}[progress]
    with tqdm(total=total, desc=stage, unit=unit, leave=False, disable=disable) as bar:
        yield lambda done: bar.update(done - bar.n) and None


def _in_notebook() -> bool:
    return any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)
