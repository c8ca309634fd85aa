"""States of recurrences in one file that belongs to one prediction."""

import math

import pytest
import torch
from helpers import CASES, Dense, random, with_spectrum

from estimators import Lanczos, Objective, UserError
from estimators.files import load_tensors, save_tensors
from pruning_limits.settings import Settings
from pruning_limits.states import States, fingerprint

MATRIX = with_spectrum(torch.linspace(-1, 2, 30))


def run(steps=0):
    result = Lanczos(Dense(MATRIX), random(30, 2))
    result.advance(steps)
    return result


def test_a_run_continues_from_the_file_to_the_same_bits(tmp_path):
    path = tmp_path / "state.pt"
    States(path, "print").save("ggn-8", run(4), [(0.5, 0.25)])
    again, states = run(), States(path, "print")
    states.restore("ggn-8", again)
    states.restore("another", again)  # is not there and changes nothing
    again.advance(3)
    for mine, whole in zip(again.tridiagonals(), run(7).tridiagonals(), strict=True):
        assert (mine.alpha == whole.alpha).all()
        assert (mine.beta == whole.beta).all()
    assert states.known("ggn-8") == [(0.5, 0.25)]
    assert states.known("another") is None


def test_a_finished_run_keeps_its_matrices_only(tmp_path):
    path = tmp_path / "state.pt"
    States(path, "print").save("ggn-8", run(4), finished=True)
    stored = load_tensors(path)["states"]["ggn-8"]
    assert (stored["current"], stored["previous"]) == ([], [])
    again = run()
    States(path, "print").restore("ggn-8", again)
    assert (again.tridiagonals(vectors=False)[0].alpha == run(4).tridiagonals()[0].alpha).all()


def test_writing_takes_a_small_share_of_the_time_and_the_end_is_always_written(tmp_path):
    path = tmp_path / "state.pt"
    states = States(path, "print")
    states.save("ggn-8", run(2))
    first = path.stat().st_mtime_ns
    states._rest = math.inf  # as after a write that took very long
    states.save("ggn-8", run(3))
    assert path.stat().st_mtime_ns == first
    states.save("ggn-8", run(4), finished=True)
    assert load_tensors(path)["states"]["ggn-8"]["steps"] == 4


def test_without_a_path_nothing_is_kept():
    states = States(None, "print")
    states.save("ggn-8", run(4))
    assert states.states == {}
    assert states.known("ggn-8") is None


def test_files_of_another_prediction_and_damaged_ones_are_refused(tmp_path):
    path = tmp_path / "state.pt"
    States(path, "print").save("ggn-8", run(4))
    with pytest.raises(UserError, match="belongs to another model, data or setting"):
        States(path, "other")
    for states in (None, {"ggn-8": 3}, {"ggn-8": {}}):
        save_tensors(path, {"fingerprint": "print", "states": states})
        with pytest.raises(UserError, match=r"^checkpoint: .* is damaged; delete it and start again$"):
            States(path, "print")
    for known in (None, [(1.0,)], [(math.nan, 0.1)], [(1.0, 1.0)], [(1.0, -0.1)], [("x", 0.1)]):
        save_tensors(path, {"fingerprint": "print", "states": {"ggn-8": {"steps": 1, "known": known}}})
        with pytest.raises(UserError, match="is damaged"):
            States(path, "print").known("ggn-8")


def test_the_fingerprint_tells_weights_losses_and_settings_apart():
    def print_of(change=None, losses=1.0, **settings):
        case = CASES["batch norm"]
        model = case.model()
        if change is not None:
            with torch.no_grad():
                change(model)
        objective = Objective(model, case.loader(), case.loss_fn)
        return fingerprint(objective, torch.full((9,), losses), Settings(**{"seed": 0, "steps": 4} | settings))

    changes = [lambda m: m.head.weight[0, 0].add_(1e-12), lambda m: m.head.bias.mul_(2)]
    prints = [print_of(), *map(print_of, changes), print_of(losses=2.0), print_of(seed=1), print_of(probes=1)]
    assert len(set(prints)) == len(prints)
    assert print_of() == prints[0]


def test_other_states_are_kept_beside_those_of_runs(tmp_path):
    path = tmp_path / "state.pt"
    states = States(path, "print")
    states.save("ggn-8", run(4))
    states.keep("stages", {"steps": 1, "vector": torch.ones(3)}, at_once=True)
    again = States(path, "print")
    assert torch.equal(again.kept("stages")["vector"], torch.ones(3))
    assert again.kept("another") is None
    assert again.known("ggn-8") == []
    States(None, "print").keep("stages", {"steps": 1}, at_once=True)
