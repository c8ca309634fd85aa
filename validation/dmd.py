"""Exact dynamic mode decomposition by the method of snapshots, and a recorder of weights during training."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from estimators import Objective, UserError
from estimators.parameters import WEIGHTED
from estimators.vectors import flatten

Floats = NDArray[np.floating]
Complex = NDArray[np.complexfloating]
Observable = Callable[[nn.Module], Tensor]
CHUNK = 2**23
ROWS = 16  # the system maps more of a file than is read, so rows are read and let go few at a time


@dataclass(frozen=True)
class Modes:
    r"""Dynamic modes of snapshots: :math:`\theta(t) \approx \sum_i \lambda_i^t \tilde\theta_i`.

    Attributes:
        snapshots: ``[tau + 1, N]``, as given.
        eigenvalues: :math:`\lambda_i`, the one nearest 1 first, ``[r]``.
        amplitudes: :math:`b_i`, the least-squares solution of :math:`\Phi b = \theta(0)`, ``[r]``.
        norms: :math:`\|\tilde\theta_i\|` of the scaled modes, ``[r]``.
        coefficients: Scaled modes as combinations of snapshots, ``[tau + 1, r]``.
        reduced: Snapshots as columns in an orthonormal basis of their span, ``[tau + 1, tau + 1]``.
    """

    snapshots: Floats
    eigenvalues: Complex
    amplitudes: Complex
    norms: NDArray[np.float64]
    coefficients: Complex
    reduced: NDArray[np.float64]

    def mode(self, number: int) -> Complex:
        r"""Scaled mode :math:`\tilde\theta_i = b_i \phi_i`, ``[N]``, formed on demand."""
        return self._combined(self.coefficients[:, number])

    def reconstruction(self, time: int) -> Floats:
        """Snapshot of a time counted from 0 as the modes give it, ``[N]``."""
        return self._combined(self.coefficients @ self.eigenvalues**time).real

    def errors(self) -> NDArray[np.float64]:
        r"""Relative errors of all reconstructions, without forming one.

        Returns:
            :math:`\|\sum_i \lambda_i^t \tilde\theta_i - \theta(t)\| / \|\theta(t)\|` for t = 0..tau, ``[tau + 1]``.
            Rounding of the Gram matrix hides errors below about 1e-8.
        """
        times = np.arange(len(self.snapshots))
        fitted = self.reduced @ (self.coefficients @ self.eigenvalues[:, None] ** times)
        norms = np.linalg.norm(self.reduced, axis=0)
        result: NDArray[np.float64] = np.linalg.norm(fitted - self.reduced, axis=0) / np.where(norms > 0, norms, 1)
        return result

    def motion(self) -> float:
        r"""Farthest way from the first snapshot, :math:`\max_t \|\theta(t) - \theta(0)\|`."""
        return float(np.linalg.norm(self.reduced - self.reduced[:, :1], axis=0).max())

    def _combined(self, coefficients: Complex) -> Complex:
        return np.concatenate([coefficients @ part for part in _chunks(self.snapshots)])


def dmd(snapshots: Floats, tol: float = 1e-7) -> Modes:
    r"""Decompose snapshots of a dynamical system into exact dynamic modes.

    With :math:`X = \theta(0..\tau-1) = Q \Sigma V^*` and :math:`Y = \theta(1..\tau)`:
    :math:`\tilde A = Q^* Y V \Sigma^{-1}`, :math:`\tilde A \omega = \lambda \omega` and
    :math:`\phi = Y V \Sigma^{-1} \omega / \lambda`. All of it follows from the float64 Gram matrix of the snapshots,
    read once in chunks. The Gram matrix squares the condition number, so singular values below about 1e-8 of the
    largest are lost and ``tol`` must stay above.

    Args:
        snapshots: One snapshot per row, float array or memory map ``[tau + 1, N]``.
        tol: Singular values of X at most ``tol`` times the largest are dropped; in [1e-7, 1).

    Returns:
        The modes; none is formed yet.

    Raises:
        UserError: There are fewer than two snapshots, some are NaN or infinite, all are zero, or ``tol`` is out of its
            range.

    Source: Tu et al., On dynamic mode decomposition: theory and applications, J. Comput. Dyn. 2014; Redman et al., An
        operator theoretic view on pruning deep neural networks, ICLR 2022.

    Example:
        >>> modes = dmd(np.outer(0.5 ** np.arange(4), [3.0, 4.0]) + [1.0, 1.0])
        >>> modes.eigenvalues.real.round(6).tolist(), modes.mode(1).real.round(6).tolist()
        ([1.0, 0.5], [3.0, 4.0])
    """
    if snapshots.ndim != 2 or len(snapshots) < 2:
        raise UserError(f"snapshots: expected at least two rows [tau + 1, N], got shape {snapshots.shape}")
    if not 1e-7 <= tol < 1:
        raise UserError(f"tol: expected a number in [1e-7, 1), got {tol}; the Gram matrix squares the condition number")
    reduced = _reduced(gram(snapshots))
    x, y = reduced[:, :-1], reduced[:, 1:]
    q, sigma, vh = np.linalg.svd(x, full_matrices=False)
    rank = int((sigma > tol * sigma[0]).sum())
    if rank == 0:
        raise UserError("snapshots: expected weights, got zeros only")
    inverse = vh[:rank].T / sigma[:rank]
    eigenvalues, omega = np.linalg.eig(q[:, :rank].T @ y @ inverse)
    order = np.argsort(np.abs(eigenvalues - 1), kind="stable")
    eigenvalues, combined = eigenvalues[order].astype(np.complex128), inverse @ omega[:, order]
    coefficients = np.zeros((len(snapshots), rank), np.complex128)
    moving = np.abs(eigenvalues) > tol
    coefficients[1:, moving] = combined[:, moving] / eigenvalues[moving]
    coefficients[:-1, ~moving] = combined[:, ~moving]  # the exact mode of a zero eigenvalue is its projected mode
    phi = reduced @ coefficients
    amplitudes = np.linalg.lstsq(phi, reduced[:, 0].astype(np.complex128), rcond=None)[0]
    norms = np.abs(amplitudes) * np.linalg.norm(phi, axis=0)
    return Modes(snapshots, eigenvalues, amplitudes, norms, coefficients * amplitudes, reduced)


def gram(snapshots: Floats, chunk: int = CHUNK) -> NDArray[np.float64]:
    """Inner products of the snapshots, ``[tau + 1, tau + 1]``, accumulated in float64 over chunks of N.

    Args:
        snapshots: Weights after every step, ``[tau + 1, N]``.
        chunk: Numbers of all snapshots that are held in memory at once.

    Raises:
        UserError: Some snapshots are NaN or infinite.
    """
    result = np.zeros((len(snapshots), len(snapshots)))
    with np.errstate(all="ignore"):
        for part in _chunks(snapshots, chunk):
            result += part @ part.T
    if not np.isfinite(result).all():
        bad = int((~np.isfinite(np.diag(result))).sum())
        raise UserError(f"snapshots: expected finite weights, got NaN or infinity in {bad} of {len(snapshots)}")
    return result


def _reduced(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Snapshots as columns in an orthonormal basis of their span, ``[tau + 1, tau + 1]``, from their Gram matrix."""
    values, vectors = np.linalg.eigh(products)
    result: NDArray[np.float64] = np.sqrt(values.clip(min=0))[:, None] * vectors.T
    return result


def _chunks(snapshots: Floats, chunk: int = CHUNK) -> Iterator[NDArray[np.float64]]:
    width = max(1, chunk // len(snapshots))
    for start in range(0, snapshots.shape[1], width):
        columns = slice(start, min(start + width, snapshots.shape[1]))
        part = np.empty((len(snapshots), columns.stop - start))
        for row in range(0, len(snapshots), ROWS):
            part[row : row + ROWS] = snapshots[row : row + ROWS, columns]
            _release(snapshots)
        yield part


def _release(snapshots: Floats) -> None:
    """Let the system take back the resident pages of a mapped file, whose content stays in the file."""
    shared = isinstance(snapshots, np.memmap) and snapshots.mode != "c"
    if shared and isinstance(snapshots.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        snapshots.base.madvise(mmap.MADV_DONTNEED)


def recorded_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Weights and biases of convolution and linear layers by name, classifier included, batch norm excluded."""
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if isinstance(model.get_submodule(name.rpartition(".")[0]), WEIGHTED)
    }


def loss_and_gradient(batches: Iterable[Any]) -> Observable:
    """Return the observable of the mean cross-entropy over batches, followed by its gradient, ``[1 + D]``.

    Args:
        batches: Pairs of inputs and labels, the same on every pass.
    """

    def observe(model: nn.Module) -> Tensor:
        objective = Objective(model, batches)
        return torch.cat([torch.tensor([objective.value()]), objective.gradient().cpu().float()])

    return observe


def record_snapshots(
    model: nn.Module, steps: int, path: Path | None = None, observable: Observable | None = None
) -> tuple[Floats, Callable[[int, nn.Module], None]]:
    """Prepare to record the weights of a network before and after every training step.

    Args:
        model: The network; its present weights become the first snapshot.
        steps: Number of steps to record.
        path: File for the snapshots; default an array in memory.
        observable: Further observables of the network, ``[k]``, such as ``loss_and_gradient``, recorded behind the
            weights; default none.

    Returns:
        Float32 snapshots ``[steps + 1, N + k]``, filled as training goes, and the function to give to ``train`` as
        ``on_step``. N counts the parameters of ``recorded_parameters``.
    """

    def observed(model: nn.Module) -> Tensor:
        weights = flatten(list(recorded_parameters(model).values())).float().cpu()
        return weights if observable is None else torch.cat([weights, observable(model).float().cpu()])

    shape = (steps + 1, len(observed(model)))
    snapshots: Floats
    if path is None:
        snapshots = np.zeros(shape, np.float32)
    else:
        snapshots = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    rows = iter(range(steps + 1))

    def record(step: int, model: nn.Module) -> None:
        snapshots[next(rows)] = observed(model).numpy()

    record(0, model)
    return snapshots, record
