from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning_limits.crossing import first_crossing, largest_passing


def grid(dimension: int, start: int) -> set[int]:
    """Counts of the grid in whole numbers: there / 2^(j/2) weights are kept while that is at least 1, and none."""
    there, counts = dimension - start, {dimension}
    for j in range(1, 60):
        if there**2 >= 2**j:
            kept = round(Fraction(there, 2 ** (j // 2))) if j % 2 == 0 else (math.isqrt(4 * there**2 // 2**j) + 1) // 2
            counts.add(dimension - kept)
    return counts - {start}


class Questions:
    """Answers by a set of counts that pass, and by another where all data are asked for; remembers the questions."""

    def __init__(self, passing: set[int], surely: set[int] | None = None) -> None:
        self.passing, self.sure = passing, passing if surely is None else surely
        self.asked: dict[int, bool] = {}
        self.surely: dict[int, bool] = {}
        self.calls = 0

    def __call__(self, count: int, surely: bool) -> bool:
        self.calls += 1
        result = count in (self.sure if surely else self.passing)
        self.asked[count] = result
        if surely:
            self.surely[count] = result
        return result


@st.composite
def problems(draw: st.DrawFn) -> tuple[int, int, int, set[int]]:
    """Draw a number of weights, how many are removed already, a width, and counts that pass in random stretches."""
    dimension = draw(st.integers(1, 400))
    start = draw(st.integers(0, dimension - 1))
    ends = draw(st.lists(st.integers(start, dimension), max_size=12))
    passing = {count for count in range(start, dimension + 1) if sum(end < count for end in ends) % 2 == 0}
    return dimension, start, draw(st.integers(1, 40)), passing


@given(problems())
def test_all_that_was_asked_below_the_answer_passes_and_the_answer_is_the_first_that_fails(
    problem: tuple[int, int, int, set[int]],
) -> None:
    dimension, start, width, passing = problem
    questions = Questions(passing)
    low, high = first_crossing(questions, dimension, start, width)
    failing = [count for count, passes in questions.asked.items() if not passes]
    assert all(start < count <= dimension for count in questions.asked)
    assert all(passes for count, passes in questions.asked.items() if count <= low)
    assert {count for count in grid(dimension, start) if count <= low} <= set(questions.asked)
    if failing:
        assert high == min(failing)
        assert start <= low < high <= min(dimension, low + width)
        assert low == max([start, *(count for count in questions.asked if count < high)])
        assert questions.surely[high] is False
    else:
        assert (low, high) == (dimension, dimension)
    assert low == start or questions.surely[low] is True


@given(problems())
def test_no_point_of_the_grid_below_the_answer_fails_by_enumeration(problem: tuple[int, int, int, set[int]]) -> None:
    dimension, start, width, passing = problem
    low, high = first_crossing(Questions(passing), dimension, start, width)
    first = min((count for count in grid(dimension, start) if count not in passing), default=None)
    if first is None:
        assert (low, high) == (dimension, dimension)
    else:
        assert low < high <= first
        assert high not in passing


@pytest.mark.parametrize("dimension", [*range(1, 41), 97, 128])
def test_a_monotone_function_has_its_exact_crossing_by_enumeration(dimension: int) -> None:
    for start in range(dimension):
        for last in range(start, dimension + 1):
            questions = Questions(set(range(last + 1)))
            expected = (last, last + 1) if last < dimension else (dimension, dimension)
            assert first_crossing(questions, dimension, start) == expected


@given(st.integers(1, 10_000_000), st.data())
def test_a_monotone_function_of_any_size_takes_few_questions(dimension: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, dimension - 1))
    last = data.draw(st.integers(start, dimension))
    asked: list[int] = []

    def passes(count: int, surely: bool) -> bool:
        asked.append(count)
        return count <= last

    width = data.draw(st.integers(1, max(1, dimension // 1000)))
    low, high = first_crossing(passes, dimension, start, width)
    assert low <= last
    assert high - low <= width
    assert high == dimension == last or high == low == last or last < high
    # the grid, then each stretch in four with three questions, the last ones a weight apart, and two ends once more
    assert len(set(asked)) <= 2 * math.log2(dimension) + 3 * math.log(dimension, 4) + 8


@pytest.mark.parametrize(
    ("dimension", "passing", "expected"),
    [
        (1, {1}, (1, 1)),
        (1, set(), (0, 1)),
        (2, {1, 2}, (2, 2)),
        (2, {1}, (1, 2)),
        (2, {2}, (0, 1)),  # one weight removed fails, so that both removed do not count
        (2, set(), (0, 1)),
        (3, {1, 2, 3}, (3, 3)),
        (3, {1, 2}, (2, 3)),
        (3, {1}, (1, 2)),
        (3, {2, 3}, (0, 1)),
        (3, {1, 3}, (1, 2)),
        (3, set(), (0, 1)),
    ],
)
def test_one_two_and_three_weights_by_hand(dimension: int, passing: set[int], expected: tuple[int, int]) -> None:
    assert first_crossing(Questions(passing), dimension) == expected


@st.composite
def contradictions(draw: st.DrawFn) -> tuple[int, int, int, set[int], set[int]]:
    """Draw a problem in which draws of the data err at some counts."""
    dimension, start, width, truth = draw(problems())
    wrong = draw(st.sets(st.integers(start + 1, dimension), max_size=dimension))
    return dimension, start, width, truth ^ wrong, truth


@given(contradictions())
def test_the_ends_are_right_on_all_data_whatever_the_draws_say(
    problem: tuple[int, int, int, set[int], set[int]],
) -> None:
    dimension, start, width, drawn, truth = problem
    questions = Questions(drawn, truth)
    low, high = first_crossing(questions, dimension, start, width)
    assert low == start or questions.surely[low] is True
    assert low == start or low in truth
    assert all(passes for count, passes in questions.asked.items() if count <= low)
    assert {count for count in grid(dimension, start) if count <= low} <= set(questions.asked)
    if (low, high) != (dimension, dimension):
        assert questions.surely[high] is False
        assert high not in truth
        assert 0 < high - low <= width
    assert questions.calls <= 3 * len(questions.asked) + 3


@given(st.integers(1, 300), st.data())
def test_draws_that_err_anywhere_do_not_move_the_crossing_of_a_monotone_function(
    dimension: int, data: st.DataObject
) -> None:
    last = data.draw(st.integers(0, dimension))
    drawn = data.draw(st.sets(st.integers(1, dimension)))
    expected = (last, last + 1) if last < dimension else (dimension, dimension)
    assert first_crossing(Questions(drawn, set(range(last + 1))), dimension) == expected


@given(contradictions(), st.randoms(use_true_random=False))
def test_the_ends_are_right_on_all_data_whatever_is_guessed(
    problem: tuple[int, int, int, set[int], set[int]], random: Random
) -> None:
    dimension, start, width, drawn, truth = problem
    questions = Questions(drawn, truth)
    low, high = first_crossing(
        questions, dimension, start, width, lambda low, high: random.choice([None, random.randint(low, high)])
    )
    assert low == start or (questions.surely[low] and low in truth)
    assert all(passes for count, passes in questions.asked.items() if count <= low)
    assert (low, high) == (dimension, dimension) or (high not in truth and 0 < high - low <= width)


@pytest.mark.parametrize(("first", "networks"), [(70_000, 2), (70_020, 2), (70_200, 3), (69_000, 3)])
def test_right_guesses_take_two_or_three_networks_after_the_first_quarter(first: int, networks: int) -> None:
    """All data tell of the first guess; where it is near the crossing it is itself an end of the bracket."""
    last, guesses, asked = 70_010, [first], list[tuple[int, bool]]()

    def passes(count: int, surely: bool) -> bool:
        asked.append((count, surely))
        return count <= last

    low, high = first_crossing(
        passes, 100_000, width=100, guess=lambda low, high: guesses.pop() if guesses else last + 20
    )
    assert low <= last < high <= low + 100
    place, counts = asked.index((first, True)), [count for count, _ in asked]
    assert len(set(counts) - set(counts[:place])) == networks
    assert (first in (low, high)) == (networks == 2)


def test_all_data_that_let_the_end_of_a_wide_bracket_pass_send_the_search_on_along_the_grid() -> None:
    """The bracket 95..100 is within the width; 95 is no reason to leave out the last points of the grid."""
    truth = set(range(98))
    questions = Questions(truth - {95}, truth)
    low, high = first_crossing(questions, 100, start=80, width=6)
    assert questions.surely[95] is True
    assert low in truth
    assert high not in truth
    assert low < high <= low + 6


RISES: dict[str, Callable[[float, float], float]] = {
    "step": lambda count, last: 3.0 * (count > last) - 1,
    "power": lambda count, last: ((count + 1) / (last + 1.5)) ** 3,
    "steep": lambda count, last: math.exp(min(700.0, 40 * (count - last - 0.5) / (last + 1))),
    "flat, then infinite": lambda count, last: 1e-9 if count <= last else math.inf,
    "nothing, then not a number": lambda count, last: 0.0 if count <= last else math.nan,
}


@pytest.mark.parametrize("shape", RISES)
@settings(max_examples=100)
@given(st.integers(1, 3000), st.data())
def test_largest_passing_finds_the_last_count_that_passes(shape: str, dimension: int, data: st.DataObject) -> None:
    last = data.draw(st.integers(0, dimension))
    guess, power = data.draw(st.floats(0, 1)), data.draw(st.none() | st.floats(0.01, 100))
    calls = []

    def rise(sparsity: float) -> float:
        calls.append(sparsity)
        return RISES[shape](round(sparsity * dimension), last)

    assert round(largest_passing(rise, 1.0, guess, dimension, 1e-9, power) * dimension) == last
    assert len(calls) <= 40
    assert len(set(calls)) == len(calls)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("guess", [0.96, 0.969, 0.98])
def test_largest_passing_of_a_smooth_rise_takes_few_evaluations(power: float, guess: float) -> None:
    calls = []

    def rise(sparsity: float) -> float:
        calls.append(sparsity)
        return math.exp(2 * (sparsity - 0.97)) * (0.03 / max(1 - sparsity, 1e-9)) ** power

    assert largest_passing(rise, 1.0, guess, 4_000_000) == pytest.approx(0.97, abs=1e-4)
    assert len(calls) <= 6


@pytest.mark.parametrize("error", [0.8, 1.0, 1.25])
@pytest.mark.parametrize("guess", [0.968, 0.9695, 0.97, 0.972])
def test_a_known_power_brackets_a_smooth_rise_in_three_or_four_evaluations(guess: float, error: float) -> None:
    calls = []

    def rise(sparsity: float) -> float:
        calls.append(sparsity)
        return (0.03 / (1 - sparsity)) ** (2 + (sparsity - 0.97))

    assert largest_passing(rise, 1.0, guess, 4_000_000, power=2 * error) == pytest.approx(0.97, abs=1e-4)
    assert len(calls) <= 4
