r"""A one-hidden-layer ReLU network that learns a sparse teacher of its own kind from Gaussian inputs.

Teacher and student are :math:`g(W; x) = \frac1K \sum_j \max(w_j \cdot x, 0)`; every teacher neuron has r non-zero
weights, and the student knows their positions. The objective is :math:`\frac1{2N} \sum_n (g(W; x_n) - y_n)^2`. Its
expectation over :math:`x \sim N(0, I)` has a closed form through the arc-cosine kernel. The first dimension of every
array counts trials.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from estimators.errors import UserError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Teachers:
    """Independent sparse teachers of one size.

    Attributes:
        weights: Weights W* ``[trials, neurons, inputs]``; every neuron has norm one.
        support: Where weights may differ from zero, of the same shape.
    """

    weights: Floats
    support: Bools

    def perturbed(self, distance: float, rng: np.random.Generator) -> Floats:
        """Move every W* in a random direction on its support.

        Args:
            distance: Frobenius norm of the step relative to that of W*.
            rng: Source of the directions.

        Returns:
            Weights ``[trials, neurons, inputs]``.
        """
        step = rng.standard_normal(self.weights.shape) * self.support
        scale = norms(self.weights) / norms(step)
        moved: Floats = self.weights + distance * scale[:, None, None] * step
        return moved


def draw_teachers(trials: int, neurons: int, inputs: int, kept: int, rng: np.random.Generator) -> Teachers:
    """Draw teachers whose neurons have unit norm and Gaussian direction on a random support each.

    Args:
        trials: Number of teachers.
        neurons: Hidden neurons K.
        inputs: Dimension d of the input.
        kept: Weights r that are not zero in every neuron, in 1..inputs.
        rng: Source of supports and weights.

    Returns:
        The teachers.

    Raises:
        UserError: ``kept`` is out of range.

    Example:
        >>> draw_teachers(2, 3, 10, 4, np.random.default_rng(0)).support.sum(-1).tolist()
        [[4, 4, 4], [4, 4, 4]]
    """
    if not 1 <= kept <= inputs:
        raise UserError(f"kept: expected 1 to {inputs} weights per neuron (the inputs), got {kept}; choose another r")
    order = rng.random((trials, neurons, inputs)).argsort(-1)
    support = order < kept
    weights = rng.standard_normal(support.shape) * support
    return Teachers(weights / np.linalg.norm(weights, axis=-1, keepdims=True), support)


def norms(weights: Floats) -> Floats:
    """Frobenius norm of every trial's weights, ``[trials]``."""
    values: Floats = np.sqrt(np.square(weights).sum((-2, -1)))
    return values


def outputs(weights: Floats, x: Floats) -> Floats:
    r"""Outputs :math:`\frac1K \sum_j \max(w_j \cdot x, 0)`.

    Args:
        weights: ``[trials, neurons, inputs]``.
        x: Inputs ``[trials, samples, inputs]``.

    Returns:
        Outputs ``[trials, samples]``.
    """
    values: Floats = np.maximum(x @ weights.swapaxes(-1, -2), 0).mean(-1)
    return values


def loss(weights: Floats, x: Floats, y: Floats) -> Floats:
    """Objective on samples, ``[trials]``; arguments as for ``gradient``."""
    losses: Floats = np.square(outputs(weights, x) - y).mean(-1) / 2
    return losses


def gradient(weights: Floats, support: Bools, x: Floats, y: Floats) -> Floats:
    """Gradient of the objective on samples, zero off the support.

    Args:
        weights: ``[trials, neurons, inputs]``.
        support: Where weights may move, of the same shape.
        x: Inputs ``[trials, samples, inputs]``.
        y: Labels ``[trials, samples]``.

    Returns:
        The gradient, shaped like the weights.
    """
    hidden = x @ weights.swapaxes(-1, -2)
    residual = np.maximum(hidden, 0).mean(-1) - y
    pulled = (residual[..., None] * (hidden > 0)).swapaxes(-1, -2) @ x
    slopes: Floats = pulled * support / (y.shape[-1] * weights.shape[-2])
    return slopes


def hessian(weights: Floats, support: Bools, x: Floats, y: Floats, width: float) -> Floats:
    r"""Hessian of one trial's objective, with the kinks of the ReLU counted by a Gaussian kernel.

    The objective is piecewise quadratic: away from kinks its Hessian is that of Gauss and Newton and never negative.
    What bends it the other way are the kinks, :math:`\sigma'' = \delta`, here a normal density of the given width:
    block i, j is :math:`\frac1{N K^2} \sum 1_i 1_j x x^\top`, and where i = j,
    :math:`\frac1{N K} \sum (g - y) \delta_h(w_j x) x x^\top` is added.

    Args:
        weights: ``[neurons, inputs]``.
        support: Where weights may move, of the same shape, r in every neuron.
        x: Inputs ``[samples, inputs]``.
        y: Labels ``[samples]``.
        width: Width h of the kernel, in units of the pre-activation, above 0.

    Returns:
        ``[neurons r, neurons r]`` over the support in row-major order.
    """
    neurons, samples = len(weights), len(y)
    hidden = x @ weights.T
    residual = np.maximum(hidden, 0).mean(-1) - y
    kernel = np.exp(-np.square(hidden / width) / 2) / (np.sqrt(2 * np.pi) * width)
    inputs = [x[:, own] for own in support]
    features = np.concatenate([part * (hidden[:, [j]] > 0) for j, part in enumerate(inputs)], axis=1)
    matrix: Floats = features.T @ features / (samples * neurons**2)
    kept = len(matrix) // neurons
    for j, part in enumerate(inputs):
        own = slice(j * kept, (j + 1) * kept)
        matrix[own, own] += part.T @ (part * (residual * kernel[:, j])[:, None]) / (samples * neurons)
    return matrix
