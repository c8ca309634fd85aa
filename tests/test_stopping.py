"""When enough is taken: every rule at its edges, and the origin of every number."""

import dataclasses
import re

import pytest
from helpers import ROOT, python

from pruning_limits.stopping import STOPPING, Stopping

WANTED = 0.01


# -------------------------------------------------------------------------------------------------- the numbers


def described():
    """The text of every attribute by its name."""
    _, _, listed = Stopping.__doc__.partition("Attributes:\n")
    listed, *_ = listed.partition("\n\n")
    entries = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", listed, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text) for name, text in entries}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Stopping)])
def test_the_origin_of_every_number_is_told(name):
    text = described()[name]
    assert "choice" in text or re.search(r"``[\w/-]+\.md``", text), text
    for page in re.findall(r"``([\w/-]+\.md)``", text):
        assert (ROOT / "docs" / page).is_file()


def test_nothing_else_is_described():
    assert list(described()) == [field.name for field in dataclasses.fields(Stopping)]


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        STOPPING.dense = 1


def test_the_rules_do_without_torch():
    code = "import sys; import pruning_limits.stopping; assert 'torch' not in sys.modules"
    assert python("-c", code).returncode == 0


# ------------------------------------------------------------------------------------------- errors and samples


def test_the_answer_takes_a_quarter_of_the_tolerance_and_the_other_spectrum_twice_as_much_as_it():
    assert STOPPING.wanted(0.004, answers=True) == 0.001
    assert STOPPING.wanted(0.004, answers=False) == 0.008
    assert Stopping(answer=0.5).wanted(0.004, answers=True) == 0.002


def test_the_hessian_is_compared_with_a_quarter_and_the_ggn_with_a_quarter_and_a_sixteenth():
    assert (STOPPING.hessian_part, STOPPING.ggn_part) == (4, 4)


@pytest.mark.parametrize(
    ("affordable", "most", "expected"),
    [
        (1000, 900, 900),
        (1000, 1500, 1500),
        (1000, 1501, 1000),
        (20_000, 30_000, 30_000),
        (20_000, 30_001, 16_384),
        (16_385, 10**9, 16_384),
        (256, 10**9, 256),
    ],
)
def test_samples_are_what_is_affordable_or_all_where_these_are_hardly_more(affordable, most, expected):
    assert STOPPING.samples(affordable, most) == expected


# ---------------------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize(("dimension", "steps", "expected"), [(512, 0, True), (513, 0, False), (513, 513, True)])
def test_small_matrices_and_those_of_many_steps_are_built(dimension, steps, expected):
    assert STOPPING.exact(dimension, steps) is expected


@pytest.mark.parametrize(
    ("dimension", "steps", "dear"), [(600, 256, False), (10_000, 200, False), (20_833, 96, True), (10**9, 96, True)]
)
def test_small_models_may_take_more_steps(dimension, steps, dear):
    assert STOPPING.most_steps(dimension) == steps
    assert STOPPING.dear(dimension) is dear


def test_a_budget_is_planned_for_so_many_steps():
    assert (STOPPING.steps("hessian"), STOPPING.steps("ggn")) == (48, 24)


@pytest.mark.parametrize(
    ("dimension", "kind", "drawn", "expected"),
    [
        (10**6, "hessian", True, 48),
        (10**6, "ggn", True, 40),
        (10**6, "hessian", False, 96),
        (10**6, "ggn", False, 96),
        (10_000, "hessian", True, 200),
        (10_000, "ggn", True, 200),
        (10**6, None, True, 96),
    ],
)
def test_a_large_model_takes_fewer_steps_on_a_sub_sample(dimension, kind, drawn, expected):
    assert STOPPING.most_steps(dimension, kind, drawn) == expected


@pytest.mark.parametrize(("steps", "expected"), [(24, 0.06), (47, 0.06), (48, 0.0375), (96, 0.0375)])
def test_the_error_is_twice_the_largest_change_and_less_of_it_once_the_limit_has_settled(steps, expected):
    assert STOPPING.change([0.01, 0.03, 0.02], steps) == pytest.approx(expected)
    assert STOPPING.change((change for change in ()), steps) == 1.0


@pytest.mark.parametrize(("steps", "expected"), [(0, 4), (39, 4), (40, 5), (47, 5), (48, 6), (400, 50)])
def test_the_pace_grows_with_the_steps(steps, expected):
    assert STOPPING.pace(steps) == expected


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(4, []), (8, [4]), (12, [4, 8]), (13, [8, 12]), (24, [8, 12, 16, 20]), (96, [*range(32, 96, 8)])],
)
def test_limits_are_compared_since_a_third_of_the_steps(steps, expected):
    assert list(STOPPING.earlier(steps)) == expected


def test_steps_are_slow_that_leave_more_than_two_thirds_of_the_error():
    assert STOPPING.slowed(0.7, 1.0)
    assert not STOPPING.slowed(0.66, 1.0)


@pytest.mark.parametrize(
    ("size", "free", "expected"),
    [(4 << 30, 8 << 30, True), ((4 << 30) + 1, 1 << 40, False), (100, 200, True), (100, 199, False)],
)
def test_a_basis_leaves_half_of_what_is_free(size, free, expected):
    assert STOPPING.basis_fits(size, free) is expected


# ------------------------------------------------------------------------------------------------ probes and knots


@pytest.mark.parametrize(
    ("standard_error", "step_error", "steps", "expected"),
    [
        (0.0, 0.0, 16, 0),
        (0.005, 0.0, 16, 1),
        (0.0051, 0.0, 16, 2),
        (0.01, 0.0, 16, 4),
        (0.01, 0.02, 16, 1),
        (1.0, 0.0, 16, 8),
        (1.0, 0.0, 50, 5),
    ],
)
def test_probes_follow_the_square_of_their_error(standard_error, step_error, steps, expected):
    assert STOPPING.probes(standard_error, step_error, steps, WANTED) == expected


def test_the_second_knot_keeps_a_fifth_of_the_weights():
    assert STOPPING.knots(0.9) == pytest.approx([0.9, 0.98])
    assert STOPPING.knots(1.0) == [1.0]


@pytest.mark.parametrize(
    ("distances", "expected"), [([1.0, 0.24], True), ([1.0, 0.25], False), ([3.0, 2.0, 1.0, 0.5], True)]
)
def test_knots_are_enough_where_one_is_near_or_there_are_many(distances, expected):
    assert STOPPING.enough_knots(distances) is expected
