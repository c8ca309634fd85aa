"""Stochastic Lanczos quadrature: the spectral measure of an operator with its sampling error."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from estimators.errors import UserError
from estimators.lanczos import Lanczos, Reorthogonalise, Tridiagonal
from estimators.measure import Rule, SpectralMeasure
from estimators.operator import Operator
from estimators.quadrature import gauss
from estimators.vectors import aligned_rows


def measure_of(
    tridiagonals: Sequence[Tridiagonal], dimension: int, rule: Callable[[Tridiagonal], Rule] = gauss
) -> SpectralMeasure:
    """Build a measure from Lanczos matrices.

    Args:
        tridiagonals: One matrix per probe.
        dimension: D.
        rule: Quadrature rule, for instance ``gauss`` or ``averaged_gauss``.

    Returns:
        The measure.
    """
    return SpectralMeasure(tuple(rule(tridiagonal) for tridiagonal in tridiagonals), dimension)


def dense_measure(operator: Operator, images: Tensor | None = None) -> SpectralMeasure:
    """Compute the exact measure of a small operator from all its columns and a float64 eigenvalue solver.

    Args:
        operator: Symmetric operator; D products are taken and D x D numbers stored.
        images: All columns of the operator ``[D, D]``, if known; this saves the products.

    Returns:
        The exact measure.
    """
    if images is None:
        images = operator.matmat(torch.eye(operator.shape[0], device=operator.device, dtype=operator.dtype))
    matrix = images.double()
    return SpectralMeasure.from_eigenvalues(torch.linalg.eigvalsh((matrix + matrix.T) / 2).cpu().numpy())


def sphere_probes(operator: Operator, probes: int, seed: int = 0) -> Tensor:
    """Draw probe vectors uniform on the unit sphere without touching the global random state.

    Args:
        operator: Gives dimension, type and device.
        probes: Number K of vectors.
        seed: Seed; the k-th vector does not depend on K.

    Returns:
        Columns ``[D, K]``.
    """
    if probes < 1:
        raise UserError(f"probes: expected at least 1, got {probes}")
    generator = torch.Generator().manual_seed(seed)
    rows = aligned_rows(probes, operator.shape[0], operator.dtype, operator.device)
    for row in rows:
        vector = torch.randn(operator.shape[0], generator=generator, dtype=torch.float64, device="cpu")
        row.copy_(vector.div_(vector.norm()))
    return rows.T


def spectral_measure(
    operator: Operator,
    probes: int = 4,
    steps: int = 64,
    seed: int = 0,
    reorthogonalise: Reorthogonalise = "full",
) -> SpectralMeasure:
    r"""Estimate the spectral measure of a symmetric operator by stochastic Lanczos quadrature.

    Args:
        operator: Symmetric operator with ``matmat``, for instance ``Hessian`` or ``GGN``.
        probes: Number of random unit vectors.
        steps: Lanczos steps per probe; capped at D.
        seed: Seed of the probes.
        reorthogonalise: ``"full"`` (memory D x steps x probes) or ``"none"`` (three vectors per probe).

    Returns:
        The measure; ``measure.integrate(f)`` gives :math:`\frac1D \operatorname{tr} f(A)` and its standard error.

    Source: Ubaru, Chen and Saad, SIAM J. Matrix Anal. Appl. 38, 2017; Ghorbani, Krishnan and Xiao, ICML 2019.
    """
    if steps < 1:
        raise UserError(f"steps: expected at least 1, got {steps}")
    run = Lanczos(operator, sphere_probes(operator, probes, seed), reorthogonalise)
    run.advance(min(steps, operator.shape[0]))
    return measure_of(run.tridiagonals(vectors=False), operator.shape[0])
