"""Stochastic traces from a few products."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from estimators.curvature import Operator
from estimators.errors import UserError


def block_traces(
    operator: Operator, sizes: Sequence[int], probes: int = 4, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Estimate the trace of every diagonal block by Hutchinson's estimator :math:`v_b^\top (A v)_b`.

    Args:
        operator: Symmetric operator with ``matmat``.
        sizes: Sizes of consecutive blocks; they sum to D.
        probes: Number of Rademacher vectors, at least 2.
        seed: Seed of the vectors; the global random state is not used.

    Returns:
        Traces ``[blocks]`` and their standard errors ``[blocks]``; the trace of A is their sum.

    Raises:
        UserError: Sizes do not sum to D, or fewer than two probes.

    Source: Hutchinson, Communications in Statistics 18, 1989.
    """
    if sum(sizes) != operator.shape[0]:
        raise UserError(f"sizes: must sum to {operator.shape[0]}, got {sum(sizes)}")
    if probes < 2:
        raise UserError(f"probes: expected at least 2 for a standard error, got {probes}")
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (operator.shape[0], probes), generator=generator) * 2 - 1
    vectors = signs.to(operator.device, operator.dtype)
    terms = (vectors * operator.matmat(vectors)).double().cpu()
    samples = np.stack([part.sum(0).numpy() for part in torch.split(terms, list(sizes))])
    return samples.mean(1), samples.std(1, ddof=1) / np.sqrt(probes)
