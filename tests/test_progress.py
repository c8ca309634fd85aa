"""Progress: bars where somebody looks, callbacks with counts that never exceed the total."""

import pytest
import tqdm.auto
import tqdm.std
from helpers import small_limit

from estimators import UserError
from pruning_limits import progress
from pruning_limits.progress import told


def test_a_callback_hears_stage_done_and_total():
    heard = []
    with told(lambda *arguments: heard.append(arguments), "passes", 2) as tell:
        for done in (0, 1, 2, 3):
            tell(done)
    assert heard == [("passes", 0, 2), ("passes", 1, 2), ("passes", 2, 2), ("passes", 3, 3)]


@pytest.mark.parametrize(("asked", "shown"), [(None, False), (False, False), (True, True)])
def test_without_a_terminal_a_bar_is_shown_where_it_is_asked_for(capsys, asked, shown):
    with told(asked, "pruned networks", 3, "network") as tell:
        tell(2)
    assert ("pruned networks" in capsys.readouterr().err) == shown


def test_a_notebook_shows_bars(monkeypatch, capsys):
    notebook = type("tqdm_notebook", (tqdm.std.tqdm,), {"__module__": "tqdm.notebook"})
    monkeypatch.setattr(progress, "tqdm", notebook)
    with told(None, "pruned networks", 3) as tell:
        tell(1)
    assert "pruned networks" in capsys.readouterr().err


def test_pruned_networks_are_counted():
    heard = []
    limit = small_limit(progress=lambda *arguments: heard.append(arguments))
    counts = [(done, total) for stage, done, total in heard if stage == "pruned networks"]
    assert counts
    assert all(0 < done <= total for done, total in counts)
    assert [done for done, _ in counts] == sorted(done for done, _ in counts)
    assert counts[-1][0] <= len(limit.evidence.points)


@pytest.mark.parametrize("wrong", [3, "bar", lambda: None, lambda stage: None, dict, 0.5], ids=range(6))
def test_what_cannot_show_progress_is_refused_at_once(wrong):
    match = r"^progress: expected None, True, False or a function \(stage, done, total\), got "
    with pytest.raises(UserError, match=match), told(wrong, "passes", 2):
        pass
    with pytest.raises(UserError, match=match):
        small_limit(progress=wrong)
