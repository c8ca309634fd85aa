"""The parts of a table: its cells, the bench that they run on, and the writing of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from validation.data import ImageData
from validation.tables.suite import Settings, Suite
from validation.tables.writing import Row
from validation.training import Network, trained_network

Value = TypeVar("Value")


@dataclass(frozen=True)
class Cell:
    """One unit of work: a network, and what is done to it.

    Attributes:
        start: The trained network that the cell starts from; None in a table that has none.
        part: Further coordinates as plain values, such as a pruner and a sparsity.
    """

    start: Network | None
    part: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def network(self) -> Network:
        """The trained network that the cell starts from."""
        return _present(self.start)


@dataclass(frozen=True)
class Bench:
    """What a cell works with.

    Attributes:
        suite: Settings shared by all cells.
        images: The network's data set, on the device that the cell works on; None in a table without networks.
        out: Folder of all runs.
        folder: Folder of this cell.
        progress: Show progress bars.
    """

    suite: Suite
    images: ImageData | None
    out: Path
    folder: Path
    progress: bool

    @property
    def data(self) -> ImageData:
        """The network's data set."""
        return _present(self.images)

    def model(self, network: Network) -> nn.Module:
        """Return the trained network, trained once for all tables, on the device of its data."""
        return trained_network(network, self.data, self.out, self.progress)


def _present(value: Value | None) -> Value:
    if value is None:
        raise TypeError("a cell without a network has neither network nor data")
    return value


def one_cell_per_network(suite: Suite) -> list[Cell]:
    """Return the cells of a table that asks one thing of every network."""
    return [Cell(network) for network in suite.networks]


def _trained(network: Network, bench: Bench) -> nn.Module:
    return bench.model(network)


@dataclass(frozen=True)
class Table:
    """A table of the validation.

    Attributes:
        name: What ``--table`` calls it.
        settings: The suite's settings that a cell's result depends on, as plain values.
        run: Computes the row of a cell.
        write: Writes rows, in the order of the cells, to a folder; the last argument is the command to note.
        cells: The cells of a suite.
        sections: Classes of the settings that the table reads from a suite.
        prepare: What is made of a network before its cells, once for all of them; its training, where not told.
        rows_of: Name of another table whose cells these are, when they are the same.
    """

    name: str
    settings: Callable[[Suite], dict[str, Any]]
    run: Callable[[Cell, Bench], Row]
    write: Callable[[Sequence[Row], Suite, Path, str], None]
    cells: Callable[[Suite], list[Cell]] = one_cell_per_network
    sections: tuple[type[Settings], ...] = ()
    prepare: Callable[[Network, Bench], Any] = _trained
    rows_of: str | None = None
