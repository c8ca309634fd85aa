"""When enough is taken: how many samples, steps, probes and knots the estimates of one prediction use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["hessian", "ggn"]


@dataclass(frozen=True)
class Part:
    """The part of a sub-sample that its limit is compared with.

    Attributes:
        fewer: How many times fewer samples it has, at least 2.
        longer: How many times as many steps are taken on it, at least 1.
    """

    fewer: int
    longer: int


@dataclass(frozen=True)
class Errors:
    """Errors to aim at.

    Attributes:
        steps: Half-width from the number of steps, > 0.
        samples: Half-width from the sub-sample, > 0.
    """

    steps: float
    samples: float


@dataclass(frozen=True)
class Stopping:
    r"""All numbers that decide when a prediction has taken enough, and the rules that use them.

    The pages named here lie in ``docs/``. A change of a value changes limits and their errors.

    Attributes:
        answer: Errors of the spectrum that ``sparsity`` is read off, in units of the tolerance. A choice, not measured.
        other: The same of the other spectrum, whose limits have no tolerance of their own. A choice, not measured.
        directions: Width of the bracket of the directional limit, in units of the tolerance. A choice, not measured.
        least_steps: Steps before the error is read for the first time; the other spectrum takes half of them. A choice
            for its cost: with it the prediction of a large network, not measuring, takes about one epoch of training
            (``results/benchmarks/epoch.md``). Where all data are taken they need more (``results/README.md``).
        steps_at_once: Steps between two readings. A choice, not measured.
        share_at_once: Steps between two readings as a share of those taken, once that is more than ``steps_at_once``. A
            choice, not measured.
        change_since: The error that is no certificate is the change of the limit since one in so many of the steps,
            here a third (``theory/limit.md``, section 7). A choice, not measured.
        changes_from: Steps from which on that change, where it is less than the share of the bracket, is the error of
            the Hessian's limit, too. With fewer it misses: at 16 steps it held in 74 % of runs on half of twelve known
            spectra, at 24 to 128 steps in 98 to 100 % on either half (``results/benchmarks/changes.md``).
        changes_read: Number of earlier limits that it is read off. A choice for their cost.
        fewest_at_most: Largest number of steps of a large model. A choice, not measured.
        most_at_most: Largest number of steps of a small model. A choice for its cost: more than these have seconds of
            processor time narrow the limit of a few thousand weights by a few of them.
        most_numbers: Numbers D times steps up to which a model counts as small. A choice, not measured.
        slow: Steps are slow where twice as many leave more than this share of the error. A choice, not measured; FC5
            on CIFAR-10 stops by it after ``least_steps`` (``theory/trust.md``).
        dense: Weights up to which the whole matrix is built. A choice, not measured.
        most_probes: Largest number of probes. A choice, not measured.
        most_products: Largest number of probes times steps on a sub-sample. A choice, not measured.
        basis_memory: Bytes that a basis for reorthogonalisation may take, 4 GiB. A choice, not measured.
        least_samples: The first sub-sample; up to twice as many, all data are taken. A choice; what it errs by is in
            ``results/benchmarks/samples.md``.
        most_samples: The sub-sample is doubled no further. A choice, not measured.
        pool_samples: Smaller sub-samples are drawn out of one of this size, on which the search for the measured limit
            begins (``theory/limit.md``, section 8). A choice, not measured.
        diagnostic_samples: Largest sub-sample of directions, traces of layers and notes. A choice, not measured.
        hessian_part: What the Hessian is compared with. Its limit differs by so little that the scatter of the steps
            would drown it: a small part and more steps (``theory/limit.md``, section 7). A choice for this reason; what
            it leads to is in ``results/benchmarks/samples.md``.
        ggn_part: What the GGN is compared with. A choice; what it leads to is in ``results/benchmarks/samples.md``.
        most_knots: Largest number of sparsities with measured directions (``theory/directional.md``, section 9). A
            choice, not measured.
        knot_distance: Distance in :math:`-\log(1 - s)` below which a knot is at the limit. A choice, not measured.
        flatter: The second knot keeps so many times fewer weights than the first. A choice, not measured.

    Example:
        >>> STOPPING.most_steps(dimension=10_000), STOPPING.most_steps(dimension=10_000_000)
        (200, 96)
        >>> Stopping(fewest_at_most=32).most_steps(dimension=10_000_000)
        32
    """

    answer: Errors = Errors(1 / 4, 1 / 2)
    other: Errors = Errors(2.0, 1.0)
    directions: float = 1 / 2
    least_steps: int = 16
    steps_at_once: int = 4
    share_at_once: float = 1 / 8
    change_since: int = 3
    changes_from: int = 24
    changes_read: int = 6
    fewest_at_most: int = 96
    most_at_most: int = 256
    most_numbers: int = 2_000_000
    slow: float = 2 / 3
    dense: int = 512
    most_probes: int = 8
    most_products: int = 256
    basis_memory: int = 4 << 30
    least_samples: int = 1024
    most_samples: int = 16384
    pool_samples: int = 2048
    diagnostic_samples: int = 1024
    hessian_part: Part = Part(fewer=16, longer=2)
    ggn_part: Part = Part(fewer=8, longer=1)
    most_knots: int = 4
    knot_distance: float = 0.25
    flatter: float = 5

    def wanted(self, tolerance: float, answers: bool) -> Errors:
        """Return the errors to aim at: parts of the tolerance, which leave room for what the interval adds to them.

        Args:
            tolerance: Wanted half-width of the limit, in sparsity, > 0.
            answers: Whether ``sparsity`` is read off this spectrum.
        """
        shares = self.answer if answers else self.other
        return Errors(tolerance * shares.steps, tolerance * shares.samples)

    # ------------------------------------------------------------------------------------------------ samples

    def first_samples(self, most: int) -> int:
        """Return the size of the first sub-sample: all data where these are at most twice ``least_samples``.

        A sub-sample and what it is compared with would cost more than what it leaves out.
        """
        return most if most <= 2 * self.least_samples else self.least_samples

    def part(self, kind: Kind) -> Part:
        """Return what the sub-sample of a curvature is compared with."""
        return self.hessian_part if kind == "hessian" else self.ggn_part

    def enough_samples(self, samples: int, sample_error: float, step_error: float, wanted: Errors) -> bool:
        """Tell whether more samples would not help: below the step error their error does not count."""
        return sample_error <= max(wanted.samples, step_error) or samples >= self.most_samples

    # -------------------------------------------------------------------------------------------------- steps

    def exact(self, dimension: int, steps: int) -> bool:
        """Tell whether the whole matrix is built: it is small, or costs no more than the steps that were asked for."""
        return dimension <= max(self.dense, steps)

    def most_steps(self, dimension: int) -> int:
        """Return the largest number of steps: more for a small model, whose products cost little."""
        return min(max(self.fewest_at_most, self.most_numbers // dimension), self.most_at_most)

    def least(self, answers: bool) -> int:
        """Return the number of steps before the error is read for the first time."""
        return self.least_steps if answers else self.least_steps // 2

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

    def probes(self, standard_error: float, step_error: float, steps: int, wanted: Errors) -> int:
        """Return how many probes have an error as small as wanted, or below the step error, judged by the first.

        Args:
            standard_error: Standard error of the limit with one probe.
            step_error: Its half-width from the number of steps.
            steps: Steps of every probe.
            wanted: Errors to aim at.
        """
        enough = math.ceil((2 * standard_error / max(wanted.steps, step_error)) ** 2)
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
