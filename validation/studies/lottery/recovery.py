"""Measure the quantities of the theory of sparse teachers: descent to the truth, and its convex region."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from validation.studies.lottery.teacher_student import Bools, Floats, Teachers, gradient, norms

SCALE = 0.5


@dataclass(frozen=True)
class Descent:
    """Gradient descent of several trials.

    Attributes:
        weights: Weights at the end ``[trials, neurons, inputs]``.
        errors: ``||W_t - W*|| / ||W*||`` after every step, the start first, ``[steps + 1, trials]``.
    """

    weights: Floats
    errors: Floats

    def iterations(self, error: float) -> NDArray[np.int64]:
        """First step at which every trial is within an error of the truth, ``[trials]``; -1 where never."""
        there = self.errors <= error
        steps: NDArray[np.int64] = np.where(there.any(0), there.argmax(0), -1)
        return steps

    def speed(self, floor: float = 1e-9) -> Floats:
        """Fall of the natural logarithm of the error per step, ``[trials]``, over the last half above a floor."""
        speeds = []
        for errors in self.errors.T:
            above = int((errors > floor).sum())
            part = np.log(errors[above // 2 : above])
            speeds.append(-np.polyfit(np.arange(len(part)), part, 1)[0])
        return np.array(speeds)


def step_size(neurons: int) -> float:
    """Step size K²/2, stable because the largest curvature is near 2/K² at every sparsity used here."""
    return SCALE * neurons**2


@dataclass(frozen=True)
class End:
    """When a descent stops.

    Attributes:
        steps: Most steps to take.
        error: Stop once every trial's relative error is at most this.
    """

    steps: int
    error: float = 0.0


def descend(
    teachers: Teachers,
    x: Floats,
    y: Floats,
    start: Floats,
    end: End,
    support: Bools | None = None,
) -> Descent:
    """Run gradient descent with the fixed step ``step_size``.

    Args:
        teachers: The truth.
        x: Inputs ``[trials, samples, inputs]``.
        y: Labels ``[trials, samples]``.
        start: First weights ``[trials, neurons, inputs]``.
        end: When to stop.
        support: Weights that move; None takes the teachers' support.

    Returns:
        The weights at the end and the errors on the way.
    """
    moving = teachers.support if support is None else support
    weights, rate = start, step_size(start.shape[-2])
    scale = norms(teachers.weights)
    errors = [norms(weights - teachers.weights) / scale]
    for _ in range(end.steps):
        if errors[-1].max() <= end.error:
            break
        weights = weights - rate * gradient(weights, moving, x, y)
        errors.append(norms(weights - teachers.weights) / scale)
    return Descent(weights, np.array(errors))


def convex_radius(curvature: Callable[[float], Floats], farthest: float = 1.0, halvings: int = 6) -> float:
    """Distance along a ray up to which the smallest eigenvalue of the curvature stays positive, by bisection.

    Args:
        curvature: Symmetric matrix at a distance.
        farthest: Largest distance considered.
        halvings: Bisection steps; the resolution is ``farthest / 2**halvings``.

    Returns:
        The middle of the last interval.

    Example:
        >>> round(convex_radius(lambda rho: np.diag([1.0, 0.5 - rho])), 1)
        0.5
    """
    low, high = 0.0, farthest
    for _ in range(halvings):
        middle = (low + high) / 2
        if np.linalg.eigvalsh(curvature(middle))[0] > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def turning(teachers: Teachers, rng: np.random.Generator) -> Floats:
    """Random directions within the supports.

    Args:
        teachers: The truth.
        rng: Source of the directions.

    Returns:
        Steps ``[trials, neurons, inputs]`` of norm one in every neuron.
    """
    turn = rng.standard_normal(teachers.weights.shape) * teachers.support
    step: Floats = turn / np.linalg.norm(turn, axis=-1, keepdims=True)
    return step


def inward(teachers: Teachers, rng: np.random.Generator) -> Floats:
    """Directions in which every neuron turns at random and shrinks by the same amount.

    Args:
        teachers: The truth.
        rng: Source of the random half.

    Returns:
        Steps ``[trials, neurons, inputs]`` of norm about one in every neuron.
    """
    step: Floats = (turning(teachers, rng) - teachers.weights) / np.sqrt(2)
    return step
