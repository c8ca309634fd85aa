from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from estimators import UserError
from validation.studies.lottery.exponents import fit_decline, fit_power

X = np.geomspace(0.01, 1, 12)


@pytest.mark.parametrize("exponent", [-0.5, 0.5, 1.0, 2.0])
def test_a_planted_power_is_found_exactly(exponent: float) -> None:
    law = fit_power(X, 3 * X**exponent)
    assert law.exponent == pytest.approx(exponent)
    assert law.scale == pytest.approx(3)
    assert law.high - law.low < 1e-6
    assert law.r_squared == pytest.approx(1)
    np.testing.assert_allclose(law.curve(X), 3 * X**exponent)


@pytest.mark.parametrize("limit", [None, 1.2])
@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_a_planted_decline_is_found_exactly(exponent: float, limit: float | None) -> None:
    y = 1.2 - 0.7 * X**exponent
    law = fit_decline(X, y, limit)
    assert law.exponent == pytest.approx(exponent, abs=1e-4)
    assert law.limit == pytest.approx(1.2, abs=1e-4)
    np.testing.assert_allclose(law.curve(X), y, atol=1e-4)


def test_intervals_of_powers_cover_the_planted_exponent_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    for confidence in (0.8, 0.95):
        hits = 0
        for _ in range(600):
            law = fit_power(X, 2 * X**0.5 * np.exp(0.2 * rng.standard_normal(len(X))), confidence)
            hits += law.low <= 0.5 <= law.high
        assert abs(hits / 600 - confidence) < 4 * np.sqrt(confidence * (1 - confidence) / 600)


@pytest.mark.parametrize("limit", [None, 1.0])
def test_intervals_of_declines_cover_about_as_often(limit: float | None) -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(150):
        law = fit_decline(X, 1 - 0.8 * X**0.5 + 0.02 * rng.standard_normal(len(X)), limit)
        hits += law.low <= 0.5 <= law.high
    assert 0.86 < hits / 150 <= 1


def test_a_trend_of_the_other_sign_has_a_negative_scale() -> None:
    assert fit_decline(X, 1 + 0.5 * X**0.5, 1.0).scale < 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: fit_power([1, 2], [1, 2]), "expected at least 3 points"),
        (lambda: fit_power([1, 2, 3], [1, 2]), "expected at least 3 points"),
        (lambda: fit_decline([1, 2, 3], [3, 2, 1]), "expected at least 4 points"),
        (lambda: fit_power([1, 2, 0], [1, 2, 3]), "x: a power law needs positive numbers, got 0"),
        (lambda: fit_power([1, 2, 3], [1, -2, 3]), "y: a power law needs positive numbers, got -2"),
    ],
)
def test_bad_input_is_told_in_one_line(build: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
