"""A suite: the networks that are trained, and the settings that the tables find in its sections."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar

from estimators.errors import UserError
from validation.training import Network


class Settings(Hashable, Protocol):
    """A frozen dataclass of settings beside the table that declares it; every field has a default.

    Attributes:
        section: Name of the section of a suite's file that holds the settings.
    """

    section: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


Kind = TypeVar("Kind", bound=Settings)


@dataclass(frozen=True)
class Suite:
    """A named set of networks and the settings that all of them share.

    Args:
        name: Name of the suite.
        networks: Networks, one per model, data set and seed.
        sections: Settings that differ from the defaults, one of a class at most.

    Example:
        >>> from validation.studies.limits.splits import SplitSettings
        >>> suite = Suite("mine", (), (SplitSettings(shares=(0.9,)),))
        >>> suite.settings(SplitSettings).shares
        (0.9,)
        >>> suite.plain(SplitSettings)
        {'splits': {'shares': (0.9,)}}
    """

    name: str
    networks: tuple[Network, ...]
    sections: tuple[Settings, ...] = ()

    def settings(self, kind: type[Kind]) -> Kind:
        """Return the settings of a class; the defaults where the suite says nothing."""
        return next((section for section in self.sections if isinstance(section, kind)), kind())

    def plain(self, *kinds: type[Settings]) -> dict[str, dict[str, Any]]:
        """Return the settings of classes by the names of their sections, as plain values."""
        return {kind.section: asdict(self.settings(kind)) for kind in kinds}

    def replaced(self, settings: Settings) -> Suite:
        """Return the suite with other settings of the same class."""
        others = (section for section in self.sections if type(section) is not type(settings))
        return replace(self, sections=(*others, settings))

    def trained_in(self, precision: str) -> Suite:
        """Return the suite with every network trained in a precision, ``"float32"`` or ``"bfloat16"``.

        Raises:
            UserError: There is no such precision.
        """
        networks = (replace(n, recipe=replace(n.recipe, precision=precision)) for n in self.networks)
        return replace(self, networks=tuple(networks))

    def only(self, pattern: str) -> Suite:
        """Return the suite of the networks in whose ``model-dataset-seed`` a regular expression is found.

        Raises:
            UserError: The pattern is no regular expression, or no network is left.
        """
        try:
            networks = tuple(n for n in self.networks if re.search(pattern, f"{n.model}-{n.dataset}-{n.seed}"))
        except re.error as error:
            raise UserError(f"only: {pattern!r} is not a regular expression: {error}") from None
        if not networks:
            raise UserError(f"only: no network of suite {self.name} matches {pattern!r} in its model-dataset-seed")
        return replace(self, networks=networks)
