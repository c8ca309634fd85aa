"""The effect of one-shot pruning in a pattern, measured sample by sample against the dense network."""

from __future__ import annotations

from pruning_limits.crossing import first_crossing
from pruning_limits.group_profile import GroupProfile
from pruning_limits.measured import Bar, Point
from pruning_limits.one_shot import BEYOND, PairedDifferences, deciding_of, measured_point


def pattern_points(
    criterion: PairedDifferences, metric: PairedDifferences | None, bar: Bar, width: float
) -> tuple[Point, ...]:
    """Measure how far one-shot pruning in a pattern gets.

    The grid is that of ``first_crossing`` over the steps that the pattern allows, narrowed until its ends are one step
    or ``width`` apart. A pattern of one sparsity is measured there, on all data.

    Args:
        criterion: Rise of the criterion on the training data; its profile is that of the pattern.
        metric: Fall of the metric, or None.
        bar: What may be lost; the one of the two that it names decides.
        width: Wanted width of the last bracket, in sparsity.

    Returns:
        Everything that was measured, by rising sparsity, without the dense network.
    """
    profile = criterion.profile
    assert isinstance(profile, GroupProfile)
    counts = profile.counts.tolist()
    last, start = len(counts) - 1, counts.index(profile.zeros)
    if last == start:
        return ()
    if profile.groups.pattern.fixed:
        return (measured_point(criterion, metric, counts[last], surely=True),)
    deciding = deciding_of(criterion, metric, bar)
    asked = set[int]()

    def passes(step: int, surely: bool) -> bool:
        asked.add(step)
        return bar.passes(deciding.at(counts[step], bar.allowed, surely).mean)

    low, high = first_crossing(passes, last, start, max(1, round(width * last)))
    beyond = {last - round(kept * (last - low)) for kept in BEYOND}
    steps = sorted(asked | {step for step in beyond if high < step <= last})
    return tuple(measured_point(criterion, metric, counts[step], surely=step in (low, high)) for step in steps)
