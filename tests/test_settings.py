"""Settings check themselves; every argument is refused by one rule, in Python and in files."""

import dataclasses
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from estimators import UserError
from pruning_limits import predict_limit
from pruning_limits.settings import CONSTRAINTS, RETUNING, Retuning, Settings, checked, number, number_of, numbers

BAD = [(name, value) for name, constraint in CONSTRAINTS.items() for value in constraint.bad]


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{name}-{value}" for name, value in BAD])
def test_a_bad_value_is_refused_in_one_line_that_says_what_was_expected(name, value):
    for use in (
        lambda: checked(name, value),
        lambda: Settings(**{name: value}),
        lambda: predict_limit(nn.Linear(2, 2), [(torch.eye(2), torch.tensor([0, 1]))], **{name: value}),
    ):
        with pytest.raises(UserError, match=f"^{name}: expected .*got") as error:
            use()
        assert "\n" not in str(error.value)
        assert repr(value) in str(error.value)
        assert CONSTRAINTS[name].expected in str(error.value)


def test_every_constraint_is_that_of_a_setting_whose_default_it_accepts():
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    for name, constraint in CONSTRAINTS.items():
        assert constraint.accepts(defaults[name])
        assert constraint.bad
        assert not any(constraint.accepts(value) for value in constraint.bad)


def test_settings_are_frozen_and_of_plain_numbers():
    settings = Settings(epsilon=np.float32(0.5), samples=np.int64(3), tolerance=1)
    assert [type(value) for value in (settings.epsilon, settings.samples, settings.tolerance)] == [float, int, int]
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.samples = 4


def test_a_tensor_of_one_number_is_an_epsilon():
    model, batches = nn.Linear(2, 2), [(torch.eye(2), torch.tensor([0, 1]))]
    limits = [predict_limit(model, batches, epsilon=value, progress=False) for value in (0.25, torch.tensor(0.25))]
    assert limits[0].settings == limits[1].settings
    assert limits[1].settings.epsilon == 0.25


NUMBERS = [0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2)]
NO_NUMBERS = ["0.5", None, True, np.True_, torch.tensor(True), [0.5], np.array([0.5]), torch.ones(2), 1j, b"x", {}]


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: type(value).__name__)
def test_numbers_of_every_kind_are_plain_ones(value):
    assert type(number_of(value)) is float
    assert number_of(value) == 0.5
    assert number("share", value, "less than 1", lambda own: own < 1) == 0.5
    assert numbers("shares", [value], "less than 1", lambda own: own < 1) == (0.5,)
    assert Settings(tolerance=value, epsilon=value).tolerance == 0.5


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_number_is_refused(value):
    for use in (
        lambda: number("share", value, "less than 1", lambda own: True),
        lambda: numbers("share", [value], "less than 1", lambda own: True),
    ):
        with pytest.raises(UserError, match=r"^share: expected less than 1, got "):
            use()
    for argument in ("tolerance", "epsilon"):
        with pytest.raises(UserError, match=f"^{argument}: expected"):
            Settings(**{argument: value})


def test_numbers_beyond_floating_point_are_infinite():
    assert number_of(10**400) == np.inf
    with pytest.raises(UserError, match=r"^epsilon: expected"):
        Settings(epsilon=10**400)


@pytest.mark.parametrize("values", [(), None, 0.5, 3, "0.5", [None]])
def test_what_holds_no_numbers_is_refused(values):
    with pytest.raises(UserError, match=r"^shares: expected less than 1, got "):
        numbers("shares", values, "less than 1", lambda own: own < 1)


def test_plain_settings_come_back():
    settings = Settings(epsilon=0.1, parameters=("a", "b"), penalty="L1(coefficient=1.0)", criterion="loss")
    for chosen in (settings, dataclasses.replace(settings, retune=Retuning(samples=64))):
        assert Settings.from_plain(dataclasses.asdict(chosen)) == chosen


@pytest.mark.parametrize(
    "change",
    [{"deep": 1}, {"parameters": "a"}, {"parameters": [1]}, {"penalty": 3}, {"curvature": "none"}, {"samples": "3"}],
)
def test_settings_of_a_damaged_file_are_refused(change):
    with pytest.raises(ValueError, match=r"settings|curvature|samples"):
        Settings.from_plain({**dataclasses.asdict(Settings(parameters=("a",))), **change})


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Settings)])
def test_settings_that_lack_a_name_are_refused(name):
    plain = dataclasses.asdict(Settings(parameters=("a",)))
    del plain[name]
    with pytest.raises(ValueError, match=f"'{name}' is not what predict_limit writes, or missing"):
        Settings.from_plain(plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": []}, "expected names as text"),
        ({"held_out": 1}, "held_out: expected True or False, got 1"),
        ({"max_drop": 0.01}, "max_drop: is a fall of the metric; name it"),
        ({"max_drop": 0.01, "metric": "accuracy", "measure": False}, "max_drop: the fall of the metric has to be meas"),
        ({"max_drop": 0.01, "metric": "accuracy", "epsilon": 0.1}, "max_drop: epsilon follows from it"),
    ],
)
def test_what_does_not_go_together_is_refused(change, message):
    with pytest.raises(UserError, match=f"^(settings: )?{message}"):
        Settings(**change)


@pytest.mark.parametrize(("name", "bad"), [(name, bad) for name, rule in RETUNING.items() for bad in rule.bad])
def test_every_bad_value_of_re_tuning_is_refused_in_one_line(name, bad):
    with pytest.raises(UserError, match=rf"^{name}: expected .*, got {re.escape(repr(bad))}$"):
        Retuning(**{name: bad})


def test_re_tuning_needs_a_measurement_and_a_record_of_its_own():
    with pytest.raises(UserError, match=r"^retune: re-tuned networks are measured; leave out measure=False$"):
        Settings(retune=Retuning(), measure=False)
    with pytest.raises(UserError, match=r"^retune: expected True, False or Retuning\(\.\.\.\), got 2048$"):
        Settings(retune=2048)
