"""Check that ``estimators`` and ``validation`` are this library's packages, not user files of the same name."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def refuse_foreign(name: str) -> None:
    """Refuse a package of another project that Python finds under the name of one of this project's.

    The package is looked up and not imported, so that nothing of the other project runs.

    Args:
        name: ``"estimators"`` or ``"validation"``.

    Raises:
        ImportError: Python finds another file or folder under this name, or none at all.
    """
    home = Path(__file__).parent.parent
    spec = find_spec(name)
    if spec is None:
        raise ImportError(f"the package {name!r} is not installed beside pruning_limits; install pruning-limits again")
    places = list(spec.submodule_search_locations or ())
    if any(Path(place).parent.resolve() == home.resolve() for place in places):
        return
    place = spec.origin or ", ".join(places)
    raise ImportError(
        f"pruning_limits needs its own package {name!r} in {home}, but Python finds {place} first; rename or move that"
    )


refuse_foreign("estimators")
