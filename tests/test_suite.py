from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from estimators import UserError
from validation.studies.limits.actual import RetrainSettings
from validation.studies.limits.predicted import LimitSettings
from validation.tables import discovery
from validation.tables.discovery import sections, tables
from validation.tables.reading import known_suites, load_suite
from validation.tables.runner import Run, run_table
from validation.tables.storage import read_json, run_folder
from validation.tables.suite import Suite
from validation.training import Network, Recipe

GOOD = """\
# A comment that mentions epochz = 1 and steps = 3.
[limit]
steps = 8
tolerance = 0.1

[retrain]
epochs = 2  # short

[[network]]
model = "fc5-mini"
dataset = "digits"
seeds = [0, 3]
recipe = { epochs = 1, lr = 0.05, l1 = 1e-3, milestones = [1] }

[[network]]
model = "small-cnn"
dataset = "digits"
[network.recipe]
epochs = 4
lr = 1
"""


def loaded(folder: Path, text: str) -> Suite:
    path = folder / "mine.toml"
    path.write_text(text)
    return load_suite(str(path))


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        loaded(folder, text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------- good suites


def test_a_suite_holds_what_its_file_says(tmp_path: Path) -> None:
    first = Recipe(1, 0.05, l1=1e-3, milestones=(1,))
    assert loaded(tmp_path, GOOD) == Suite(
        "mine",
        (
            Network("fc5-mini", "digits", first, 0),
            Network("fc5-mini", "digits", first, 3),
            Network("small-cnn", "digits", Recipe(4, 1), 0),
        ),
        (LimitSettings(steps=8, tolerance=0.1), RetrainSettings(epochs=2)),
    )


def test_settings_that_a_file_leaves_out_have_their_defaults(tmp_path: Path) -> None:
    suite = loaded(tmp_path, '[[network]]\nmodel = "fc5"\ndataset = "digits"\nrecipe = { epochs = 1, lr = 0.1 }\n')
    assert suite == Suite("mine", suite.networks)
    assert suite.settings(LimitSettings) == LimitSettings()
    assert suite.networks == (Network("fc5", "digits", Recipe(1, 0.1), 0),)


@pytest.mark.parametrize("name", known_suites())
def test_the_suites_that_come_with_the_package_load(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name
    assert len(set(suite.networks)) == len(suite.networks) > 0
    assert {type(network.recipe.lr) for network in suite.networks} == {float}
    for table in tables().values():
        assert table.cells(suite) is not None
        assert table.settings(suite) is not None


def test_the_named_suites_come_with_the_package() -> None:
    assert {"quick", "cpu"} <= set(known_suites())


def test_sections_are_those_that_tables_declare() -> None:
    declared = {kind for table in tables().values() for kind in table.sections}
    assert sections() == {kind.section: kind for kind in declared}
    assert list(sections()) == [
        *("compare", "early", "forecast", "iterative", "koopman", "limit"),
        *("patterns", "penalties", "retrain", "row_norms", "slq", "splits", "truths"),
    ]


def test_a_section_belongs_to_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Other:
        section: ClassVar[str] = "limit"

    bounds = replace(tables()["bounds"], sections=(Other,))
    monkeypatch.setattr(discovery, "tables", lambda: tables() | {"bounds": bounds})
    with pytest.raises(ValueError, match="the section limit belongs to "):
        sections()


def test_settings_are_replaced_by_their_class() -> None:
    suite = Suite("mine", (), (LimitSettings(steps=8), RetrainSettings(epochs=2)))
    changed = suite.replaced(LimitSettings(steps=9))
    assert (changed.settings(LimitSettings).steps, changed.settings(RetrainSettings).epochs) == (9, 2)
    assert changed.plain(RetrainSettings) == {"retrain": {"epochs": 2, "lr_factor": 0.2, "evaluations": 3}}


def test_a_section_that_settings_refuse_is_refused_with_what_they_say(tmp_path: Path) -> None:
    assert refusal(tmp_path, GOOD.replace("epochs = 2  # short", "evaluations = 0")).startswith("retrain: ")


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("old", "new", "key", "line"),
    [
        ("[limit]", "[limits]", "limits", 2),
        ("steps = 8", "stepz = 8", "stepz", 3),
        ("steps = 8", "epochs = 8", "epochs", 3),
        ("epochs = 2  # short", "  steps = 2", "steps", 7),
        ("epochs = 2  # short", '"lr factor" = 2', "lr factor", 7),
        ("seeds = [0, 3]", "seed = [0, 3]", "seed", 12),
        ("{ epochs = 1,", "{ epochs = 1, epochz = 1,", "epochz", 13),
        ("{ epochs = 1,", "{momentun=0.5, epochs = 1,", "momentun", 13),
        ("[network.recipe]\n", "seed = 1\n[network.recipe]\n", "seed", 18),
        ("lr = 1\n", "lr = 1\nseeds = [1]\n", "seeds", 21),
        ("# A comment", "networks = 3 # A comment", "networks", 1),
    ],
)
def test_an_unknown_key_is_refused_with_its_line(tmp_path: Path, old: str, new: str, key: str, line: int) -> None:
    assert GOOD.count(old) == 1
    text = refusal(tmp_path, GOOD.replace(old, new))
    assert f"mine.toml, line {line}: unknown key {key!r}; expected " in text


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("steps = 8", 'steps = "8"', "line 3: steps: expected a whole number >= 0, got '8'"),
        ("steps = 8", "steps = 8.0", "line 3: steps: expected a whole number >= 0, got 8.0"),
        ("steps = 8", "steps = true", "line 3: steps: expected a whole number >= 0, got True"),
        ("steps = 8", "steps = -1", "line 3: steps: expected a whole number >= 0, got -1"),
        ("tolerance = 0.1", "tolerance = nan", "line 4: tolerance: expected a number >= 0, got nan"),
        ('model = "fc5-mini"', "model = 5", "line 10: model: expected a text, got 5"),
        ("seeds = [0, 3]", "seeds = 3", "line 12: seeds: expected a list, each a whole number >= 0, got 3"),
        ("seeds = [0, 3]", "seeds = [0, 0.5]", "line 12: seeds: expected a list"),
        ("seeds = [0, 3]", "seeds = [0, -1]", "line 12: seeds: expected a list"),
        ("epochs = 1,", "epochs = '1',", "line 13: epochs: expected a whole number >= 0, got '1'"),
        ("lr = 0.05", "lr = false", "line 13: lr: expected a number >= 0, got False"),
        ("l1 = 1e-3", "augment = 1", "line 13: augment: expected true or false, got 1"),
        ("[1] }", "1 }", "line 13: milestones: expected a list"),
        (
            "[network.recipe]\nepochs = 4",
            "recipe = 4\n[slq]\nsteps = 4\n[row_norms]",
            "line 18: recipe: expected a table",
        ),
        ("epochs = 2  # short", "evaluations = 0", "evaluations must be at least 1"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert GOOD.count(old) == 1
    assert said in refusal(tmp_path, GOOD.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("epochs = 1, ", "", "missing epochs"),
        ('dataset = "digits"\n[network.recipe]', "[network.recipe]", "missing dataset"),
        ("l1 = 1e-3", "l1 = 1e-3, l2 = 1e-3", "l1 and l2"),
        ("l1 = 1e-3", "schedule = 'linear'", "expected one of constant, cosine, multistep"),
        ("seeds = [0, 3]", "seeds = [0, 3, 0]", "names fc5-mini on digits with seed 0 twice"),
        ("steps = 8", "steps = ", "not valid TOML"),
        ("steps = 8", "steps = 8\nsteps = 9", "not valid TOML"),
    ],
)
def test_a_suite_that_cannot_be_run_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert GOOD.count(old) == 1
    text = refusal(tmp_path, GOOD.replace(old, new))
    assert said in text


def test_a_network_named_twice_is_refused_but_another_recipe_is_another_network(tmp_path: Path) -> None:
    entry = '[[network]]\nmodel = "fc5"\ndataset = "digits"\nrecipe = {{ epochs = 1, lr = {} }}\n'
    assert len(loaded(tmp_path, entry.format(0.1) + entry.format(0.2)).networks) == 2
    assert "twice" in refusal(tmp_path, entry.format(0.1) * 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no [[network]]"),
        ("network = []", "names no [[network]]"),
        ("network = 3", "line 1: network: expected one or more tables"),
        ("[limit]\nsteps = 1\n[network]\nmodel = 'fc5'", "line 3: network: expected one or more tables"),
        ("network = [3]", "expected a table with dataset, model, recipe, seeds, got 3"),
        ("limit = 3\n[[network]]\nmodel = 'fc5'\ndataset = 'digits'\nrecipe = { epochs = 1, lr = 1 }", "got 3"),
    ],
)
def test_a_suite_without_networks_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, text)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not valid TOML"):
        load_suite(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize("name", ["huge", "", "no/such/file.toml", "quick.toml"])
def test_an_unknown_suite_lists_the_known_ones(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(f"suite: {name!r} is unknown; expected one of ")) as caught:
        load_suite(name)
    assert all(known in str(caught.value) for known in known_suites())


# ------------------------------------------------------------------------------------------------- run folders


def test_a_run_folder_notes_its_settings_and_is_found_again(tmp_path: Path) -> None:
    settings = {"epochs": 3, "rate": 0.5, "names": ["a"]}
    folder = run_folder(tmp_path / "new" / "out", "network", settings)
    assert re.fullmatch(r"network-[0-9a-f]{12}", folder.name)
    assert read_json(folder / "settings.json") == settings
    assert run_folder(tmp_path / "new" / "out", "network", dict(reversed(settings.items()))) == folder
    assert run_folder(tmp_path / "new" / "out", "network", settings | {"epochs": 4}) != folder
    assert run_folder(tmp_path / "new" / "out", "limit", settings) != folder
    assert read_json(folder / "absent.json") is None


def test_a_folder_that_cannot_be_written_is_refused_before_any_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(UserError, match=r"^out: cannot write to .*file.*; choose another folder$"):
            run_folder(out, "network", {})
        with pytest.raises(UserError, match=r"^out: cannot write to "):
            run_table("theory-vs-actual", load_suite("quick"), Run(out))
