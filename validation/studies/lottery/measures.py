"""One measurement per claim of the theory of winning tickets; cells of the table ``lottery-theory``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from validation.studies.lottery.population import population_gradient, population_hessian, population_loss
from validation.studies.lottery.recovery import End, convex_radius, descend, inward, step_size, turning
from validation.studies.lottery.teacher_student import (
    Bools,
    Floats,
    Teachers,
    draw_teachers,
    gradient,
    hessian,
    loss,
    norms,
    outputs,
)
from validation.tables.writing import Row

NEURONS, INPUTS = 5, 100
WIDTH = 0.2
START = 0.2
NOISE = 0.1
RECOVERED, SOLVED, CLOSE = 1e-2, 1e-6, 1e-3
STEPS = {"recovery": 300, "speed": 600, "noisy": 120, "pruned": 300}


def drawn(part: Row, rng: np.random.Generator) -> tuple[Teachers, Floats, Floats]:
    """Draw a cell's teachers, inputs and labels without noise.

    Args:
        part: The cell with ``trials``, ``kept`` and ``samples``.
        rng: Source of everything.

    Returns:
        Teachers, inputs ``[trials, samples, inputs]`` and labels ``[trials, samples]``.
    """
    teachers = draw_teachers(part["trials"], NEURONS, INPUTS, part["kept"], rng)
    x = rng.standard_normal((part["trials"], part["samples"], INPUTS))
    return teachers, x, outputs(teachers.weights, x)


def _curvatures(w: Floats, step: Floats, support: Bools, x: Floats, y: Floats) -> dict[str, Callable[[float], Floats]]:
    """Hessians of one trial along a ray from the truth: of the samples, and expected."""
    return {
        "": lambda rho: hessian(w + rho * step, support, x, y, WIDTH),
        "population_": lambda rho: population_hessian(w + rho * step, w, support),
    }


def landscape(part: Row, rng: np.random.Generator) -> Row:
    """Radius of the convex region and smallest eigenvalue at the truth, for samples and in expectation (S4, S5).

    The radius is taken along rays that turn and shrink every neuron, and along random ones (``turned``).
    """
    teachers, x, y = drawn(part, rng)
    keys = ("radius", "turned", "least")
    measured: dict[str, list[float]] = {f"{prefix}{key}": [] for key in keys for prefix in ("", "population_")}
    rays = inward(teachers, rng), turning(teachers, rng)
    for w, shrinking, turned, *data in zip(teachers.weights, *rays, teachers.support, x, y, strict=True):
        for prefix, curvature in _curvatures(w, shrinking, *data).items():
            measured[f"{prefix}radius"].append(convex_radius(curvature))
            measured[f"{prefix}least"].append(float(np.linalg.eigvalsh(curvature(0.0))[0]) * NEURONS**2)
        for prefix, curvature in _curvatures(w, turned, *data).items():
            measured[f"{prefix}turned"].append(convex_radius(curvature))
    means: Row = {key: float(np.mean(values)) for key, values in measured.items()}
    for key in ("radius", "turned"):
        means[f"{key}_ratio"] = means[key] / means[f"population_{key}"]
    means["least_ratio"] = float(np.mean(np.divide(measured["least"], measured["population_least"])))
    return means


def recovery(part: Row, rng: np.random.Generator) -> Row:
    """Share of trials whose descent comes within ``RECOVERED`` of the truth (S6)."""
    teachers, x, y = drawn(part, rng)
    path = descend(teachers, x, y, teachers.perturbed(START, rng), End(STEPS["recovery"], RECOVERED))
    return {"recovered": float((path.iterations(RECOVERED) >= 0).mean())}


def speed(part: Row, rng: np.random.Generator) -> Row:
    """Iterations to ``SOLVED`` and speed of descent, beside the speed that the population's Hessian gives (S7)."""
    teachers, x, y = drawn(part, rng)
    path = descend(teachers, x, y, teachers.perturbed(START, rng), End(STEPS["speed"], SOLVED))
    iterations = path.iterations(SOLVED)
    least = [
        np.linalg.eigvalsh(population_hessian(w, w, support))[0]
        for w, support in zip(teachers.weights, teachers.support, strict=True)
    ]
    ideal = -np.log(1 - step_size(NEURONS) * np.array(least))
    measured = path.speed(SOLVED)
    return {
        "iterations": float(np.where(iterations < 0, STEPS["speed"], iterations).mean()),
        "solved": float((iterations >= 0).mean()),
        "speed": float(measured.mean()),
        "speed_ratio": float((measured / ideal).mean()),
    }


def objective(part: Row, rng: np.random.Generator) -> Row:
    """Distance of the sampled objective and its gradient from the expected ones, near the truth (S8)."""
    teachers, x, y = drawn(part, rng)
    weights = teachers.perturbed(START, rng)
    slope = gradient(weights, teachers.support, x, y)
    away = norms(slope - population_gradient(weights, teachers.weights, teachers.support))
    values = loss(weights, x, y) - population_loss(weights, teachers.weights)
    return {"gradient_gap": float(away.mean()), "objective_gap": float(np.sqrt(np.square(values).mean()))}


def noisy(part: Row, rng: np.random.Generator) -> Row:
    """Distance to the truth and generalisation error after descent on noisy labels (S9)."""
    teachers, x, y = drawn(part, rng)
    labels = y + NOISE * rng.standard_normal(y.shape)
    path = descend(teachers, x, labels, teachers.perturbed(START, rng), End(STEPS["noisy"]))
    excess = 2 * population_loss(path.weights, teachers.weights)
    return {"distance": float(path.errors[-1].mean()), "root_error": float(np.sqrt(excess).mean())}


def pruned(part: Row, rng: np.random.Generator) -> Row:
    """Iterations to ``CLOSE`` after a dense student is pruned by magnitude and rewound to its start (S12)."""
    teachers, x, y = drawn(part, rng)
    everywhere = np.ones_like(teachers.support)
    dense = Teachers(teachers.weights, everywhere)
    start = dense.perturbed(START, rng)
    trained = descend(dense, x, y, start, End(STEPS["pruned"], CLOSE)).weights
    removed = round(part["sparsity"] * INPUTS)
    kept = np.abs(trained).argsort(-1).argsort(-1) >= removed
    path = descend(teachers, x, y, start * kept, End(STEPS["pruned"], CLOSE), support=kept)
    iterations = path.iterations(CLOSE)
    reached = iterations >= 0
    return {
        "iterations": float(iterations[reached].mean()) if reached.any() else None,
        "reached": float(reached.mean()),
        "good_kept": float((kept & teachers.support).sum() / teachers.support.sum()),
    }


MEASURES: dict[str, Callable[[Row, np.random.Generator], dict[str, Any]]] = {
    "landscape": landscape,
    "recovery": recovery,
    "speed": speed,
    "objective": objective,
    "noisy": noisy,
    "pruned": pruned,
}
