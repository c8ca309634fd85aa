"""When a prediction has taken enough samples, steps, probes and knots for its estimates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["hessian", "ggn"]


@dataclass(frozen=True)
class Stopping:
    r"""All numbers that decide when a prediction has taken enough, and the rules that use them.

    Nobody has measured that another value than a choice is worse. The other numbers name their page of ``docs/``. A
    change of a value changes limits and their errors.

    Attributes:
        answer: Wanted error from the steps of the spectrum that ``sparsity`` is read off, in units of the tolerance. A
            choice.
        other: The same of the other spectrum, whose limits have no tolerance of their own. A choice.
        directions: Wanted width of the bracket of the directional limit, in units of the tolerance. A choice.
        direction_share: The same as a share of what the limit keeps, where that is less. A choice.
        ggn_steps: Steps of the GGN that a budget is planned for. A choice.
        ggn_most: Largest number of steps of the GGN on a sub-sample of a large model, where samples are worth more. A
            choice.
        hessian_steps: Steps of the Hessian that a budget is planned for, and their largest number on a sub-sample of a
            large model. The Hessian's limit moves with the steps more than with the samples, and from so many steps on
            its error is a smaller multiple of the changes (``settled``). A choice.
        steps_at_once: Steps between two readings. A choice.
        share_at_once: Steps between two readings as a share of those taken, once that is more than ``steps_at_once``. A
            choice.
        change_since: An error without certificate is the change of the limit since one in so many of the steps, here a
            third (``theory/limit.md``, section 7).
        changes_from: Number of steps from which on this change counts as the error of the Hessian's limit, too, where
            it is less than the share of the bracket. With 16 steps it held in 74 % of runs on half of twelve known
            spectra; with 24 to 128 steps it held in 98 to 100 % on either half (``results/benchmarks/changes.md``).
        changed: How many times that change is the error. A choice.
        settled_from: Number of steps from which on the error is ``settled`` times the change
            (``results/benchmarks/changes.md``).
        settled: The factor from there on. Of 1, 1.25 and 1.5 it is the smallest that held in 95 % of runs on one half
            of the known spectra; on the other half it held in 95 to 100 % (``results/benchmarks/changes.md``).
        changes_read: Number of earlier limits that the change is read off. A choice.
        fewest_at_most: Largest number of steps of a large model. A choice.
        most_at_most: Largest number of steps of a small model. More of them would cost seconds of processor time and
            narrow the limit of a few thousand weights by a few weights. A choice.
        most_numbers: Product of D and steps up to which a model counts as small. A choice.
        slow: Steps are slow where twice as many leave more than this share of the error. FC5 on all of CIFAR-10 stops
            for this reason (``numbers.md``).
        dense: Number of weights up to which the whole matrix is built. A choice.
        most_probes: Largest number of probes. A choice.
        most_products: Largest product of probes and steps on a sub-sample. A choice.
        basis_memory: Bytes that a basis for reorthogonalisation may take, 4 GiB. A choice.
        most_samples: Largest sub-sample, whatever the budget allows. A choice.
        nearly: All data are taken where they are at most so many times more than the budget allows. Comparisons of
            sub-samples would cost the rest. A choice.
        pool_samples: Samples of the draw that smaller sub-samples come from. A choice.
        diagnostic_samples: Largest sub-sample of traces of layers and notes. A choice.
        hessian_part: How many times fewer samples the sub-sample has that the Hessian is compared with
            (``theory/limit.md``, section 7, says what this leads to).
        ggn_part: How many times fewer samples the sub-sample has that the GGN is compared with
            (``results/benchmarks/carried.md`` says what this leads to).
        most_knots: Largest number of sparsities with measured directions (``theory/directional.md``, section 9).
        knot_distance: Distance in :math:`-\log(1 - s)` below which a knot is at the limit. A choice.
        flatter: The second knot keeps so many times fewer weights than the first. A choice.

    Example:
        >>> STOPPING.most_steps(dimension=10_000), STOPPING.most_steps(dimension=10_000_000)
        (200, 96)
        >>> Stopping(fewest_at_most=32).most_steps(dimension=10_000_000)
        32
    """

    answer: float = 1 / 4
    other: float = 2.0
    directions: float = 1 / 2
    direction_share: float = 1 / 10
    ggn_steps: int = 24
    ggn_most: int = 40
    hessian_steps: int = 48
    steps_at_once: int = 4
    share_at_once: float = 1 / 8
    change_since: int = 3
    changes_from: int = 24
    changed: float = 2.0
    settled_from: int = 48
    settled: float = 1.25
    changes_read: int = 6
    fewest_at_most: int = 96
    most_at_most: int = 256
    most_numbers: int = 2_000_000
    slow: float = 2 / 3
    dense: int = 512
    most_probes: int = 8
    most_products: int = 256
    basis_memory: int = 4 << 30
    most_samples: int = 16384
    nearly: float = 1.5
    pool_samples: int = 2048
    diagnostic_samples: int = 1024
    hessian_part: int = 4
    ggn_part: int = 4
    most_knots: int = 4
    knot_distance: float = 0.25
    flatter: float = 5

    def wanted(self, tolerance: float, answers: bool) -> float:
        """Return the error from the steps to aim at: a part of the tolerance, which leaves room for the other errors.

        Args:
            tolerance: Wanted half-width of the limit, in sparsity, > 0.
            answers: Whether ``sparsity`` is read off this spectrum.
        """
        return tolerance * (self.answer if answers else self.other)

    # ------------------------------------------------------------------------------------------------ samples

    def samples(self, affordable: int, most: int) -> int:
        """Return the size of the sub-sample of a spectrum.

        Args:
            affordable: What the budget allows.
            most: Number of all samples.

        Example:
            >>> STOPPING.samples(affordable=1000, most=1400), STOPPING.samples(affordable=1000, most=2000)
            (1400, 1000)
        """
        if most <= self.nearly * affordable:
            return most
        return min(affordable, self.most_samples, most)

    # -------------------------------------------------------------------------------------------------- steps

    def exact(self, dimension: int, steps: int) -> bool:
        """Tell whether the whole matrix is built: it is small, or costs no more than the steps that were asked for."""
        return dimension <= max(self.dense, steps)

    def steps(self, kind: Kind) -> int:
        """Return the number of steps that a budget is planned for."""
        return self.hessian_steps if kind == "hessian" else self.ggn_steps

    def change(self, changes: Iterable[float], steps: int) -> float:
        """Return the error that the changes of a limit since a third of its steps tell.

        Args:
            changes: Absolute changes, in sparsity; none of them makes the error 1.
            steps: Number of steps.
        """
        factor = self.settled if steps >= self.settled_from else self.changed
        return factor * max(changes, default=1 / factor)

    def most_steps(self, dimension: int, kind: Kind | None = None, drawn: bool = False) -> int:
        """Return the largest number of steps: more for a small model, whose products cost little.

        Args:
            dimension: Number D of weights.
            kind: ``"hessian"`` or ``"ggn"``, for a sub-sample.
            drawn: Whether a large model is seen on a sub-sample, of which more samples are worth more than more steps.
        """
        if drawn and kind is not None and self.dear(dimension):
            return self.hessian_steps if kind == "hessian" else self.ggn_most
        return min(max(self.fewest_at_most, self.most_numbers // dimension), self.most_at_most)

    def pace(self, steps: int) -> int:
        """Return how many steps follow those taken before the next reading."""
        return max(self.steps_at_once, int(self.share_at_once * steps))

    def earlier(self, steps: int) -> range:
        """Return the numbers of steps whose limits are compared with that of all, for an error without certificate."""
        first = -(-steps // (self.change_since * self.steps_at_once)) * self.steps_at_once
        apart = max(1, (steps - first) // (self.changes_read * self.steps_at_once)) * self.steps_at_once
        return range(first, steps, apart)

    def dear(self, dimension: int) -> bool:
        """Tell whether steps are dear, so that slow ones are not worth it."""
        return self.most_steps(dimension) <= self.fewest_at_most

    def slowed(self, error: float, before: float) -> bool:
        """Tell whether the second half of the steps narrowed the error by too little, from that of the first half."""
        return error > self.slow * before

    def basis_fits(self, size: int, free: int) -> bool:
        """Tell whether a basis of ``size`` bytes fits into the free ones and leaves as much for everything else."""
        return size <= min(self.basis_memory, free // 2)

    # -------------------------------------------------------------------------------------------------- probes

    def probes(self, standard_error: float, step_error: float, steps: int, wanted: float) -> int:
        """Return how many probes have an error as small as wanted, or below the step error, judged by the first.

        Args:
            standard_error: Standard error of the limit with one probe.
            step_error: Its half-width from the number of steps.
            steps: Steps of every probe.
            wanted: Error to aim at.
        """
        enough = math.ceil((2 * standard_error / max(wanted, step_error)) ** 2)
        return min(enough, self.most_probes, self.most_products // steps)

    # --------------------------------------------------------------------------------------------------- knots

    def knots(self, sparsity: float) -> list[float]:
        """Return the first sparsities at which directions are measured, from the isotropic limit on.

        A sub-sample sees the removed weights in flatter directions than all data do, so that its limit errs upwards.
        """
        return sorted({sparsity, 1 - (1 - sparsity) / self.flatter})

    def enough_knots(self, distances: Sequence[float]) -> bool:
        """Tell from the distances of all knots from the limit whether they are enough."""
        return min(distances) < self.knot_distance or len(distances) >= self.most_knots


STOPPING = Stopping()
