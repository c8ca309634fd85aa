"""Text as a data set: windows of characters, each with the characters that follow."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
from torch import Tensor

from validation.data import ImageData
from validation.normalisation import Affine

NAME = "stdlib-text"
LENGTH = 32
WINDOWS, HELD_OUT = 20_000, 5_000
EVERY = 10  # one file of so many is held out


class TextData(ImageData):
    """Windows of characters ``[n, 1, 1, length]`` as numbers, and the characters that follow each place."""

    @property
    def standardised(self) -> Affine:
        """The numbers of the characters as they are."""
        return Affine(divisor=1.0, text="characters as numbers")


def standard_library() -> TextData:
    """Return windows of the source text of Python's standard library.

    Windows begin at random places. Every tenth file, in alphabetical order, is held out. Characters that are not ASCII
    count as one.

    Returns:
        20,000 windows of 32 characters, and 5,000 of files that are held out.
    """
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    parts = [
        b"".join(file.read_bytes() for number, file in enumerate(files) if (number % EVERY == 0) is held_out)
        for held_out in (False, True)
    ]
    values = [torch.frombuffer(bytearray(part), dtype=torch.uint8).clamp(max=128) for part in parts]
    table = torch.zeros(129, dtype=torch.uint8)
    known = torch.cat(values).long().bincount().nonzero().squeeze(1)
    table[known] = torch.arange(len(known), dtype=torch.uint8)
    (x, y), (test_x, test_y) = (
        _windows(table[value.long()], count, seed)
        for seed, (value, count) in enumerate(zip(values, (WINDOWS, HELD_OUT), strict=True))
    )
    return TextData(NAME, x, y, test_x, test_y, len(known))


def _windows(text: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(text) - LENGTH, (count,), generator=torch.Generator().manual_seed(seed))
    windows = text[starts[:, None] + torch.arange(LENGTH + 1)]
    return windows[:, None, None, :-1].contiguous(), windows[:, 1:].long()
