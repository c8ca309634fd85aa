"""The states of the recurrences of one prediction, kept in a file from which the prediction continues."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from estimators import Lanczos, Objective, UserError
from estimators.distributed import rank, together
from estimators.files import load_tensors, path_of, save_tensors
from pruning_limits.settings import Settings

WRITING_SHARE = 0.05
DIFFERENT_RANKS = "distributed: the ranks were given different weights, losses or arguments; start all alike"
Known = list[tuple[float, float]]


class States:
    """States of several recurrences in one file that belongs to one prediction; nothing is kept where path is None."""

    def __init__(self, path: str | Path | None, fingerprint: str) -> None:
        self.path = None if path is None else path_of("checkpoint", path)
        self.fingerprint = fingerprint
        self.states: dict[str, Any] = {}
        self._rest = 0.0
        with together(self._equal_on_all_ranks):
            if self.path is not None and self.path.exists():
                self.states = self._read(self.path)

    def _read(self, path: Path) -> dict[str, Any]:
        stored = load_tensors(path)
        if stored.get("fingerprint") != self.fingerprint:
            raise UserError(
                f"checkpoint: {path} belongs to another model, data or setting; delete it or name another file"
            )
        states = stored.get("states")
        whole = isinstance(states, dict) and all(
            isinstance(state, dict) and "steps" in state for state in states.values()
        )
        if not isinstance(states, dict) or not whole:
            raise UserError(f"checkpoint: {path} is damaged; delete it and start again")
        return states

    def _equal_on_all_ranks(self) -> dict[str, str]:
        elsewhere = f"checkpoint: the ranks read different states (here {self.path}); name one file that all can read"
        states = self.path is None, [(key, state["steps"]) for key, state in self.states.items()]
        return {DIFFERENT_RANKS: self.fingerprint, elsewhere: repr(states)}

    def restore(self, key: str, run: Lanczos) -> None:
        """Let a run continue from its state, if there is one."""
        if key in self.states:
            run.load_state(self.states[key])

    def known(self, key: str) -> Known | None:
        """Return the eigenvalues that were known when the run began, or None where there is no run yet."""
        if key not in self.states:
            return None
        try:
            known = [(float(value), float(share)) for value, share in self.states[key]["known"]]
        except (KeyError, TypeError, ValueError, OverflowError):
            known = [(math.nan, math.nan)]
        if not all(math.isfinite(value) and 0 <= share < 1 for value, share in known):
            raise UserError(f"checkpoint: {self.path} is damaged; delete it and start again")
        return known

    def save(self, key: str, run: Lanczos, known: Sequence[tuple[float, float]] = (), finished: bool = False) -> None:
        """Write all states, on one rank; a finished run keeps its matrices only.

        Large states are written less often, so that writing takes no more than a small share of the time.
        """
        if self.path is None:
            return
        with together():
            self._write(key, lambda: run.state(vectors=not finished) | {"known": list(known)}, finished)

    def kept(self, key: str) -> dict[str, Any] | None:
        """Return a state that was kept, or None."""
        return self.states.get(key)

    def keep(self, key: str, state: dict[str, Any], at_once: bool = False) -> None:
        """Write a state, an entry ``"steps"`` among what it holds, on one rank.

        Large states are written less often, as in ``save``, but for those that are written at once.
        """
        if self.path is None:
            return
        with together():
            self._write(key, lambda: state, at_once)

    def _write(self, key: str, state: Callable[[], dict[str, Any]], at_once: bool) -> None:
        started = time.monotonic()
        if rank() == 0 and self.path is not None and (at_once or started >= self._rest):
            self.states[key] = state()
            save_tensors(self.path, {"fingerprint": self.fingerprint, "states": self.states})
            ended = time.monotonic()
            self._rest = ended + (ended - started) / WRITING_SHARE


def fingerprint(objective: Objective, losses: Tensor, settings: Settings) -> str:
    """Hash all weights, the losses and what was asked for."""
    digest = hashlib.sha256(repr(settings).encode())
    for tensor in (*objective.chosen.values(), *objective.fixed.values(), losses):
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
