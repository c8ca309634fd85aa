r"""Expectation of the teacher-student objective over Gaussian inputs, in closed form.

Everything follows from the arc-cosine kernel
:math:`k(u, v) = E[\max(u x, 0) \max(v x, 0)] = \frac{|u||v|}{2\pi} (\sin\theta + (\pi - \theta) \cos\theta)`.

Source: Cho and Saul, Kernel methods for deep learning, NeurIPS 2009; Brutzkus and Globerson, Globally optimal gradient
descent for a ConvNet with Gaussian inputs, ICML 2017.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def _geometry(u: Floats, v: Floats) -> tuple[Floats, Floats, Floats]:
    """Norms of all u and v and the angles between them; neurons of u along the last axis but one."""
    lengths = np.linalg.norm(u, axis=-1)[..., :, None], np.linalg.norm(v, axis=-1)[..., None, :]
    cosine = u @ v.swapaxes(-1, -2) / (lengths[0] * lengths[1])
    return *lengths, np.arccos(np.clip(cosine, -1, 1))


def kernel(u: Floats, v: Floats) -> Floats:
    """Arc-cosine kernel of degree one between all pairs of neurons.

    Args:
        u: ``[..., m, inputs]``, no neuron zero.
        v: ``[..., n, inputs]``, no neuron zero.

    Returns:
        ``[..., m, n]``.

    Example:
        >>> kernel(np.eye(2)[:1], np.eye(2)).round(4).tolist()
        [[0.5, 0.1592]]
    """
    a, b, angle = _geometry(u, v)
    values: Floats = a * b * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
    return values


def population_loss(weights: Floats, truth: Floats) -> Floats:
    r"""Expected objective :math:`\frac12 E (g(W; x) - g(W^*; x))^2`.

    Args:
        weights: ``[trials, neurons, inputs]``, no neuron zero.
        truth: The teachers' weights, of the same shape.

    Returns:
        ``[trials]``.

    Example:
        >>> population_loss(np.eye(2)[None], np.eye(2)[None]).tolist()
        [0.0]
    """
    own, cross, fixed = (kernel(*pair).sum((-2, -1)) for pair in ((weights,) * 2, (weights, truth), (truth,) * 2))
    losses: Floats = (own - 2 * cross + fixed) / (2 * weights.shape[-2] ** 2)
    return losses


def population_gradient(weights: Floats, truth: Floats, support: Bools) -> Floats:
    r"""Gradient of the expected objective on the support.

    :math:`\partial k / \partial u = (|v| \sin\theta\, u/|u| + (\pi - \theta) v) / 2\pi`.

    Args:
        weights: ``[trials, neurons, inputs]``, no neuron zero.
        truth: The teachers' weights, of the same shape.
        support: Where weights may move, of the same shape.

    Returns:
        The gradient, shaped like the weights.
    """
    total = _kernel_gradient(weights, weights) - _kernel_gradient(weights, truth)
    slopes: Floats = total * support / weights.shape[-2] ** 2
    return slopes


def _kernel_gradient(u: Floats, v: Floats) -> Floats:
    a, b, angle = _geometry(u, v)
    along = (b * np.sin(angle)).sum(-1, keepdims=True) * u / a
    slopes: Floats = (along + (np.pi - angle) @ v) / (2 * np.pi)
    return slopes


def population_hessian(weights: Floats, truth: Floats, support: Bools) -> Floats:
    r"""Hessian of one trial's expected objective on the support.

    With n the unit vector of v's part orthogonal to u, and u, v of angle :math:`\theta`,
    :math:`2\pi\, \partial^2 k/\partial u \partial v = (\pi - \theta) I + \sin^2\theta (\hat u n^\top + n \hat u^\top) +
    \sin\theta \cos\theta (\hat u \hat u^\top - n n^\top)` and
    :math:`2\pi\, \partial^2 k/\partial u^2 = \frac{|v| \sin\theta}{|u|} (I - \hat u \hat u^\top + n n^\top)`.

    Args:
        weights: ``[neurons, inputs]``, no neuron zero.
        truth: The teacher's weights, of the same shape.
        support: Where weights may move, of the same shape, r in every neuron.

    Returns:
        ``[neurons r, neurons r]`` over the support in row-major order.
    """
    neurons = len(weights)
    rows = []
    for i, u in enumerate(weights):
        diagonal = 0.5 * np.eye(len(u)) - sum(_same(u, v) for v in truth)
        diagonal += sum(_same(u, v) for j, v in enumerate(weights) if j != i)
        row = [diagonal if j == i else _mixed(u, v) for j, v in enumerate(weights)]
        rows.append([block[np.ix_(support[i], support[j])] for j, block in enumerate(row)])
    matrix: Floats = np.block(rows) / neurons**2
    return matrix


def _frame(u: Floats, v: Floats) -> tuple[Floats, Floats, float]:
    """Unit vector along u, unit vector along the rest of v, and the angle between u and v."""
    unit = u / np.linalg.norm(u)
    rest = v - (unit @ v) * unit
    length = float(np.linalg.norm(rest))
    normal = rest / length if length > 0 else np.zeros_like(rest)
    return unit, normal, float(np.arctan2(length, unit @ v))


def _mixed(u: Floats, v: Floats) -> Floats:
    unit, normal, angle = _frame(u, v)
    turn = np.outer(unit, normal)
    matrix: Floats = (
        (np.pi - angle) * np.eye(len(u))
        + np.sin(angle) ** 2 * (turn + turn.T)
        + np.sin(angle) * np.cos(angle) * (np.outer(unit, unit) - np.outer(normal, normal))
    )
    return matrix / (2 * np.pi)


def _same(u: Floats, v: Floats) -> Floats:
    unit, normal, angle = _frame(u, v)
    bend = np.eye(len(u)) - np.outer(unit, unit) + np.outer(normal, normal)
    matrix: Floats = np.linalg.norm(v) * np.sin(angle) / np.linalg.norm(u) * bend / (2 * np.pi)
    return matrix
