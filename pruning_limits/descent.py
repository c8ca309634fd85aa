"""The steps of brief fine-tuning: gradient descent with momentum, each step a fraction of the norm of the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

RATE = 0.005  # a step's share of the weights' norm at the beginning; it falls to zero along a cosine
MOMENTUM = 0.9
MEMORY = 0.9  # of the running mean square of the gradient's norm
GENTLER = 0.25  # factor on the rate after a pass that did not help


class Descent:
    r"""Gradient descent whose rate follows from the weights' scale and the gradient's, the same for every network.

    The rate of a step is :math:`r \cos^2(\pi t/2) \, |w| / \sqrt{m}` with the norm of the weights at the beginning, the
    running mean m of the squared norm of the mini-batches' gradients, and the share t of the stage that is done: scaled
    losses and scaled weights take the same way. Where a gradient is larger than that mean, it counts itself.

    Args:
        counted: Weights whose norms set the scale, bool ``[T]``.
        rate: The share r of the weights' norm.

    Example:
        >>> weights, counted = torch.tensor([3.0, 4.0]), torch.tensor([True, True])
        >>> Descent(counted, rate=0.1).step(weights, torch.tensor([2.0, 0.0]), done=0.0)
        >>> weights
        tensor([2.5000, 4.0000])
    """

    def __init__(self, counted: Tensor, rate: float = RATE) -> None:
        self.counted, self.rate = counted, rate
        self._velocity: Tensor | None = None
        self._squares, self._share, self._length = 0.0, 0.0, 0.0

    def step(self, weights: Tensor, slope: Tensor, done: float) -> None:
        """Move weights in place.

        Args:
            weights: The weights ``[T]``.
            slope: Gradient of a mini-batch's mean loss ``[T]``; zero where a weight is held.
            done: Share of the stage that is done, in [0, 1).
        """
        square = float(torch.linalg.vector_norm(slope * self.counted)) ** 2
        self._squares = MEMORY * self._squares + (1 - MEMORY) * square
        self._share = MEMORY * self._share + (1 - MEMORY)
        size = math.sqrt(max(self._squares / self._share, square))
        if self._velocity is None:
            self._velocity = torch.zeros_like(slope)
            self._length = float(torch.linalg.vector_norm(weights * self.counted))
        self._velocity.mul_(MOMENTUM).add_(slope)
        if size > 0:
            rate = self.rate * math.cos(0.5 * math.pi * done) ** 2 * self._length / size
            weights.sub_(self._velocity, alpha=rate)

    def gentler(self) -> None:
        """Forget the momentum and take shorter steps from now on."""
        self._velocity = None
        self.rate *= GENTLER
