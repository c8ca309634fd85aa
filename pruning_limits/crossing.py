"""Search for the sparsity at which a function first exceeds what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable

BEYOND = 0.4
PARTS = 4
NEAR = 1 / 2  # of a width: where a guess is so near to an end that all data told of, the other end lies a width away
MISSES = 2  # guesses in a row that did not halve the bracket, after which it is narrowed without one


def first_crossing(
    passes: Callable[[int, bool], bool],
    dimension: int,
    start: int = 0,
    width: int = 1,
    guess: Callable[[int, int], int | None] = lambda low, high: None,
) -> tuple[int, int]:
    r"""Find where a function of the number of removed weights first fails on a grid.

    The grid keeps :math:`k_0/\sqrt2^j` weights, j = 1, 2, ..., of the :math:`k_0` that are there. From the last of its
    points that passes before the first that fails on, three points in between, even in the logarithm of the kept
    number, narrow the bracket to a quarter again and again, always to the first that fails; fewer come where these are
    enough. After the first quarter guesses take their place. All data tell of the first guess. Then two points a width
    apart around the next guess are asked for, or the point a width beyond an end that all data told of, if the guess is
    near that end. Three points come again after two guesses that did not halve the bracket. So every point that was
    asked for below the answer passes, also where the function passes again further on. In the end each of them is asked
    for once more. Where all data contradict what a draw said, the search goes on from there, first along the grid.

    Args:
        passes: ``(count, surely) -> bool``: whether the removal of so many weights passes; ``surely`` asks for an
            answer of all data, which is asked for at the first guess and at the ends of the last bracket.
        dimension: Number D of weights.
        start: Number of weights that are removed already, 0 to D - 1; passes without being asked for.
        width: Largest wanted distance between the ends, in weights.
        guess: ``(low, high) -> count`` between two counts where the function may start to fail, or None.

    Returns:
        The largest count up to which all points of the grid pass, and the first that fails: at most ``width`` apart.
        ``(D, D)`` where none fails.

    Example:
        >>> first_crossing(lambda count, surely: count <= 67, dimension=100)
        (67, 68)
    """
    passed, failed, sure = {start}, {dimension + 1}, {start}
    grid = _coarse(dimension, start)

    def ask(count: int, surely: bool) -> bool:
        result = count == start or (count <= dimension and passes(count, surely))
        (passed if result else failed).add(count)
        (failed if result else passed).discard(count)
        if surely:
            sure.add(count)
        return result

    before, misses = math.inf, 0
    while True:
        high = min(failed)
        low = max(count for count in passed if count < high)
        between = [count for count in grid if low < count < high]
        if not between and high - low > width:
            fine = not {low, high} <= {start, *grid} and high <= dimension
            misses = misses + 1 if 2 * (high - low) > before else 0
            middle = guess(low, high) if fine and misses < MISSES else None
            if middle is not None and sure == {start} and low < middle < high:
                ask(middle, surely=True)
                continue
            before, misses = (high - low, misses) if middle is not None else (math.inf, 0)
            ends = [] if middle is None else _around(middle, low, high, sure - {start}, max(1, width))
            between = [count for count in ends if low < count < high] or _between(low, high, dimension, width)
        if between:
            for count in between:
                if not ask(count, surely=False):
                    break
        elif (
            ask(low, surely=True)
            and not ask(high, surely=True)
            and all(ask(count, surely=False) for count in sorted(passed - sure) if count < low)
        ):
            return (low, high) if high <= dimension else (dimension, dimension)


def _around(middle: int, low: int, high: int, sure: set[int], width: int) -> list[int]:
    """Return what to ask for next around a guess: a width from an end that all data told of, if that is near."""
    if low in sure and middle < low + NEAR * width:
        return [low + width]
    if high in sure and middle > high - NEAR * width:
        return [high - width]
    return [middle - width // 2, middle - width // 2 + width]


def _coarse(dimension: int, start: int) -> list[int]:
    """Return the counts of the grid, rising, the last of them D."""
    there = dimension - start
    counts = {dimension - round(there * 2 ** (-step / 2)) for step in range(1, 2 * there.bit_length())}
    return [*sorted(counts - {start, dimension}), dimension]


def _between(low: int, high: int, dimension: int, width: int) -> list[int]:
    """Return three counts between two, even in the logarithm of what is kept; fewer where these are a width apart."""
    ends, parts = (
        [math.log(max(dimension - count, 0.5)) for count in (low, high)],
        min(PARTS, -(-(high - low) // width)),
    )
    places = (ends[0] + (ends[1] - ends[0]) * part / parts for part in range(1, parts))
    return (
        sorted({count for place in places if low < (count := dimension - round(math.exp(place))) < high})
        or [*range(low + 1, high)][:1]
    )


def largest_passing(
    rise: Callable[[float], float],
    allowed: float,
    guess: float,
    dimension: int,
    resolution: float = 1e-4,
    power: float | None = None,
) -> float:
    """Find up to which sparsity a rising function stays within what is allowed, in few evaluations.

    From the guess on a bracket is sought, then narrowed by interpolation between the logarithms of rise and kept count,
    and by halving where that does not halve it.

    Args:
        rise: Function of sparsity; assumed to pass below and fail above some point, by whatever values.
        allowed: Largest value that passes.
        guess: Where the point may lie.
        dimension: Number D of weights; the answer is a multiple of 1/D.
        resolution: Wanted width of the final bracket, in sparsity.
        power: Power p, > 0, by which the function is thought to go near the guess, as the kept count to the -p; the
            bracket is sought from where it then passes. None seeks it from the guess, in longer strides.

    Returns:
        The largest sparsity that passed; 0 when none did.
    """
    width = max(1, round(resolution * dimension))
    stride = max(width, dimension // 128)
    low, high = 0, dimension + 1
    values: dict[int, float] = {}

    def probe(count: int) -> None:
        nonlocal low, high
        values[count] = rise(count / dimension)
        if values[count] <= allowed:
            low = count
        else:
            high = count

    first = min(dimension, max(1, round(guess * dimension)))
    probe(first)
    if power and 1 < first < dimension and 0 < values[first] < math.inf:
        longer = min(math.log(values[first] / allowed) / power, math.log(dimension))
        crossing, beyond = round(dimension - (dimension - first) * math.exp(longer)), math.ceil(BEYOND * width)
        probe(min(dimension, crossing + beyond) if low else max(1, crossing - beyond))
        stride = max(width, abs(crossing - first) // 4)
    while low and high > dimension > low:
        probe(min(dimension, low + stride))
        stride *= 4
    while low == 0 and high > 1:
        probe(max(1, high - stride))
        stride *= 4
    halved = True
    while (before := high - low) > width:
        middle = (low + high) // 2
        probe(_beyond(low, high, values, allowed, dimension, width) if halved else middle)
        halved = not halved or 2 * (high - low) <= before + 1
    return low / dimension


def _beyond(low: int, high: int, values: dict[int, float], allowed: float, dimension: int, width: int) -> int:
    """Return a count a part of a width beyond the interpolated crossing, from the nearer end; else the middle."""
    middle = (low + high) // 2
    if low == 0 or not (0 < values[low] <= allowed < values[high] < math.inf):
        return middle
    ends = [math.log(max(dimension - count, 0.5)) for count in (low, high)]
    share = math.log(allowed / values[low]) / math.log(values[high] / values[low])
    crossing = dimension - math.exp(ends[0] + share * (ends[1] - ends[0]))
    beyond = BEYOND * width if crossing < middle else -BEYOND * width
    return min(high - 1, max(low + 1, round(crossing + beyond)))
