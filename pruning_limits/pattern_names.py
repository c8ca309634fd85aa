"""The names of pruning patterns, read without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from estimators.errors import UserError

Kind = Literal["unstructured", "n:m", "blocks", "channels", "heads"]
UNSTRUCTURED = "unstructured"
KNOWN = "unstructured, N:M such as 2:4, blocks:RxC such as blocks:16x1, channels or heads"
LARGEST = 1024


@dataclass(frozen=True)
class Pattern:
    """Which weights go together.

    Attributes:
        name: The pattern as it is written, such as ``"2:4"``.
        kind: ``"unstructured"``, ``"n:m"``, ``"blocks"``, ``"channels"`` or ``"heads"``.
        sizes: N and M, or rows and columns of a block; None of others.
    """

    name: str
    kind: Kind
    sizes: tuple[int, int] | None = None

    @property
    def fixed(self) -> bool:
        """Whether the pattern has one sparsity only."""
        return self.kind == "n:m"


def parsed(name: object) -> Pattern:
    """Read the name of a pattern.

    Args:
        name: ``"unstructured"``; ``"N:M"``, N weights kept of every M along the inputs; ``"blocks:RxC"``, blocks of R
            outputs and C inputs; ``"channels"``; ``"heads"``.

    Raises:
        UserError: It is no such name.

    Example:
        >>> parsed("2:4").sizes, parsed("blocks:16x1").kind
        ((2, 4), 'blocks')
    """
    text = name if isinstance(name, str) else ""
    if text in (UNSTRUCTURED, "channels", "heads"):
        return Pattern(text, text)  # type: ignore[arg-type]
    if match := re.fullmatch(r"([1-9]\d{0,3}):([1-9]\d{0,3})", text):
        kept, of = int(match[1]), int(match[2])
        if not kept < of <= LARGEST:
            raise UserError(
                f"pattern: expected N below M of at most {LARGEST} in N:M (N kept of every M), got {name!r}"
            )
        return Pattern(text, "n:m", (kept, of))
    if match := re.fullmatch(r"blocks:([1-9]\d{0,3})x([1-9]\d{0,3})", text):
        sizes = int(match[1]), int(match[2])
        if max(sizes) > LARGEST:
            raise UserError(f"pattern: expected blocks of at most {LARGEST} to a side, got {name!r}")
        return Pattern(text, "blocks", sizes)
    raise UserError(f"pattern: expected {KNOWN}, got {name!r}")


def pattern_names(asked: str | Iterable[str]) -> tuple[str, ...]:
    """Return the names of one pattern or several, checked, each once.

    Raises:
        UserError: A name is unknown, or there is none.

    Example:
        >>> pattern_names("2:4"), pattern_names(["2:4", "heads", "2:4"])
        (('2:4',), ('2:4', 'heads'))
    """
    try:
        names = (asked,) if isinstance(asked, str) else tuple(asked)
    except TypeError:
        names = (asked,)  # type: ignore[assignment]
    if not names:
        raise UserError(f"pattern: expected {KNOWN}, or several of them, got none")
    return tuple(dict.fromkeys(parsed(name).name for name in names))
