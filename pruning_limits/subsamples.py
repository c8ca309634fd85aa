"""Frozen sub-samples of the data and the curvatures on them, which the parts of one prediction share."""

from __future__ import annotations

from contextlib import suppress

from torch import Tensor

from estimators import Objective, sphere_probes
from estimators.automatic import AutomaticCurvature
from estimators.errors import UndefinedGGNError
from estimators.forwards import Forwards
from estimators.input_subspace import InputSubspace, input_weights
from estimators.sampling import inclusion
from pruning_limits.compute_budget import ComputeBudget
from pruning_limits.losses import Losses
from pruning_limits.settings import Settings
from pruning_limits.silence import acting_layers, curved_weights, marked_layers, silence
from pruning_limits.stopping import STOPPING, Kind, Stopping

Curvature = AutomaticCurvature | InputSubspace
COVERED_POWER = 0.5  # an observation on two networks (``docs/theory/limit.md``, section 7)


class Subsamples:
    """Sub-samples of all sizes, each drawn once, and curvatures on them, their forward passes shared.

    Half of a draw goes in proportion to the samples' ``losses.shares`` in the curvature, half to all alike, so that no
    weight of a sample exceeds 2; without shares all are drawn alike.

    Args:
        losses: Losses at the trained weights, with the objective on the data that were passed.
        settings: What was asked for; seed, precision and curvature count here.
        mask: Bool ``[D]``, False for weights that are removed already and have no curvature; None keeps all.
        stopping: The size of the sub-sample that smaller ones are drawn from.
        budget: What the prediction may cost; None takes that of the settings, with two operations per weight.

    Example:
        >>> import torch
        >>> from pruning_limits.losses import all_losses
        >>> data = [(torch.randn(64, 4), torch.randint(0, 2, (64,)))]
        >>> subsamples = Subsamples(all_losses(Objective(torch.nn.Linear(4, 2), data)), Settings())
        >>> subsamples.subset(16).samples, subsamples.operator("ggn", 16).shape
        (16, (8, 8))
        >>> subsamples.operator("ggn", 16) is subsamples.operator("ggn", 16)
        True
    """

    def __init__(
        self,
        losses: Losses,
        settings: Settings,
        mask: Tensor | None = None,
        stopping: Stopping = STOPPING,
        budget: ComputeBudget | None = None,
    ) -> None:
        self.losses, self.objective, self.settings = losses, losses.objective, settings
        self.mask, self.stopping = mask, stopping
        self.budget = budget or ComputeBudget.of(settings.budget, losses.total, 2.0 * self.objective.dimension)
        self._scores = None if losses.shares is None else losses.shares + losses.shares.mean()
        self._subsets: dict[int, Objective] = {}
        self._inside: dict[int, Objective | None] = {}
        self._forwards: dict[tuple[int, bool], Forwards] = {}
        self._operators: dict[tuple[Kind, int, bool], Curvature] = {}
        self._automatic: list[AutomaticCurvature] = []
        self._curved: dict[tuple[Kind, int], frozenset[str]] = {}
        self._acting: dict[int, frozenset[str]] = {}

    @property
    def products(self) -> int:
        """Products taken so far."""
        return sum(operator.products for operator in self._operators.values())

    @property
    def samples_seen(self) -> int:
        """Samples seen by them, counted once per product."""
        return sum(samples * operator.products for (_, samples, _), operator in self._operators.items())

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is to be said of products by finite differences; empty where there are none."""
        errors: dict[str, float] = {}
        for curvature in self._automatic:
            if curvature.reason:
                with suppress(UndefinedGGNError):  # of a loss without a GGN, which is said elsewhere
                    errors[curvature.reason] = max(curvature.error, errors.get(curvature.reason, 0.0))
        return tuple(
            f"products by finite differences of gradients, relative error {error:.1g}: {reason}"
            for reason, error in errors.items()
        )

    def error(self, kind: Kind, samples: int) -> float:
        """Relative error of the products of a curvature on a sub-sample beyond rounding, 0 where it is differentiated.

        Args:
            kind: ``"hessian"`` or ``"ggn"``.
            samples: Size of the sub-sample.
        """
        operators = (self._operators.get((kind, samples, narrow)) for narrow in (False, True))
        return max(operator.error for operator in operators if operator is not None)

    @property
    def floor(self) -> float:
        """Lower bound of the GGN's eigenvalues."""
        penalty = self.objective.penalty
        return penalty.curvature if penalty and self.mask is None else 0.0

    def coverage(self, samples: int) -> float:
        r"""Share of what curves that a sub-sample of a size covers, :math:`\sum_j \pi_j a_j / \sum_j a_j`.

        :math:`\pi_j` is the probability that a sample is drawn, :math:`a_j` its share in the curvature to the power
        0.5: a weaker sample adds its own directions to the rank, too. Where the losses are of a draw, its share of
        all data counts, too.
        """
        if self._scores is None or self.losses.shares is None:
            return samples / self.losses.total
        weights = self.losses.shares.clamp(min=0) ** COVERED_POWER
        covered = float((weights * inclusion(self._scores, samples)).sum() / weights.sum())
        return covered * self.objective.samples / self.losses.total

    def subset(self, samples: int) -> Objective:
        """Return the objective on the sub-sample of a size, or on all data where there are no more.

        Args:
            samples: Size, at least 1; whole batches may give more. Small sub-samples are drawn from one of all data.
        """
        count = min(samples, self.objective.samples)
        if count not in self._subsets:
            pool, seed = self.stopping.pool_samples, self.settings.seed
            if count < pool < self.objective.samples:
                self._subsets[count] = self.subset(pool).subset(count, seed)
            else:
                self._subsets[count] = self.objective.subset(count, seed, self._scores)
        return self._subsets[count]

    def operator(self, kind: Kind, samples: int, narrow: bool = False) -> Curvature:
        """Return the curvature on a sub-sample, its kept graphs shared by all who ask.

        Args:
            kind: ``"hessian"`` or ``"ggn"``.
            samples: Size of the sub-sample.
            narrow: Take the curvature in the subspace of the input weights where there is one; the eigenvalues that it
                leaves out are known.
        """
        part = self.subset(samples)
        inside = self._in_subspace(part) if narrow else None
        key = kind, part.samples, inside is not None
        if key not in self._operators:
            on, precision = inside or part, self.settings.precision
            forwards = self._forwards.setdefault(key[1:], Forwards(on, precision=precision))
            curvature = AutomaticCurvature(kind, on, forwards, self.mask)
            self._automatic.append(curvature)
            self._operators[key] = curvature if inside is None else InputSubspace(curvature, part.penalty)
        return self._operators[key]

    def _in_subspace(self, part: Objective) -> Objective | None:
        """Return the losses on a sub-sample as a function of the input weights.

        None where weights are removed, and where the input weights are hardly fewer than all.
        """
        if part.samples not in self._inside:
            weights = input_weights(part) if self.mask is None else None
            self._inside[part.samples] = None if weights is None else part.in_weights(weights)
        return self._inside[part.samples]

    def forget(self, kind: Kind, samples: int) -> None:
        """Drop the graphs of an operator, and the forward passes beneath when the GGN, which comes last, is done."""
        for narrow in (False, True):
            operator = self.operator(kind, samples, narrow)
            if kind == "ggn":
                operator.forget()
            else:
                operator.forget_products()

    def forget_forwards(self) -> None:
        """Drop the forward passes of all sub-samples."""
        for forwards in self._forwards.values():
            forwards.forget()

    def curved(self, kind: Kind, operator: Curvature, vectors: Tensor, images: Tensor) -> Tensor:
        """Mark the weights along which the losses curve, and remember for ``silence`` in which layers they lie.

        Args:
            kind: ``"hessian"`` or ``"ggn"``.
            operator: The curvature on a sub-sample, D weights.
            vectors: Columns ``[D, K]`` without zeros, such as random ones, or the identity.
            images: The curvature times these columns ``[D, K]``.

        Returns:
            Bool ``[D]``.
        """
        weights = curved_weights(self.objective.penalty, vectors, images, self.mask)
        self._curved[kind, operator.samples] = marked_layers(self.objective.names, operator.blocks, weights)
        return weights

    def silence(self, kind: Kind, samples: int) -> str:
        """Say of which layers that act on a sub-sample a curvature there says nothing; empty where there are none.

        A layer acts where the losses have a gradient along it. For the GGN it also acts where their Hessian curves.

        Args:
            kind: ``"hessian"`` or ``"ggn"``.
            samples: Size of the sub-sample.

        Returns:
            The reason, a clause that begins with the name of the matrix.
        """
        layers, curved = self.objective.names, self._curved_layers(kind, samples)
        if len(curved) == len(layers):
            return ""
        if samples not in self._acting:
            self._acting[samples] = acting_layers(self.subset(samples), self.mask)
        acting = self._acting[samples]
        if kind != self.settings.curvature and not acting >= set(layers) - curved:
            acting |= self._curved_layers("hessian", samples)
        return silence(kind, layers, curved, acting)

    def _curved_layers(self, kind: Kind, samples: int) -> frozenset[str]:
        """Name the layers in which a curvature is not zero, by the first product of its recurrence, or by another one.

        There was no first product where the recurrence was continued from a file.
        """
        if (kind, samples) not in self._curved:
            operator = self.operator(kind, samples, narrow=True)
            vectors = sphere_probes(operator, 1, self.settings.seed)
            self.curved(kind, operator, vectors, operator.matmat(vectors))
        return self._curved[kind, samples]
