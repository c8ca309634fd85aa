"""Budgets in parameters, multiply-accumulates, bytes or time: the least sparsity that meets one, and its verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from estimators.errors import UserError
from pruning_limits.saving import QUANTITIES, SHARE, BudgetAnswer, saving_at, sparsity_within
from pruning_limits.settings import number

if TYPE_CHECKING:
    from pruning_limits.result import PruningLimit
    from pruning_limits.shrinking import Timing


def budget_of(limit: PruningLimit, shares: Mapping[str, float | None], timings: Sequence[Timing] = ()) -> BudgetAnswer:
    """Return the least sparsity of a limit's pattern that meets a budget, and whether it can be reached.

    Where the limit holds weights the sparsity is exact, else it is the least of those whose savings are stored.

    Args:
        limit: A limit.
        shares: Shares of the dense network's that may remain, by quantity; all but one of them are None.
        timings: What ``latency`` returned, for a budget in time.

    Raises:
        UserError: Not one budget is given, it is out of range, or the pattern cannot meet it; the nearest is named.
    """
    asked = {quantity: share for quantity, share in shares.items() if share is not None}
    if len(asked) != 1:
        raise UserError(f"budget: expected one of {', '.join(shares)}, got {len(asked)}")
    ((quantity, given),) = asked.items()
    share = number(quantity, given, SHARE, lambda own: 0 < own < 1)
    if quantity in QUANTITIES:
        savings = limit.evidence.savings
        if limit.profile is None:
            sparsity = sparsity_within(savings, quantity, share)[1]
        else:
            from pruning_limits.savings import sparsity_for

            sparsity = sparsity_for(limit.profile, quantity, share)
    else:
        sparsity = _within_time(share, timings)
    return BudgetAnswer(quantity, share, sparsity, saving_at(limit.evidence.savings, sparsity), limit.check(sparsity))


def _within_time(share: float, timings: Sequence[Timing]) -> float:
    if len(timings) < 2:
        raise UserError("latency: is measured; give timings=limit.latency(model, loader)")
    shares = np.minimum.accumulate([timing.seconds / timings[0].seconds for timing in timings])
    if shares[-1] > share:
        nearest = float(shares[-1])
        raise UserError(f"latency: the networks that were timed take {nearest:.3f} of the dense one's, got {share:g}")
    return float(np.interp(-share, -shares, [timing.sparsity for timing in timings]))
