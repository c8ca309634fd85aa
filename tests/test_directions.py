"""Where the removed weights point: slopes against dense products, interpolation between knots."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import Dense, assert_close, random, with_spectrum

from estimators import SpectralMeasure, UserError
from pruning_limits import MagnitudeProfile
from pruning_limits.directional import directional_limit
from pruning_limits.directions import Directions, slopes

EIGENVALUES = torch.linspace(0.1, 3, 20).double()
MATRIX, REMOVED, GRADIENT = with_spectrum(EIGENVALUES), random(20, 3, seed=1), random(20, seed=2)


@pytest.mark.parametrize("gradient", [None, GRADIENT])
def test_slopes_are_gradient_and_rise_of_the_quadratic_model(gradient: torch.Tensor | None) -> None:
    operator = Dense(MATRIX)

    def model(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x @ MATRIX @ x + (0.0 if gradient is None else gradient @ x)

    for slope, d in zip(slopes(operator, REMOVED, gradient), REMOVED.unbind(1), strict=True):
        assert_close(slope.vector, torch.autograd.functional.jacobian(model, -d))
        assert slope.rise == pytest.approx(float(model(-d)))
        assert slope.linear == pytest.approx(0.0 if gradient is None else -float(gradient @ d))
    assert operator.calls == 1


def rule(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 3, 5), rng.uniform(0, 1, 5)


def knots(**changes: object) -> Directions:
    fields = {"sparsities": (0.5, 0.9), "rules": (rule(0), rule(1)), "rises": (1.0, 4.0), "squared": (2.0, 5.0)}
    return Directions(**fields | changes)  # type: ignore[arg-type]


def test_a_knot_gives_back_what_was_measured() -> None:
    directions = knots()
    for k, knot in enumerate(directions.sparsities):
        direction = directions.at(knot, directions.squared[k])
        assert direction.offset == pytest.approx(directions.rises[k])
        for mine, measured in zip(direction.gradient, directions.rules[k], strict=True):
            assert mine == pytest.approx(measured)


def test_between_knots_two_directions_are_mixed_in_the_logarithm_of_what_is_kept() -> None:
    directions = knots()
    middle = 1 - math.sqrt(0.5 * 0.1)
    direction = directions.at(middle, 3.0)
    shapes = [rise / squared for rise, squared in zip(directions.rises, directions.squared, strict=True)]
    assert direction.offset == pytest.approx(3.0 * np.mean(shapes))
    mass = [weights.sum() / squared for (_, weights), squared in zip(directions.rules, directions.squared, strict=True)]
    assert direction.gradient[1].sum() == pytest.approx(3.0 * np.mean(mass))


@pytest.mark.parametrize(("sparsity", "knot"), [(0.0, 0), (0.2, 0), (0.99, 1), (1.0, 1)])
def test_beyond_the_knots_a_direction_keeps_its_shape(sparsity: float, knot: int) -> None:
    directions = knots()
    direction = directions.at(sparsity, 7.0)
    factor = 7.0 / directions.squared[knot]
    assert direction.offset == pytest.approx(factor * directions.rises[knot])
    assert direction.gradient[1] == pytest.approx(factor * directions.rules[knot][1])


def test_scaled_directions_are_those_of_the_scaled_problem() -> None:
    weight, curvature = 1.7, 0.6
    profile = MagnitudeProfile({"w": random(20, seed=3)})
    values, vectors = torch.linalg.eigh(MATRIX)

    def measured(scale: float, matrix: torch.Tensor) -> Directions:
        removed = torch.stack([scale * profile.removed(s) for s in (0.4, 0.8)], 1)
        measured_slopes = slopes(Dense(matrix), removed, None)
        own = torch.linalg.eigvalsh(matrix)
        rules = tuple((own.numpy(), ((vectors.T @ slope.vector) ** 2).numpy()) for slope in measured_slopes)
        return Directions(
            (0.4, 0.8), rules, tuple(s.rise for s in measured_slopes), tuple((removed**2).sum(0).tolist())
        )

    scaled, direct = measured(1.0, MATRIX).scaled(weight, curvature), measured(weight, curvature * MATRIX)
    assert scaled.rises == pytest.approx(direct.rises)
    assert scaled.squared == pytest.approx(direct.squared)
    for mine, other in zip(scaled.rules, direct.rules, strict=True):
        assert mine[0] == pytest.approx(other[0])
        assert mine[1] == pytest.approx(other[1])
    assert_close(values, EIGENVALUES)


def test_the_limit_is_the_root_with_the_directions_at_every_sparsity() -> None:
    profile = MagnitudeProfile({"w": random(20, seed=3)})
    curve, measure = profile.curve(), SpectralMeasure.from_eigenvalues(EIGENVALUES.numpy())
    directions = knots()
    mine = directions.limit(measure, curve, 0.05)
    other = directional_limit(measure, lambda s: directions.at(s, curve.squared_norm(s)), curve, 0.05)
    assert mine.sparsity == other.sparsity
    assert 0 < mine.sparsity < 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rules": (rule(0),)}, "directions: expected as many rules"),
        ({"sparsities": (), "rules": (), "rises": (), "squared": ()}, "at least one"),
        ({"sparsities": (0.9, 0.5)}, "sparsities: expected ascending numbers"),
        ({"sparsities": (0.0, 0.5)}, "sparsities: expected ascending numbers"),
        ({"sparsities": (0.5, 1.1)}, "sparsities: expected ascending numbers"),
        ({"squared": (0.0, 1.0)}, "squared: expected positive numbers"),
        ({"rises": (1.0, math.nan)}, "offset: expected a finite number"),
    ],
)
def test_wrong_knots_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        knots(**changes)
