"""Claims and their verdicts: each claim is a list of conditions."""

from __future__ import annotations

from collections.abc import Sequence

RULE = (
    "A claim counts as reproduced where all of its conditions hold, as partly reproduced where some do, and as not "
    "reproduced where none does; every condition is stated with what was measured, over the means of the seeds."
)


def verdict(conditions: Sequence[bool]) -> str:
    """Say whether a claim is reproduced, by the conditions that it consists of.

    Example:
        >>> verdict([True, True]), verdict([True, False]), verdict([False])
        ('reproduced', 'partly reproduced', 'not reproduced')
    """
    if all(conditions):
        return "reproduced"
    return "partly reproduced" if any(conditions) else "not reproduced"


def judged(claim: str, conditions: Sequence[tuple[str, bool]]) -> str:
    """Return one line: the claim, its verdict, and every condition with what was measured.

    Args:
        claim: The claim in words.
        conditions: Texts that state a condition and what was measured, and whether each holds.
    """
    return f"{claim}: **{verdict([holds for _, holds in conditions])}**. {stated(conditions)}."


def stated(conditions: Sequence[tuple[str, bool]]) -> str:
    """Return conditions in words, each with whether it holds.

    Example:
        >>> stated([("a below 1: 0.5", True), ("b below 1: 2.0", False)])
        'a below 1: 0.5 (holds); b below 1: 2.0 (fails)'
    """
    return "; ".join(f"{text} ({'holds' if holds else 'fails'})" for text, holds in conditions)
