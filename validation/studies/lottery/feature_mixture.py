r"""Neurons that learn from a mixture of class-relevant and class-irrelevant features.

A sample is a set of patches: the relevant feature of its class, :math:`p_+` or :math:`p_-`, and every irrelevant
feature, each with Gaussian noise; all features are orthonormal. The network is
:math:`f(x) = \frac1K \sum_k b_k \max_m \max(w_k \cdot x_m, 0)` with fixed signs b, trained on the hinge loss. A neuron
is good while the smallest angle between its weights and any feature is the angle with the relevant feature of its own
sign.

Source: after Zhang et al., Joint edge-model sparse learning is provably efficient for graph neural networks, ICLR 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Mixture:
    """Sizes and scales of data, network and training.

    Attributes:
        irrelevant: Number of irrelevant features.
        inputs: Dimension of a patch, at least ``irrelevant + 2``.
        noise: Deviation of the noise of every coordinate.
        neurons: Hidden neurons K, half of each sign.
        start: Deviation of the initial weights.
        rate: Step size, per neuron (the factor 1/K of the output is made up for).
        steps: Steps of gradient descent on all samples.
    """

    irrelevant: int = 8
    inputs: int = 12
    noise: float = 0.05
    neurons: int = 64
    start: float = 0.05
    rate: float = 0.05
    steps: int = 40


@dataclass(frozen=True)
class Training:
    """What became of the neurons of one training.

    Attributes:
        start: Initial weights ``[neurons, inputs]``.
        weights: Trained weights of the same shape.
        good: Which neurons are good before every step and at the end, ``[steps + 1, neurons]``.
        accuracy: Share of the samples classified rightly at the end.
    """

    start: Floats
    weights: Floats
    good: Bools
    accuracy: float


def draw_samples(mixture: Mixture, samples: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Draw patches and labels; the features are the first ``irrelevant + 2`` unit vectors, relevant ones first.

    Args:
        mixture: Sizes and noise.
        samples: Number N of samples.
        rng: Source of labels and noise.

    Returns:
        Patches ``[samples, irrelevant + 1, inputs]`` and labels -1 or 1 ``[samples]``.
    """
    labels = rng.choice([-1.0, 1.0], samples)
    x = mixture.noise * rng.standard_normal((samples, mixture.irrelevant + 1, mixture.inputs))
    patches = np.arange(1, mixture.irrelevant + 1)
    x[:, patches, patches + 1] += 1
    x[np.arange(samples), 0, np.where(labels > 0, 0, 1)] += 1
    return x, labels


def forward(weights: Floats, signs: Floats, x: Floats) -> tuple[Floats, NDArray[np.int64], Bools]:
    """Outputs, and through which patch every neuron saw every sample.

    Args:
        weights: ``[neurons, inputs]``.
        signs: -1 or 1 ``[neurons]``.
        x: Patches ``[samples, patches, inputs]``.

    Returns:
        Outputs ``[samples]``, the strongest patch ``[samples, neurons]``, and whether it activates the neuron.
    """
    value = x[:, 0] @ weights.T
    best = np.zeros(value.shape, dtype=np.int64)
    for number in range(1, x.shape[1]):
        hidden = x[:, number] @ weights.T
        best[hidden > value] = number
        value = np.maximum(hidden, value)
    return (signs * np.maximum(value, 0)).mean(-1), best, value > 0


def gradient(weights: Floats, signs: Floats, x: Floats, y: Floats) -> Floats:
    """Gradient of the mean hinge loss ``max(0, 1 - y f(x))``; shapes as for ``forward``, y ``[samples]``."""
    out, best, active = forward(weights, signs, x)
    pull = np.where(y * out < 1, -y, 0.0)[:, None] * signs * active / (len(y) * len(signs))
    slopes: Floats = np.sum([(pull * (best == number)).T @ x[:, number] for number in range(x.shape[1])], axis=0)
    return slopes


def good_neurons(weights: Floats, signs: Floats, features: int) -> Bools:
    """Whether the largest of the first ``features`` coordinates of every neuron is the relevant one of its sign.

    Args:
        weights: ``[neurons, inputs]``.
        signs: -1 or 1 ``[neurons]``.
        features: Number of features, two relevant ones first.

    Returns:
        ``[neurons]``.

    Example:
        >>> good_neurons(np.array([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]]), np.array([1.0, -1.0]), 3).tolist()
        [True, False]
    """
    good: Bools = weights[:, :features].argmax(-1) == np.where(signs > 0, 0, 1)
    return good


def train(mixture: Mixture, samples: int, rng: np.random.Generator) -> Training:
    """Train one network from random weights by gradient descent.

    Args:
        mixture: Sizes, scales and steps.
        samples: Number N of samples.
        rng: Source of samples and weights.

    Returns:
        The neurons before, on the way and after.
    """
    x, y = draw_samples(mixture, samples, rng)
    signs = np.where(np.arange(mixture.neurons) % 2 == 0, 1.0, -1.0)
    start = mixture.start * rng.standard_normal((mixture.neurons, mixture.inputs))
    weights, features = start, mixture.irrelevant + 2
    good = [good_neurons(weights, signs, features)]
    for _ in range(mixture.steps):
        weights = weights - mixture.rate * mixture.neurons * gradient(weights, signs, x, y)
        good.append(good_neurons(weights, signs, features))
    right = float((y * forward(weights, signs, x)[0] > 0).mean())
    return Training(start, weights, np.array(good), right)
