"""Savings of pruning as numbers that need no torch: parameters, multiply-accumulates and bytes at some sparsities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from estimators.errors import UserError
from pruning_limits.settings import number

if TYPE_CHECKING:
    from pruning_limits.answers import Verdict

SHARE = "a number in (0, 1), the share that may remain"
QUANTITIES = ("parameters", "macs", "bytes")


@dataclass(frozen=True)
class Saving:
    """What is left of a network at a sparsity.

    Attributes:
        sparsity: Removed fraction of the prunable weights.
        parameters: Parameters that stay, those that are not prunable among them; biases and normalisation of removed
            channels do not.
        macs: Multiply-accumulates of the prunable layers for one sample; None where they are not known of every layer.
        bytes: Size in the format of the pattern: of single weights compressed rows, of N:M values and places, of blocks
            compressed rows of blocks, of channels and heads the smaller network.
        dense_bytes: Size where zeros are stored, too; of channels and heads of the smaller network.
        csr_bytes: Size of the weights that stay in compressed rows, 32 bits a place.
    """

    sparsity: float
    parameters: float
    macs: float | None
    bytes: float
    dense_bytes: float
    csr_bytes: float


def saving_at(savings: Sequence[Saving], sparsity: float) -> Saving:
    """Read what is left at a sparsity, linear between those that were computed.

    Args:
        savings: By rising sparsity, the dense network first.
        sparsity: Removed fraction, at most that of the last.

    Raises:
        UserError: Nothing is known, or the sparsity is beyond what the pattern removes.

    Example:
        >>> rows = [Saving(0.0, 10, 20.0, 40, 40, 40), Saving(1.0, 0, 0.0, 0, 40, 8)]
        >>> saving_at(rows, 0.25).macs
        15.0
    """
    if not savings:
        raise UserError("savings: nothing is known of this pattern in a limit from a file; predict it with pattern=")
    places = [row.sparsity for row in savings]
    expected = f"0 to {places[-1]:.4f}, the most of the pattern"
    sparsity = number("sparsity", sparsity, expected, lambda own: places[0] <= own <= places[-1])

    def read(name: str) -> float:
        return float(np.interp(sparsity, places, [getattr(row, name) for row in savings]))

    macs = None if any(row.macs is None for row in savings) else read("macs")
    return Saving(sparsity, read("parameters"), macs, read("bytes"), read("dense_bytes"), read("csr_bytes"))


@dataclass(frozen=True)
class BudgetAnswer:
    """A budget, the sparsity that meets it, and whether that can be reached.

    Attributes:
        quantity: ``"parameters"``, ``"macs"``, ``"bytes"`` or ``"latency"``.
        share: Share of the dense network's that may remain.
        sparsity: Least sparsity of the pattern at which no more remains.
        saving: What is left there.
        verdict: Whether it can be reached.
    """

    quantity: str
    share: float
    sparsity: float
    saving: Saving
    verdict: Verdict


def sparsity_within(savings: Sequence[Saving], quantity: str, share: float) -> tuple[float, float]:
    """Return between which of the computed sparsities a share of the dense network's quantity is first met.

    Args:
        savings: By rising sparsity, the dense network first.
        quantity: ``"parameters"``, ``"macs"`` or ``"bytes"``; bytes are those of the dense network.
        share: Share that may remain, in (0, 1).

    Returns:
        The last sparsity at which more remains and the first at which no more does; nothing in between was computed.

    Raises:
        UserError: The quantity is unknown, the share is out of range, or the pattern never gets there; the least share
            is named.

    Example:
        >>> rows = [Saving(0.0, 10, 20.0, 40, 40, 40), Saving(1.0, 0, 0.0, 0, 40, 8)]
        >>> sparsity_within(rows, "macs", 0.5)
        (0.0, 1.0)
    """
    share = number(quantity, share, SHARE, lambda own: 0 < own < 1)
    values = [getattr(row, quantity) for row in savings]
    if not values or None in values:
        raise UserError(f"{quantity}: not known of every prunable layer of this limit; state the budget in another one")
    whole = savings[0].dense_bytes if quantity == "bytes" else values[0]
    shares = [value / whole for value in values]
    first = next((place for place, value in enumerate(shares) if value <= share), None)
    if first is None:
        raise UserError(
            f"{quantity}: the pattern leaves at least {min(shares):.4f} of the dense network's, got {share:g}; "
            f"the nearest is {quantity}={min(shares):.4f}"
        )
    return savings[max(0, first - 1)].sparsity, savings[first].sparsity
