"""Write the numbers of the present code: python -m tests.golden.make [PATH], from the root of the repository."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import torch

from .networks import NETWORKS, SHARED
from .quantities import Numbers, environment, numbers_of
from .two_ranks import numbers_of_two_ranks

STORED = Path(__file__).parent / "numbers.json"


def golden_numbers(name: str) -> Numbers:
    """Compute the numbers of a network by its name."""
    return numbers_of_two_ranks(name) if name in SHARED else numbers_of(NETWORKS[name]())


def main(path: Path = STORED) -> None:
    torch.set_num_threads(1)  # as in the tests
    stored = {"environment": environment(), "networks": {name: golden_numbers(name) for name in NETWORKS}}
    text = json.dumps(stored, indent=1, allow_nan=False)
    lists_in_one_line = re.sub(r"\[\n[^\[\]]*\]", lambda match: re.sub(r"\s+", " ", match[0]), text)
    path.write_text(lists_in_one_line + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
