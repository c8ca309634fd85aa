"""The spectral measure of a matrix, as numbers that need no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from estimators.errors import UserError

Floats = NDArray[np.float64]
Rule = tuple[Floats, Floats]


@dataclass(frozen=True)
class SpectralMeasure:
    r"""An estimate of the eigenvalue distribution :math:`\frac1D \sum_i \delta(\lambda_i)` of a D x D matrix.

    Args:
        rules: One quadrature rule, nodes and weights, per probe.
        dimension: D.
        exact: Whether the rule holds all eigenvalues; integrals then have no sampling error.
    """

    rules: tuple[Rule, ...]
    dimension: int
    exact: bool = False

    def __post_init__(self) -> None:
        if not self.rules:
            raise UserError("rules: expected at least one quadrature rule, got none")
        for nodes, weights in self.rules:
            if len(nodes) != len(weights) or not (np.isfinite(nodes).all() and np.isfinite(weights).all()):
                raise UserError("rules: nodes and weights must be finite and of equal number")
            if (weights < -1e-12).any() or abs(weights.sum() - 1) > 1e-6:
                raise UserError(f"rules: weights must be >= 0 and sum to 1, got a sum of {weights.sum():.6g}")

    @classmethod
    def from_eigenvalues(cls, eigenvalues: ArrayLike) -> SpectralMeasure:
        """Build the exact measure of a matrix whose eigenvalues are known.

        Args:
            eigenvalues: All D eigenvalues ``[D]``.

        Returns:
            The measure; its integrals have standard error zero.
        """
        nodes = np.sort(np.asarray(eigenvalues, dtype=np.float64).reshape(-1))
        return cls(((nodes, np.full(len(nodes), 1 / max(len(nodes), 1))),), len(nodes), exact=True)

    @property
    def probes(self) -> int:
        """Number of probe vectors."""
        return len(self.rules)

    @property
    def nodes(self) -> Floats:
        """Nodes of all probes ``[probes * m]``."""
        return np.concatenate([nodes for nodes, _ in self.rules])

    @property
    def weights(self) -> Floats:
        """Weights of all probes ``[probes * m]``; they sum to 1."""
        return np.concatenate([weights for _, weights in self.rules]) / self.probes

    @property
    def largest(self) -> float:
        """Largest node, a lower bound of the largest eigenvalue."""
        return float(self.nodes.max())

    def integrate(self, function: Callable[[Floats], Floats]) -> tuple[float, float]:
        r"""Estimate :math:`\frac1D \operatorname{tr} f(A)` and its standard error over the choice of probes.

        For a probe v uniform on the sphere the variance of :math:`v^\top f v` is
        :math:`\frac{2}{D+2}(\frac1D \operatorname{tr} f^2 - (\frac1D \operatorname{tr} f)^2)` exactly. Both traces come
        from the same quadrature, so one probe is enough for a standard error. Where the probes differ by more than this
        variance says, the standard error comes from their spread. It does not include the error of the quadrature.

        Args:
            function: f, applied to an array of nodes.

        Returns:
            Value and standard error.

        Example:
            >>> SpectralMeasure.from_eigenvalues([1.0, 3.0]).integrate(lambda x: x)
            (2.0, 0.0)
        """
        if self.exact:
            return float(self.weights @ function(self.nodes)), 0.0
        values = np.array([weights @ function(nodes) for nodes, weights in self.rules])
        squares = float(self.weights @ np.square(function(self.nodes)))
        mean = float(values.mean())
        variance = 2 / (self.dimension + 2) * max(0.0, squares - mean**2) / self.probes
        if self.probes > 1:
            variance = max(variance, float(values.var(ddof=1)) / self.probes)
        return mean, variance**0.5

    def moment(self, order: int) -> tuple[float, float]:
        r"""Estimate :math:`\frac1D \operatorname{tr} A^k` and its standard error."""
        return self.integrate(lambda x: x**order)

    def cumulative(self, grid: ArrayLike) -> tuple[Floats, Floats]:
        r"""Estimate the cumulative spectrum :math:`F(x) = \frac1D \#\{i : \lambda_i \le x\}`.

        The estimate jumps at every node by the weight of the node. The standard error includes only the choice of
        probes, as in ``integrate``. The resolution of the quadrature is not included; the size of the jumps near x
        shows it.

        Args:
            grid: Points x ``[g]``.

        Returns:
            Fractions ``[g]`` in [0, 1] and their standard errors ``[g]``.

        Example:
            >>> SpectralMeasure.from_eigenvalues([1.0, 2.0, 2.0, 5.0]).cumulative([0.0, 2.0, 9.0])[0].tolist()
            [0.0, 0.75, 1.0]
        """
        points = np.asarray(grid, dtype=np.float64).reshape(-1)
        pairs = [self.integrate(lambda nodes, x=x: (nodes <= x).astype(np.float64)) for x in points]  # type: ignore[misc]
        fractions, errors = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
        return fractions, errors

    def density(self, grid: ArrayLike, width: float) -> Floats:
        """Evaluate the measure smoothed by a Gaussian, for plots.

        Args:
            grid: Points ``[g]``.
            width: Standard deviation of the Gaussian, in units of the eigenvalues.

        Returns:
            Density ``[g]``; its integral over the real line is 1.
        """
        if not width > 0:
            raise UserError(f"width: expected a positive number, got {width}")
        distance = (np.asarray(grid, dtype=np.float64)[:, None] - self.nodes) / width
        bumps: Floats = np.exp(-0.5 * distance**2) @ self.weights / (width * np.sqrt(2 * np.pi))
        return bumps

    def among(self, known: Sequence[tuple[float, float]]) -> SpectralMeasure:
        """Return the measure of a whole matrix from this measure of a block and the known other eigenvalues.

        Args:
            known: Pairs of an eigenvalue and its share of all D in [0, 1]; the block has the rest.

        Returns:
            The measure.

        Example:
            >>> SpectralMeasure.from_eigenvalues([2.0]).among([(0.0, 0.75)]).integrate(lambda x: x)[0]
            0.5
        """
        values, shares = np.array(known, dtype=np.float64).reshape(-1, 2).T
        rest = 1 - shares.sum()
        rules = tuple((np.append(nodes, values), np.append(weights * rest, shares)) for nodes, weights in self.rules)
        return SpectralMeasure(rules, self.dimension, self.exact)

    def scaled(self, factor: float) -> SpectralMeasure:
        """Return the measure of ``factor`` times the matrix."""
        return self.mapped(lambda nodes: nodes * factor)

    def mapped(self, function: Callable[[Floats], Floats]) -> SpectralMeasure:
        """Return the measure of f(A).

        Args:
            function: f, applied to an array of nodes.

        Example:
            >>> SpectralMeasure.from_eigenvalues([1.0, -3.0]).mapped(abs).largest
            3.0
        """
        rules = tuple((function(nodes), weights) for nodes, weights in self.rules)
        return SpectralMeasure(rules, self.dimension, self.exact)
