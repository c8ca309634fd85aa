from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from validation.data import ImageData, drawn
from validation.models import build_model
from validation.studies.limits.forecast_curves import (
    COARSE,
    FEWEST,
    LAST,
    QUARTERS,
    Curve,
    Level,
    Measured,
    bracket,
    crossing,
    kept_fraction,
    last_place,
    loses_all,
    passes_all,
)
from validation.text_data import TextData

Row = dict[str, Any]
LEVEL = Level("a tenth", "rise", 0.1)


def curve(rises: list[float], first: int = 1, step: int = 1) -> list[Row]:
    return [{"kept": kept_fraction(first + step * n), "rise": rise} for n, rise in enumerate(rises)]


# ------------------------------------------------------------------------------------------------- what is lost


def test_the_grid_halves_the_kept_weights_in_four_steps() -> None:
    kept = [kept_fraction(place) for place in range(33)]
    assert (kept[0], kept[4], kept[32]) == (1.0, 0.5, 2**-8)
    assert all(b / a == pytest.approx(2**-0.25) for a, b in pairwise(kept))


@pytest.mark.parametrize("dimension", [8, 11, 12, 100, 2352, 2046, 2048])
def test_the_grid_ends_where_eight_weights_are_kept(dimension: int) -> None:
    last = last_place(dimension)
    assert dimension * kept_fraction(last) >= FEWEST - 1e-9
    assert last == LAST or dimension * kept_fraction(last + 1) < FEWEST
    assert last_place(1) == 0


def test_a_network_is_measured_on_all_data_in_evaluation_mode(digits: ImageData) -> None:
    few = drawn(digits, 1100)  # three batches, the last one ragged
    model = build_model("resnet8-slim", few.shape, few.classes)
    measured = Measured.of(model, few)
    assert model.training
    model.eval().double()
    with torch.no_grad():
        (x, y), (test_x, test_y) = (next(iter(few.batches(split, 2000))) for split in ("train", "test"))
        scores = model(x.double())
        assert measured.loss == pytest.approx(float(nn.functional.cross_entropy(scores, y)), rel=1e-5)
        assert measured.accuracy == float((scores.argmax(1) == y).double().mean())
        assert measured.held_out == float((model(test_x.double()).argmax(1) == test_y).double().mean())


def test_text_is_measured_by_the_character() -> None:
    windows = torch.randint(50, (90, 33), generator=torch.Generator().manual_seed(0))
    x, y = windows[:, None, None, :-1].to(torch.uint8), windows[:, 1:]
    text = TextData("made", x[:60], y[:60], x[60:], y[60:], 50)
    model = build_model("characters-slim", text.shape, text.classes).eval()
    measured = Measured.of(model, text)
    with torch.no_grad():
        logarithms = model(text.train_x.float()).log_softmax(1)
    told = logarithms.gather(1, text.train_y[:, None]).mean()
    assert measured.loss == pytest.approx(-float(told), rel=1e-5)
    assert measured.accuracy == pytest.approx(float((logarithms.argmax(1) == text.train_y).float().mean()))


def test_what_is_lost_is_told_beside_the_dense_network() -> None:
    dense = Measured(0.1, 0.9, 0.8)
    point = dense.lost(Measured(0.35, 0.7, 0.85), 0.25)
    assert point == {
        "kept": 0.25,
        "rise": pytest.approx(0.25),
        "drop": pytest.approx(0.2),
        "held_out_drop": pytest.approx(-0.05),
    }
    assert dense.lost(Measured(math.nan, 0.1, 0.1), 0.1)["rise"] == math.inf


def test_a_network_may_lose_some_of_the_levels() -> None:
    levels = [LEVEL, Level("a point", "drop", 0.01)]
    for rise, drop, loses, passes in ((0.2, 0.1, 1, 0), (0.2, 0.0, 0, 0), (0.1, 0.01, 0, 1), (math.inf, 1.0, 1, 0)):
        point = {"rise": rise, "drop": drop}
        assert (loses_all(point, levels), passes_all(point, levels)) == (bool(loses), bool(passes))
    assert loses_all({"rise": math.nan, "drop": 0.5}, levels)


# ------------------------------------------------------------------------------------------------- crossings


@pytest.mark.parametrize("slope", [0.02, 0.1, 0.35])
@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_line_over_the_logarithm_is_crossed_exactly(slope: float, step: int) -> None:
    points = [{"kept": kept_fraction(p), "rise": -slope * math.log(kept_fraction(p))} for p in range(1, 60, step)]
    assert crossing(points, LEVEL) == pytest.approx(math.exp(-0.1 / slope))


@pytest.mark.parametrize("power", [0.5, 2.0, 3.7])
def test_a_power_of_the_kept_fraction_is_crossed_within_its_bracket(power: float) -> None:
    exact = math.sqrt(kept_fraction(9) * kept_fraction(10))
    points = [{"kept": kept_fraction(p), "rise": 0.1 * (exact / kept_fraction(p)) ** power} for p in range(1, 33)]
    fraction = crossing(points, LEVEL)
    assert fraction is not None
    assert kept_fraction(10) < fraction < kept_fraction(9)
    assert fraction == pytest.approx(exact, rel=0.05)


def test_a_single_failure_is_passed_over() -> None:
    points = curve([0.0, 0.2, 0.0, 0.05, 0.15, 0.2])
    fraction = crossing(points, LEVEL)
    assert fraction == pytest.approx(math.sqrt(kept_fraction(4) * kept_fraction(5)))
    assert fraction == crossing(curve([0.0, 0.0, 0.0, 0.05, 0.15, 0.2]), LEVEL)


def test_a_bracket_holds_the_neighbours_of_the_first_sustained_crossing() -> None:
    points = curve([0.01, 0.2, 0.05, 0.3, 0.4])
    assert bracket(points, LEVEL) == (points[2], points[3])
    assert bracket(curve([0.5, 0.6]), LEVEL) == ({"kept": 1.0, "rise": 0.0}, curve([0.5, 0.6])[0])
    assert bracket(points[:1], LEVEL) is None
    assert bracket(points[:2], LEVEL) == (points[0], points[1])


def test_the_first_of_two_sustained_crossings_counts() -> None:
    points = curve([0.0, 0.2, 0.3, 0.0, 0.0, 0.2, 0.3])
    assert crossing(points, LEVEL) == pytest.approx(math.sqrt(kept_fraction(1) * kept_fraction(2)))


def test_from_the_dense_network_on() -> None:
    """It keeps all and lost nothing."""
    assert crossing(curve([0.4, 0.5]), LEVEL) == pytest.approx(kept_fraction(1) ** 0.25)


def test_a_failure_at_the_end_counts() -> None:
    assert crossing(curve([0.0, 0.05, 0.15]), LEVEL) == pytest.approx(math.sqrt(kept_fraction(2) * kept_fraction(3)))


@pytest.mark.parametrize("rises", [[], [0.0], [0.1, 0.1], [0.0, 0.2, 0.1], [-0.5, 0.5, -0.5]])
def test_what_never_loses_too_much_has_no_crossing(rises: list[float]) -> None:
    assert crossing(curve(rises), LEVEL) is None


@pytest.mark.parametrize("wrong", [math.inf, math.nan])
def test_a_value_that_is_no_number_is_lost_at_once(wrong: float) -> None:
    assert crossing(curve([0.0, 0.05, wrong, wrong]), LEVEL) == pytest.approx(kept_fraction(2))
    assert crossing(curve([0.0, 0.05, wrong]), LEVEL) == pytest.approx(kept_fraction(2))
    assert crossing(curve([wrong, 0.3]), LEVEL) == 1.0
    assert crossing(curve([0.0, wrong, 0.0, 0.2, 0.3]), LEVEL) == pytest.approx(
        math.sqrt(kept_fraction(3) * kept_fraction(4))
    )


def test_the_key_of_the_level_tells_which_loss_is_meant() -> None:
    points = [{"kept": 0.5, "rise": 1.0, "drop": 0.0}, {"kept": 0.25, "rise": 2.0, "drop": 0.02}]
    assert crossing(points, Level("a point", "drop", 0.01)) == pytest.approx(math.sqrt(0.5 * 0.25))
    assert crossing(points, LEVEL) == pytest.approx(0.5**0.1)


# ------------------------------------------------------------------------------------------------- searches


class Instrument:
    """Measures a curve, notes where, and can fail after so many measurements."""

    def __init__(self, rise: Callable[[int], float], most: int = 1000) -> None:
        self.rise, self.most, self.places = rise, most, list[int]()

    def __call__(self, place: int) -> Row:
        if len(self.places) == self.most:
            raise KeyboardInterrupt
        self.places.append(place)
        return {"kept": kept_fraction(place), "rise": self.rise(place)}


def rising(exact: float) -> Callable[[int], float]:
    """Return a rise that reaches a tenth at a place between those of the grid, and ten times as much four further."""
    return lambda place: 0.1 * 10 ** ((place - exact) / 4)


LEVELS = [Level(f"{allowed}", "rise", allowed) for allowed in (0.03, 0.1, 1.0)]
# A failure of the second level at 12 alone on the coarse grid, and another at 11, where the first one is refined.
UNEVEN = {10: 0.02, 11: 0.3, 12: 0.2, 14: 0.05, 15: 0.3, 16: 0.5, 18: 0.5, 19: 0.9, 20: 2.0, 22: 2.0}


@pytest.mark.parametrize("exact", [0.5, 1.3, 2.0, 5.7, 7.99, 8.01, 9.0, 13.4, 21.8, 27.5])
def test_every_crossing_is_bracketed_to_a_quarter_and_no_place_is_measured_twice(exact: float, tmp_path: Path) -> None:
    instrument = Instrument(rising(exact))
    points = Curve(instrument, LEVELS, 32, tmp_path / "curve.json").searched()
    assert len(instrument.places) == len(set(instrument.places)) == len(points) < 21
    assert [point["kept"] for point in points] == sorted((kept_fraction(p) for p in instrument.places), reverse=True)
    known = {0, *instrument.places}
    for level in LEVELS:
        place = exact + 4 * math.log10(level.allowed / 0.1)
        if place < 0:
            continue  # more than that is lost wherever a weight is removed
        assert {math.floor(place), math.ceil(place)} <= known
        fraction = crossing(points, level)
        assert fraction is not None
        assert abs(QUARTERS * math.log2(fraction / 2 ** (-place / QUARTERS))) <= 1


def test_a_crossing_beyond_the_grid_is_not_sought(tmp_path: Path) -> None:
    instrument = Instrument(rising(60.0))
    points = Curve(instrument, LEVELS, 16, tmp_path / "curve.json").searched()
    assert sorted(instrument.places) == list(range(8, 17, COARSE))
    assert all(crossing(points, level) is None for level in LEVELS)


@pytest.mark.parametrize("last", [0, 1, 2, 3, 5, 8, 9])
def test_a_short_grid_is_searched_too(last: int, tmp_path: Path) -> None:
    instrument = Instrument(rising(1.5))
    points = Curve(instrument, LEVELS, last, tmp_path / "curve.json").searched()
    assert len(points) == len(set(instrument.places))
    assert max(instrument.places, default=0) <= last


def test_the_search_stops_where_two_networks_in_a_row_lose_all(tmp_path: Path) -> None:
    rises = {8: 0.0, 10: 5.0, 12: 0.0, 14: 5.0, 16: 5.0}
    instrument = Instrument(lambda place: rises.get(place, 0.0))
    points = Curve(instrument, LEVELS, 32, tmp_path / "curve.json").downwards(8, 2)
    assert instrument.places == [8, 10, 12, 14, 16]
    assert [point["rise"] for point in points] == list(rises.values())


@pytest.mark.parametrize("killed_after", range(1, 14))
@pytest.mark.parametrize("uneven", [False, True])
def test_a_killed_search_goes_on_from_its_file(uneven: bool, killed_after: int, tmp_path: Path) -> None:
    rise = (lambda place: UNEVEN.get(place, 0.0)) if uneven else rising(13.4)
    whole = Instrument(rise)
    points = Curve(whole, LEVELS, 24, tmp_path / "whole.json").searched()
    first = Instrument(rise, killed_after)
    file = tmp_path / "killed.json"
    if killed_after < len(points):
        with pytest.raises(KeyboardInterrupt):
            Curve(first, LEVELS, 24, file).searched()
        assert len(json.loads(file.read_text())) == killed_after
    second = Instrument(rise)
    assert Curve(second, LEVELS, 24, file).searched() == points
    assert sorted(first.places + second.places) == sorted(whole.places)
    assert file.read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_infinite_rises_are_kept_in_the_file(tmp_path: Path) -> None:
    instrument = Instrument(lambda place: math.inf if place > 9 else 0.0)
    points = Curve(instrument, LEVELS, 32, tmp_path / "curve.json").searched()
    again = Curve(Instrument(lambda _: 0.0), LEVELS, 32, tmp_path / "curve.json").searched()
    assert again == points
    assert [crossing(points, level) for level in LEVELS] == 3 * [pytest.approx(kept_fraction(9))]
