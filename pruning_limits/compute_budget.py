"""What a prediction may cost, and how many samples each of its parts may pass for it."""

from __future__ import annotations

from dataclasses import dataclass

from pruning_limits.stopping import Kind

EPOCH = 3  # forward passes: a training step goes forward once and backward, which takes twice as long
PRODUCT = 4  # forward passes of a product with kept graphs, 2.5 to 4.4 measured (``benchmarks/parts.py``)
FREE_OPERATIONS = 1e12  # floating point operations, some ten seconds of one core, that are spent on small problems, too
SHARES = {"ggn": 0.35, "hessian": 0.25, "diagnostics": 0.1}
SMALLER, DIRECTIONS = 1 / 3, 2  # recurrences on smaller sub-samples, and along directions, beside one of a spectrum
RETUNING_SHARE = 0.5  # beside those: what re-tuning may take at most
FEWEST = 64  # samples of a spectrum, whatever the budget: with fewer of them it says nothing about all data
FEWEST_LOSSES = 256
FEWEST_DIAGNOSTIC, DIAGNOSTIC_PRODUCTS = 64, 40


@dataclass(frozen=True)
class ComputeBudget:
    """Samples that may be passed forward, those of products counted as ``PRODUCT`` each.

    Attributes:
        passes: Their number.
        total: Number N of all samples.
    """

    passes: float
    total: int

    @classmethod
    def of(cls, epochs: float | None, total: int, operations: float) -> ComputeBudget:
        """Return the budget of some epochs of training.

        Args:
            epochs: Epochs; None means one, or ``FREE_OPERATIONS`` where an epoch is less.
            total: Number N of all samples.
            operations: Floating point operations of one sample in a forward pass.

        Example:
            >>> ComputeBudget.of(0.5, 60_000, 1e6).passes, ComputeBudget.of(None, 1_000, 1e7).passes
            (90000.0, 100000.0)
        """
        passes = EPOCH * float(total) * (1.0 if epochs is None else epochs)
        if epochs is None:
            passes = max(passes, FREE_OPERATIONS / max(operations, 1.0))
        return cls(passes, total)

    @property
    def losses(self) -> int:
        """Samples that the losses are of: all, where a third of the budget allows it, else an eighth of the budget."""
        return self.total if EPOCH * self.total <= self.passes else max(FEWEST_LOSSES, int(self.passes / 8))

    def samples(self, kind: Kind, steps: int) -> int:
        """Return the samples of a spectrum of so many steps, with smaller sub-samples, and directions by the GGN.

        Args:
            kind: ``"hessian"`` or ``"ggn"``.
            steps: Lanczos steps, at least 1.
        """
        recurrences = 1 + SMALLER + (DIRECTIONS if kind == "ggn" else 0)
        return min(self.total, max(FEWEST, int(SHARES[kind] * self.passes / (PRODUCT * steps * recurrences))))

    @property
    def diagnostics(self) -> int:
        """Samples of traces and of the quadratic model."""
        most = int(SHARES["diagnostics"] * self.passes / (PRODUCT * DIAGNOSTIC_PRODUCTS))
        return min(self.total, max(FEWEST_DIAGNOSTIC, most))

    @property
    def retuning(self) -> float:
        """What re-tuning may cost, in samples that an epoch of training passes: half of the budget.

        Example:
            >>> ComputeBudget.of(1.0, 60_000, 1e6).retuning
            30000.0
        """
        return RETUNING_SHARE * self.passes / EPOCH

    def epochs(self, samples: int, forward_samples: int, trained: float = 0.0) -> float:
        """Return passes in epochs.

        Args:
            samples: Samples seen by products, counted once per product.
            forward_samples: Samples that were passed forward.
            trained: Cost of re-tuning, see ``retuning``.
        """
        return (forward_samples + PRODUCT * samples + EPOCH * trained) / (EPOCH * self.total)
