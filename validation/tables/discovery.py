"""The tables of all studies, and the sections of suites that they declare."""

from __future__ import annotations

import importlib
import pkgutil

import validation.studies
from validation.tables.suite import Settings
from validation.tables.table import Table


def tables() -> dict[str, Table]:
    """Every table by name: each module of a study may define one as ``TABLE``."""
    result = {}
    for module in pkgutil.walk_packages(validation.studies.__path__, "validation.studies."):
        table = getattr(importlib.import_module(module.name), "TABLE", None)
        if table is not None:
            result[table.name] = table
    return dict(sorted(result.items()))


def sections() -> dict[str, type[Settings]]:
    """Classes of settings that tables declare, by the names of their sections in order.

    Raises:
        ValueError: Two classes name the same section.
    """
    result: dict[str, type[Settings]] = {}
    for table in tables().values():
        for kind in table.sections:
            if result.setdefault(kind.section, kind) is not kind:
                raise ValueError(f"the section {kind.section} belongs to {result[kind.section]} and to {kind}")
    return dict(sorted(result.items()))
