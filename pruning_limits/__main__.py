"""Run the command ``pruning-limits`` by ``python -m pruning_limits``."""

from __future__ import annotations

import sys
from importlib import import_module

from pruning_limits.companions import refuse_foreign


def main() -> None:
    """Run the command, or say in one line that another package bears the name of the one that holds it."""
    try:
        refuse_foreign("validation")
    except ImportError as error:
        sys.exit(f"Error: {error}")
    import_module("validation.cli").main()


if __name__ == "__main__":
    main()
